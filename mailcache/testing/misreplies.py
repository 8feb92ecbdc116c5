"""What each kind of fault puts on the wire in place of the right reply. No I/O: replies in, octets out."""

from __future__ import annotations

import attrs

from mailcache.testing.faults import REFUSING

#: Octets of an over-long line, its CRLF included: RFC 5321 4.5.3.1.5 allows 512.
LONG_LINE = 3_000

#: A line without end: so many octets, so often, so many times.
ENDLESS_LINE_PIECE = 1_000
ENDLESS_LINE_INTERVAL = 0.1
ENDLESS_LINE_PIECES = 200

#: A reply without end: lines in all, lines in one write.
ENDLESS_REPLY_LINES = 10_000
ENDLESS_REPLY_WRITE = 100

GARBAGE = b"%$#@! this is not SMTP\r\n"
NOT_TLS = b"%$#@! this is not TLS\r\n"
UNSOLICITED = b"250 2.0.0 unsolicited\r\n"
INJECTED = b"220 go ahead\r\n250-INJECTED\r\n250 AUTH PLAIN\r\n"

#: A record of application data that no key has made; of a handshake, likewise.
CORRUPT_RECORD = b"\x17\x03\x03\x00\x40" + b"\xa5" * 64
CORRUPT_HANDSHAKE = b"\x16\x03\x03\x00\x40" + b"\xa5" * 64

_CLOSING = b"421 4.3.2 service not available, closing\r\n"
_REFUSALS: dict[tuple[str, str], bytes] = {
    ("idle", "421"): b"421 4.4.2 idle too long, closing\r\n",
    ("idle", "4xx"): b"451 4.4.2 idle too long\r\n",
    ("banner", "4xx"): b"450 4.3.2 try again later\r\n",
    ("banner", "5xx"): b"554 5.3.2 no service here\r\n",
    ("ehlo", "5xx"): b"550 5.7.1 go away\r\n",
    ("ehlo2", "5xx"): b"550 5.7.1 go away\r\n",
    ("starttls", "4xx"): b"454 4.7.0 TLS not available for the moment\r\n",
    ("starttls", "5xx"): b"554 5.7.0 no TLS for you\r\n",
    ("auth", "4xx"): b"454 4.7.0 try again later\r\n",
    ("auth", "5xx"): b"535 5.7.8 credentials not accepted\r\n",
    ("content", "5xx"): b"552 5.3.4 message too big\r\n",
    ("dot", "5xx"): b"554 5.6.0 content refused\r\n",
    ("after_dot", "5xx"): b"554 5.6.0 content refused\r\n",
    ("rset", "5xx"): b"500 5.5.1 not now\r\n",
    ("quit", "5xx"): b"500 5.5.1 not now\r\n",
}


@attrs.frozen
class Script:
    """
    Octets to write.

    @ivar pieces: each of them a write of its own.
    @ivar delay: seconds before the first.
    @ivar interval: seconds between any two; 0: the next turn.
    @ivar mute: the server says nothing more after it.
    """

    pieces: tuple[bytes, ...]
    delay: float = 0.0
    interval: float = 0.0
    mute: bool = False

    @property
    def at_once(self) -> bool:
        """One piece and now: it can go out in one write with replies before it."""
        return len(self.pieces) == 1 and not self.delay and not self.mute


def refusal(point: str, kind: str) -> bytes:
    """The reply of a refusing kind: its code fits the command."""
    if kind == "421":
        return _REFUSALS.get((point, kind), _CLOSING)
    general = b"451 4.3.0 try again later\r\n" if kind == "4xx" else b"550 5.7.1 refused\r\n"
    return _REFUSALS.get((point, kind), general)


def script(kind: str, point: str, reply: bytes, following: bytes, slow_delay: float, drip_interval: float) -> Script:
    """
    What goes out.

    @param kind: none of the breaking ones.
    @param reply: the right reply, with its CRLF.
    @param following: the reply that the next command would have, for ``early``.
    """
    if kind in REFUSING:
        return Script((refusal(point, kind),))
    if kind == "silence":
        return Script((), mute=True)
    if kind == "slow":
        return Script((reply,), delay=slow_delay)
    if kind == "drip":
        return Script(_octets(reply), interval=drip_interval)
    if kind == "split":
        return Script(_octets(reply))
    code = reply[:3]
    if kind == "nolf":
        endless = (b"x" * ENDLESS_LINE_PIECE,) * ENDLESS_LINE_PIECES
        return Script((code + b" ", *endless), interval=ENDLESS_LINE_INTERVAL, mute=True)
    if kind == "endless":
        lines = (code + b"-x\r\n") * ENDLESS_REPLY_WRITE
        return Script((lines,) * (ENDLESS_REPLY_LINES // ENDLESS_REPLY_WRITE), mute=True)
    return Script((_line(kind, point, reply, following),))


def _octets(reply: bytes) -> tuple[bytes, ...]:
    return tuple(reply[index : index + 1] for index in range(len(reply)))


def _line(kind: str, point: str, reply: bytes, following: bytes) -> bytes:
    code, before_last = reply[:3], _last_line(reply)
    match kind:
        case "garbage":
            return GARBAGE
        case "early":
            return reply + following
        case "dup":
            return reply * 2
        case "unsolicited":
            return UNSOLICITED if point == "idle" else reply + UNSOLICITED
        case "nul":
            if point == "dot":
                return b"\0" + reply
            return reply[: before_last + 4] + b"\0" + reply[before_last + 4 :]
        case "longline":
            start = b"" if point == "dot" else code + b" "
            return start + b"x" * (LONG_LINE - len(start) - 2) + b"\r\n"
        case "mixed":
            return b"550-5.0.0 no\r\n" + code + b" and yes\r\n"
        case "digits2":
            return code[:2] + b" ok\r\n"
        case "digits4":
            return code + b"0 ok\r\n"
        case "nosep":
            return code + b"ok\r\n"
        case "zero":
            return b"000 ok\r\n"
        case "barelf":
            return reply.replace(b"\r\n", b"\n")
        case "multi":
            missing = max(0, 3 - reply.count(b"\r\n"))
            return reply[:before_last] + (code + b"-more\r\n") * missing + reply[before_last:]
        case "inject":
            return INJECTED
    raise ValueError(f"{kind!r} breaks the connection and has no octets of its own")


def _last_line(reply: bytes) -> int:
    """Where the last line of a reply begins."""
    return reply.rfind(b"\r\n", 0, -2) + 2 if reply.count(b"\r\n") > 1 else 0
