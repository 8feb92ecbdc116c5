"""More recipients than a server takes at once: several transactions, and one result that is true of all of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, DeliveryResult, Limits, UncertainDelivery
from mailcache.parts import Parts
from mailcache.result import SessionFacts
from mailcache.testing import Connection, Fault
from mailcache.wire.replies import Reply
from tests.helpers import LARGE, SMALL, Bed, KeeperBed, Unseekable

A, B, C, D, E, F = PEOPLE = tuple(f"{name}@example.com" for name in "abcdef")
TOO_MANY = b"452 4.5.3 too many recipients"
PIPELINING = ["PIPELINING", "8BITMIME"]


def at_most(count: int, reply: bytes = TOO_MANY, **others: bytes) -> Callable[[str, str, Connection], bytes | None]:
    """Of a scripted server: it takes so many recipients in a transaction, and says ``others`` to those."""
    taken: dict[tuple[Connection, int], int] = {}

    def verdict(point: str, argument: str, record: Connection) -> bytes | None:
        if point != "rcpt":
            return None
        said = others.get(argument.partition("@")[0])
        if said is None:
            place = (record, record.transactions)
            taken[place] = taken.get(place, 0) + 1
            said = reply if taken[place] > count else None
        return said

    return verdict


def outcome(result: Any) -> tuple[tuple[str, ...], dict[str, int]]:
    """Who was accepted, and who was refused with what code."""
    assert isinstance(result, DeliveryResult), repr(result)
    return result.accepted, {each: reply.code for each, reply in result.rejected.items()}


def taken(bed: Bed) -> list[tuple[str, ...]]:
    """The recipients of each message that the server has taken."""
    return [tuple(message.accepted) for message in bed.server.messages if message.committed]


class Case(SynchronousTestCase):
    """Each with a cache in memory, and with a keeper's."""

    def beds(self, **settings: Any) -> list[Bed]:
        return [Bed(**settings), KeeperBed(**settings)]

    def end(self, bed: Bed) -> None:
        self.assertEqual(bed.server.violations, [])
        bed.close()


