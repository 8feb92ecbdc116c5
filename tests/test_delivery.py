"""Deliveries: what comes of a message, wherever it is refused, cut, cancelled or late; and what it costs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache import (
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    Limits,
    MemorySessionCache,
    TLSPolicy,
    UncertainDelivery,
    deliver,
)
from mailcache.testing import Connection, Fault, SMTPServer
from mailcache.wire.content import CHUNK
from tests.helpers import LARGE, PORT, SMALL, Bed, Failing, Unseekable, certificate, stored, verdict_of

B, C, D = "b@example.com", "c@example.com", "d@example.com"
SIX_BIT = b"Subject: hello\r\n\r\ncaf\xc3\xa9\r\n"

PHASES = ("rset", "mail", "rcpt", "data", "content")


class Case(SynchronousTestCase):
    def codes(self, result: Any) -> tuple[tuple[str, ...], dict[str, int], int]:
        """Accepted, refused with what, and the last word."""
        assert isinstance(result, DeliveryResult), repr(result)
        return result.accepted, {each: reply.code for each, reply in result.rejected.items()}, result.reply.code

    def sent(self, bed: Bed, **more: Any) -> DeliveryResult:
        result = bed.deliver(**more)
        assert isinstance(result, DeliveryResult) and not result.rejected, repr(result)
        return result

    def end(self, bed: Bed, *, violations: Sequence[str] = ()) -> None:
        """Nothing is left of anything."""
        self.assertEqual(bed.server.violations, list(violations))
        bed.close()
        bed.reactor.run_for(700)
        self.assertEqual((bed.reactor.connections, bed.reactor.getDelayedCalls()), ([], []))


def at(**replies: dict[str, bytes]) -> Callable[[str, str, Connection], bytes | None]:
    """Of a scripted server: at a point, the reply for an address."""
    return lambda point, argument, record: replies.get(point, {}).get(argument)


class Verdicts(Case):
    """What the server says is the result."""

    def test_cover_all_recipients(self) -> None:
        no, later = b"550 5.1.1 no such user", b"450 4.2.0 greylisted"
        everybody = {B: b"", C: b"", D: b""}
        for verdict, outcome in (
            (at(), ((B, C, D), {}, 250)),
            (at(rcpt={C: no}), ((B, D), {C: 550}, 250)),
            (at(rcpt={B: later, D: no}), ((C,), {B: 450, D: 550}, 250)),
            (at(rcpt=dict.fromkeys(everybody, no)), ((), {B: 550, C: 550, D: 550}, 550)),
            (at(rcpt={B: no, C: later, D: later}), ((), {B: 550, C: 450, D: 450}, 450)),
            (at(mail={"a@example.com": no}), ((), {B: 550, C: 550, D: 550}, 550)),
            (at(mail={"a@example.com": later}), ((), {B: 450, C: 450, D: 450}, 450)),
            (at(data={"": no}), ((), {B: 550, C: 550, D: 550}, 550)),
            (at(data={"": later}, rcpt={B: no}), ((), {B: 550, C: 450, D: 450}, 450)),
            (at(dot={"a@example.com": no}), ((), {B: 550, C: 550, D: 550}, 550)),
            (at(dot={"a@example.com": later}, rcpt={B: no}), ((), {B: 550, C: 450, D: 450}, 450)),
        ):
            for capabilities in (["PIPELINING"], []):
                bed = Bed(server={"verdict": verdict, "capabilities": capabilities})
                result = bed.deliver(recipients=[B, C, D])
                self.assertEqual(self.codes(result), outcome)
                # The session is kept; RSET precedes the next MAIL unless the content was taken.
                self.assertEqual(bed.counts(), (0, 1, 0, 0))
                bed.server.verdict = None
                before = len(bed.server.connections[0].commands)
                self.sent(bed)
                verbs = [command.split()[0] for command in bed.server.connections[0].commands[before:]]
                self.assertEqual(verbs, ["MAIL", "RCPT", "DATA"] if outcome[0] else ["RSET", "MAIL", "RCPT", "DATA"])
                self.assertEqual(bed.server.connection_count, 1)
                self.end(bed)

    def test_are_each_recipients_own_for_lmtp(self) -> None:
        no = b"552 5.2.2 mailbox full"
        for verdict, outcome in (
            (at(), ((B, C, D), {}, 250)),
            (at(dot={C: no}), ((B, D), {C: 552}, 250)),
            (at(dot={B: no, C: no, D: no}), ((), {B: 552, C: 552, D: 552}, 552)),
            (at(dot={D: no}, rcpt={B: no}), ((C,), {B: 552, D: 552}, 552)),
        ):
            bed = Bed(protocol="lmtp", server={"lmtp": True, "verdict": verdict})
            self.assertEqual(self.codes(bed.deliver(recipients=[B, C, D])), outcome)
            bed.server.verdict = None
            self.sent(bed)
            self.assertEqual(bed.server.connection_count, 1)
            self.end(bed)

    def test_say_which_session_it_was(self) -> None:
        bed = Bed(latency=0.5)
        first, second = self.sent(bed).session, self.sent(bed).session
        self.assertEqual((first.reused, first.uses, second.reused, second.uses), (False, 1, True, 2))
        self.assertEqual((first.id, first.peer, first.tls), (second.id, second.peer, second.tls))
        self.assertEqual((first.peer, first.tls), (f"[127.0.0.1]:{PORT}", "TLSv1.3 TLS_AES_256_GCM_SHA384"))
        self.assertEqual(first.setup_seconds, 6.0, "from the connect to the last EHLO")
        self.end(bed)

    def test_while_content_is_still_written_are_verdicts_too(self) -> None:
        for kind, code in (("4xx", 451), ("5xx", 552), ("421", 421)):
            bed = Bed(faults=[Fault("content", kind)])
            self.assertEqual(self.codes(bed.deliver(LARGE)), ((), {B: code}, code))
            self.assertEqual(bed.server.message_count, 0)
            bed.reactor.run_for(1)
            self.assertFalse(bed.server.connections[0].quit_seen)
            self.sent(bed)
            self.assertEqual(bed.server.connection_count, 2)
            self.end(bed)

    def test_a_refusal_with_a_reply_too_many_is_none(self) -> None:
        """It may have been meant for another command: no recipient is told to be gone who is not."""
        no = b"550 5.1.1 no"
        for replies, recipients in (
            ({B: no + b"\r\n" + no}, [B, C]),
            ({B: b"250 ok\r\n250 ok", C: no}, [B, C]),
            ({B: b"250 ok\r\n" + no}, [B, C]),
            ({C: no + b"\r\n" + no}, [B, C, D]),
        ):
            bed = Bed(server={"verdict": at(rcpt=replies)})
            error = bed.deliver(recipients=recipients)
            self.assertEqual((verdict_of(error), error.retriable), ("NEXT", True), repr(error))
            self.assertEqual(bed.server.message_count, 0)
            self.end(bed)

    def test_a_refusal_that_crosses_mail_on_its_way_is_none(self) -> None:
        """The server has said it into an idle session; the message goes out on another, whatever comes behind it."""
        for kind in ("4xx", "5xx"):
            for point, fault in ((None, ""), ("mail", "rst"), ("rcpt", "rst"), ("rcpt", "garbage"), ("data", "rst")):
                faults = [Fault("idle", kind)] + ([Fault(point, fault, transaction=2)] if point else [])
                bed = Bed(latency=0.1, faults=faults)
                self.sent(bed)
                outcome = bed.start(recipients=[B, C])
                bed.server.strike_idle()
                with self.subTest(kind=kind, point=point, fault=fault):
                    self.assertEqual(self.codes(bed.finish(outcome)), ((B, C), {}, 250))
                    self.assertEqual((bed.server.message_count, bed.server.connection_count), (2, 2))
                self.end(bed)

    def test_behind_the_content_a_reply_too_many_costs_the_session_alone(self) -> None:
        bed = Bed(server={"verdict": at(dot={"a@example.com": b"250 ok\r\n250 ok"})})
        self.sent(bed)
        self.sent(bed)
        self.assertEqual(bed.server.connection_count, 2)
        self.end(bed)


class Needs(Case):
    """What the server can't take is not begun, and the session lives on."""

    def test_that_are_not_met_are_a_permanent_error(self) -> None:
        for offers, arguments, lacking in (
            ([], {"sender": "\xe4@example.com"}, "SMTPUTF8"),
            (["8BITMIME"], {"recipients": ["\xe4@example.com"]}, "SMTPUTF8"),
            (["8BITMIME"], {"smtputf8": True}, "SMTPUTF8"),
            (["SMTPUTF8"], {"content": SIX_BIT}, "8BITMIME"),
            ([], {"body": "8BITMIME"}, "8BITMIME"),
            (["SMTPUTF8", "8BITMIME"], {"requiretls": True}, "REQUIRETLS"),
            (["SIZE 100000"], {"content": LARGE}, "and the server takes 100000 at most"),
            (["SIZE 100000"], {"content": io.BytesIO(LARGE)}, "and the server takes 100000 at most"),
        ):
            for pipelining in ([], ["PIPELINING"]):
                bed = Bed(server={"capabilities": [*offers, *pipelining]})
                for _ in range(2):
                    error = bed.deliver(**arguments)
                    assert isinstance(error, DeliveryError), repr(error)
                    self.assertEqual((error.phase, error.retriable, error.reply), ("needs", False, None))
                    self.assertIn(lacking, str(error))
                    self.assertEqual(error.endpoint, f"smtp:[127.0.0.1]:{PORT}")
                self.assertEqual(bed.counts(), (0, 1, 0, 0))
                self.sent(bed)
                self.assertEqual((bed.server.connection_count, bed.server.message_count), (1, 1))
                self.assertNotIn("RSET", bed.server.connections[0].commands)
                self.end(bed)

    def test_that_are_met_are_declared(self) -> None:
        everything = ["SMTPUTF8", "8BITMIME", "REQUIRETLS", "SIZE 0"]
        for arguments, parameters in (
            ({}, ("SIZE=34",)),
            ({"content": SIX_BIT}, ("SIZE=25", "BODY=8BITMIME")),
            ({"body": "8BITMIME"}, ("SIZE=34", "BODY=8BITMIME")),
            ({"body": "7BIT"}, ("SIZE=34",)),
            ({"sender": "\xe4@example.com"}, ("SMTPUTF8", "SIZE=34")),
            ({"requiretls": True, "smtputf8": True}, ("SMTPUTF8", "REQUIRETLS", "SIZE=34")),
            ({"content": LARGE}, (f"SIZE={len(LARGE)}",)),
            ({"content": io.BytesIO(SMALL)}, ("SIZE=34", "BODY=8BITMIME")),
            ({"content": Unseekable(SMALL)}, ("BODY=8BITMIME",)),
            ({"content": Unseekable(SMALL), "body": "7BIT"}, ()),
        ):
            bed = Bed(server={"capabilities": everything})
            self.sent(bed, **arguments)
            self.assertEqual(bed.server.messages[0].parameters, parameters)
            self.end(bed)

    def test_nothing_is_declared_that_is_not_offered(self) -> None:
        bed = Bed(server={"capabilities": []})
        for content in (SMALL, LARGE, io.BytesIO(SMALL), Unseekable(SMALL)):
            self.sent(bed, content=content)
        self.assertEqual({message.parameters for message in bed.server.messages}, {()})
        self.end(bed)

    def test_eight_bits_in_a_file_for_a_server_without_them_break_it_off(self) -> None:
        """It shows only when they are read: the message is not sent, in part or as a whole, and not tried again."""
        late = b"a" * 3 * CHUNK + SIX_BIT
        for capabilities, envelope in (([], {}), (["8BITMIME"], {"body": "7BIT"}), ([], {"body": "7BIT"})):
            for content in (SIX_BIT, late):
                bed = Bed(server={"capabilities": capabilities})
                self.sent(bed)
                error = bed.deliver(io.BytesIO(content), **envelope)
                assert isinstance(error, DeliveryError), repr(error)
                self.assertEqual((error.phase, error.retriable), ("content", False))
                self.assertIn("8-bit", str(error))
                self.assertEqual((bed.server.message_count, bed.server.connection_count), (1, 1))
                self.sent(bed, content=io.BytesIO(b"a" * 3 * CHUNK), **envelope)
                self.end(bed)


