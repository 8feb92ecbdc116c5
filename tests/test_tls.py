"""TLS over memory, against OpenSSL's server side: bytes however they are cut, and peers that break off."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from unittest import mock

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mailcache import tls
from mailcache.testing import Authority
from mailcache.tls import Contexts, TLSFailed, TLSLayer
from mailcache.trust.evidence import TLSClass
from tests.helpers import TLSServer, layer, shake_hands, stored
from tests.trust.crafted import crafted, intermediate

OURS = Authority()
ISSUED = OURS.issue(("mx.test",))
CLIENT = OURS.issue(("client.test",), client=True)
REPLIES = b"250-mx.test\r\n250 PIPELINING\r\n"

TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
BOTH = (TLS12, TLS13)


def context(version: int | None = None, ciphers: bytes | None = None) -> SSL.Context:
    """A server's, of this version only."""
    made = ISSUED.server_context()
    if version is not None:
        made.set_min_proto_version(version)
        made.set_max_proto_version(version)
    if ciphers is not None:
        made.set_cipher_list(ciphers)
    return made


def pair(version: int | None = None) -> tuple[TLSLayer, TLSServer]:
    """Both sides, established."""
    client, server = layer(OURS.certificate_pem, "mx.test"), TLSServer(context(version))
    shake_hands(client, server)
    return client, server


def records(data: bytes) -> Iterator[bytes]:
    """The records in it, each whole."""
    while data:
        end = 5 + int.from_bytes(data[3:5])
        yield data[:end]
        data = data[end:]


