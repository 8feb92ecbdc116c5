"""What a keeper follows of a conversation that it has lent: the same in all cuts, and clean only where it is."""

from __future__ import annotations

import re

from mailcache.remote.watch import CUT, HOLD, LAST_WORD, PASS, Watch
from tests.fuzz.choices import Choices, expanded
from tests.fuzz.target import Target

COMMANDS = (
    b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@y>\r\n", b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"VRFY b\r\n",
    b"BDAT 5 LAST\r\nhello", b"BDAT 3\r\nhey", b"Subject: x\r\n\r\nbody\r\n", b".\r\n", b"..\r\n", b"\r\n.\r\n",
    b"EHLO x\r\n",
    b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n", b"BDAT 99\r\n",
)  # fmt: skip
REPLIES = (
    b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"421 bye\r\n", b"250-a\r\n250 b\r\n", b"250 ok\n", b"250", b"-",
    b" x\r\n",
    b"250 ok\r\n250 ok\r\n354 go\r\n", b"252 maybe\r\n", b"334 x\r\n", b"450 later\r\n", b"garbage\r\n",
    b"250 \0\r\n", b"2",
)  # fmt: skip
_REPLY = re.compile(rb"(?:([2-5][0-9][0-9])-[^\n]*\n)*([2-5][0-9][0-9])(?: [^\n]*)?\r?\n")

Step = tuple[bool, bytes]
"""Whether it is the server's, and the bytes."""


def steps_of(choices: Choices) -> list[Step]:
    """What passes, in order."""
    steps: list[Step] = []
    while choices.left and len(steps) < 60:
        what = choices.byte()
        servers, which = bool(what & 1), what >> 1
        known = REPLIES if servers else COMMANDS
        data = known[which % len(known)] if which < 120 else expanded(choices.piece())
        if data:
            steps.append((servers, data))
    return steps


def follow(steps: list[Step], *, lmtp: bool, rset_due: bool, one_by_one: bool) -> tuple[Watch, list[str]]:
    """A watch that has seen all of it, and what it has said is to be done with the server's bytes."""
    watch = Watch(lmtp)
    watch.begin(rset_due)
    todo = []
    for servers, data in steps:
        for piece in [data[at : at + 1] for at in range(len(data))] if one_by_one else [data]:
            if servers:
                todo.append(watch.received(piece))
            else:
                watch.sent(piece)
            assert not (watch.settled and (watch.spoiled is not None or watch.server_owes))
            assert len(watch._line) + len(watch._tail) <= 65_540, "it holds too much"
    return watch, todo


def state(watch: Watch) -> tuple[object, ...]:
    """What a keeper goes by."""
    if watch.spoiled is not None:
        return ("spoiled",)
    return watch.settled, watch.rset_due, watch.transactions, watch.server_owes


def check(data: bytes) -> None:
    """No cut matters; and a session that is said to be settled owes and is owed nothing, by the bytes alone."""
    choices = Choices(data)
    how = choices.byte()
    lmtp, rset_due = bool(how & 1), bool(how & 2)
    steps = steps_of(choices)
    watch, todo = follow(steps, lmtp=lmtp, rset_due=rset_due, one_by_one=False)
    if sum(len(piece) for _, piece in steps) < 2_000:
        again, _ = follow(steps, lmtp=lmtp, rset_due=rset_due, one_by_one=True)
        assert state(again) == state(watch), (state(again), state(watch))
    assert set(todo) <= {PASS, HOLD, CUT, LAST_WORD}
    ends = todo.count(CUT) + todo.count(LAST_WORD)
    assert ends == 0 or (ends == 1 and watch.spoiled is not None), todo
    if watch.settled:
        check_settled(steps, lmtp)


def check_settled(steps: list[Step], lmtp: bool) -> None:
    """As many replies as there were commands and contents, each whole, and nothing behind them."""
    said = b"".join(data for servers, data in steps if servers)
    at = replies = 0
    codes = []
    while (found := _REPLY.match(said, at)) is not None:
        at, replies = found.end(), replies + 1
        codes.append(int(found[2]))
    assert at == len(said), f"settled, and this is no reply: {said[at:]!r}"
    assert b"\r\r" not in said and 421 not in codes, codes
    commands = b"".join(data for servers, data in steps if not servers)
    # Each 354 is for a content, whose end has replies of its own; each other reply for a command.
    contents, owed = 0, 0
    taken = 0
    while commands:
        code = codes[owed] if owed < len(codes) else 0
        line, end, commands = commands.partition(b"\n")
        assert end, "settled in the middle of a command"
        owed += 1
        verb = line[:4].upper()
        if verb == b"MAIL":
            taken = 0
        elif verb == b"RCPT":
            taken += 200 <= code < 300
        elif verb == b"DATA" and code == 354:
            contents += 1
            _, end, commands = (b"\r\n" + commands).partition(b"\r\n.\r\n")
            assert end, "settled in the middle of a content"
            owed += max(1, taken) if lmtp else 1
        elif verb == b"BDAT":
            size = int(line.split()[1])
            assert len(commands) >= size, "settled in the middle of a chunk"
            commands = commands[size:]
    assert owed == replies, f"settled, with {owed} replies owed and {replies} given"


_MAIL, _RCPT, _DATA, _BODY, _DOT = 0, 2, 4, 18, 20
_OK, _GO, _NO, _ALL = 1, 3, 5, 19
_TRANSACTION = (_MAIL, _OK, _RCPT, _OK, _DATA, _GO, _BODY, _DOT, _OK)

TARGET = Target(
    "watching",
    check,
    (
        *(bytes([how, *_TRANSACTION]) for how in range(4)),
        *(bytes([0, *_TRANSACTION[:length]]) for length in range(1, 9)),
        bytes([0, 28, _ALL, _BODY, _DOT, _OK]),
        bytes([0, 28, _ALL, _BODY, _OK, _DOT]),
        bytes([0, 28, _ALL, _BODY, _NO]),
        bytes([0, 28, _ALL, _BODY, 13, _DOT, 17]),
        bytes([1, _MAIL, _OK, _RCPT, _OK, _RCPT, _OK, _DATA, _GO, _DOT, _OK, _OK]),
        bytes([0, _MAIL, _OK, _RCPT, _OK, 14, _OK]),
        bytes([0, _MAIL, _OK, _RCPT, _OK, 16, _OK, 14, _OK]),
        bytes([0, 30, _OK, 240, 5]) + b"hello",
        *(bytes([0, _MAIL, _OK, _RCPT, _OK, 6, 1 + 2 * reply]) for reply in range(16)),
        *(bytes([0, 2 * command, _OK]) for command in range(16)),
        bytes([0, 8, 241, 4]) + b"250\n" + bytes([240, 3]) + b"N\xfd\xff",
        bytes([0, 240, 6]) + b"NOOP\xfd\xff" + bytes([240, 6]) + b"\xfd\xff\xfd\xff\xfd\xff",
    ),
    (b"\xf0\x03", b"\xf1\x03", bytes(_TRANSACTION), b"\r\n.\r\n", b"BDAT 5 LAST\r\n", b"250 ok\r\n", b"354 \r\n"),
    max_input=400,
)