class Files(Case):
    """Content from a file is streamed, whole or not at all."""

    def test_arrive_as_they_are(self) -> None:
        for content in (b"", b"a", SMALL, LARGE, b".\r\n..\r\n" * 30_000, b"x" * 10 * CHUNK):
            wanted = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
            for make in (io.BytesIO, Unseekable):
                for latency in (0.0, 0.1):
                    bed = Bed(latency=latency)
                    self.sent(bed, content=make(content))
                    self.sent(bed, content=make(content))
                    self.assertEqual([message.content for message in bed.server.messages], [wanted] * 2)
                    self.assertEqual(bed.server.connection_count, 1)
                    self.end(bed)

    def test_that_fail_are_broken_off(self) -> None:
        """Never a dot; the fault is the caller's, so nothing is tried again."""
        for problem in (OSError(5, "Input/output error"), b"", "text"):
            for after in (0, CHUNK, 5 * CHUNK):
                for reused in (False, True):
                    bed = Bed()
                    if reused:
                        self.sent(bed)
                    error = bed.deliver(Failing(LARGE, after, problem))
                    assert isinstance(error, DeliveryError), repr(error)
                    self.assertEqual((error.phase, error.retriable), ("content", False))
                    bed.reactor.run_for(1)
                    self.assertEqual((bed.server.message_count, bed.server.connection_count), (int(reused), 1))
                    self.assertEqual(bed.server.open_count, 0)
                    self.assertEqual(len(bed.server.messages), int(reused), "no end of content was seen")
                    self.sent(bed)
                    self.end(bed)

    def test_that_are_cut_short_meanwhile_are_broken_off(self) -> None:
        path = stored(self, LARGE)
        bed = Bed(latency=0.5)
        with open(path, "rb", buffering=0) as file:
            outcome = bed.start(file)
            bed.reactor.run_for(7.5)
            os.truncate(path, len(LARGE) // 2)
            error = bed.finish(outcome)
        self.assertEqual((error.phase, error.retriable), ("content", False))
        self.assertIn("the file ended", str(error))
        self.assertEqual(bed.server.messages, [])
        self.end(bed)

    def test_are_sent_again_if_they_can_be_rewound(self) -> None:
        """And what can't be was perhaps not read yet."""
        for point, make, words in (
            ("rcpt", io.BytesIO, ("SENT", 2)),
            ("rcpt", Unseekable, ("SENT", 2)),
            ("data", Unseekable, ("SENT", 2)),
            ("content", io.BytesIO, ("SENT", 2)),
            ("content", Unseekable, ("NEXT", 1)),
        ):
            bed = Bed(faults=[Fault(point, "rst", connection=1, transaction=2)])
            self.sent(bed)
            content = make(b"skip" + LARGE)
            content.read(4)
            value = bed.deliver(content)
            self.assertEqual((verdict_of(value), bed.server.connection_count), words, f"{point} {make}: {value!r}")
            self.assertEqual(bed.server.messages[-1].content, LARGE if words[0] == "SENT" else SMALL)
            self.end(bed)

    def test_are_not_read_before_they_are_wanted(self) -> None:
        """Nor faster than the server takes them."""
        bed = Bed(latency=0.5, faults=[Fault("content", "silence")])
        file = io.BytesIO(b"x" * 100 * CHUNK)
        outcome = bed.start(file)
        bed.reactor.run_for(6.5)
        self.assertEqual(file.tell(), 0)
        bed.reactor.run_for(100)
        self.assertTrue(0 < file.tell() < 6 * CHUNK, file.tell())
        self.assertEqual(verdict_of(bed.finish(outcome)), "NEXT")
        self.end(bed)


class RoundTrips(Case):
    """The one number that the whole is about."""

    def test_eight_for_the_first_message_and_two_for_each_kept_one(self) -> None:
        """Connect, greeting, EHLO, STARTTLS, handshake, EHLO; then commands, and content."""
        bed = Bed(latency=0.5)
        for content in (SMALL, LARGE[:10_000], io.BytesIO(SMALL)):
            for recipients in ([B], [B, C, D]):
                began = bed.reactor.seconds()
                flights = bed.server.connections[0].flights if bed.server.connections else 0
                self.sent(bed, content=content, recipients=recipients)
                taken, gone = bed.reactor.seconds() - began, bed.server.connections[0].flights - flights
                self.assertEqual((taken, gone), (2.0, 2) if flights else (8.0, 8))
                if isinstance(content, io.BytesIO):
                    content.seek(0)
        self.assertEqual((bed.server.connection_count, bed.server.handshake_count), (1, 1))
        self.end(bed)

    def test_rset_costs_none(self) -> None:
        bed = Bed(latency=0.5, faults=[Fault("rcpt", "5xx")])
        bed.deliver()
        began = bed.reactor.seconds()
        self.sent(bed)
        self.assertEqual(bed.reactor.seconds() - began, 2.0)
        self.assertIn("RSET", bed.server.connections[0].commands)
        self.end(bed)

    def test_other_ways_to_a_server(self) -> None:
        for arguments, first, kept in (
            ({"tls": TLSPolicy("none")}, 5.0, 2.0),
            ({"tls": TLSPolicy("may"), "server": {"certificate": None}}, 5.0, 2.0),
            ({"protocol": "smtps", "server": {"implicit_tls": True}}, 6.0, 2.0),
            ({"tls": TLSPolicy("none"), "server": {"capabilities": []}}, 7.0, 4.0),
        ):
            bed = Bed(latency=0.5, **arguments)
            for seconds in (first, kept):
                began = bed.reactor.seconds()
                self.sent(bed)
                self.assertEqual(bed.reactor.seconds() - began, seconds, arguments)
            self.end(bed)


class Elsewhere(Case):
    """A message that was cut before its end goes to another endpoint: to one, and once."""

    def bed(self, count: int) -> tuple[Bed, Destination, list[SMTPServer]]:
        bed = Bed()
        addresses = [f"192.0.2.{number}" for number in range(1, count + 1)]
        bed.reactor.hosts["mx.test"] = addresses
        servers = [SMTPServer(bed.reactor, certificate=certificate()) for _ in addresses]
        for server, address in zip(servers, addresses, strict=True):
            server.listen(PORT, address)
        return bed, bed.to(f"[mx.test]:{PORT}"), servers

    def test_after_a_cut_on_a_fresh_session(self) -> None:
        for point in ("mail", "rcpt", "data", "content"):
            for kind in ("rst", "fin", "notify", "badrecord", "silence"):
                bed, where, servers = self.bed(2)
                servers[0].arm(Fault(point, kind))
                result = bed.deliver(LARGE, destination=where)
                self.assertEqual(verdict_of(result), "SENT", f"{kind} at {point}: {result!r}")
                self.assertEqual([server.message_count for server in servers], [0, 1])
                self.assertEqual([server.transactions_seen("a@example.com") for server in servers], [1, 1])
                self.assertTrue(result.session.peer.startswith("mx.test[192.0.2.2]"))
                self.end(bed)

    def test_two_attempts_are_all(self) -> None:
        bed, where, servers = self.bed(3)
        for server in servers:
            server.arm(Fault("rcpt", "rst"))
        error = bed.deliver(destination=where)
        self.assertEqual((verdict_of(error), error.phase, error.retriable), ("NEXT", "rcpt", True))
        self.assertEqual([server.transactions_seen("a@example.com") for server in servers], [1, 1, 0])
        self.end(bed)

    def test_where_there_is_no_other_the_cut_is_the_error(self) -> None:
        bed = Bed(faults=[Fault("rcpt", "rst")])
        error = bed.deliver()
        self.assertEqual((verdict_of(error), error.phase, error.retriable), ("NEXT", "rcpt", True))
        self.assertEqual((bed.server.connection_count, error.endpoint), (1, f"smtp:[127.0.0.1]:{PORT}"))
        self.end(bed)

    def test_a_kept_session_that_is_cut_costs_a_new_one_at_the_same_place(self) -> None:
        for point in ("mail", "rcpt", "data", "content"):
            bed, where, servers = self.bed(2)
            servers[0].arm(Fault(point, "rst", transaction=2))
            self.sent(bed, destination=where)
            result = bed.deliver(LARGE, destination=where)
            self.assertEqual((verdict_of(result), result.session.reused), ("SENT", False))
            self.assertEqual([server.connection_count for server in servers], [2, 0])
            self.end(bed)

    def test_never_after_the_end_was_written(self) -> None:
        for point in ("dot", "after_dot"):
            for reused in (False, True):
                bed, where, servers = self.bed(2)
                servers[0].arm(Fault(point, "rst", transaction=2 if reused else 1))
                if reused:
                    self.sent(bed, destination=where)
                value = bed.deliver(destination=where)
                assert isinstance(value, UncertainDelivery), repr(value)
                self.assertEqual((value.undecided, value.accepted, value.rejected), ((B,), (), {}))
                assert value.session is not None
                self.assertEqual((value.session.reused, value.endpoint), (reused, f"smtp:[192.0.2.1]:{PORT}"))
                self.assertEqual(servers[1].connection_count, 0)
                self.end(bed)

    def test_a_verdict_goes_nowhere_else(self) -> None:
        for point in ("mail", "rcpt", "data", "after_dot"):
            for kind in ("4xx", "5xx"):
                bed, where, servers = self.bed(2)
                servers[0].arm(Fault(point, kind))
                self.assertIn(verdict_of(bed.deliver(destination=where)), ("TEMP", "PERM"))
                self.assertEqual(servers[1].connection_count, 0)
                self.end(bed)

    def test_lmtp_tells_which_recipients_are_in_doubt(self) -> None:
        bed = Bed(
            protocol="lmtp",
            server={"lmtp": True, "verdict": at(rcpt={B: b"550 no"}, dot={C: b"452 full"})},
            faults=[Fault("after_dot", "rst")],
        )
        value = bed.deliver(recipients=[B, C, D, "e@example.com"])
        assert isinstance(value, UncertainDelivery), repr(value)
        self.assertEqual((value.accepted, value.undecided), ((D,), ("e@example.com",)))
        self.assertEqual({each: reply.code for each, reply in value.rejected.items()}, {B: 550, C: 452})
        self.end(bed)


class Endings(Case):
    """Cancelled, or too late: at every moment, and every account returns to where it was."""

    #: Round trips of a second: the content of a first message is written at 7, of a kept one 1 after it began.
    MOMENTS = [0.0, *[number / 4 + 0.1 for number in range(32)]]

    def moments(self) -> Iterator[tuple[Bed, float, str]]:
        """A bed with a delivery ahead, when to end it, and what the server may have by then."""
        for kept in (False, True):
            for moment in self.MOMENTS:
                if kept and moment > 2:
                    break
                bed = Bed(latency=0.5)
                if kept:
                    self.sent(bed, sender="first@example.com")
                written = 1.0 if kept else 7.0
                yield bed, moment, "before" if moment < written else "after"

    def check_ended(self, bed: Bed, when: str) -> None:
        """The session is gone, the server has taken nothing before its time, and the next delivery works."""
        bed.reactor.run_for(10)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))
        taken = [message.sender for message in bed.server.messages if message.committed]
        if when == "before":
            self.assertNotIn("a@example.com", taken)
        self.assertLessEqual(taken.count("a@example.com"), 1)
        self.assertFalse(any(connection.quit_seen for connection in bed.server.connections))
        self.sent(bed, sender="next@example.com")
        self.end(bed)

    def test_by_cancelling(self) -> None:
        for content in (SMALL, LARGE):
            for bed, moment, when in self.moments():
                outcome = bed.start(content)
                bed.reactor.run_for(moment)
                if outcome.done or (content is LARGE and when == "after"):
                    outcome.deferred.cancel()
                    bed.reactor.run_for(0)
                    continue
                outcome.deferred.cancel()
                self.assertTrue(outcome.done, "at once")
                kind = CancelledError if when == "before" else UncertainDelivery
                self.assertIsInstance(outcome.value, kind, f"at {moment}")
                self.check_ended(bed, when)

    def test_by_a_deadline(self) -> None:
        for bed, moment, when in self.moments():
            if not moment:
                continue
            began = bed.reactor.seconds()
            value = bed.deliver(deadline=moment)
            if isinstance(value, DeliveryResult):
                self.fail(f"a result within {moment} s")
            self.assertEqual(bed.reactor.seconds(), began + moment)
            if when == "before":
                self.assertEqual((type(value), value.phase, value.retriable), (DeliveryError, "deadline", True))
                self.assertIn(f"the deadline of {moment:g} s has passed", str(value))
            else:
                self.assertIsInstance(value, UncertainDelivery)
            self.check_ended(bed, when)

    def test_a_deadline_that_is_met_leaves_nothing(self) -> None:
        bed = Bed(latency=0.5)
        for _ in range(2):
            self.sent(bed, deadline=8.5)
        self.end(bed)

    def test_in_the_middle_of_the_content(self) -> None:
        """The connection is reset: half a message must not become a whole one."""
        for how in ("cancel", "deadline"):
            bed = Bed(latency=0.5)
            content = LARGE * 3
            outcome = bed.start(content, deadline=9.6 if how == "deadline" else None)
            bed.reactor.run_for(9.6)
            if how == "cancel":
                outcome.deferred.cancel()
            value = outcome.value
            self.assertIsInstance(value, CancelledError if how == "cancel" else DeliveryError)
            self.check_ended(bed, "before")
            self.assertEqual([message.sender for message in bed.server.messages], ["next@example.com"])

    def test_of_one_that_waits_for_a_place(self) -> None:
        for how in ("cancel", "deadline"):
            bed = Bed(latency=0.5, limits=Limits(sessions=1))
            first = bed.start(sender="first@example.com")
            second = bed.start(deadline=3.0 if how == "deadline" else None)
            third = bed.start(sender="third@example.com")
            bed.reactor.run_for(3)
            self.assertEqual(bed.counts()[3], 3 if how == "cancel" else 2)
            if how == "cancel":
                second.deferred.cancel()
            self.assertIsInstance(second.value, CancelledError if how == "cancel" else DeliveryError)
            for outcome in (first, third):
                self.assertEqual(verdict_of(bed.finish(outcome)), "SENT")
            self.assertEqual((bed.server.connection_count, bed.server.message_count), (1, 2))
            self.end(bed)

    def test_of_one_that_waits_for_a_second_try(self) -> None:
        """The kept session was cut, and the fresh one is being opened."""
        for moment in (0.1, 0.6, 1.6, 3.6, 5.6, 6.4):
            bed = Bed(latency=0.5, faults=[Fault("rcpt", "rst", connection=1, transaction=2)])
            self.sent(bed, sender="first@example.com")
            outcome = bed.start()
            bed.reactor.run_for(1.1 + moment)
            outcome.deferred.cancel()
            self.assertIsInstance(outcome.value, CancelledError)
            bed.reactor.run_for(10)
            self.assertEqual((bed.counts(), bed.server.message_count), ((0, 0, 0, 0), 1))
            self.end(bed)

    def test_cancelling_twice_or_too_late_does_nothing(self) -> None:
        bed = Bed(latency=0.5)
        outcome = bed.start()
        bed.reactor.run_for(3)
        for _ in range(2):
            outcome.deferred.cancel()
        self.assertEqual(len(outcome.fired), 1)
        done = bed.start()
        self.assertEqual(verdict_of(bed.finish(done)), "SENT")
        done.deferred.cancel()
        self.assertEqual(bed.counts(), (0, 1, 0, 0))
        self.end(bed)