class TooMany(Case):
    """452 to RCPT after others were accepted."""

    def test_the_others_go_in_further_transactions_of_the_session(self) -> None:
        for capabilities in (PIPELINING, []):
            for reply in (TOO_MANY, b"452 too many"):
                for content in (SMALL, LARGE, io.BytesIO(LARGE)):
                    for bed in self.beds(server={"verdict": at_most(2, reply), "capabilities": capabilities}):
                        result = bed.deliver(content, recipients=PEOPLE[:5])
                        self.assertEqual(outcome(result), ((A, B, C, D, E), {}))
                        self.assertEqual(taken(bed), [(A, B), (C, D), (E,)])
                        self.assertEqual((result.reply.code, result.excess), (250, ()))
                        self.assertEqual((result.session.uses, bed.server.connection_count), (3, 1))
                        self.assertEqual(len({message.content for message in bed.server.messages}), 1)
                        self.assertEqual(bed.counts()[:2], (0, 1))
                        self.end(bed)
                        if isinstance(content, io.BytesIO):
                            content.seek(0)

    def test_no_more_are_asked_for_at_a_time_than_it_took_before(self) -> None:
        bed = Bed(server={"verdict": at_most(2)})
        bed.deliver(recipients=PEOPLE)
        asked = [command for command in bed.server.connections[0].commands if command.startswith("RCPT")]
        self.assertEqual(len(asked), 6 + 2 + 2)
        self.end(bed)

    def test_other_refusals_stay_what_they_are(self) -> None:
        for b, codes in ((b"550 no", 550), (b"450 later", 450), (b"452 4.2.2 full", 452), (b"452 4.3.1 disk", 452)):
            bed = Bed(server={"verdict": at_most(1, b=b)})
            self.assertEqual(outcome(bed.deliver(recipients=[A, B, C])), ((A, C), {B: codes}))
            self.assertEqual(taken(bed), [(A,), (C,)])
            self.end(bed)

    def test_who_was_refused_before_anybody_was_accepted_is_not_asked_for_again(self) -> None:
        for refused, codes in (({"a": b"452 no room"}, {A: 452}), ({"a": b"452 a", "b": b"452 b"}, {A: 452, B: 452})):
            bed = Bed(server={"verdict": at_most(9, **refused)})
            self.assertEqual(outcome(bed.deliver(recipients=[A, B, C]))[1], codes)
            self.assertEqual(bed.server.connections[0].transactions, 1)
            self.end(bed)

    def test_a_transaction_that_gets_nobody_further_is_the_last(self) -> None:
        """Their 452 is the result."""
        bed = Bed()
        left = [2, 0, 0]

        def verdict(point: str, argument: str, record: Connection) -> bytes | None:
            if point == "rcpt":
                left[record.transactions - 1] -= 1
                return TOO_MANY if left[record.transactions - 1] < 0 else None
            return None

        bed.server.verdict = verdict
        result = bed.deliver(recipients=PEOPLE)
        self.assertEqual(outcome(result), ((A, B), dict.fromkeys((C, D, E, F), 452)))
        self.assertEqual((result.reply.code, bed.server.connections[0].transactions), (250, 2))
        self.end(bed)

    def test_content_that_can_not_be_read_again_is_not_sent_again(self) -> None:
        for bed in self.beds(server={"verdict": at_most(2)}):
            result = bed.deliver(Unseekable(SMALL), recipients=[A, B, C])
            self.assertEqual(outcome(result), ((A, B), {C: 452}))
            self.assertEqual(result.excess, (C,))
            self.end(bed)

    def test_lmtp_has_a_reply_for_each(self) -> None:
        """A 452 to the content is about a mailbox, and stays."""
        counting = at_most(2)

        def verdict(point: str, argument: str, record: Connection) -> bytes | None:
            return b"452 full" if (point, argument) == ("dot", B) else counting(point, argument, record)

        bed = Bed(protocol="lmtp", server={"lmtp": True, "verdict": verdict})
        result = bed.deliver(recipients=[A, B, C, D])
        self.assertEqual(outcome(result), ((A, C, D), {B: 452}))
        self.assertEqual((result.excess, bed.server.connection_count), ((), 1))
        self.end(bed)

    def test_in_one_flight_too(self) -> None:
        bed = Bed(one_flight=True, server={"verdict": at_most(2)})
        for _ in range(2):
            self.assertEqual(outcome(bed.deliver(recipients=PEOPLE)), (PEOPLE, {}))
        self.assertEqual(taken(bed), [(A, B), (C, D), (E, F)] * 2)
        self.end(bed)

    def test_a_used_up_session_is_followed_by_another(self) -> None:
        for settings in (
            {"limits": Limits(max_uses=2)},
            {"server": {"capabilities": [*PIPELINING, "LIMITS MAILMAX=2"]}},
        ):
            for bed in self.beds(**settings):
                bed.server.verdict = at_most(1)
                self.assertEqual(outcome(bed.deliver(recipients=[A, B, C])), ((A, B, C), {}))
                self.assertEqual([each.transactions for each in bed.server.connections], [2, 1])
                self.end(bed)

    def test_a_session_that_may_not_be_kept_is_followed_by_another(self) -> None:
        counting = at_most(2)

        def verdict(point: str, argument: str, record: Connection) -> bytes | None:
            return b"251 taken" if point == "dot" else counting(point, argument, record)

        for settings in ({"server": {"verdict": verdict}}, {"faults": [Fault("ehlo2", "barelf", connection=1)]}):
            bed = Bed(**settings)
            bed.server.verdict = bed.server.verdict or counting
            self.assertEqual(outcome(bed.deliver(recipients=[A, B, C])), ((A, B, C), {}))
            self.assertEqual([each.transactions for each in bed.server.connections], [1, 1])
            self.end(bed)