class Handshakes(SynchronousTestCase):
    def test_bytes_may_come_one_by_one(self) -> None:
        for version in BOTH:
            client, server = layer(OURS.certificate_pem, "mx.test"), TLSServer(context(version))
            client.handshake()
            while True:
                to_client = server.take(client.outgoing())
                if not to_client:
                    break
                for at in range(len(to_client)):
                    self.assertEqual(client.received(to_client[at : at + 1]), b"")
            self.assertTrue(client.established and server.established)
            self.assertFalse(client.partial)
            self.assertIsNone(client.evidence().chain_error)
            server.take(client.encrypt(b"EHLO me\r\n"))
            self.assertEqual(server.received, b"EHLO me\r\n")

    def test_the_first_plain_text_may_come_with_the_last_of_the_handshake(self) -> None:
        """A server that does not wait; what it says must not be lost."""
        client, server = layer(OURS.certificate_pem), TLSServer(context(TLS12))
        client.handshake()
        client.received(server.take(client.outgoing()))
        last = server.take(client.outgoing()) + server.says(b"220 mx.test\r\n")
        self.assertFalse(client.established)
        self.assertEqual(client.received(last), b"220 mx.test\r\n")
        self.assertTrue(client.established)

    def test_the_server_name_is_sent(self) -> None:
        for name, seen in (("mx.test", b"mx.test"), (None, None)):
            client, server = layer(None, name), TLSServer(context())
            shake_hands(client, server)
            self.assertEqual(server.ssl.get_servername(), seen)
            self.assertEqual(client.evidence().servername, name)

    def test_the_least_version_is_kept_to(self) -> None:
        for wanted, offered, good in (
            ("TLSv1.2", TLS12, True),
            ("TLSv1.2", TLS13, True),
            ("TLSv1.3", TLS13, True),
            ("TLSv1.3", TLS12, False),
            ("TLSv1.2", SSL.TLS1_1_VERSION, False),
            ("TLSv1.2", SSL.TLS1_VERSION, False),
        ):
            made = context(offered, b"ALL:@SECLEVEL=0")
            client, server = layer(min_version=wanted), TLSServer(made)
            if good:
                shake_hands(client, server)
                self.assertGreaterEqual(client.evidence().version or "", wanted)
            else:
                self.fails(client, server)

    def test_ciphers_are_chosen_by_the_class(self) -> None:
        for name in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"):
            client, server = layer(ciphers=name), TLSServer(context(TLS12))
            shake_hands(client, server)
            self.assertEqual(client.evidence().summary, f"TLSv1.2 {name}")
        self.fails(layer(ciphers="ECDHE-RSA-AES128-GCM-SHA256"), TLSServer(context(TLS12)))

    def fails(self, client: TLSLayer, server: TLSServer) -> None:
        """One side refuses, and the client's error says it in one line."""
        client.handshake()
        try:
            shown = server.take(client.outgoing())
        except SSL.Error:
            shown = server.outgoing()  # its alert
        error = self.assertRaises(TLSFailed, client.received, shown)
        self.assertTrue(str(error).isprintable() and "[" not in str(error), error)
        self.assertFalse(client.established)

    def test_a_client_certificate_is_shown_where_there_is_one(self) -> None:
        demanding = context(TLS12)
        store = demanding.get_cert_store()
        assert store is not None
        store.add_cert(tls.certificates(OURS.certificate_pem)[0])
        demanding.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        client, server = layer(client_certificate=CLIENT.private_pem), TLSServer(demanding)
        shake_hands(client, server)
        certificate = server.ssl.get_peer_certificate()
        assert certificate is not None
        self.assertEqual(certificate.to_cryptography(), CLIENT.certificate)
        client, server = layer(), TLSServer(demanding)
        client.handshake()
        client.received(server.take(client.outgoing()))
        self.assertRaises(SSL.Error, server.take, client.outgoing())
        error = self.assertRaises(TLSFailed, client.received, server.outgoing())
        self.assertIn("handshake failure", str(error))

    def test_a_client_certificate_comes_with_its_chain(self) -> None:
        """The server knows the root alone."""
        between = intermediate(OURS, 50)
        client_pair = crafted(OURS, None, "client", under=between)
        demanding = context()
        store = demanding.get_cert_store()
        assert store is not None
        store.add_cert(tls.certificates(OURS.certificate_pem)[0])
        demanding.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        server = TLSServer(demanding)
        shake_hands(layer(client_certificate=client_pair.private_pem), server)
        certificate = server.ssl.get_peer_certificate()
        assert certificate is not None
        self.assertEqual(certificate.to_cryptography(), client_pair.certificate)

    def test_no_session_is_resumed(self) -> None:
        """A session made for one client's certificate or one verdict must not carry over to another handshake."""
        kind = TLSClass(None, "TLSv1.2", None, None)
        for version in BOTH:
            served, contexts = context(version), Contexts()
            hellos, certificates = [], []
            for _ in range(3):
                client, server = TLSLayer(contexts.get(kind, OURS.certificate_pem, None), "mx.test"), TLSServer(served)
                client.handshake()
                hellos.append(client.outgoing())
                flight = server.take(hellos[-1])
                certificates.append(ISSUED.certificate.public_bytes(Encoding.DER) in flight)
                client.received(flight)
                client.received(server.take(client.outgoing()))
                self.assertTrue(client.established)
            self.assertEqual(len({len(hello) for hello in hellos}), 1, "no ticket goes back")
            self.assertEqual(set(certificates), {version == TLS12}, "in TLS 1.3 it is encrypted")