ROOT = Path(__file__).parents[1]
MEGABYTES = 100
ALLOWED = 40 * 1024 * 1024


class HugeFiles(TestCase):
    """Over real sockets, to a server in another process."""

    timeout = 60

    @contextmanager
    def server(self, tls: str) -> Iterator[tuple[int, str, Callable[[], dict[str, Any]]]]:
        """Its port, the file of its authority, and what it has seen when it ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", "mailcache.testing", "--tls", tls, "--size", "0"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def end() -> dict[str, Any]:
            stdin.close()
            return dict(json.loads(stdout.readline()))

        try:
            facts = json.loads(stdout.readline())
            yield facts["port"], stored(self, facts["certificate_authority"].encode()), end
        finally:
            stdin.close()
            process.wait()
            stdout.close()

    def sparse(self) -> BinaryIO:
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (its test closes it)
        self.addCleanup(file.close)
        file.truncate(MEGABYTES * 1024 * 1024)
        return file

    async def check(self, tls: str, policy: Callable[[str], TLSPolicy]) -> None:
        with self.server(tls) as (port, ca_file, end):
            cache = MemorySessionCache(reactor)
            where = Destination(f"[127.0.0.1]:{port}", tls=policy(ca_file))
            await deliver(cache, where, Envelope("a@example.com", [B]), SMALL)
            file = self.sparse()
            resident = reset_peak()
            result = await deliver(cache, where, Envelope("a@example.com", [B]), file)
            grown = peak() - resident
            await cache.close()
            seen = end()
        self.assertEqual((result.accepted, result.session.reused), ((B,), True))
        self.assertEqual((seen["messages"], seen["connections"]), (2, 1))
        self.assertLess(grown, ALLOWED)

    async def test_are_never_held_as_a_whole(self) -> None:
        await self.check("none", lambda ca_file: TLSPolicy("none"))

    async def test_nor_under_tls(self) -> None:
        await self.check("starttls", lambda ca_file: TLSPolicy("verify", ca_file=ca_file))


def reset_peak() -> int:
    """Forget the peak so far; gives the bytes that are resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()


def peak() -> int:
    """The peak of resident memory, in bytes."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
