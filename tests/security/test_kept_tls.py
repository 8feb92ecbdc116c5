"""TLS of sessions that are kept: what it says to itself keeps them, what is not TLS ends them, and each has its own."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

from cryptography.exceptions import InvalidTag
from OpenSSL import SSL

from mailcache import Limits, TLSPolicy, UncertainDelivery, memory
from mailcache.testing import Connection, Fault
from mailcache.testing.misreplies import CORRUPT_HANDSHAKE, CORRUPT_RECORD
from tests.helpers import PORT, authority, ca_file
from tests.security.callers import BORROWERS, HERE, MEMORY, WAYS, Callers, SharingCase, to
from tests.test_tls import SecretWriter, records

REPLY = b"250 2.0.0 taken by nobody\r\n"
ALERT, HANDSHAKE = 21, 22
_TICKET = b"\0\0\x0e\x10" + b"\0\0\0\1" + b"\1\0" + b"\0\x10" + b"t" * 16 + b"\0\0"
TICKET = b"\x04" + len(_TICKET).to_bytes(3) + _TICKET
"""NewSessionTicket (RFC 8446 4.6.1): an hour, an age, a nonce, sixteen bytes of ticket, no extensions."""


class Rekeyed:
    """Between a server's TLS and its transport: puts in records that no call of OpenSSL's makes.

    Until it begins it listens; from then on all that OpenSSL writes is written again with its own keys and numbers.
    """

    def __init__(self, stream: Any, secrets: list[bytes]) -> None:
        self._stream = stream
        self._secrets = secrets
        self._wire = b""
        self._reader: SecretWriter | None = None
        self._write = stream._under.write
        stream._under.write = self.written

    def written(self, data: bytes) -> None:
        if self._reader is None:
            self._wire += data
            self._write(data)
            return
        for record in records(data):
            self._write(self.writer.record(*self._reader.read(record)))

    def begin(self) -> SecretWriter:
        """Gives what writes on where OpenSSL is now."""
        (line,) = [line for line in self._secrets if line.startswith(b"SERVER_TRAFFIC_SECRET_0")]
        secret = bytes.fromhex(line.split()[2].decode())
        reader = SecretWriter(secret, 0)
        _, _, behind = self._wire.partition(b"\x16\x03\x03")
        for record in records(b"\x16\x03\x03" + behind):
            if record[0] == 23:
                with contextlib.suppress(InvalidTag):  # of the handshake, with keys of its own
                    reader.read(record)
        self._reader = reader
        self.writer = SecretWriter(secret, reader.number)
        return self.writer

    def put(self, record: bytes) -> None:
        self._write(record)


class Idle(SharingCase):
    """CVE-2009-3555 (renegotiation), and curl's "input pending" that took a ticket for an answer."""

    def kept(self, callers: Callers, number: int = 1) -> Any:
        """The server's end of the session that is kept, which must be idle."""
        self.assertEqual(callers.bed.counts(), (0, 1, 0, 0))
        (stream,) = callers.bed.server._live
        self.assertEqual(stream.record.number, number)
        return stream

    def issued(self, version: int) -> tuple[Any, list[bytes]]:
        """A certificate of its own, whose server has this version of TLS only, and the secrets of its connections."""
        secrets: list[bytes] = []
        made = authority().issue(("localhost",), ("127.0.0.1",))
        context = made.server_creator().context
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.set_keylog_callback(lambda _, line: secrets.append(line))
        return made, secrets

    def test_tickets_and_key_updates_keep_it(self) -> None:
        for what, made in (
            ("a ticket", lambda writer: writer.record(HANDSHAKE, TICKET)),
            ("two in one segment", lambda writer: writer.record(HANDSHAKE, TICKET) + writer.record(HANDSHAKE, TICKET)),
            ("new keys", lambda writer: writer.key_update(False)),
            ("new keys for both", lambda writer: writer.key_update(True)),
        ):
            for way in WAYS:
                issued, secrets = self.issued(SSL.TLS1_3_VERSION)
                between: list[Rekeyed] = []

                def greet(point: str, *_: Any, between: list[Rekeyed] = between, secrets: Any = secrets) -> None:
                    if point == "banner":
                        between.append(Rekeyed(callers.bed.server._live[-1], secrets))

                server = {"certificate": issued, "verdict": greet}
                with self.about(what, way), self.callers(way, server=server) as callers:
                    self.sent(callers.deliver(0, to()))
                    self.kept(callers)
                    writer = between[0].begin()
                    for _ in range(3):
                        between[0].put(made(writer))
                        callers.bed.reactor.run_for(1)
                        self.kept(callers)
                        self.sent(callers.deliver(1, to()))
                    (record,) = callers.connections
                    self.assertEqual((record.handshakes, len(record.messages)), (1, 4))

    def test_a_request_to_renegotiate_gets_no_handshake(self) -> None:
        for way in WAYS:
            issued, _ = self.issued(SSL.TLS1_2_VERSION)
            with self.about(way), self.callers(way, server={"certificate": issued}) as callers:
                self.sent(callers.deliver(0, to()))
                stream = self.kept(callers)
                heard: list[bytes] = []
                hear = stream._tls.dataReceived
                stream._tls.dataReceived = lambda data, heard=heard, hear=hear: heard.append(data) or hear(data)
                handle = stream._tls.getHandle()
                handle.renegotiate()
                handle.do_handshake()
                stream._tls._flushSendBIO()
                callers.bed.reactor.run_for(1)
                self.assertEqual(handle.total_renegotiations(), 1, "it was asked for")
                self.sent(callers.deliver(1, to()))
                kinds = {record[0] for record in records(b"".join(heard))}
                self.assertIn(ALERT, kinds)
                self.assertNotIn(HANDSHAKE, kinds)

    def test_what_is_not_tls_ends_it(self) -> None:
        """CVE-2026-45185 (Exim): clear text behind the end of TLS is read as if it were under it."""
        for what, says in (
            ("clear text behind close_notify", (True, REPLY)),
            ("close_notify alone", (True, b"")),
            ("clear text", (False, REPLY)),
            ("a corrupt record", (False, CORRUPT_RECORD)),
            ("a corrupt handshake", (False, CORRUPT_HANDSHAKE)),
        ):
            for apart in (False, True):
                for way in WAYS:
                    with self.about(what, apart, way), self.callers(way) as callers:
                        self.sent(callers.deliver(0, to()))
                        _speak(callers, self.kept(callers), *says, apart=apart)
                        callers.bed.reactor.run_for(1)
                        self.assertEqual(callers.bed.counts(), (0, 0, 0, 0))
                        result = self.sent(callers.deliver(1, to()))
                        self.assertNotIn("nobody", str(result.reply))
                        self.assertEqual([len(record.messages) for record in callers.connections], [1, 1])

    def test_a_verdict_in_clear_text_is_none(self) -> None:
        """The whole of the message was sent, so nobody can know."""
        for closes in (False, True):
            for apart in (False, True):
                for way in WAYS:

                    def interrupts(
                        point: str, _: str, record: Connection, closes: bool = closes, apart: bool = apart
                    ) -> None:
                        if point == "dot" and record.number == 1:
                            _speak(callers, callers.bed.server._live[-1], closes, REPLY, apart=apart)

                    silent = Fault("after_dot", "silence", connection=1)
                    with (
                        self.about(closes, apart, way),
                        self.callers(way, server={"verdict": interrupts}, faults=[silent]) as callers,
                    ):
                        self.assertIsInstance(callers.deliver(0, to()), UncertainDelivery)
                        self.assertLess(callers.bed.reactor.seconds(), 1, "it is not waited for")
                        self.sent(callers.deliver(1, to()))
                        self.assertEqual(len(callers.connections), 2)


