"""Challenges of a server that is to be logged in at: no secret comes back out, and nobody is in who was not let in."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from scramp import ScramMechanism
from twisted.internet.defer import Deferred, succeed

from mailcache import Credentials, DeliveryError
from mailcache.authentication import MAX_CHALLENGES, Authentication, Logins, Secrets
from mailcache.wire import sasl
from mailcache.wire.capabilities import Capabilities
from mailcache.wire.oauth import OAuthBearer, XOAuth2
from mailcache.wire.replies import Reply, ReplyParser
from mailcache.wire.sasl import CramMD5, External, Login, Mechanism, Plain, SaslError, ServerNotProvenError
from mailcache.wire.scram import ScramSHA256
from tests.fuzz.choices import Choices, expanded
from tests.fuzz.target import Target

USER, SECRET = "user", "c4n4ry-secret"
_SCRAM = ScramMechanism("SCRAM-SHA-256")
_KNOWN = _SCRAM.make_auth_info(SECRET, iteration_count=4_096, salt=b"0123456789abcdef")

_MAKERS: tuple[Callable[[], Mechanism], ...] = (
    lambda: Plain(USER, SECRET),
    lambda: Login(USER, SECRET),
    lambda: CramMD5(USER, SECRET),
    lambda: ScramSHA256(USER, SECRET, "fyko+d2lbbFgONRv9qkxdawL"),
    lambda: OAuthBearer(USER, SECRET),
    lambda: XOAuth2(USER, SECRET),
    lambda: External(USER),
)


def check(data: bytes) -> None:
    """A mechanism by itself, or the whole exchange."""
    choices = Choices(data)
    way = choices.byte()
    if way & 1:
        check_exchange(choices, way >> 1)
    else:
        check_mechanism(choices, _MAKERS[(way >> 1) % len(_MAKERS)]())


def check_mechanism(choices: Choices, mechanism: Mechanism) -> None:
    """It answers, or says by `SaslError` that it can not. SCRAM believes only who knows the password."""
    said = [mechanism.initial() or b""]
    assert SECRET not in repr(mechanism)
    proven = not isinstance(mechanism, ScramSHA256)
    server = _SCRAM.make_server(lambda _: _KNOWN)
    for _ in range(6):
        challenge, right = _challenge(choices, mechanism, server, said)
        proven = proven or right
        try:
            answer = mechanism.respond(challenge)
        except SaslError as error:
            assert str(error).isprintable() and SECRET not in str(error) and len(str(error)) < 300
            break
        assert len(answer) < 12_000 and (proven or len(said) < 5)
        said.append(answer)
        assert mechanism.problem is None or (mechanism.problem.isprintable() and len(mechanism.problem) <= 60)
        if not choices.left:
            break
    try:
        mechanism.finish()
    except ServerNotProvenError:
        assert isinstance(mechanism, ScramSHA256)
    except SaslError:
        pass
    else:
        assert proven, "a server that does not know the password is believed"


def _challenge(choices: Choices, mechanism: Mechanism, server: Any, said: list[bytes]) -> tuple[bytes, bool]:
    """The next challenge, and whether it is the proof that only a server has which knows the password."""
    what = choices.below(4)
    if isinstance(mechanism, ScramSHA256) and what < 2:
        try:
            if len(said) == 1:
                server.set_client_first(said[0].decode())
                return _bent(choices, server.get_server_first().encode()), False
            server.set_client_final(said[-1].decode())
            proof = server.get_server_final().encode()
            bent = _bent(choices, proof)
            return bent, bent.split(b",")[0] == proof
        except Exception:  # noqa: BLE001  (the server's side has its own ways to be out of step)
            return choices.piece(), False
    text = expanded(choices.piece())
    try:
        octets = sasl.decode_challenge(text)
    except SaslError:
        return text, False
    assert base64.b64encode(octets) == text
    return octets, False


def _bent(choices: Choices, message: bytes) -> bytes:
    """``message``, or something near it."""
    if choices.flag():
        at = len(message) * choices.byte() // 256
        return message[:at] + choices.piece() + message[at + choices.below(4) :]
    return message


_CREDENTIALS = (
    Credentials(USER, SECRET),
    Credentials(USER, token=SECRET),
)
_OFFERED = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2")


def check_exchange(choices: Choices, way: int) -> None:
    """It ends in being let in by a 235, or in a `DeliveryError` that has no secret; and it does end."""
    credentials = _CREDENTIALS[way & 1]
    offered = tuple(name for place, name in enumerate(_OFFERED) if choices.byte() & 1 or place == way % len(_OFFERED))
    asked: list[bytes] = []
    heard: list[Reply] = []

    def ask(line: bytes) -> Deferred[Reply]:
        assert line.endswith(b"\r\n") and line.count(b"\n") == 1
        asked.append(line)
        assert len(asked) <= MAX_CHALLENGES + 2, "it goes on for ever"
        heard.append(_reply(choices))
        return succeed(heard[-1])

    def error(message: str, *, reply: Reply | None = None, retriable: bool = True) -> DeliveryError:
        shown = reply if reply is None else secrets.without(reply)
        return DeliveryError(message, phase="auth", retriable=retriable, reply=shown)

    def check_code(reply: Reply, code: int, problem: str) -> None:
        if reply.code != code:
            raise error(problem, reply=reply)

    secrets = Secrets()
    authentication = Authentication(
        credentials, Capabilities({"AUTH": offered}), Logins(lambda: 0.0), "login", False, True, secrets, ask,
        check_code, error,
    )  # fmt: skip
    outcome: list[Any] = []
    Deferred.fromCoroutine(authentication.run()).addBoth(outcome.append)
    (came,) = outcome
    if came is None:
        assert heard[-1].code == 235, "let in without a word of it"
        return
    came.trap(DeliveryError)
    shown = str(came.value) + repr(came.value.reply)
    assert SECRET not in shown, "a secret is told"
    # Of a line to log in by, the last word is what was said; a name of a mechanism alone is no secret.
    said = [line.decode().rpartition(" ")[2].strip() for line in asked]
    assert not any(word in shown for word in said if len(word) > 8 and word not in _OFFERED), "what was said is told"


def _reply(choices: Choices) -> Reply:
    what = choices.below(8)
    text = expanded(choices.piece()).replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")[:1_000]
    if what == 0:
        text = base64.b64encode(text)
    code = (334, 334, 334, 235, 535, 454, 503, 250)[what]
    return ReplyParser().feed(b"%d %s\r\n" % (code, text))[0]


_B64 = base64.b64encode(b"<1896.697170952@postoffice.example>")

TARGET = Target(
    "sasl",
    check,
    (
        *(bytes([2 * mechanism, what]) + b"\0" * 4 for mechanism in range(7) for what in (0, 2)),
        *(bytes([2 * mechanism, 2, len(_B64)]) + _B64 + b"\2\0\2\0" for mechanism in range(7)),
        *(bytes([2 * mechanism, 2, 28]) + b"eyJzdGF0dXMiOiI0MDAifQ=====" for mechanism in (4, 5)),
        b"\6\0\0\0\0",
        b"\6\0\0\1\0\x01v\1",
        *(b"\6\0\0\0\1" + bytes([at, 3]) + b"xyz\1" for at in (0x00, 0x40, 0x80, 0xF0)),
        b"\6\0\1\xc0\x03999\0\0\0",
        b"\6\2\x10e=other-error,x=y",
        *(
            bytes([1 + 2 * way]) + b"\1\1\1\1\1\1" + bytes([what, 3]) + b"abc\3\2ok"
            for way in range(4)
            for what in range(8)
        ),
        b"\1\0\0\0\1\0\0\0\0\0\0\0\0\3\0",
        b"\1\1\0\0\0\0\0\4\x0dc4n4ry-secret",
    ),
    (
        b"c4n4ry-s",
        b"c4n4ry-secret",
        b"YzRuNHJ5LXNlY3JldA==",
        b"e=",
        b"v=",
        b"r=",
        b",s=",
        b",i=4096",
        b"334 ",
        b"=\0\0",
    ),
    max_input=600,
)
