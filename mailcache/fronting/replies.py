"""Replies to a stock client: the server's own as they came, and what to say where there is none."""

from __future__ import annotations

from mailcache.result import DeliveryError, UncertainDelivery
from mailcache.wire.replies import MAX_LINE, Reply

_SUBJECTS = {
    "waiting": "3.2",
    "routing": "4.4",
    "bind": "4.1",
    "connect": "4.1",
    "greeting": "4.1",
    "ehlo": "4.1",
    "starttls": "7.5",
    "tls": "7.5",
    "trust": "7.5",
    "auth": "7.4",
    "needs": "6.3",
    "content": "6.0",
}
"""Subject and detail of the enhanced code (RFC 3463) by phase; "4.2", a bad connection, for all others."""


def own(code: int, text: str) -> Reply:
    """A reply of the front's own: ``text`` as one printable line, which a client takes for one."""
    return Reply.make(code, _cut("".join([character if character.isprintable() else "?" for character in text])))


def shown(reply: Reply) -> tuple[bytes, ...]:
    """The texts of ``reply``'s lines as the server wrote them, or one printable line if it has a flaw, or controls in
    it: they end in somebody's log, or on a terminal."""
    as_it_is = reply.flaw is None and all(map(_printable, reply.lines))
    return reply.lines if as_it_is else (_cut(reply.text).encode(),)


def encoded(reply: Reply) -> bytes:
    """The octets of ``reply`` for a client, with the lines of `shown`."""
    lines = shown(reply)
    heads = [b"%d-" % reply.code] * (len(lines) - 1) + [b"%d " % reply.code]
    return b"".join([head + line + b"\r\n" for head, line in zip(heads, lines, strict=True)])


def _cut(text: str) -> str:
    """What of ``text`` fits a line with its code and its end."""
    return text.encode()[: MAX_LINE - 6].decode("utf-8", "ignore")


def _printable(line: bytes) -> bool:
    """Whether ``line`` is a text of RFC 5321 4.2 or RFC 6531 3.7.4.1: printable, with tabs."""
    try:
        return line.replace(b"\t", b" ").decode().isprintable()
    except UnicodeDecodeError:
        return False


def refusal(error: DeliveryError) -> Reply:
    """What a client is told of ``error``: what the server said if it has refused, else why, as 4yz or 5yz."""
    if error.reply is not None and error.reply.negative:
        return error.reply
    subject = _SUBJECTS.get(error.phase, "4.2")
    # A server that does not let anybody log in will not do so in a minute.
    if error.retriable and error.phase != "auth":
        return own(451, f"4.{subject} {error}")
    return own(554, f"5.{subject} {error}")


def doubt(error: UncertainDelivery) -> Reply:
    """What a client is told where nobody can know: with 5yz, since 4yz asks for the message again."""
    return own(554, f"5.4.0 {error}")