class Announced(Case):
    """LIMITS RCPTMAX."""

    SERVER = {"capabilities": [*PIPELINING, "LIMITS RCPTMAX=2"]}

    def test_no_more_are_asked_for_at_a_time(self) -> None:
        for bed in self.beds(server=self.SERVER):
            for recipients, groups in (
                ([A], [(A,)]),
                ([A, B], [(A, B)]),
                (PEOPLE[:5], [(A, B), (C, D), (E,)]),
            ):
                bed.server.messages.clear()
                self.assertEqual(outcome(bed.deliver(recipients=recipients)), (tuple(recipients), {}))
                self.assertEqual(taken(bed), groups)
            self.assertEqual(bed.server.connection_count, 1)
            self.end(bed)

    def test_each_transaction_has_its_own_verdict(self) -> None:
        bed = Bed(server=self.SERVER)
        bed.server.verdict = at_most(9, a=b"550 no", b=b"550 no", d=b"450 later")
        result = bed.deliver(recipients=PEOPLE)
        self.assertEqual(outcome(result), ((C, E, F), {A: 550, B: 550, D: 450}))
        self.assertEqual(result.reply.code, 250, "that of the last transaction in which somebody was accepted")
        self.end(bed)

    def test_refusals_of_all_are_the_result(self) -> None:
        for point in ("mail", "data", "dot"):
            bed = Bed(server=self.SERVER)
            bed.server.verdict = lambda at, argument, record, point=point: b"550 no" if at == point else None
            self.assertEqual(outcome(bed.deliver(recipients=PEOPLE)), ((), dict.fromkeys(PEOPLE, 550)))
            self.end(bed)

    def test_who_was_not_asked_for_since_the_content_can_not_be_read_again_is_told_so(self) -> None:
        bed = Bed(server=self.SERVER)
        result = bed.deliver(Unseekable(SMALL), recipients=[A, B, C])
        self.assertEqual(outcome(result), ((A, B), {C: 451}))
        self.assertIn("4.4.2 not sent to this recipient: the content can't be read again", str(result.rejected[C]))
        self.end(bed)


class BrokenOff(Case):
    """What was answered stays true, and is not sent again, whatever happens to a later transaction."""

    def each(self, *faults: Fault) -> list[tuple[Bed, int]]:
        """Beds where two are taken at a time, and the code for those who are still due: the server's, or ours."""
        return [
            bed
            for kind in (Bed, KeeperBed)
            for bed in (
                (kind(faults=faults, server={"verdict": at_most(2)}), 452),
                (kind(faults=faults, server=Announced.SERVER), 451),
            )
        ]

    def test_a_later_transaction_that_is_cut_goes_on_on_a_fresh_session(self) -> None:
        for point in ("mail", "rcpt", "data", "content"):
            for bed, _ in self.each(Fault(point, "rst", connection=1, transaction=2)):
                self.assertEqual(outcome(bed.deliver(LARGE, recipients=PEOPLE)), (PEOPLE, {}), point)
                self.assertEqual(taken(bed), [(A, B), (C, D), (E, F)])
                self.assertEqual([each.transactions for each in bed.server.connections], [2, 2])
                self.end(bed)

    def test_after_two_attempts_the_others_are_refused(self) -> None:
        """Certainly not delivered to them, and certainly to the first two: an exception could not say both."""
        for point in ("mail", "rcpt", "data", "content"):
            faults = (
                Fault(point, "rst", connection=1, transaction=2),
                Fault(point, "rst", connection=2, transaction=1),
            )
            for bed, code in self.each(*faults):
                result = bed.deliver(LARGE, recipients=PEOPLE)
                self.assertEqual(outcome(result), ((A, B), dict.fromkeys((C, D, E, F), code)), point)
                self.assertEqual((result.reply.code, result.session.uses), (250, 1), "of what was accepted")
                self.assertEqual(taken(bed), [(A, B)])
                self.assertEqual(result.excess, (C, D, E, F) if code == 452 else ())
                self.end(bed)

    def test_in_doubt_it_says_of_everybody_what_is_known(self) -> None:
        for point in ("dot", "after_dot"):
            for bed, code in self.each(Fault(point, "rst", transaction=2)):
                error = bed.deliver(recipients=PEOPLE)
                assert isinstance(error, UncertainDelivery), repr(error)
                self.assertEqual((error.accepted, error.undecided), ((A, B), (C, D)))
                self.assertEqual({each: reply.code for each, reply in error.rejected.items()}, {E: code, F: code})
                self.assertIn("the end of content was written", str(error))
                self.assertEqual(bed.server.connection_count, 1, "never sent again")
                self.end(bed)

    def test_doubt_in_the_first_of_several(self) -> None:
        bed = Bed(faults=[Fault("after_dot", "rst")], server=Announced.SERVER)
        error = bed.deliver(recipients=[A, B, C])
        assert isinstance(error, UncertainDelivery), repr(error)
        self.assertEqual((error.accepted, error.undecided, list(error.rejected)), ((), (A, B), [C]))
        self.assertEqual(error.rejected[C].code, 451)
        self.end(bed)

    def test_the_first_of_several_that_is_not_sent_is_no_result(self) -> None:
        bed = Bed(faults=[Fault("rcpt", "rst")], server=Announced.SERVER)
        error = bed.deliver(recipients=[A, B, C])
        assert isinstance(error, DeliveryError), repr(error)
        self.assertEqual((error.phase, error.retriable), ("rcpt", True))
        self.end(bed)

    def test_a_session_that_can_not_be_had_any_more(self) -> None:
        bed = Bed(limits=Limits(max_uses=1), server=Announced.SERVER)
        bed.server.verdict = lambda point, argument, record: b"421 go away" if record.number > 1 else None
        result = bed.deliver(recipients=[A, B, C])
        self.assertEqual(outcome(result), ((A, B), {C: 451}))
        self.assertIn("421 go away", str(result.rejected[C]))
        self.end(bed)

    def test_a_cancel_or_a_deadline_in_a_later_transaction(self) -> None:
        """Two round trips of a second for the first one, then two more."""
        for how in ("cancel", "deadline"):
            for after, kind in ((2.5, DeliveryResult), (3.5, UncertainDelivery)):
                bed = Bed(latency=0.5, server=Announced.SERVER)
                bed.deliver(recipients=[A])
                running = bed.start(recipients=PEOPLE, deadline=after if how == "deadline" else None)
                bed.reactor.run_for(after)
                if how == "cancel":
                    running.deferred.cancel()
                value = running.value
                assert isinstance(value, kind), repr(value)
                self.assertEqual(value.accepted, (A, B))
                due = (C, D, E, F) if kind is DeliveryResult else (E, F)
                self.assertEqual({each: reply.code for each, reply in value.rejected.items()}, dict.fromkeys(due, 451))
                bed.reactor.run_for(10)
                self.assertEqual(bed.counts(), (0, 0, 0, 0))
                self.end(bed)

    def test_content_that_fails_when_it_is_read_again(self) -> None:
        class Once(io.BytesIO):
            def seek(self, position: int, whence: int = 0) -> int:
                self.rewound = getattr(self, "rewound", -1) + (whence == 0)
                return super().seek(position, whence)

            def read(self, size: int | None = -1) -> bytes:
                if size and self.rewound:
                    raise OSError(5, "Input/output error")
                return super().read(size)

        bed = Bed(server={"verdict": at_most(2)})
        result = bed.deliver(Once(LARGE), recipients=[A, B, C])
        self.assertEqual(outcome(result), ((A, B), {C: 452}))
        self.end(bed)