def _speak(callers: Callers, stream: Any, closes: bool, clear: bytes, apart: bool) -> None:
    """Below TLS: its end, if it is to end, then this in clear text, in a segment of its own or in one with it."""
    said = b""
    if closes:
        handle = stream._tls.getHandle()
        with contextlib.suppress(SSL.Error):
            handle.shutdown()
        said = handle.bio_read(1 << 14)
    if apart and said:
        stream._under.write(said)
        callers.bed.reactor.callLater(0, stream._under.write, clear)
    else:
        stream._under.write(said + clear)


class Expiry(SharingCase):
    def test_a_certificate_that_expires_while_its_session_is_kept_proves_nothing_any_more(self) -> None:
        """What the handshake has proved is judged at each use; who demands no proof goes on with it."""
        began = memory.time.time()
        for way in WAYS:
            for level, connections in (("verify", 2), ("encrypt", 1)):
                issued = authority().issue(("localhost",), ("127.0.0.1",))
                ends = issued.certificate.not_valid_after_utc.timestamp()
                wall = [began]
                self.patch(
                    memory, "time", SimpleNamespace(monotonic=memory.time.monotonic, time=lambda wall=wall: wall[0])
                )
                policy = TLSPolicy(level, ca_file=ca_file())
                with self.about(way, level), self.callers(way, server={"certificate": issued}) as callers:
                    self.sent(callers.deliver(0, to()))
                    self.sent(callers.deliver(1, to(tls=policy)))
                    self.assertEqual(len(callers.connections), 1)
                    wall[0] = ends + 1
                    value = callers.deliver(1, to(tls=policy))
                    self.assertEqual(len(callers.connections), connections)
                    if level == "verify":
                        self.assertEqual(value.phase, "trust")
                    else:
                        self.sent(value)


