"""``python -m tests.nightly.keys``: keys are equal if and only if what they are made of means the same.

Pairs of destinations, and pairs of keys of any text at all, are drawn so that most of them nearly agree: the same but
for one field, the same written otherwise, or the same characters with the border between two fields elsewhere.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
import time
from collections import Counter
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any

import attrs

from mailcache import Credentials, Destination, TLSPolicy
from mailcache.destination import Endpoint, SessionKey
from mailcache.remote import codec
from mailcache.result import DeliveryError
from tests.test_destination import key_of

PAIRS = 1_000_000
LONG = 65_536
"""Characters of a field that is longer than any buffer of a fixed size would be."""

ONE_IN = 500
"""So seldom is a field that long, since each costs as much as a hundred others."""

PIECES = (
    "a",
    "A",
    "b",
    "1",
    ".",
    "*",
    "|",
    ":",
    ",",
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    "\\",
    "%",
    "=",
    " ",
    "\xe9",
    "e\u0301",
)
UNPRINTABLE = (*PIECES, "\n", "\r", "\0", "\x7f", "\u2028")
NAMES = ("example.com", "www.example.com", "example.com.test", "xn--bcher-kva.example", "a_b.example", "localhost")
ADDRESSES = (
    "192.0.2.1", "192.0.2.11", "::1", "::", "2001:db8::a", "2001:db8::1:a", "2001:db8:0:1::a", "::ffff:192.0.2.1",
    "fe80::1", "fe80::1%lo", "fe80::1%lo0", "fe80::1%Lo", "fe80::1%eth0.5",
)  # fmt: skip
PORTS = (25, 24, 465, 587, 2525, 1, 65535)
VERSIONS = ("TLSv1.2", "TLSv1.3")
UIDS = (None, 0, 1)
SECURE = ("encrypt", "verify", "secure")
PASSWORDS = (("PLAIN",), ("LOGIN",), ("PLAIN", "LOGIN"), ("CRAM-MD5", "LOGIN", "PLAIN"))
TEXTS = 11
"""The fields of a key that are text: all but port, credentials and user."""

KINDS = ("as drawn", "one field changed", "written otherwise", "borders moved", "any text")


@attrs.frozen
class Drawn:
    """What a destination is to mean, in this module's own terms and not in those of the code that is tested.

    :ivar meaning: by the name of the field; see `FIELDS`.
    :ivar uid: the user for whom it is.
    """

    meaning: dict[str, Any]
    uid: int | None

    def spelt(self, random: Random) -> Destination:
        """A destination that means this, written in one of the ways to write it."""
        told = self.meaning
        protocol, where, port = told["protocol"], told["where"], told["port"]
        more: dict[str, Any] = {}
        if told["credentials"] is not None:
            kind, username, secret, mechanisms = told["credentials"]
            if mechanisms is not None:
                mechanisms = random.sample(mechanisms, len(mechanisms))
                mechanisms = [random.choice((str.upper, str.lower))(name) for name in mechanisms]
            more["credentials"] = Credentials(username, **{kind: secret}, mechanisms=mechanisms)
        bind = told["bind_address"]
        level, ciphers, version = told["tls"] if told["tls"] is not None else ("none", None, "TLSv1.2")
        destination = Destination(
            _hop(random, protocol, where, port),
            protocol=protocol,
            namespace=told["namespace"],
            bind_address=None if bind is None else _address(random, bind),
            helo_name=told["helo_name"],
            proxy=told["proxy"],
            tls=TLSPolicy(level, ciphers=ciphers, min_version=version),
            one_flight=random.random() < 0.5,
            **more,
        )
        return destination.on_behalf(self.uid, None, None) if not more else _on_behalf(destination, self.uid)

    @property
    def keyed(self) -> tuple[Any, ...]:
        """What counts for the key: of TLS all but the level, which is judged."""
        told = dict(self.meaning)
        if told["tls"] is not None:
            told["tls"] = told["tls"][1:]
        return (*told.values(), self.uid)


def _on_behalf(destination: Destination, uid: int | None) -> Destination:
    """As a keeper does it: who logs in is said last."""
    login = destination.credentials
    assert login is not None
    return destination.on_behalf(uid, None, None).with_credentials(login)


def text(random: Random, pieces: tuple[str, ...] = PIECES, least: int = 0) -> str:
    """Some characters that have a meaning somewhere, and seldom very many before them."""
    found = "".join(random.choice(pieces) for _ in range(random.randint(least, 4)))
    return "x" * LONG + found if random.randrange(ONE_IN) == 0 else found


def _short(random: Random) -> str:
    """For what has to fit a line of SMTP."""
    return "".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))


def _credentials(random: Random) -> tuple[Any, ...] | None:
    kind = random.choice((None, "password", "password", "token"))
    if kind is None:
        return None
    if kind == "token":
        return kind, random.choice(("a", "A", "b")), random.choice(("s", "S", "s=", "S.s")), None
    return kind, _short(random), _short(random), random.choice((None, *PASSWORDS))


def _where(random: Random) -> tuple[str, str]:
    return random.choice((("name", random.choice(NAMES)), ("address", random.choice(ADDRESSES))))


FIELDS: dict[str, Callable[[Random], Any]] = {
    "protocol": lambda random: random.choice(("smtp", "smtp", "lmtp", "smtps")),
    "where": _where,
    "port": lambda random: random.choice(PORTS),
    "namespace": lambda random: text(random, least=1),
    "bind_address": lambda random: random.choice((None, None, *ADDRESSES)),
    "helo_name": lambda random: random.choice((None, "a.example", "A.example", "b.example", "[192.0.2.1]")),
    "proxy": lambda random: random.choice((None, None, None, _short(random))),
    "credentials": _credentials,
    "tls": lambda random: random.choice(
        (None, *((level, ciphers, version) for level in SECURE for ciphers in (None, "HIGH") for version in VERSIONS))
    ),
}


def _settled(meaning: dict[str, Any]) -> dict[str, Any]:
    """What can't be together, undone."""
    settled = dict(meaning)
    if settled["proxy"] is not None:
        settled["bind_address"] = None
    token = settled["credentials"] is not None and settled["credentials"][0] == "token"
    if settled["tls"] is None and (token or settled["protocol"] == "smtps"):
        settled["tls"] = ("encrypt", None, "TLSv1.2")
    return settled