class Accounts(SynchronousTestCase):
    """`Parts` by itself."""

    FACTS = SessionFacts("1", "mx", False, 1, None, 0.0)

    def said(
        self, accepted: Sequence[str], rejected: dict[str, int] | None = None, excess: Sequence[str] = ()
    ) -> DeliveryResult:
        replies = {each: Reply.make(code) for each, code in (rejected or {}).items()}
        return DeliveryResult(tuple(accepted), replies, Reply.make(250), self.FACTS, tuple(excess))

    def test_what_is_asked_is_the_least_of_what_is_known(self) -> None:
        parts = Parts(PEOPLE)
        self.assertEqual(parts.ask(5), PEOPLE[:5])
        parts.answered(self.said([A, B], {C: 452, D: 550, E: 452}, [C, E]))
        self.assertEqual(parts.due, (C, E, F))
        self.assertEqual(parts.ask(1), (C,))
        self.assertEqual(parts.ask(None), (C, E))

    def test_who_is_accepted_at_last_was_not_refused(self) -> None:
        parts = Parts((A, B))
        parts.ask(None)
        parts.answered(self.said([A], {B: 452}, [B]))
        parts.ask(None)
        parts.answered(self.said([B]))
        self.assertEqual((parts.due, parts.result().accepted, parts.result().rejected), ((), (A, B), {}))

    def test_our_own_reply_is_one_line_whatever_the_reason(self) -> None:
        parts = Parts((A, B))
        parts.ask(1)
        parts.answered(self.said([A]))
        reply = parts.broken_off("it\r\nwent\0wrong " + "x" * 9999).rejected[B]
        self.assertEqual((reply.code, len(reply.lines), reply.enhanced), (451, 1, (4, 4, 2)))
        self.assertLess(len(reply.text), 512)
