"""Which faults there are, and where each of them can strike.

A fault has a I{point} in the conversation and a I{kind}: what goes wrong there.

==============  ======================================================================================
point           when it strikes
==============  ======================================================================================
``connect``     right after accept, before any octet
``banner``      in place of the greeting
``ehlo``        the reply to EHLO, LHLO or HELO before STARTTLS (with implicit TLS: to all of them)
``starttls``    the reply to STARTTLS
``handshake``   when the first octets of the client's TLS handshake are there
``ehlo2``       the reply to EHLO after STARTTLS
``auth``        the final reply to AUTH
``idle``        unprompted, on connections between transactions, when the test calls C{strike_idle()}
``mail``        the reply to MAIL
``rcpt``        the reply to RCPT
``data``        the reply to DATA
``content``     when some of the content has come, but not all
``dot``         when the end of the content has come, before the server takes the message
``after_dot``   the reply to the content, when the server has taken the message
``rset``        the reply to RSET
``quit``        the reply to QUIT
==============  ======================================================================================

``early``, ``dup`` and ``unsolicited`` at ``dot`` come with the right reply: the message is taken there too.
For LMTP ``dot`` strikes in place of all replies to the content, ``after_dot`` in place of the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

#: Every kind, and what it does with the right reply.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "421": "421 in its place, then the server closes",
        "4xx": "a temporary refusal in its place (454 for AUTH and STARTTLS)",
        "5xx": "a permanent refusal in its place (535 for AUTH)",
        "garbage": "a line that is no SMTP in its place (at the handshake: octets that are no TLS)",
        "silence": "never an answer again; in the content it stops reading too, idle it shows nothing",
        "slow": "the right reply, slow_delay seconds late",
        "rst": "a reset of the connection",
        "fin": "FIN, without TLS's close_notify",
        "halfclose": "FIN, but the server goes on reading",
        "notify": "TLS's close_notify without FIN",
        "badrecord": "a corrupt TLS record",
        "drip": "one octet each drip_interval seconds",
        "early": "this reply and the next one together, the next one's command not yet sent",
        "dup": "the reply twice in one write",
        "unsolicited": "the reply and one more line, 250, in one write",
        "split": "one octet in each segment",
        "nul": "a NUL in the reply's text (at dot, where nothing may be readable: before its code)",
        "longline": "a line of 3,000 octets with the right code (at dot: without a code)",
        "nolf": "the right code, then octets without an end of line, up to 200,000",
        "endless": "10,000 continuation lines and never a last one",
        "mixed": "a reply whose lines have different codes",
        "digits2": "a code of two digits",
        "digits4": "a code of four digits",
        "nosep": "nothing between code and text",
        "barelf": "the right reply, its lines ended by LF alone",
        "zero": "code 000",
        "multi": "the right reply in three lines",
        "restart": "a reset of all of the server's connections; new ones are refused for restart_seconds",
        "inject": "220 to STARTTLS with more replies behind it, in clear and in one segment",
    }
)

_ANYWHERE = frozenset(KINDS) - {"inject"}
_IN_CLEAR = _ANYWHERE - {"notify", "badrecord"}

#: The kinds that can strike at each point.
APPLICABLE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "connect": frozenset({"silence", "rst", "fin", "restart"}),
        "banner": _IN_CLEAR,
        "ehlo": _IN_CLEAR,
        "starttls": _IN_CLEAR | {"inject"},
        "handshake": frozenset({"garbage", "silence", "slow", "rst", "fin", "halfclose", "badrecord", "restart"}),
        "ehlo2": _ANYWHERE,
        "auth": _ANYWHERE,
        "idle": _ANYWHERE - {"slow", "drip", "early", "dup", "split", "zero", "multi"},
        "mail": _ANYWHERE,
        "rcpt": _ANYWHERE,
        "data": _ANYWHERE,
        "content": _ANYWHERE - {"slow", "drip", "split", "barelf", "zero", "multi"},
        "dot": _ANYWHERE - {"slow", "drip", "split", "barelf", "zero", "multi"},
        "after_dot": _ANYWHERE,
        "rset": _ANYWHERE,
        "quit": _ANYWHERE,
    }
)

#: Kinds that refuse what was asked, so that the server does not do it.
REFUSING = frozenset({"421", "4xx", "5xx"})

#: Kinds that break the connection or the TLS on it, without any reply.
BREAKING = frozenset({"rst", "fin", "halfclose", "notify", "badrecord", "restart"})

#: Kinds with which the right reply goes out whole and its code can be read: who reads all of it can know.
READABLE = frozenset(
    {"slow", "drip", "early", "dup", "unsolicited", "split", "nul", "longline", "barelf", "multi", "inject"}
)

#: Kinds that exist under TLS only.
NEEDS_TLS = frozenset({"notify", "badrecord"})

#: Points that are never reached without a certificate.
TLS_POINTS = frozenset({"starttls", "handshake", "ehlo2"})


@attrs.frozen
class Fault:
    """
    One thing that goes wrong.

    @ivar point: where: see the table of this module.
    @ivar kind: what: see L{KINDS}.
    @ivar connection: on the connection of this number only, the server's first being 1; None: on any.
    @ivar transaction: at this transaction of the connection only, the first MAIL beginning number 1; None: at
        any. ``idle``, ``rset`` and ``quit`` belong to the last transaction begun.
    @ivar times: how often it strikes, at least 1.
    """

    point: str
    kind: str
    connection: int | None = None
    transaction: int | None = None
    times: int = 1

    def __attrs_post_init__(self) -> None:
        if self.point not in APPLICABLE:
            raise ValueError(f"no point {self.point!r}; there are {', '.join(APPLICABLE)}")
        if self.kind not in KINDS:
            raise ValueError(f"no kind {self.kind!r}; there are {', '.join(KINDS)}")
        if self.kind not in APPLICABLE[self.point]:
            right = [each for each in KINDS if each in APPLICABLE[self.point]]
            raise ValueError(f"{self.kind!r} can't strike at {self.point!r}; there can {', '.join(right)}")
        if self.times < 1:
            raise ValueError("a fault strikes at least once")
        if min(self.connection or 1, self.transaction or 1) < 1 or 0 in (self.connection, self.transaction):
            raise ValueError("connections and transactions are counted from 1")