class Neighbours(SharingCase):
    """A TLS error in one session is taken for the loss of another one of the process (Postfix 2.8 and 3.4)."""

    MESSAGES = 2
    EVERY = 0.001
    AT_ONCE = 4
    POINTS = ("handshake", "ehlo2", "mail", "dot", "after_dot")

    def check(self, way: str, good: int) -> None:
        many = 2 * good
        limits = Limits(sessions=many, sessions_per_endpoint=many, sessions_per_destination=10)
        with self.callers(way, latency=0.01, limits=limits) as callers:
            bed = callers.bed
            bad = bed.add_server(PORT + 1)
            for point in self.POINTS:
                bad.arm(Fault(point, "badrecord", times=1_000_000))
            struck = [0]
            outcomes: list[Any] = []

            def torment() -> None:
                """Break TLS of all that the bad server has, and see to it that it gets more."""
                for stream in bad._live:
                    stream._under.write(CORRUPT_RECORD)
                    struck[0] += 1
                bad._armed.sort(key=lambda armed: armed.left)  # so that all points have their turn
                callers.who(1)
                if len(bad._live) < self.AT_ONCE:
                    bed.start(destination=to(f"[127.0.0.1]:{PORT + 1}", namespace=f"bad-{struck[0]}"))
                if not all(outcome.done for outcome in outcomes):
                    bed.reactor.callLater(self.EVERY, torment)

            for number in range(self.MESSAGES):
                callers.who(0)
                outcomes[:] = [bed.start(destination=to(HERE, namespace=f"good-{each}")) for each in range(good)]
                if not number:
                    torment()
                callers.who(0)
                bed.reactor.run_until(lambda: all(outcome.done for outcome in outcomes), 60)
                for outcome in outcomes:
                    self.sent(outcome.value)
                bed.reactor.run_for(0.3)
                torment()
            self.assertEqual((bed.server.connection_count, bed.server.message_count), (good, good * self.MESSAGES))
            self.assertEqual(bed.server.violations, [])
            self.assertGreater(struck[0], 30)
            bad.violations.clear()
            bad.disarm()
            bed.reactor.run_for(120)

    def test_in_one_process(self) -> None:
        self.check(MEMORY, 200)

    def test_in_one_keeper(self) -> None:
        self.check(BORROWERS, 50)