def _hop(random: Random, protocol: str, where: tuple[str, str], port: int) -> str:
    kind, value = where
    default = {"smtp": 25, "lmtp": 24, "smtps": 465}[protocol]
    behind = "" if port == default and random.random() < 0.5 else f":{'0' * random.randint(0, 2)}{port}"
    if len(behind) > 6:
        behind = f":{port}"
    if kind == "name":
        spelt = "".join(random.choice((character, character.upper())) for character in value)
        spelt += random.choice(("", "."))
        return f"[{spelt}]{behind}"
    prefix = random.choice(("", "IPv6:", "ipv6:")) if ":" in value else ""
    return f"[{prefix}{_address(random, value)}]{behind}"


def _address(random: Random, value: str) -> str:
    address = ipaddress.ip_address(value)
    if address.version == 4:
        return value
    bare, percent, scope = value.partition("%")
    spelt = random.choice((bare, ipaddress.ip_address(bare).exploded, bare.upper()))
    return spelt + percent + scope


def draw(random: Random) -> Drawn:
    meaning = _settled({name: make(random) for name, make in FIELDS.items()})
    return Drawn(meaning, random.choice(UIDS))


def pair(random: Random) -> tuple[str, Drawn, Drawn]:
    """Two that may mean the same, and how they were made."""
    one = draw(random)
    kind = random.choice(KINDS[:4])
    if kind == "as drawn":
        return kind, one, draw(random)
    meaning, uid = dict(one.meaning), one.uid
    if kind == "one field changed":
        name = random.choice((*FIELDS, "uid"))
        if name == "uid":
            uid = random.choice(UIDS)
        else:
            meaning[name] = FIELDS[name](random)
    elif kind == "borders moved" and meaning["credentials"] is not None and meaning["credentials"][0] == "password":
        _, username, secret, mechanisms = meaning["credentials"]
        joined = username + secret
        at = random.randint(1, len(joined))
        meaning["credentials"] = ("password", joined[:at], joined[at:], mechanisms)
    return kind, one, Drawn(_settled(meaning), uid)