class PlainText(SynchronousTestCase):
    def test_may_be_cut_anywhere(self) -> None:
        """And whether a record is complete is known."""
        for version in BOTH:
            client, server = pair(version)
            whole = len(server.says(REPLIES))
            client, server = pair(version)
            for at in range(1, whole):
                data = server.says(REPLIES)
                self.assertEqual(client.received(data[:at]), b"")
                self.assertTrue(client.partial)
                self.assertEqual(client.received(data[at:]), REPLIES)
                self.assertFalse(client.partial)

    def test_may_come_in_many_records_and_segments(self) -> None:
        for version in BOTH:
            client, server = pair(version)
            data = b"".join(server.says(b"250 %d\r\n" % number) for number in range(7))
            plain = b"".join(b"250 %d\r\n" % number for number in range(7))
            self.assertEqual(client.received(data), plain)
            for at in range(1, len(data)):
                data = b"".join(server.says(b"250 %d\r\n" % number) for number in range(7))
                self.assertEqual(client.received(data[:at]) + client.received(data[at:]), plain)
                self.assertFalse(client.partial)
            self.assertEqual(len(list(records(data))), 7)

    def test_of_any_size_is_read_at_once(self) -> None:
        client, server = pair()
        for size in (1, 100, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 300_000):
            self.assertEqual(len(client.received(server.says(b"x" * size))), size)

    def test_a_segment_in_mid_record_may_look_like_a_record(self) -> None:
        """Bytes are what the server chooses: a segment is no record because it begins like one of its length."""
        client, server = pair(TLS13)
        first = server.says(b"a" * 16_000)
        overhead = len(first) - 16_000
        for cut in range(1, len(first) - 5):
            size = 5 + int.from_bytes(first[cut + 3 : cut + 5])
            room = size - (len(first) - cut) - overhead
            if first[cut] == 23 and 1 <= room <= 16_384:
                break
        else:
            self.fail("no such place: run again")
        self.assertEqual(client.received(first[:cut]), b"")
        segment = first[cut:] + server.says(b"b" * room)
        self.assertEqual(len(segment), size)
        self.assertEqual(client.received(segment), b"a" * 16_000 + b"b" * room)

    def test_is_written_whatever_its_size(self) -> None:
        client, server = pair()
        for size in (0, 1, 100, 16_383, 16_384, 16_385, 65_536, 200_000, 3_000_000):
            content = bytes(range(256)) * (size // 256) + b"y" * (size % 256)
            data = client.encrypt(content)
            self.assertIsInstance(data, bytes)
            server.received = b""
            server.take(data)
            self.assertEqual(server.received, content)
            self.assertEqual(len(list(records(data))), -(-size // 16_384))
        self.assertEqual(client.outgoing(), b"")

    def test_of_one_session_is_not_hurt_by_the_errors_of_another(self) -> None:
        """OpenSSL has one queue of errors for all connections of a thread."""
        good, server = pair()
        for _ in range(20):
            bad, _ = pair()
            self.assertRaises(TLSFailed, bad.received, b"\x17\x03\x03\x00\x40" + b"\xa5" * 64)
            self.assertEqual(good.received(server.says(REPLIES)), REPLIES)
            bad.close()
            server.take(good.encrypt(b"NOOP\r\n"))
            fresh = layer()
            fresh.handshake()
            self.assertRaises(TLSFailed, fresh.received, b"220 this is no TLS\r\n")
            self.assertEqual(good.received(server.says(REPLIES)), REPLIES)
        self.assertEqual(server.received, b"NOOP\r\n" * 20)


class Ends(SynchronousTestCase):
    def test_close_notify_closes(self) -> None:
        """With replies before it in one segment, and nothing is read behind it."""
        for version in BOTH:
            client, server = pair(version)
            data = server.says(REPLIES)
            server.ssl.shutdown()
            notify = server.outgoing()
            self.assertEqual(client.received(data + notify), REPLIES)
            self.assertTrue(client.closed)
            for more in (b"250 ok\r\n", data, notify):
                try:
                    plain = client.received(more)
                except TLSFailed:
                    plain = b""
                self.assertEqual(plain, b"")

    def test_ours_is_seen_by_the_server(self) -> None:
        for version in BOTH:
            client, server = pair(version)
            server.take(client.close())
            self.assertTrue(server.ssl.get_shutdown() & SSL.RECEIVED_SHUTDOWN)

    def test_there_is_none_before_the_handshake(self) -> None:
        client = layer()
        self.assertEqual(client.close(), b"")
        client.handshake()
        client.outgoing()
        self.assertEqual(client.close(), b"")

    def test_garbage_is_an_error(self) -> None:
        """In place of the handshake, in it, and behind it."""
        for garbage in (
            b"220 mx.test ESMTP\r\n",
            b"\0" * 64,
            b"\x16\x03\x03\x00\x40" + b"\xa5" * 64,
            b"\x17\x03\x03\x00\x40" + b"\xa5" * 64,
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"\xff" * 20_000,
        ):
            fresh = layer()
            fresh.handshake()
            self.assertRaises(TLSFailed, fresh.received, garbage)
            for version in BOTH:
                client, server = layer(), TLSServer(context(version))
                client.handshake()
                beginning = next(records(server.take(client.outgoing())))
                client.received(beginning)
                self.assertRaises(TLSFailed, client.received, garbage)
                client, server = pair(version)
                self.assertRaises(TLSFailed, client.received, garbage)

    def test_what_is_truncated_is_no_plain_text(self) -> None:
        """It ends with the connection below; nothing of a record is taken before all of it is there."""
        for version in BOTH:
            client, server = pair(version)
            data = server.says(REPLIES)
            self.assertEqual(client.received(data[:-1]), b"")
            self.assertTrue(client.partial)
            self.assertFalse(client.closed)

    def test_nothing_can_be_written_behind_an_error(self) -> None:
        client, _ = pair()
        self.assertRaises(TLSFailed, client.received, b"\xff" * 64)
        self.assertRaises(TLSFailed, client.encrypt, b"QUIT\r\n")

    def test_nothing_is_left_of_it(self) -> None:
        """Without the collector: sessions come and go by the thousand."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        client, server = pair()
        client.evidence()
        gone = weakref.ref(client)
        self.assertIsNotNone(gone())
        del client, server
        self.assertIsNone(gone())


class SecretWriter:
    """Writes a server's records of TLS 1.3 from its traffic secret, for what no API of OpenSSL's makes (RFC 8446)."""

    def __init__(self, secret: bytes, number: int) -> None:
        self.secret = secret
        self.number = number

    def expand(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = size.to_bytes(2) + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self.secret)

    def record(self, kind: int, plain: bytes) -> bytes:
        plain += bytes([kind])
        header = b"\x17\x03\x03" + (len(plain) + 16).to_bytes(2)
        nonce = int.from_bytes(self.expand(b"iv", 12)) ^ self.number
        self.number += 1
        return header + AESGCM(self.expand(b"key", 32)).encrypt(nonce.to_bytes(12), plain, header)

    def read(self, record: bytes) -> tuple[int, bytes]:
        """The kind and the plain text of a record that was written from this secret, with the next number."""
        nonce = int.from_bytes(self.expand(b"iv", 12)) ^ self.number
        plain = AESGCM(self.expand(b"key", 32)).decrypt(nonce.to_bytes(12), record[5:], record[:5])
        self.number += 1
        return plain[-1], plain[:-1]

    def key_update(self, requested: bool) -> bytes:
        data = self.record(22, b"\x18\0\0\x01" + bytes([requested]))
        self.secret, self.number = self.expand(b"traffic upd", 48), 0
        return data


class NotForUs(SynchronousTestCase):
    """What TLS says to itself is no plain text."""

    def test_tickets(self) -> None:
        """Two records behind the handshake, however they are cut, and with plain text behind them."""
        for at in (1, 4, 5, 6, 100, 254, 255, 256, 257, 400, -1):
            client, server = layer(OURS.certificate_pem), TLSServer(context(TLS13))
            client.handshake()
            client.received(server.take(client.outgoing()))
            tickets = server.take(client.outgoing())
            self.assertEqual(len(list(records(tickets))), 2)
            self.assertEqual((client.received(tickets[:at]), client.partial), (b"", at != len(tickets) // 2))
            self.assertEqual(client.received(tickets[at:] + server.says(REPLIES)), REPLIES)
            self.assertFalse(client.partial)

    def test_key_updates(self) -> None:
        """Idle sessions get them: they are kept, and what follows is read with the new key."""
        secrets: list[bytes] = []
        served = context(TLS13)
        served.set_keylog_callback(lambda _, line: secrets.append(line))
        client, server = layer(), TLSServer(served)
        client.handshake()
        client.received(server.take(client.outgoing()))
        tickets = server.take(client.outgoing())
        client.received(tickets)
        (line,) = [line for line in secrets if line.startswith(b"SERVER_TRAFFIC_SECRET_0")]
        writer = SecretWriter(bytes.fromhex(line.split()[2].decode()), len(list(records(tickets))))
        self.assertEqual(client.received(writer.record(23, REPLIES)), REPLIES)
        self.assertEqual(client.received(writer.key_update(False)), b"")
        self.assertEqual(client.received(writer.record(23, REPLIES)), REPLIES)
        self.assertEqual(client.outgoing(), b"")
        data = writer.key_update(True)
        self.assertEqual((client.received(data[:9]), client.partial), (b"", True))
        self.assertEqual((client.received(data[9:]), client.partial), (b"", False))
        self.assertEqual(client.received(writer.record(23, b"250 one\r\n") + writer.key_update(True)), b"250 one\r\n")
        self.assertEqual(client.received(writer.record(23, b"250 two\r\n")), b"250 two\r\n")
        server.take(client.encrypt(b"NOOP\r\n"))
        self.assertEqual(server.received, b"NOOP\r\n")

    def test_a_request_to_renegotiate_is_refused(self) -> None:
        """TLS 1.2 has it (CVE-2009-3555); the session goes on."""
        client, server = pair(TLS12)
        server.ssl.renegotiate()
        server.ssl.do_handshake()
        request = server.outgoing()
        self.assertNotEqual(request, b"")
        self.assertEqual(client.received(request), b"")
        (alert,) = records(client.outgoing())
        self.assertEqual(alert[0], 21, "an alert, not a ClientHello")
        self.assertEqual(client.received(server.says(REPLIES)), REPLIES)


class SharedContexts(SynchronousTestCase):
    def test_are_one_for_each_class(self) -> None:
        contexts = Contexts()
        one = TLSClass("a", "TLSv1.2", None, None)
        first = contexts.get(one, OURS.certificate_pem, None)
        self.assertIs(contexts.get(TLSClass("a", "TLSv1.2", None, None), OURS.certificate_pem, None), first)
        for other in (
            TLSClass("b", "TLSv1.2", None, None),
            TLSClass("a", "TLSv1.3", None, None),
            TLSClass("a", "TLSv1.2", "HIGH", None),
        ):
            self.assertIsNot(contexts.get(other, OURS.certificate_pem, None), first)
        self.assertIsNot(
            contexts.get(TLSClass("a", "TLSv1.2", None, "c"), OURS.certificate_pem, CLIENT.private_pem), first
        )

    def test_are_bounded(self) -> None:
        """The one least used goes first."""
        self.patch(tls, "MAX_CONTEXTS", 3)
        contexts = Contexts()
        kinds = [TLSClass(str(number), "TLSv1.2", None, None) for number in range(4)]
        made = [contexts.get(kind, OURS.certificate_pem, None) for kind in kinds[:3]]
        self.assertIs(contexts.get(kinds[0], OURS.certificate_pem, None), made[0])
        contexts.get(kinds[3], OURS.certificate_pem, None)
        self.assertIs(contexts.get(kinds[0], OURS.certificate_pem, None), made[0])
        self.assertIs(contexts.get(kinds[2], OURS.certificate_pem, None), made[2])
        self.assertIsNot(contexts.get(kinds[1], OURS.certificate_pem, None), made[1])

    def test_trust_the_platforms_anchors_where_none_are_given(self) -> None:
        """Which OpenSSL finds, here through its environment variable."""
        for pem, error in ((OURS.certificate_pem, None), (Authority("x").certificate_pem, "self signed cert in chain")):
            with mock.patch.dict(os.environ, SSL_CERT_FILE=stored(self, pem)):
                client, server = layer(None, "mx.test"), TLSServer(context())
            shake_hands(client, server)
            self.assertEqual(client.evidence().chain_error, error)

    def test_trust_what_they_are_given_and_nothing_else(self) -> None:
        other = Authority("other")
        for anchors, error in (
            (OURS.certificate_pem, None),
            (other.certificate_pem + OURS.certificate_pem, None),
            (other.certificate_pem, "self signed cert in chain"),
            (None, "self signed cert in chain"),
        ):
            client, server = layer(anchors, "mx.test"), TLSServer(context())
            shake_hands(client, server)
            self.assertEqual(client.evidence().chain_error, error)
