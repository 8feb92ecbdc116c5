"""Where a conversation stands that a borrower has: a table of what passes, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mailcache.remote.watch import CUT, HOLD, LAST_WORD, MAX_COMMAND, PASS, Watch

CLEAN, OWED, OPEN, SPOILED = "clean", "owed", "open", "spoiled"
"""How it stands: at a clean place; the server is to speak; the borrower is to go on; not to be kept any more."""


@attrs.frozen
class Step:
    """Bytes of one side.

    :ivar stands: how it stands afterwards.
    :ivar todo: what is to be done with bytes of the server; ``None`` for those of the borrower.
    """

    data: bytes
    stands: str
    todo: str | None = None


def said(data: bytes, stands: str = OWED) -> Step:
    """The borrower says it."""
    return Step(data, stands)


def heard(data: bytes, stands: str = CLEAN, todo: str = PASS) -> Step:
    """The server says it."""
    return Step(data, stands, todo)


@attrs.frozen
class Case:
    """What passes, and what is known in the end.

    :ivar why: a part of what it is spoiled for.
    """

    steps: tuple[Step, ...]
    rset_due: bool = False
    transactions: int = 1
    why: str | None = None
    lmtp: bool = False
    due_before: bool = False


MAIL, RCPT = b"MAIL FROM:<a@x.test>\r\n", b"RCPT TO:<b@y.test>\r\n"
DATA, RSET, BODY = b"DATA\r\n", b"RSET\r\n", b"Subject: x\r\n\r\nbody\r\n"
OK, NO, GO = b"250 2.0.0 ok\r\n", b"550 5.1.1 no\r\n", b"354 go ahead\r\n"
LONG = b"250-one\r\n250-two\r\n250 three\r\n"


def began(recipients: int = 1) -> tuple[Step, ...]:
    """A transaction as far as its content, in one flight."""
    return (
        said(MAIL + RCPT * recipients + DATA),
        heard(OK * (1 + recipients) + GO, OPEN),
    )


CASES = {
    "nothing": Case((), transactions=0),
    "usual, pipelined": Case((*began(), said(BODY + b".\r\n"), heard(OK))),
    "usual, step by step": Case(
        (
            said(MAIL), heard(OK), said(RCPT), heard(OK), said(DATA), heard(GO, OPEN),
            said(BODY, OPEN), said(b".\r\n"), heard(OK),
        )
    ),
    "replies of several lines": Case(
        (
            said(MAIL + RCPT + DATA), heard(LONG + LONG + b"354-go\r\n354 on\r\n", OPEN),
            said(BODY + b".\r\n"), heard(LONG),
        )
    ),
    "small letters": Case((said(b"mail from:<a@x.test>\r\nrcpt to:<b@y.test>\r\ndata\r\n"), heard(OK + OK + GO, OPEN),
                           said(b".\r\n"), heard(OK))),
    "one transaction after another": Case(
        (*began(), said(BODY + b".\r\n"), heard(OK), *began(), said(BODY + b".\r\n"), heard(OK)), transactions=2
    ),
    "recipient refused": Case(
        (said(MAIL + RCPT + RCPT + DATA), heard(OK + NO + OK + GO, OPEN), said(BODY + b".\r\n"), heard(OK))
    ),
    "all refused, DATA too": Case((said(MAIL + RCPT + DATA), heard(OK + NO + NO)), rset_due=True),
    "all refused, and a lone dot": Case(
        (said(MAIL + RCPT + DATA), heard(OK + NO + GO, OPEN), said(b".\r\n"), heard(b"554 5.5.1 nobody\r\n")),
        rset_due=True,
    ),
    "all refused, and a lone dot that is taken": Case(
        (said(MAIL + RCPT + DATA), heard(OK + NO + GO, OPEN), said(b".\r\n"), heard(OK))
    ),
    "MAIL refused": Case((said(MAIL), heard(NO)), rset_due=True),
    "MAIL refused, pipelined": Case((said(MAIL + RCPT + DATA), heard(NO + NO + NO)), rset_due=True),
    "content refused": Case((*began(), said(BODY + b".\r\n"), heard(NO)), rset_due=True),
    "content taken with another code": Case((*began(), said(BODY + b".\r\n"), heard(b"252 maybe\r\n")), rset_due=True),
    "left after MAIL": Case((said(MAIL), heard(OK)), rset_due=True),
    "RSET": Case((said(MAIL + RCPT), heard(OK + OK), said(RSET), heard(OK))),
    "RSET refused": Case((said(MAIL), heard(OK), said(RSET), heard(NO)), rset_due=True),
    "RSET before MAIL": Case((said(RSET + MAIL + RCPT + DATA), heard(OK * 3 + GO, OPEN), said(b".\r\n"), heard(OK)),
                             due_before=True),
    "RSET was due, and is still": Case((said(b"NOOP\r\n"), heard(OK)), transactions=0, rset_due=True, due_before=True),
    "NOOP and VRFY": Case((said(b"NOOP\r\nVRFY b\r\n"), heard(OK + b"252 try\r\n")), transactions=0),
    "not all is answered": Case((said(MAIL + RCPT), heard(OK, OWED)), rset_due=True),
    "half a command": Case((said(b"NOOP\r\n"), heard(OK), said(b"MAI", OPEN)), transactions=0),
    "half a reply": Case((said(b"NOOP\r\n"), heard(b"250-ok\r\n25", OWED)), transactions=0),
    "LMTP, a verdict for each": Case(
        (*began(3), said(BODY + b".\r\n"), heard(OK + OK, OWED), heard(OK)), lmtp=True
    ),
    "LMTP, one of them refused": Case(
        (*began(2), said(BODY + b".\r\n"), heard(NO, OWED), heard(OK)), lmtp=True, rset_due=True
    ),
    "LMTP, the accepted are counted": Case(
        (said(MAIL + RCPT * 3 + DATA), heard(OK + OK + NO + OK + GO, OPEN), said(b".\r\n"), heard(OK + OK)), lmtp=True
    ),
    "LMTP, counted anew": Case(
        (*began(2), said(b".\r\n"), heard(OK + OK), *began(1), said(b".\r\n"), heard(OK)), lmtp=True, transactions=2
    ),
    "LMTP, nobody accepted": Case(
        (said(MAIL + RCPT + DATA), heard(OK + NO + GO, OPEN), said(b".\r\n"), heard(NO)), lmtp=True, rset_due=True
    ),
    "LMTP, a verdict too many": Case(
        (*began(1), said(b".\r\n"), heard(OK), heard(OK, SPOILED)), lmtp=True, why="not asked for"
    ),
    "dots in content": Case(
        (
            *began(),
            said(b"..\r\n..one\r\n.\n.\r.\r\r\n\r\n..\r\nx.\r\n", OPEN),
            said(b"\r\n..\r\n.\r\n"),
            heard(OK),
        )
    ),
    "what looks like commands in content": Case(
        (*began(), said(b"MAIL FROM:<>\r\nQUIT\r\nRSET\r\n", OPEN), said(b".\r\n"), heard(OK))
    ),
    "no line end before the dot": Case((*began(), said(b"body.\r\n", OPEN)), rset_due=True),
    "bare line ends around the dot": Case((*began(), said(b"x\n.\n", OPEN), said(b"x\r.\r", OPEN)), rset_due=True),
    "more behind the end of content": Case((*began(), said(BODY + b".\r\n" + MAIL), heard(OK + OK)), rset_due=True,
                                           transactions=2),
    "early refusal": Case(
        (*began(), said(BODY, OPEN), heard(NO, SPOILED, LAST_WORD)), rset_due=True, why="before the end of content"
    ),
    "early refusals, as many as there are recipients": Case(
        (*began(2), said(BODY, OPEN), heard(NO + NO, SPOILED, LAST_WORD)), lmtp=True, rset_due=True,
        why="before the end of content",
    ),
    "early refusal of two lines": Case(
        (*began(), heard(b"552-too\r\n552 big\r\n", SPOILED, LAST_WORD)), rset_due=True, why="before the end of content"
    ),
    "early success": Case(
        (*began(), said(BODY, OPEN), heard(OK, SPOILED, CUT)), rset_due=True, why="before the end of content"
    ),
    "early go-ahead": Case((*began(), heard(GO, SPOILED, CUT)), rset_due=True, why="before the end of content"),
    "garbage in content": Case((*began(), heard(b"HTTP/1.1\r\n", SPOILED, CUT)), rset_due=True, why="end of content"),
    "half a reply, then the end of content": Case(
        (*began(), said(BODY, OPEN), heard(b"250 o", OPEN, HOLD), said(b".\r\n", SPOILED)),
        rset_due=True,
        why="bytes of a reply came before the end of content",
    ),
    "half a refusal, then the rest of it": Case(
        (*began(), heard(b"55", OPEN, HOLD), said(BODY, OPEN), heard(b"0 no\r\n", SPOILED, LAST_WORD)),
        rset_due=True,
        why="before the end of content",
    ),
    "half a success, then the rest of it": Case(
        (*began(), heard(b"250-o\r\n", OPEN, HOLD), heard(OK, SPOILED, CUT)), rset_due=True, why="end of content"
    ),
    "421": Case((said(MAIL), heard(b"421 closing\r\n", SPOILED)), why="421"),
    "421 to the content": Case((*began(), said(b".\r\n"), heard(b"421 bye\r\n", SPOILED)), rset_due=True, why="421"),
    "421 in content": Case(
        (*began(), heard(b"421 closing\r\n", SPOILED, LAST_WORD)), rset_due=True, why="end of content"
    ),
    "421 out of nothing": Case((heard(b"421 idle\r\n", SPOILED),), transactions=0, why="not asked for"),
    "unsolicited": Case((heard(OK, SPOILED),), transactions=0, why="not asked for"),
    "half of it": Case((heard(b"2", SPOILED),), transactions=0, why="not asked for"),
    "one reply too many": Case((said(b"NOOP\r\n"), heard(OK), heard(OK, SPOILED)), transactions=0, why="not asked for"),
    "354 to MAIL": Case((said(MAIL), heard(GO, SPOILED)), why="out of place: 354"),
    "334 to MAIL": Case((said(MAIL), heard(b"334 \r\n", SPOILED)), why="out of place: 334"),
    "250 to DATA": Case((said(MAIL + RCPT + DATA), heard(OK * 3, SPOILED)), rset_due=True, why="out of place: 250"),
    "bare LF in a reply": Case((said(MAIL), heard(b"250 ok\n", OPEN)), rset_due=True),
    "garbage": Case((said(MAIL), heard(b"HTTP/1.1 400\r\n", SPOILED)), why="no reply"),
    "garbage behind a reply": Case((said(MAIL + RCPT), heard(OK, OWED), heard(b"25x\r\n", SPOILED)), rset_due=True,
                                   why="no reply"),
    "bytes behind DATA": Case(
        (said(MAIL + RCPT), heard(OK + OK), said(DATA + b"Subject: x\r\n", SPOILED)), rset_due=True, why="behind DATA"
    ),
    "EHLO": Case((said(b"EHLO [127.0.0.1]\r\n", SPOILED),), transactions=0, why="no place"),
    "AUTH": Case((said(b"AUTH PLAIN AGEAYg==\r\n", SPOILED),), transactions=0, why="no place"),
    "STARTTLS": Case((said(b"STARTTLS\r\n", SPOILED),), transactions=0, why="no place"),
    "QUIT": Case((said(b"QUIT\r\n", SPOILED), heard(b"221 bye\r\n", SPOILED)), transactions=0, why="no place"),
    "nothing that is known": Case((said(b"\r\n", SPOILED),), transactions=0, why="no place"),
    "BDAT": Case(
        (
            said(MAIL + RCPT + b"BDAT 10\r\n12345"), said(b"\r\n.\r\n"), heard(OK + OK + OK),
            said(b"BDAT 4 LAST\r\nQUIT"), heard(OK),
        ),
    ),
    "BDAT LAST, refused": Case((said(MAIL + RCPT + b"BDAT 4 LAST\r\nabcd"), heard(OK * 2 + NO)), rset_due=True),
    "BDAT LAST for nobody": Case((said(MAIL + RCPT + b"BDAT 4 LAST\r\nabcd"), heard(OK + NO * 2)), rset_due=True),
    "BDAT LAST, answered before it is here": Case(
        (said(MAIL + RCPT + b"BDAT 4 LAST\r\nab"), heard(OK * 2, OWED), heard(OK, SPOILED, CUT)), rset_due=True,
        why="before the end",
    ),
    "BDAT LAST, half a reply before it is here": Case(
        (said(MAIL + RCPT + b"BDAT 4 LAST\r\nab"), heard(OK * 2, OWED), heard(b"250 o", OWED, HOLD)), rset_due=True
    ),
    "BDAT LAST, refused before it is here": Case(
        (said(MAIL + RCPT + b"BDAT 4 LAST\r\nab"), heard(OK * 2, OWED), heard(NO, SPOILED, LAST_WORD)),
        rset_due=True, why="before the end",
    ),
    "BDAT, not all of its bytes": Case(
        (said(MAIL + RCPT + b"BDAT 10\r\n123"), heard(OK * 3, OPEN), said(b"4567890", CLEAN)), rset_due=True
    ),
    "BDAT of nothing": Case((said(MAIL + RCPT + b"BDAT 0 LAST\r\n"), heard(OK * 3))),
    "BDAT without a size": Case((said(b"BDAT LAST\r\n", SPOILED),), transactions=0, rset_due=True, why="a size"),
    "BDAT of less than nothing": Case((said(b"BDAT -1\r\n", SPOILED),), transactions=0, rset_due=True, why="a size"),
    "BDAT beyond counting": Case(
        (said(b"BDAT 99999999999999999999\r\n", SPOILED),), transactions=0, rset_due=True, why="without a size"
    ),
}  # fmt: skip


class TableTests(SynchronousTestCase):
    """Each case as it stands, each of its steps in two pieces at every place, and byte by byte."""

    def check_step(self, watch: Watch, step: Step, pieces: Iterable[bytes]) -> None:
        in_content = watch._in_content or watch._chunk > 0
        done = []
        for piece in pieces:
            if step.todo is None:
                watch.sent(piece)
            else:
                done.append(watch.received(piece))
        if step.todo is not None and in_content:
            # What is held back goes with what follows; after the decision nothing more of the server's comes.
            self.assertEqual(next((todo for todo in done if todo != HOLD), HOLD), step.todo)
        elif step.todo is not None:
            self.assertEqual(set(done), {PASS})
        self.assertEqual(watch.settled, step.stands == CLEAN)
        self.assertEqual(watch.spoiled is not None, step.stands == SPOILED)
        if step.stands != SPOILED:
            self.assertEqual(watch.server_owes, step.stands == OWED)

    def check(self, case: Case, cut: dict[int, list[int]]) -> None:
        """:param cut: where the step of each number is cut."""
        watch = Watch(case.lmtp)
        watch.begin(case.due_before)
        self.assertTrue(watch.settled)
        for number, step in enumerate(case.steps):
            places = [0, *cut.get(number, ()), len(step.data)]
            self.check_step(watch, step, [step.data[a:b] for a, b in pairwise(places)])
        self.assertEqual((watch.rset_due, watch.transactions), (case.rset_due, case.transactions))
        if case.why is None:
            self.assertIsNone(watch.spoiled)
        else:
            self.assertIn(case.why, watch.spoiled or "")

    def check_cut(self, name: str, cut: dict[int, list[int]]) -> None:
        try:
            self.check(CASES[name], cut)
        except AssertionError as error:
            raise AssertionError(f"{name!r}, cut at {cut}: {error}") from error

    def test_whole(self) -> None:
        for name in CASES:
            self.check_cut(name, {})

    def test_cut_at_each_place(self) -> None:
        for name, case in CASES.items():
            for number, step in enumerate(case.steps):
                for place in range(1, len(step.data)):
                    self.check_cut(name, {number: [place]})

    def test_byte_by_byte(self) -> None:
        for name, case in CASES.items():
            self.check_cut(name, {number: list(range(1, len(step.data))) for number, step in enumerate(case.steps)})


class LeaseTests(SynchronousTestCase):
    """From lease to lease, and what no table shows."""

    def watch(self, *steps: Step) -> Watch:
        watch = Watch(False)
        watch.begin(False)
        for step in steps:
            if step.todo is None:
                watch.sent(step.data)
            else:
                watch.received(step.data)
        return watch

    def test_counts_begin_anew(self) -> None:
        watch = self.watch(*began(), said(b".\r\n"), heard(NO))
        self.assertEqual((watch.transactions, watch.rset_due, watch.settled), (1, True, True))
        watch.begin(watch.rset_due)
        self.assertEqual((watch.transactions, watch.rset_due, watch.settled), (0, True, True))

    def test_a_refusal_is_of_its_transaction(self) -> None:
        watch = self.watch(*began(), said(b".\r\n"), heard(NO), said(RSET), heard(OK), *began(), said(b".\r\n"))
        watch.received(OK)
        self.assertFalse(watch.rset_due)

    def test_a_flaw_is_for_good(self) -> None:
        """Its session is not settled in the next lease either."""
        watch = self.watch(said(b"NOOP\r\n"), heard(b"250 ok\n"))
        watch.begin(False)
        self.assertFalse(watch.settled)

    def test_garbage_is_for_good(self) -> None:
        watch = self.watch(said(b"NOOP\r\n"), heard(b"%$#\r\n"))
        self.assertEqual(watch.received(OK), PASS)
        self.assertFalse(watch.settled)

    def test_verdict_may_be_strange(self) -> None:
        """A NUL in the reply to the content does not hide it; its session is not kept. In others it does."""
        watch = self.watch(*began(), said(b".\r\n"), heard(b"250 o\0k\r\n"))
        self.assertEqual((watch.spoiled, watch.settled, watch.rset_due), (None, False, False))
        self.assertIsNotNone(self.watch(said(MAIL), heard(b"250 o\0k\r\n")).spoiled)

    def test_early_reply_in_the_read_of_the_go_ahead(self) -> None:
        """Half of one or a whole one: the borrower has them in one piece too, and the session is not kept."""
        for more in (b"2", OK, NO):
            watch = self.watch(said(MAIL + RCPT + DATA))
            self.assertEqual(watch.received(OK + OK + GO + more), PASS)
            self.assertIsNotNone(watch.spoiled)

    def test_success_behind_a_refusal_before_the_end_of_content(self) -> None:
        """A borrower that has written the end would count it for the second recipient; no server sees that end."""
        watch = Watch(True)
        watch.sent(MAIL + RCPT * 2 + DATA)
        watch.received(OK * 3 + GO)
        watch.sent(BODY)
        self.assertEqual(watch.received(NO + OK), CUT)

    def test_what_was_half_said_before_the_go_ahead(self) -> None:
        """It is a piece of the content that only the server knows: never settled again."""
        watch = self.watch(said(MAIL + RCPT + DATA + b"x"), heard(OK + OK + GO), said(BODY + b".\r\n"), heard(OK))
        self.assertFalse(watch.settled)

    def test_command_without_an_end(self) -> None:
        """However it comes, and with an end behind the limit too."""
        longest = b"NOOP " + b"x" * (MAX_COMMAND - 7) + b"\r\n"
        self.assertEqual(len(longest), MAX_COMMAND)
        for piece in (1_000, MAX_COMMAND - 1, MAX_COMMAND * 2):
            for line, good in (
                (longest, True),
                (longest[:-2] + b"x\r\n", False),
                (longest[:-2] + b"xxx", False),
                (longest[:-2] + b"x" * 1_000 + b"\r\n", False),
            ):
                watch = self.watch(*(said(line[at : at + piece]) for at in range(0, len(line), piece)))
                self.assertEqual(watch.spoiled, None if good else "a command without an end", (piece, len(line)))

    def test_nothing_is_held_of_it(self) -> None:
        watch = self.watch()
        for _ in range(100):
            watch.sent(b"x" * MAX_COMMAND)
        self.assertLessEqual(len(watch._line), 2 * MAX_COMMAND)

    def test_spoiled_once(self) -> None:
        """The first reason stays, and nothing is followed any more."""
        watch = self.watch(said(b"QUIT\r\n"), said(b"BDAT LAST\r\n"), said(MAIL))
        self.assertIn("no place", watch.spoiled or "")
        self.assertEqual((watch.transactions, watch.rset_due), (0, False))
        self.assertEqual(watch.received(b"%$#\r\n"), PASS)