def check_destinations(random: Random) -> tuple[str, bool]:
    """One pair; gives how it was made, and whether the two mean the same.

    :raises AssertionError: if the key says otherwise.
    """
    kind, one, other = pair(random)
    same = one.keyed == other.keyed
    destinations = one.spelt(random), other.spelt(random)
    keys = [_key(each) for each in destinations]
    said = f"{one} {other}"
    assert (keys[0] == keys[1]) == same, said
    assert len(set(keys)) == (1 if same else 2), said
    if one.meaning == other.meaning and one.uid == other.uid and len({each.one_flight for each in destinations}) == 1:
        assert destinations[0] == destinations[1], said
    crossed = [_crossed(each) for each in destinations]
    if None not in crossed:
        (data, there), (other_data, other_there) = crossed  # type: ignore[misc]
        assert [_key(there), _key(other_there)] == keys, said
        # The keeper remembers destinations by these bytes and their user.
        assert data != other_data or one.uid != other.uid or same, said
    return kind, same


def _key(destination: Destination) -> SessionKey:
    return destination.key(Endpoint(destination.protocol, destination.hop.name, destination.hop.port))


def _crossed(destination: Destination) -> tuple[bytes, Destination] | None:
    """As it arrives at a keeper; ``None`` for what is too long to be sent there."""
    try:
        data = codec.encode_destination(destination)
    except DeliveryError:
        return None
    return data, codec.decode_destination(data, destination.identity.uid)


def check_texts(random: Random) -> tuple[str, bool]:
    """One pair of keys of any text, which no destination could have.

    :raises AssertionError: if they are not equal exactly where their fields are.
    """
    fields = [text(random, UNPRINTABLE) for _ in range(TEXTS)]
    changed = list(fields)
    at = random.randrange(TEXTS - 1)
    joined = fields[at] + fields[at + 1]
    border = random.choice((len(fields[at]), random.randint(0, len(joined))))
    changed[at : at + 2] = joined[:border], joined[border:]
    if random.random() < 0.2:
        changed[at] = random.choice((changed[at].swapcase(), changed[at] + "\0", changed[at] + "\n"))
    same = fields == changed
    keys = key_of(_flat(fields)), key_of(_flat(changed))
    assert (keys[0] == keys[1]) == same, (fields, changed)
    assert len(set(keys)) == (1 if same else 2), (fields, changed)
    return KINDS[4], same


def _flat(fields: list[str]) -> tuple[Any, ...]:
    """The fields of a key in their order."""
    return (*fields[:2], 25, *fields[2:5], None, *fields[5:7], None, *fields[7:11])


def run(pairs: int, seed: int) -> Counter[str]:
    """Check so many pairs; gives how many of each kind were the same, and how many were not.

    :raises AssertionError: at the first that is wrong.
    """
    random = Random(seed)
    counted: Counter[str] = Counter()
    for number in range(pairs):
        kind, same = (check_texts if number % 4 == 0 else check_destinations)(random)
        counted[f"{kind}: {'the same' if same else 'not the same'}"] += 1
    return counted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.keys", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else SystemRandom().randrange(1 << 32)
    print(f"seed: {seed}")
    began = time.monotonic()
    try:
        counted = run(options.pairs, seed)
    except AssertionError as error:
        print(f"BROKEN: a key does not say what its fields do: {str(error)[:2000]}")
        return 1
    for what, count in sorted(counted.items()):
        print(f"{what}: {count:,}")
    same = sum(count for what, count in counted.items() if not what.endswith("not the same"))
    print(f"pairs: {counted.total():,}")
    print(f"of them mean the same, and have equal keys: {same:,}")
    print(f"of them do not, and have different keys: {counted.total() - same:,}")
    print(f"seconds: {time.monotonic() - began:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
