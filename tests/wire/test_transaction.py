"""One transaction: what is written, what each reply means in its place, and when the content may follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire.capabilities import Capabilities
from mailcache.wire.replies import Reply
from mailcache.wire.transaction import (
    COMMANDS,
    CONTENT,
    CUT,
    DATA,
    DONE,
    DOT,
    EMPTY,
    LONE_DOT,
    MAIL,
    RCPT,
    RSET,
    WAITING,
    Transaction,
)

ONE, TWO = "one@example.com", "two@example.com"
PIPELINING = Capabilities({"PIPELINING": ()})
LOCKSTEP = Capabilities()


def begin(capabilities: Capabilities = PIPELINING, recipients: Sequence[str] = (ONE, TWO), **more: Any) -> Transaction:
    """A transaction for these recipients, at its beginning."""
    values: dict[str, Any] = {"size": None, "eight_bit": False, "rset_due": False, "reused": False, **more}
    others = b"".join(b"RCPT TO:<%s>\r\n" % each.encode() for each in recipients) + b"DATA\r\n"
    return Transaction(b"MAIL FROM:<a@example.com>", tuple(recipients), others, capabilities, **values)


def answer(transaction: Transaction, *codes: int) -> str:
    """Give it these replies, one after the other, and do what it asks for in between; gives the last step."""
    for code in codes:
        follow(transaction)
        transaction.replies([Reply.make(code)])
    return transaction.step


def follow(transaction: Transaction) -> None:
    """Do what its step says, up to the point where it waits or has ended."""
    if transaction.step == COMMANDS:
        transaction.flight()
    elif transaction.step == CONTENT:
        transaction.content_kinds()
        transaction.content_written = True
    elif transaction.step == EMPTY:
        transaction.lone_dot_kinds()


def codes_of(rejected: dict[str, Reply]) -> dict[str, int]:
    return {recipient: reply.code for recipient, reply in rejected.items()}


class Flights(SynchronousTestCase):
    """What goes out together."""

    MAIL_LINE = b"MAIL FROM:<a@example.com>"
    RCPT_LINES = b"RCPT TO:<one@example.com>\r\nRCPT TO:<two@example.com>\r\n"

    def test_all_commands_are_one_where_the_server_pipelines(self) -> None:
        for rset_due, before, kinds in (
            (False, b"", [MAIL, RCPT, RCPT, DATA]),
            (True, b"RSET\r\n", [RSET, MAIL, RCPT, RCPT, DATA]),
        ):
            transaction = begin(rset_due=rset_due)
            self.assertEqual((transaction.step, transaction.content_written), (COMMANDS, False))
            data = before + self.MAIL_LINE + b"\r\n" + self.RCPT_LINES + b"DATA\r\n"
            self.assertEqual(transaction.flight(), (data, kinds))
            self.assertEqual(transaction.step, WAITING)

    def test_each_command_is_one_where_it_does_not(self) -> None:
        transaction = begin(LOCKSTEP, rset_due=True)
        flights = []
        for code in (250, 250, 250, 250, 354):
            self.assertEqual(transaction.step, COMMANDS)
            flights.append(transaction.flight())
            self.assertEqual(transaction.step, WAITING)
            transaction.replies([Reply.make(code)])
        self.assertEqual(transaction.step, CONTENT)
        lines = [b"RSET\r\n", self.MAIL_LINE + b"\r\n", *self.RCPT_LINES.splitlines(True), b"DATA\r\n"]
        self.assertEqual(flights, list(zip(lines, [[RSET], [MAIL], [RCPT], [RCPT], [DATA]], strict=True)))

    def test_mail_has_the_parameters_that_the_server_offers(self) -> None:
        for offers, size, eight_bit, parameters in (
            ((), 100, True, b""),
            (("SIZE",), 100, True, b" SIZE=100"),
            (("SIZE",), 0, False, b" SIZE=0"),
            (("SIZE",), None, False, b""),
            (("8BITMIME",), 100, True, b" BODY=8BITMIME"),
            (("8BITMIME",), 100, False, b""),
            (("SIZE", "8BITMIME"), 100, True, b" SIZE=100 BODY=8BITMIME"),
            (("SIZE", "8BITMIME"), None, False, b""),
        ):
            for keywords in (offers, (*offers, "PIPELINING")):
                capabilities = Capabilities(dict.fromkeys(keywords, ()))
                transaction = begin(capabilities, size=size, eight_bit=eight_bit)
                data, _ = transaction.flight()
                self.assertEqual(data.partition(b"\r\n")[0], self.MAIL_LINE + parameters)

    def test_the_content_is_owed_one_reply(self) -> None:
        """For LMTP one for each recipient that was accepted, in their order."""
        for lmtp, kinds in ((False, [DOT]), (True, [DOT, DOT])):
            transaction = begin(recipients=("a", "b", "c"), lmtp=lmtp)
            self.assertEqual(answer(transaction, 250, 250, 550, 250, 354), CONTENT)
            self.assertEqual(transaction.undecided, ())
            self.assertEqual(transaction.content_kinds(), kinds)
            self.assertEqual((transaction.undecided, transaction.accepted), (("a", "c"), []))
            self.assertTrue(transaction.content_begun)

    def test_the_lone_dot_is_owed_one(self) -> None:
        for lmtp in (False, True):
            transaction = begin(lmtp=lmtp)
            self.assertEqual(answer(transaction, 250, 550, 550, 354), EMPTY)
            self.assertEqual(transaction.lone_dot_kinds(), [LONE_DOT])
            self.assertFalse(transaction.content_begun)


@attrs.frozen
class Ends:
    """What a row of replies comes to: the step, who is accepted and refused, and what is known."""

    step: str
    accepted: tuple[str, ...] = ()
    rejected: dict[str, int] = attrs.field(factory=dict)
    decided: bool = True
    keeps: bool = True
    rset_due: bool = True
    reused: bool | None = None
    pipelined_only: bool = False


BOTH = {ONE: 550, TWO: 550}

ROWS: tuple[tuple[tuple[int, ...], Ends], ...] = (
    # MAIL, RCPT, RCPT, DATA, and the content or the lone dot. Without pipelining what is behind a refusal is not sent.
    ((250, 250, 250, 354, 250), Ends(DONE, (ONE, TWO), rset_due=False)),
    ((250, 251, 252, 354, 250), Ends(DONE, (ONE, TWO), rset_due=False)),
    ((250, 250, 550, 354, 250), Ends(DONE, (ONE,), {TWO: 550}, rset_due=False)),
    ((250, 450, 250, 354, 250), Ends(DONE, (TWO,), {ONE: 450}, rset_due=False)),
    # Any 2xx to the content is success, but only 250 is what a sane server says.
    ((250, 250, 250, 354, 251), Ends(DONE, (ONE, TWO), keeps=False, rset_due=False)),
    ((250, 250, 250, 354, 299), Ends(DONE, (ONE, TWO), keeps=False, rset_due=False)),
    # Refusals are results, and the session is kept: RSET is due.
    ((250, 250, 250, 354, 450), Ends(DONE, (), {ONE: 450, TWO: 450})),
    ((250, 250, 250, 354, 550), Ends(DONE, (), BOTH)),
    ((250, 250, 550, 354, 552), Ends(DONE, (), {ONE: 552, TWO: 550})),
    ((250, 250, 250, 354, 503), Ends(DONE, (), {ONE: 503, TWO: 503})),
    ((250, 250, 250, 451), Ends(DONE, (), {ONE: 451, TWO: 451})),
    ((250, 250, 250, 554), Ends(DONE, (), {ONE: 554, TWO: 554})),
    ((250, 250, 550, 451), Ends(DONE, (), {ONE: 451, TWO: 550})),
    ((250, 550, 450, 503), Ends(DONE, (), {ONE: 550, TWO: 450})),
    ((250, 550, 550, 554), Ends(DONE, (), BOTH)),
    ((250, 503, 503, 503), Ends(DONE, (), {ONE: 503, TWO: 503})),
    ((550, 503, 503, 503), Ends(DONE, (), BOTH)),
    ((450, 550, 550, 554), Ends(DONE, (), {ONE: 450, TWO: 450})),
    ((552, 503, 503, 451), Ends(DONE, (), {ONE: 552, TWO: 552})),
    # 503 to MAIL is the verdict of a new session; one that carried a message is out of step.
    ((503, 503, 503, 503), Ends(DONE, (), {ONE: 503, TWO: 503}, reused=False)),
    ((503,), Ends(CUT, decided=False, keeps=False, reused=True)),
    # 421 before the content is as a cut; at the content it is the result, and the session's end.
    ((421,), Ends(CUT, decided=False, keeps=False)),
    ((250, 421), Ends(CUT, decided=False, keeps=False)),
    ((250, 250, 421), Ends(CUT, (ONE,), decided=False, keeps=False)),
    ((250, 550, 421), Ends(CUT, (), {ONE: 550}, decided=False, keeps=False)),
    ((250, 250, 250, 421), Ends(CUT, (ONE, TWO), decided=False, keeps=False)),
    ((250, 250, 250, 354, 421), Ends(CUT, (), {ONE: 421, TWO: 421}, keeps=False)),
    # What was decided before stays decided.
    ((550, 421), Ends(CUT, (), BOTH, keeps=False, pipelined_only=True, reused=False)),
    ((550, 421), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((550, 503, 503, 421), Ends(CUT, (), BOTH, keeps=False, pipelined_only=True)),
    ((250, 550, 550, 421), Ends(CUT, (), BOTH, keeps=False, pipelined_only=True)),
    # Codes out of place: the session is out of step (rule R2), and who was refused may not have been meant.
    ((550, 354), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True, reused=False)),
    ((550, 354), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((550, 250, 250, 250), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True, reused=False)),
    ((550, 250, 250, 250), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((250, 550, 550, 250), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True)),
    ((251,), Ends(CUT, decided=False, keeps=False)),
    ((220,), Ends(CUT, decided=False, keeps=False)),
    ((354,), Ends(CUT, decided=False, keeps=False)),
    ((250, 354), Ends(CUT, decided=False, keeps=False)),
    ((250, 220), Ends(CUT, decided=False, keeps=False)),
    ((250, 253), Ends(CUT, decided=False, keeps=False)),
    ((250, 250, 354), Ends(CUT, (ONE,), decided=False, keeps=False)),
    ((250, 250, 250, 250), Ends(CUT, (ONE, TWO), decided=False, keeps=False)),
    ((250, 250, 250, 334), Ends(CUT, (ONE, TWO), decided=False, keeps=False)),
    ((250, 250, 250, 354, 354), Ends(CUT, decided=False, keeps=False)),
    # Where the classes of codes end.
    ((399,), Ends(CUT, decided=False, keeps=False)),
    ((400, 503, 503, 503), Ends(DONE, (), {ONE: 400, TWO: 400})),
    ((599, 503, 503, 503), Ends(DONE, (), {ONE: 599, TWO: 599})),
    ((250, 399), Ends(CUT, decided=False, keeps=False)),
    ((250, 400, 599, 503), Ends(DONE, (), {ONE: 400, TWO: 599})),
    ((250, 250, 250, 399), Ends(CUT, (ONE, TWO), decided=False, keeps=False)),
    ((250, 250, 250, 400), Ends(DONE, (), {ONE: 400, TWO: 400})),
    ((250, 250, 250, 354, 300), Ends(CUT, decided=False, keeps=False)),
    ((250, 250, 250, 354, 399), Ends(CUT, decided=False, keeps=False)),
    ((250, 250, 250, 354, 400), Ends(DONE, (), {ONE: 400, TWO: 400})),
    ((550, 399), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True, reused=False)),
    ((550, 399), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((550, 550, 550, 399), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True)),
    ((550, 550, 550, 354, 299), Ends(DONE, (), BOTH, pipelined_only=True)),
    ((550, 550, 550, 354, 300), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True)),
    ((550, 550, 550, 354, 399), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True)),
    ((550, 550, 550, 354, 400), Ends(DONE, (), BOTH, pipelined_only=True)),
    # 354 in spite of refusals (rule R6): a lone dot where nobody would get anything, an abort where somebody might.
    ((250, 550, 550, 354, 554), Ends(DONE, (), BOTH, pipelined_only=True)),
    ((250, 550, 550, 354, 250), Ends(DONE, (), BOTH, pipelined_only=True)),
    ((550, 503, 503, 354, 503), Ends(DONE, (), BOTH, pipelined_only=True)),
    ((550, 550, 550, 354, 421), Ends(CUT, (), BOTH, keeps=False, pipelined_only=True)),
    ((550, 550, 550, 354, 354), Ends(CUT, (), BOTH, decided=False, keeps=False, pipelined_only=True)),
    ((550, 250, 550, 354), Ends(CUT, (), BOTH, keeps=False, pipelined_only=True, reused=False)),
    ((550, 250, 250, 354), Ends(CUT, (), BOTH, keeps=False, pipelined_only=True, reused=False)),
    ((550, 250, 250, 503), Ends(DONE, (), BOTH, pipelined_only=True, reused=False)),
    # On a session that was kept the refusal may have been said before MAIL came: it is no verdict.
    ((550, 250, 550, 354), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((550, 250, 250, 354), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((550, 250, 250, 503), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
    ((550, 250, 250, 550), Ends(CUT, (), {}, decided=False, keeps=False, pipelined_only=True, reused=True)),
)  # fmt: skip

LMTP_ROWS: tuple[tuple[tuple[int, ...], Ends], ...] = (
    ((250, 250, 250, 354, 250, 250), Ends(DONE, (ONE, TWO), rset_due=False)),
    ((250, 250, 250, 354, 250, 550), Ends(DONE, (ONE,), {TWO: 550})),
    ((250, 250, 250, 354, 450, 250), Ends(DONE, (TWO,), {ONE: 450})),
    ((250, 250, 250, 354, 450, 550), Ends(DONE, (), {ONE: 450, TWO: 550})),
    ((250, 250, 550, 354, 250), Ends(DONE, (ONE,), {TWO: 550}, rset_due=False)),
    ((250, 550, 250, 354, 250), Ends(DONE, (TWO,), {ONE: 550}, rset_due=False)),
    ((250, 250, 250, 354, 251, 250), Ends(DONE, (ONE, TWO), keeps=False, rset_due=False)),
    ((250, 250, 250, 354, 250, 421), Ends(CUT, (ONE,), {TWO: 421}, keeps=False)),
    ((250, 250, 250, 354, 421), Ends(CUT, (), {ONE: 421}, decided=False, keeps=False)),
    ((250, 250, 250, 354, 250, 354), Ends(CUT, (ONE,), decided=False, keeps=False)),
    ((250, 250, 250, 354, 354), Ends(CUT, decided=False, keeps=False)),
    ((250, 550, 550, 354, 554), Ends(DONE, (), BOTH, pipelined_only=True)),
)


class Replies(SynchronousTestCase):
    """What each reply means in its place."""

    def check(self, codes: tuple[int, ...], ends: Ends, capabilities: Capabilities, **more: Any) -> None:
        transaction = begin(capabilities, **more)
        used = 0
        while used < len(codes) and transaction.step not in (DONE, CUT):
            answer(transaction, codes[used])
            used += 1
        about = f"{codes}, {more}, {capabilities}"
        if capabilities.pipelining or ends.step == CUT:
            self.assertEqual(used, len(codes), about)
        self.assertEqual(transaction.step, ends.step, about)
        self.assertEqual(codes_of(transaction.rejected), ends.rejected, about)
        self.assertEqual(tuple(transaction.accepted), ends.accepted, about)
        self.assertEqual(transaction.decided, ends.decided, about)
        self.assertEqual(transaction.keeps, ends.keeps, about)
        self.assertEqual(transaction.rset_due, ends.rset_due, about)
        self.assertEqual(bool(transaction.problem), ends.step == CUT, about)
        if ends.step == CUT:
            assert transaction.culprit is not None
            self.assertEqual(transaction.culprit.code, codes[-1], about)

    def test_each_in_its_place(self) -> None:
        for codes, ends in ROWS:
            for capabilities in (PIPELINING,) if ends.pipelined_only else (PIPELINING, LOCKSTEP):
                for reused in (False, True) if ends.reused is None else (ends.reused,):
                    if codes[0] != 503 or ends.reused is not None:
                        self.check(codes, ends, capabilities, reused=reused)
                        self.check((250, *codes), ends, capabilities, reused=reused, rset_due=True)

    def test_each_in_its_place_for_lmtp(self) -> None:
        for codes, ends in LMTP_ROWS:
            for capabilities in (PIPELINING,) if ends.pipelined_only else (PIPELINING, LOCKSTEP):
                self.check(codes, ends, capabilities, lmtp=True)

    def test_until_the_content_lmtp_is_smtp(self) -> None:
        for codes, ends in ROWS:
            if 354 not in codes[:-1] and ends.reused is None:
                self.check(codes, ends, PIPELINING, lmtp=True)

    def test_a_refused_rset_ends_it_at_once(self) -> None:
        """The server may still hold the recipients of the message before: no content may follow (rule R6)."""
        for code in (451, 500, 503, 421, 251, 220, 354):
            for capabilities in (PIPELINING, LOCKSTEP):
                transaction = begin(capabilities, rset_due=True, reused=True)
                self.assertEqual(answer(transaction, code), CUT)
                self.assertEqual((transaction.decided, transaction.phase), (False, "rset"))
                self.assertIn(f"RSET was {code}", transaction.problem)

    def test_a_flawed_reply_to_rset_is_no_reply(self) -> None:
        transaction = begin(rset_due=True, reused=True)
        transaction.flight()
        transaction.replies([Reply(250, b"250 ok\n", "bare LF")])
        self.assertEqual(transaction.step, CUT)

    def test_what_is_behind_a_cut_is_not_looked_at(self) -> None:
        transaction = begin()
        transaction.flight()
        transaction.replies([Reply.make(code) for code in (250, 421, 250, 354)])
        self.assertEqual((transaction.step, transaction.culprit), (CUT, Reply.make(421)))
        self.assertEqual((transaction.accepted, transaction.decided), ([], False))

    def test_replies_may_come_at_once_or_in_any_portions(self) -> None:
        codes = (250, 250, 550, 354)
        for first in range(len(codes) + 1):
            transaction = begin()
            transaction.flight()
            for some in (codes[:first], codes[first:]):
                transaction.replies([Reply.make(code) for code in some])
            self.assertEqual((transaction.step, transaction.accepted), (CONTENT, [ONE]))

    def test_the_last_word_on_the_whole_message(self) -> None:
        """What a result gives as its reply."""
        for codes, last in (
            ((250, 250, 250, 354, 250), 250),
            ((250, 250, 550, 354, 250), 250),
            ((250, 250, 550, 354, 452), 452),
            ((250, 250, 550, 451), 451),
            ((250, 450, 550, 503), 550),
            ((552, 503, 503, 451), 552),
            ((550, 503, 503, 354, 554), 550),
            ((250, 550, 450, 354, 554), 450),
        ):
            transaction = begin()
            answer(transaction, *codes)
            assert transaction.final is not None
            self.assertEqual(transaction.final.code, last, codes)

    def test_too_many_recipients_are_told_apart_from_other_refusals(self) -> None:
        """452 about their number, behind one who was accepted (RFC 5321 4.5.3.1.10)."""
        many, bare, full, disk = (Reply.make(452, text) for text in ("4.5.3 many", "many", "4.2.2 full", "4.3.1 disk"))
        taken, later, no = Reply.make(250), Reply.make(450, "4.5.3 later"), Reply.make(552, "5.5.3 many")
        for replies, excess in (
            ([taken, many], [TWO]),
            ([taken, bare], [TWO]),
            ([taken, full], []),
            ([taken, disk], []),
            ([taken, later], []),
            ([taken, no], []),
            ([many, taken], []),
            ([many, many], []),
        ):
            for capabilities in (PIPELINING, LOCKSTEP):
                transaction = begin(capabilities)
                for reply in (Reply.make(250), *replies):
                    follow(transaction)
                    transaction.replies([reply])
                self.assertEqual(transaction.excess, excess)
                self.assertEqual(codes_of(transaction.rejected).keys() >= set(excess), True)

    def test_an_early_reply_ends_it(self) -> None:
        """While content is still being written: a refusal is the verdict, and anything else is none."""
        for code, rejected, decided in (
            (552, {ONE: 552, TWO: 550}, True),
            (451, {ONE: 451, TWO: 550}, True),
            (421, {ONE: 421, TWO: 550}, True),
            (250, {TWO: 550}, False),
            (354, {TWO: 550}, False),
        ):
            for lmtp in (False, True):
                transaction = begin(lmtp=lmtp)
                answer(transaction, 250, 250, 550, 354)
                transaction.content_kinds()
                transaction.early(Reply.make(code))
                self.assertEqual((transaction.step, transaction.keeps), (CUT, False))
                self.assertEqual(codes_of(transaction.rejected), rejected)
                self.assertEqual(transaction.decided, decided)
                self.assertEqual((transaction.phase, transaction.accepted), ("content", []))

    def test_phases_have_names(self) -> None:
        """Of the reply that is owed next, or of the one that was the end of it."""
        for answered, phase, cut_by, cut_phase in (
            ((), "rset", 500, "rset"),
            ((250,), "mail", 421, "mail"),
            ((250, 250), "rcpt", 421, "rcpt"),
            ((250, 250, 250), "rcpt", 354, "rcpt"),
            ((250, 250, 250, 250), "data", 250, "data"),
            ((250, 250, 250, 250, 354), "content", 354, "content"),
        ):
            for capabilities in (PIPELINING, LOCKSTEP):
                transaction = begin(capabilities, rset_due=True)
                answer(transaction, *answered)
                follow(transaction)
                self.assertEqual(transaction.phase, phase)
                answer(transaction, cut_by)
                self.assertEqual((transaction.step, transaction.phase), (CUT, cut_phase))


class CodeShifts(SynchronousTestCase):
    """A reply that is missing or too many is noticed before any content is written."""

    def test_one_is_missing_or_too_many(self) -> None:
        count = 100
        recipients = tuple(f"{number}@example.com" for number in range(count))
        for rset_due in (False, True):
            for refused in (550, 250):
                rcpts = [250 if number % 3 else refused for number in range(count)]
                codes = [250] * rset_due + [250, *rcpts, 354]
                for place in range(len(codes)):
                    missing = codes[:place] + codes[place + 1 :]
                    extra = [*codes[:place], 250, *codes[place:]]
                    for some in (missing, extra):
                        transaction = begin(recipients=recipients, rset_due=rset_due, reused=True)
                        transaction.flight()
                        transaction.replies([Reply.make(code) for code in some[: len(codes)]])
                        # A refusal may come to stand in the place of DATA's: nothing is written then either.
                        self.assertIn(transaction.step, (CUT, WAITING, DONE), f"{place} of {some}")
                        self.assertFalse(transaction.step == DONE and transaction.accepted)


CODES = st.sampled_from((220, 250, 250, 250, 250, 251, 252, 354, 354, 421, 450, 451, 503, 550, 554))


class Properties(SynchronousTestCase):
    """Whatever a server says."""

    @settings(max_examples=700, deadline=None)
    @given(
        st.lists(CODES, min_size=1, max_size=12),
        st.integers(1, 4),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )
    def test_content_is_guarded_and_verdicts_are_whole(
        self, codes: list[int], count: int, pipelining: bool, rset_due: bool, reused: bool, lmtp: bool
    ) -> None:
        recipients = tuple(f"{number}@example.com" for number in range(count))
        capabilities = PIPELINING if pipelining else LOCKSTEP
        transaction = begin(capabilities, recipients, rset_due=rset_due, reused=reused, lmtp=lmtp)
        given_so_far: list[int] = []
        for code in codes:
            if transaction.step in (DONE, CUT):
                break
            follow(transaction)
            transaction.replies([Reply.make(code)])
            given_so_far.append(code)
            if transaction.step == CONTENT and not transaction.content_begun:
                self.assert_content_is_due(given_so_far, count, rset_due)
        accepted, rejected = set(transaction.accepted), set(transaction.rejected)
        self.assertEqual(accepted & rejected, set())
        self.assertLessEqual(accepted | rejected, set(recipients))
        if transaction.decided:
            self.assertEqual(accepted | rejected, set(recipients))
        if transaction.decided and accepted:
            self.assertTrue(transaction.content_written)
            self.assertIn(given_so_far[-1] // 100 if not lmtp else 2, (2,))
        if transaction.step == DONE:
            self.assertTrue(transaction.decided)
        if not transaction.rset_due:
            self.assertTrue(transaction.content_written and accepted)
        self.assertFalse(transaction.step == CUT and transaction.keeps)

    def assert_content_is_due(self, codes: list[int], count: int, rset_due: bool) -> None:
        """R6, spelt out once more."""
        *before, data = codes
        self.assertEqual(data, 354)
        if rset_due:
            self.assertEqual(before.pop(0), 250)
        self.assertEqual(before.pop(0), 250)
        self.assertEqual(len(before), count)
        self.assertTrue(any(code in (250, 251, 252) for code in before))
