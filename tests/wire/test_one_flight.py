"""A message in one flight: what is written, when it may be, and what each reply means."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire.capabilities import Capabilities
from mailcache.wire.content import encode
from mailcache.wire.one_flight import FRESH, OneFlight, allows, unstuffed
from mailcache.wire.replies import Reply
from mailcache.wire.transaction import CUT, DONE, LAST, MAIL, RCPT, WAITING

ONE, TWO = "one@example.com", "two@example.com"
ALL = Capabilities({"PIPELINING": (), "CHUNKING": (), "ENHANCEDSTATUSCODES": ()})
CONTENT = b"Subject: hi\r\n\r\n.hello\r\n"
MAIL_LINE = b"MAIL FROM:<a@example.com>"
RCPT_LINES = b"RCPT TO:<one@example.com>\r\nRCPT TO:<two@example.com>\r\n"


def begin(*, reused: bool = True, **more: Any) -> OneFlight:
    values: dict[str, Any] = {"size": None, "eight_bit": False, **more}
    ours = OneFlight(MAIL_LINE, (ONE, TWO), RCPT_LINES + b"DATA\r\n", ALL, CONTENT, reused=reused, **values)
    ours.flight()
    ours.content_written = True
    return ours


class WritingTests(SynchronousTestCase):
    def test_all_of_it_at_once(self) -> None:
        ours = OneFlight(
            MAIL_LINE, (ONE, TWO), RCPT_LINES + b"DATA\r\n", ALL, CONTENT, size=None, eight_bit=False, reused=False
        )
        data, kinds = ours.flight()
        self.assertEqual(data, MAIL_LINE + b"\r\n" + RCPT_LINES + b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT)
        self.assertEqual(kinds, [MAIL, RCPT, RCPT, LAST])

    def test_no_dot_is_doubled(self) -> None:
        """For all contents of up to 6 of these."""
        for length in range(7):
            for parts in itertools.product((b"\r\n", b".", b"a"), repeat=length):
                content = b"".join(parts)
                ended = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
                self.assertEqual(unstuffed(encode(content)), ended)


class AllowedTests(SynchronousTestCase):
    def test_a_server_that_has_just_said_it_can(self) -> None:
        for last in (None, Reply.make(250, "ok"), Reply.make(250, "2.0.0 ok"), Reply.make(235, "2.7.0 welcome")):
            self.assertTrue(allows(ALL, last, 0.0))

    def test_not_without_each_of_its_extensions(self) -> None:
        for missing in ALL.keywords:
            self.assertFalse(allows(ALL.without(missing), None, 0.0), missing)

    def test_not_when_the_server_has_been_silent(self) -> None:
        for age, allowed in ((FRESH - 0.001, True), (FRESH, False), (float("inf"), False)):
            self.assertIs(allows(ALL, None, age), allowed)

    def test_not_when_the_last_reply_was_of_another_kind(self) -> None:
        """An address's status where a content's is due."""
        for last in (("2.1.0 sender ok",), ("2.1.5 recipient ok",), ("of two lines", "2.1.5 recipient ok")):
            self.assertFalse(allows(ALL, Reply.make(250, *last), 0.0), last)
        self.assertTrue(allows(ALL, Reply.make(250, "of two lines", "2.0.0 ok"), 0.0))


class RepliesTests(SynchronousTestCase):
    """What the replies so far mean, and what it would mean if nothing more came."""

    def check(self, codes: tuple[int, ...], step: str, doubtful: bool, *, reused: bool = True, **more: Any) -> None:
        for together in (False, True):
            ours = begin(reused=reused)
            replies = [Reply.make(code) for code in codes]
            if together and replies:
                ours.replies(replies)
            else:
                for reply in replies:
                    if ours.step != CUT:
                        ours.replies([reply])
            told = f"{codes}, {'' if reused else 'not '}reused"
            self.assertEqual(ours.step, step, told)
            self.assertIs(ours.doubtful and not ours.decided, doubtful, told)
            facts = {
                "accepted": ours.accepted,
                "rejected": {recipient: reply.code for recipient, reply in ours.rejected.items()},
                "undecided": list(ours.undecided),
                "final": ours.final and ours.final.code,
                "decided": ours.decided,
                "keeps": ours.keeps,
                "rset_due": ours.rset_due,
            }
            for name, value in more.items():
                self.assertEqual(facts[name], value, f"{told}: {name}")

    def test_taken(self) -> None:
        self.check(
            (250, 250, 250, 250), DONE, False,
            accepted=[ONE, TWO], rejected={}, undecided=[], final=250, keeps=True, rset_due=False,
        )  # fmt: skip

    def test_taken_for_some(self) -> None:
        self.check(
            (250, 250, 550, 250), DONE, False,
            accepted=[ONE], rejected={TWO: 550}, undecided=[], final=250, keeps=True, rset_due=False,
        )  # fmt: skip

    def test_taken_by_a_server_that_says_so_in_another_way(self) -> None:
        self.check((250, 250, 250, 251), DONE, False, accepted=[ONE, TWO], keeps=False)

    def test_the_content_is_refused(self) -> None:
        for code in (452, 554):
            self.check(
                (250, 250, 550, code), DONE, False,
                accepted=[], rejected={ONE: code, TWO: 550}, final=code, keeps=True, rset_due=True,
            )  # fmt: skip

    def test_all_recipients_are_refused(self) -> None:
        for last in (503, 554):
            self.check(
                (250, 550, 450, last), DONE, False,
                accepted=[], rejected={ONE: 550, TWO: 450}, final=450, keeps=True, rset_due=True,
            )  # fmt: skip
        self.check((250, 550, 450, 250), DONE, False, rejected={ONE: 550, TWO: 450}, final=450, keeps=False)

    def test_mail_is_refused(self) -> None:
        self.check(
            (550, 503, 503, 503), DONE, False, rejected={ONE: 550, TWO: 550}, final=550, keeps=True, rset_due=True
        )
        self.check((550, 503, 503, 250), DONE, False, rejected={ONE: 550, TWO: 550}, final=550, keeps=False)
        self.check((503, 503, 503, 503), DONE, False, reused=False, rejected={ONE: 503, TWO: 503})

    def test_a_refusal_of_all_is_a_verdict_whatever_comes_then(self) -> None:
        for codes in ((550, 503), (550, 503, 503), (250, 550, 550)):
            self.check(codes, WAITING, False, decided=True, undecided=[])
        self.check((550,), WAITING, False, reused=False, decided=True, undecided=[])

    def test_a_refusal_on_a_kept_session_may_be_of_no_command(self) -> None:
        """The server may have said it before MAIL came; what it says to RCPT shows whether it was to MAIL."""
        everybody = {"accepted": [], "rejected": {}, "undecided": [ONE, TWO], "decided": False}
        for codes in ((550,), (550, 250), (550, 250, 250), (451, 250, 250)):
            self.check(codes, WAITING, True, **everybody)
        for last in (250, 451, 554):
            self.check((550, 250, 250, last), CUT, True, **everybody)

    def test_nothing_more_comes(self) -> None:
        for codes in ((), (250,), (250, 250), (250, 250, 250)):
            self.check(codes, WAITING, True, accepted=[], undecided=[ONE, TWO], decided=False)
        self.check((250, 250, 550), WAITING, True, accepted=[], rejected={TWO: 550}, undecided=[ONE])
        self.check((250, 550), WAITING, True, rejected={ONE: 550}, undecided=[TWO])

    def test_the_server_closes_before_it_reads_the_content(self) -> None:
        for codes in ((421,), (250, 421), (250, 250, 421), (250, 550, 421)):
            self.check(codes, CUT, False, decided=False)

    def test_the_server_closes_at_the_content(self) -> None:
        self.check((250, 250, 550, 421), CUT, False, decided=True, rejected={ONE: 421, TWO: 550}, accepted=[])

    def test_out_of_step_and_nobody_was_accepted(self) -> None:
        """As if cut before the content; what is owed is read, if it comes."""
        for codes in ((503, 503), (503, 503, 503), (250, 503, 503)):
            self.check(codes, WAITING, False, decided=False)
        for last in (503, 554, 250):
            self.check((503, 503, 503, last), CUT, False, decided=False)
        for last in (503, 250):
            self.check((250, 503, 503, last), CUT, False, decided=False)

    def test_out_of_step_and_somebody_may_be_accepted(self) -> None:
        """The 503 may have been said before MAIL came; and the next recipient may be accepted."""
        self.check((503,), WAITING, True, undecided=[ONE, TWO])
        self.check((250, 503), WAITING, True, rejected={ONE: 503}, undecided=[TWO])

    def test_out_of_step_and_somebody_was_accepted(self) -> None:
        self.check((250, 250, 503), WAITING, True, undecided=[ONE])
        self.check((250, 250, 503, 554), CUT, False, decided=False)
        self.check((250, 250, 503, 250), DONE, False, accepted=[ONE], rejected={TWO: 503}, keeps=True)

    def test_refused_and_accepted(self) -> None:
        """MAIL was refused, and then a recipient was not: if it takes the content, who knows for whom."""
        for first in (550, 503):
            self.check((first, 250, 503, 250), CUT, True, accepted=[], rejected={}, undecided=[ONE, TWO])
        self.check((503, 250, 503), WAITING, True)
        self.check((503, 250, 503, 554), CUT, False, decided=False)
        self.check((550, 250, 503, 554), CUT, True, accepted=[], rejected={}, undecided=[ONE, TWO])

    def test_on_a_fresh_session_a_refusal_of_mail_and_of_the_content_is_one(self) -> None:
        """There was no time at which the server could have said the first of them to nobody."""
        both = {ONE: 550, TWO: 550}
        self.check((550, 250, 503, 554), DONE, False, reused=False, accepted=[], rejected=both, final=550)
        self.check((550, 250), WAITING, True, reused=False, rejected={}, undecided=[ONE, TWO])
        self.check((550, 250, 250, 250), CUT, True, reused=False, rejected={}, undecided=[ONE, TWO])

    def test_a_reply_to_an_address_where_the_contents_is_due(self) -> None:
        """One reply was too many, and all behind it were counted for others: who is accepted nobody knows."""
        for *codes, last, texts in (
            (250, 250, 250, 250, ("2.1.5",)), (250, 250, 250, 550, ("5.1.1",)), (451, 250, 250, 550, ("5.1.1",)),
            (250, 550, 550, 250, ("2.1.5",)), (250, 250, 250, 250, ("more", "more", "2.1.5 ok")),
        ):  # fmt: skip
            ours = begin()
            ours.replies([*map(Reply.make, codes), Reply.make(last, *texts)])
            self.assertEqual((ours.step, ours.decided, ours.doubtful), (CUT, False, True), (codes, last))
            self.assertEqual((ours.accepted, ours.rejected, ours.undecided), ([], {}, (ONE, TWO)), (codes, last))

    def test_all_are_refused_in_terms_of_addresses(self) -> None:
        ours = begin()
        ours.replies([*map(Reply.make, (250, 550, 550)), Reply.make(554, "5.1.1 no valid recipients")])
        self.assertEqual((ours.step, ours.decided, ours.keeps), (DONE, True, True))

    def test_replies_that_are_none_of_these(self) -> None:
        for codes in ((354,), (220,), (250, 354), (250, 250, 220), (250, 250, 250, 354), (250, 550, 450, 354)):
            self.check(codes, CUT, True)


class RefusalsOfNothingTests(SynchronousTestCase):
    """Every conversation of an honest server, with a refusal in front that it has said before the message came."""

    REFUSALS = (Reply.make(550, "5.7.1 go away"), Reply.make(451, "4.3.2 not now"))
    TO_MAIL = (Reply.make(250, "2.1.0 ok"), *REFUSALS, Reply.make(503, "5.5.1 bad sequence"))
    TO_RCPT = (Reply.make(250, "2.1.5 ok"), Reply.make(550, "5.1.1 unknown"), Reply.make(554, "5.7.1 policy"))
    TO_CONTENT = (Reply.make(250, "2.0.0 queued"), Reply.make(554, "5.6.0 no"))
    OUT_OF_SEQUENCE = Reply.make(503, "5.5.1 bad sequence")

    def conversations(self) -> Iterator[tuple[list[Reply], set[str]]]:
        """What a server says to the message, and for whom it takes it."""
        for mail, one, two, last in itertools.product(self.TO_MAIL, self.TO_RCPT, self.TO_RCPT, self.TO_CONTENT):
            if mail.negative:
                one = two = self.OUT_OF_SEQUENCE
            accepted = {who for who, reply in ((ONE, one), (TWO, two)) if not reply.negative}
            said = last if accepted else self.OUT_OF_SEQUENCE
            yield [mail, one, two, said], set() if said.negative else accepted

    def told(self, replies: list[Reply], together: bool) -> tuple[set[str], set[str]]:
        """Of whom it is told that they have it, and that they do not, if these replies come and then the end."""
        ours = begin()
        for read in [replies] if together else [[reply] for reply in replies]:
            if ours.step != WAITING:
                break
            owed = read[: 4 - ours._answered]
            ours.replies(owed)
            if owed != read and ours.step != CUT:
                ours.surplus()
        if ours.decided or ours.doubtful:
            return set(ours.accepted), set(ours.rejected)
        return set(), {ONE, TWO}

    def test_nobody_is_told_to_be_without_it_who_may_have_it(self) -> None:
        tried = 0
        for said, taken in self.conversations():
            for front in ([], *([refusal] for refusal in self.REFUSALS)):
                whole = front + said
                for cut, together in itertools.product(range(len(whole) + 1), (False, True)):
                    accepted, rejected = self.told(whole[:cut], together)
                    about = f"{[str(reply) for reply in whole[:cut]]} of {len(whole)}, {together}"
                    self.assertEqual(rejected & taken, set(), about)
                    self.assertLessEqual(accepted, taken, about)
                    tried += 1
        self.assertGreater(tried, 2_000)
