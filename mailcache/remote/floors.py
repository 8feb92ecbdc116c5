"""What a keeper demands of TLS is a floor: borrowers may ask for more, never for less.

Where a demand is one for proof, what counts as proof is for the keeper alone to say: a name, a digest or a trust anchor
of the borrower's choice would be a way under the floor. What neither side can be said to exceed is the keeper's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import attrs
from OpenSSL import SSL

from mailcache.destination import Destination
from mailcache.trust.policy import VERSIONS, TLSPolicy

_RANKS = {"none": 0, "may": 1, "encrypt": 2, "fingerprint": 3, "verify": 3, "secure": 3}
_PROOF = 3
_DEFAULT_CIPHERS = "DEFAULT"


@attrs.frozen(slots=True)
class Demand:
    """The least that a destination must have; ``None`` and ``()`` demand nothing.

    ``trust_anchors`` is PEM, for levels that a borrower asks for as well; with a ``level`` that demands proof and
    without anchors, those of the platform count.
    """

    level: str | None = None
    match: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    servername: str | None = None
    min_version: str | None = None
    ciphers: str | None = None
    trust_anchors: bytes | None = attrs.field(default=None, repr=False)

    @property
    def proof(self) -> bool:
        """Whether a certificate has to be proved."""
        return self.level is not None and _RANKS[self.level] == _PROOF


def floor(asked: Destination, demanded: Demand) -> Destination:
    """``asked``, raised to what is ``demanded`` where it is less.

    The level is the higher one, in the order none, may, encrypt, then those with a proof. "secure" is more than
    "verify"; of any other two with a proof the demanded one holds. The minimal version is the higher one.
    """
    own = asked.tls
    match, fingerprints, anchors = own.match, own.fingerprints, asked.trust_anchors
    level = _level(own.level, demanded.level)
    if demanded.proof:
        match, fingerprints = _both(own.match, demanded.match), _both(own.fingerprints, demanded.fingerprints)
    if demanded.proof or demanded.trust_anchors is not None:
        anchors = demanded.trust_anchors
    policy = TLSPolicy(
        level,
        match=match if level in ("verify", "secure") else (),
        fingerprints=fingerprints if level == "fingerprint" else (),
        servername=demanded.servername or own.servername,
        min_version=max(own.min_version, demanded.min_version or own.min_version, key=VERSIONS.index),
        ciphers=_ciphers(own.ciphers, demanded),
    )
    if policy == attrs.evolve(own, ca_file=None) and anchors == asked.trust_anchors:
        return asked
    return remade(asked, tls=policy, trust_anchors=anchors)


def _level(asked: str, demanded: str | None) -> str:
    if demanded is None or _RANKS[asked] > _RANKS[demanded]:
        return asked
    if asked == "secure" and demanded == "verify":
        return asked
    return demanded


def _both(asked: tuple[str, ...], demanded: tuple[str, ...]) -> tuple[str, ...]:
    """What satisfies both sides, of what is demanded; all of that, if nothing does."""
    return tuple(value for value in demanded if value in asked) or demanded


def _ciphers(asked: str | None, demanded: Demand) -> str | None:
    """The ciphers asked for, if they are none but those that would do."""
    if asked is None or (demanded.ciphers is None and _RANKS[demanded.level or "none"] < _RANKS["encrypt"]):
        return asked or demanded.ciphers
    # A security level in it lowers more than what is selected.
    if "@" not in asked and _selected(asked) <= _selected(demanded.ciphers or _DEFAULT_CIPHERS):
        return asked
    return demanded.ciphers


@lru_cache(maxsize=64)
def _selected(ciphers: str) -> frozenset[str]:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_cipher_list(ciphers.encode("ascii"))
    return frozenset(SSL.Connection(context, None).get_cipher_list())


def remade(destination: Destination, **changes: Any) -> Destination:
    """``destination`` with other values; no file is read.

    :param changes: ``tls``, ``bind_address``, ``helo_name``, ``credentials``, ``uid``, and the content of files,
        ``trust_anchors`` and ``client_pem``.
    :raises ValueError: for values that do not fit each other.
    """
    was = destination
    values = {
        "tls": was.tls,
        "bind_address": was.bind_address,
        "helo_name": was.helo_name,
        "credentials": was.credentials,
        "uid": was.identity.uid,
        "trust_anchors": was.trust_anchors,
        "client_pem": was.client_pem,
    } | changes
    made = Destination(
        was.next_hop,
        protocol=was.protocol,
        namespace=was.namespace,
        bind_address=values["bind_address"],
        helo_name=values["helo_name"],
        proxy=was.proxy,
        tls=attrs.evolve(values["tls"], ca_file=None),
        one_flight=was.one_flight,
    ).on_behalf(values["uid"], values["trust_anchors"], values["client_pem"])
    credentials = values["credentials"]
    return made if credentials is None else made.with_credentials(credentials)
