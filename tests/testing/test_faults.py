"""Every fault strikes where it should, and puts on the wire what it says: all pairs of the matrix, one by one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import APPLICABLE, KINDS, Fault
from tests.testing.lockstep import (
    BIG,
    CERTIFICATE,
    LINES,
    MAIL,
    OK,
    PLAIN,
    QUEUED,
    RCPT,
    Client,
    HalfCloseableClient,
    Scene,
)


def hello(*more: bytes) -> bytes:
    lines = [*LINES, *more]
    return b"".join(b"250-" + line + b"\r\n" for line in lines[:-1]) + b"250 " + lines[-1] + b"\r\n"


class Strike:
    """The moment of a fault: the conversation brought to its point, and what was heard from then on."""

    #: The right reply at each point, and the one that would be next.
    RIGHT = {
        "banner": (b"220 mx.test ESMTP ready\r\n", hello(b"STARTTLS")),
        "ehlo": (hello(b"STARTTLS"), b"220 2.0.0 go ahead\r\n"),
        "starttls": (b"220 2.0.0 go ahead\r\n", hello(b"STARTTLS")),
        "ehlo2": (hello(b"AUTH PLAIN LOGIN"), b"235 2.7.0 welcome\r\n"),
        "auth": (b"235 2.7.0 welcome\r\n", OK),
        "idle": (OK, b""),
        "mail": (b"250 2.1.0 ok\r\n", b"250 2.1.5 ok\r\n"),
        "rcpt": (b"250 2.1.5 ok\r\n", b"354 go ahead\r\n"),
        "data": (b"354 go ahead\r\n", QUEUED),
        "content": (QUEUED, OK),
        "dot": (QUEUED, OK),
        "after_dot": (QUEUED, OK),
        "rset": (OK, OK),
        "quit": (b"221 2.0.0 bye\r\n", OK),
    }

    def __init__(self, point: str, kind: str, tls: bool) -> None:
        self.point, self.kind, self.tls = point, kind, tls
        self.scene = Scene([Fault(point, kind)], certificate=CERTIFICATE, users={"ann": "secret"})
        self.server, self.reactor = self.scene.server, self.scene.reactor
        self.client: Client = HalfCloseableClient() if kind == "halfclose" else Client()
        self.bystander: Client | None = None
        if kind == "restart" and point != "connect":
            self.server.disarm()
            self.bystander = self.scene.connect()
            self.server.arm(Fault(point, kind, connection=2))
        getattr(self, f"at_{point}", self.at_command)()
        self.right, self.following = self.RIGHT.get(point, (b"", b""))
        self.segments = self.client.segments
        self.heard = self.client.received

    def at_connect(self) -> None:
        self.scene.connect(self.client)

    def at_banner(self) -> None:
        self.scene.connect(self.client, run=300)

    def at_ehlo(self) -> None:
        self.scene.connect(self.client)
        self.scene.say(self.client, b"EHLO me\r\n", 3000)

    def at_starttls(self) -> None:
        self.scene.ready(client=self.client)
        self.scene.say(self.client, b"STARTTLS\r\n", 300)

    def at_handshake(self) -> None:
        self.scene.ready(client=self.client)
        self.scene.say(self.client, b"STARTTLS\r\n")
        if self.kind == "slow":
            self.client.start_tls()
            self.reactor.run_for(4.9)
            assert not self.server.connections[0].tls
            self.reactor.run_for(1)
        else:
            self.scene.say(self.client, b"\x16\x03\x01\x00\x05abcde")

    def at_ehlo2(self) -> None:
        self.scene.ready(client=self.client)
        self.scene.upgrade(self.client)
        self.scene.say(self.client, b"EHLO me\r\n", 3000)

    def at_auth(self) -> None:
        self.scene.ready(tls=True, client=self.client)
        self.scene.say(self.client, PLAIN, 300)

    def at_idle(self) -> None:
        self.scene.ready(tls=self.tls, client=self.client)
        self.client.forget()
        self.hit = self.server.strike_idle()
        self.reactor.run_for(300)

    def at_command(self) -> None:
        self.scene.ready(tls=self.tls, client=self.client)
        steps = {
            "mail": [MAIL],
            "rcpt": [MAIL, RCPT],
            "data": [MAIL, RCPT, b"DATA\r\n"],
            "content": [MAIL, RCPT, b"DATA\r\n", BIG],
            "dot": [MAIL, RCPT, b"DATA\r\n", b"hi\r\n.\r\n"],
            "after_dot": [MAIL, RCPT, b"DATA\r\n", b"hi\r\n.\r\n"],
            "rset": [b"RSET\r\n"],
            "quit": [b"QUIT\r\n"],
        }[self.point]
        for step in steps[:-1]:
            self.scene.say(self.client, step)
        self.scene.say(self.client, steps[-1], 300)

    @property
    def record(self) -> Any:
        return self.server.connections[-1]


class Pairs(SynchronousTestCase):
    """One test for each pair of a point and a kind: made below."""

    def check(self, point: str, kind: str, tls: bool) -> None:
        strike = Strike(point, kind, tls)
        self.assertEqual([fault.kind for fault, _ in strike.server.fired], [kind])
        self.assertEqual(strike.server.violations, [])
        getattr(self, f"check_{kind}")(strike)
        self.check_message(strike)
        strike.reactor.run_for(600)
        self.successResultOf(self.closed(strike))
        self.assertEqual(strike.server.open_count, 0)
        if not isinstance(strike.client, HalfCloseableClient):
            self.assertEqual(strike.reactor.connections, [])
        self.assertEqual(strike.reactor.getDelayedCalls(), [])

    def closed(self, strike: Strike) -> Any:
        closing = strike.server.close()
        strike.reactor.run_for(1)
        return closing

    def check_message(self, strike: Strike) -> None:
        """What the server took, and whether it could say so."""
        point, kind = strike.point, strike.kind
        if point not in {"dot", "after_dot"}:
            self.assertEqual(strike.server.messages, [])
            return
        (message,) = strike.server.messages
        refused = kind in {"421", "4xx", "5xx"}
        extra = kind in {"early", "dup", "unsolicited"}
        readable = {"slow", "drip", "split", "nul", "longline", "barelf", "multi"}
        self.assertEqual(message.committed, extra or (point == "after_dot" and not refused))
        sent = refused or extra or (point == "after_dot" and kind in readable)
        self.assertEqual(message.reply_sent, sent)
        self.assertEqual(strike.server.message_count, int(message.committed))
        self.assertEqual(message.content, b"hi\r\n")
        if not sent and kind in {"rst", "fin", "silence", "halfclose", "notify", "badrecord", "restart"}:
            self.assertEqual(message.reply, b"")
        else:
            self.assertEqual(message.reply, strike.heard)

    def lost(self, strike: Strike, *why: type[Exception]) -> None:
        assert strike.client.lost is not None
        strike.client.lost.trap(*why)

    def open(self, strike: Strike) -> None:
        """The connection is still there, unless it was to be closed by the reply."""
        if strike.point == "quit":
            self.lost(strike, ConnectionDone)
            self.assertEqual(strike.record.closed, "quit")
        else:
            self.assertIsNone(strike.client.lost)

    def heard(self, strike: Strike, octets: bytes) -> None:
        """This and nothing else was heard, in one segment."""
        self.assertEqual([data for _, data in strike.segments], [octets])
        self.open(strike)

    def check_421(self, strike: Strike) -> None:
        self.assertTrue(strike.heard.startswith(b"421 4."))
        self.assertEqual(strike.heard.count(b"\r\n"), 1)
        self.lost(strike, ConnectionDone)
        self.assertEqual(strike.record.closed, "quit" if strike.point == "quit" else "server")

    def refused(self, strike: Strike, digit: bytes, special: dict[str, bytes]) -> None:
        expected = special.get(strike.point)
        self.assertTrue(strike.heard.startswith(expected or digit), strike.heard)
        self.assertEqual(strike.heard.count(b"\r\n"), 1)
        self.assertIsNone(strike.client.lost)
        self.assertIsNone(strike.record.user)
        if strike.point == "mail":
            self.assertTrue(strike.scene.say(strike.client, MAIL).startswith(b"250"))
        elif strike.point == "rcpt":
            self.assertTrue(strike.scene.say(strike.client, b"DATA\r\n").startswith(b"554"))
        elif strike.point == "data":
            self.assertTrue(strike.scene.say(strike.client, b"RSET\r\n").startswith(b"250"))
        elif strike.point == "content":
            self.assertEqual(strike.scene.say(strike.client, b"\r\n.\r\nQUIT\r\n"), b"")
        elif strike.point in {"ehlo", "ehlo2"}:
            self.assertTrue(strike.scene.say(strike.client, MAIL).startswith(b"503"))
            strike.server.violations.clear()

    def check_4xx(self, strike: Strike) -> None:
        self.refused(strike, b"45", {"auth": b"454 ", "starttls": b"454 ", "idle": b"451 4.4.2 "})

    def check_5xx(self, strike: Strike) -> None:
        self.refused(strike, b"55", {"auth": b"535 ", "rset": b"500 ", "quit": b"500 ", "banner": b"554 "})

    def check_garbage(self, strike: Strike) -> None:
        self.assertNotRegex(strike.heard, rb"(?m)^[0-9]{3}")
        self.heard(strike, strike.heard)
        if strike.point == "handshake":
            self.assertIn(b"no", strike.heard)
            self.assertNotIn(strike.heard[0], {20, 21, 22, 23})

    def check_silence(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, b"")
        self.assertIsNone(strike.client.lost)
        if strike.point == "idle":
            self.assertEqual(strike.scene.say(strike.client, MAIL), b"250 2.1.0 ok\r\n")
        elif strike.point not in {"connect", "banner", "handshake"}:
            self.assertEqual(strike.scene.say(strike.client, b"NOOP\r\n", 1000), b"")
        if strike.point == "content":
            assert strike.client.transport is not None
            before = sum(len(data) for _, data in strike.segments)
            self.assertEqual(before, 0)
            strike.client.transport.write(b"x" * 200_000)
            strike.client.transport.loseConnection()
            strike.reactor.run_for(1000)
            self.assertIsNone(strike.client.lost)
            strike.client.under.abortConnection()
            strike.reactor.run_for(1)
            self.assertEqual(strike.record.closed, "reset")

    def check_slow(self, strike: Strike) -> None:
        if strike.point == "handshake":
            self.assertTrue(strike.record.tls)
            return
        self.heard(strike, strike.right)
        started = strike.server.log[[text for _, _, text in strike.server.log].index(self.named(strike))][0]
        self.assertEqual(strike.segments[0][0] - started, 5)

    def named(self, strike: Strike) -> str:
        return f"fault: {strike.kind} at {strike.point}"

    def check_rst(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, b"")
        self.lost(strike, ConnectionLost)
        self.assertEqual(strike.record.closed, "server")

    def check_fin(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, b"")
        self.lost(strike, ConnectionLost if strike.record.tls else ConnectionDone)
        self.assertEqual(strike.record.closed, "server")

    def check_halfclose(self, strike: Strike) -> None:
        client = strike.client
        assert isinstance(client, HalfCloseableClient)
        self.assertEqual(strike.heard, b"")
        if strike.record.tls:
            self.lost(strike, ConnectionLost)
            self.assertEqual(strike.record.closed, "quit" if strike.point == "quit" else "fin")
        else:
            self.assertTrue(client.read_lost)
            self.assertIsNone(strike.record.closed)
            self.assertEqual(strike.scene.say(client, b"anything"), b"")
            self.assertIsNone(client.lost)

    def check_notify(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, b"")
        self.lost(strike, ConnectionDone)
        self.assertTrue(strike.record.close_notify)

    def check_badrecord(self, strike: Strike) -> None:
        if strike.point == "handshake":
            self.assertEqual(strike.heard[:5], b"\x16\x03\x03\x00\x40")
            self.assertEqual(len(strike.heard), 69)
        else:
            self.assertEqual(strike.heard, b"")
            self.lost(strike, SSL.Error)

    def check_drip(self, strike: Strike) -> None:
        if strike.point in {"ehlo", "ehlo2"}:
            self.assertEqual(strike.heard, strike.right)
        self.assertTrue(strike.right.startswith(strike.heard))
        self.assertGreater(len(strike.segments), 12)
        self.octet_by_octet(strike, 10)

    def octet_by_octet(self, strike: Strike, interval: float) -> None:
        times = [time for time, _ in strike.segments]
        self.assertEqual({len(data) for _, data in strike.segments}, {1})
        for before, after in pairwise(times):
            self.assertAlmostEqual(after - before, interval)

    def check_split(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, strike.right)
        self.octet_by_octet(strike, 0)
        self.open(strike)

    def check_early(self, strike: Strike) -> None:
        self.heard(strike, strike.right + strike.following)

    def check_dup(self, strike: Strike) -> None:
        self.heard(strike, strike.right * 2)

    def check_unsolicited(self, strike: Strike) -> None:
        right = b"" if strike.point == "idle" else strike.right
        self.heard(strike, right + b"250 2.0.0 unsolicited\r\n")

    def check_nul(self, strike: Strike) -> None:
        self.heard(strike, strike.heard)
        self.assertEqual(strike.heard.replace(b"\0", b""), strike.right)
        self.assertEqual(strike.heard.count(b"\0"), 1)
        self.assertEqual(strike.heard.startswith(b"\0"), strike.point == "dot")

    def check_longline(self, strike: Strike) -> None:
        self.heard(strike, strike.heard)
        self.assertEqual(len(strike.heard), 3000)
        self.assertEqual(strike.heard.find(b"\r\n"), 2998)
        code = b"xxx" if strike.point == "dot" else strike.right[:3]
        self.assertEqual(strike.heard[:3], code)

    def check_nolf(self, strike: Strike) -> None:
        self.assertEqual(strike.heard[:4], strike.right[:3] + b" ")
        self.assertNotIn(b"\n", strike.heard)
        self.assertEqual(len(strike.heard), 200_004)
        self.assertAlmostEqual(strike.segments[-1][0] - strike.segments[0][0], 20)
        self.mute(strike)

    def mute(self, strike: Strike) -> None:
        self.assertIsNone(strike.client.lost)
        self.assertEqual(strike.scene.say(strike.client, b"NOOP\r\n"), b"")

    def check_endless(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, (strike.right[:3] + b"-x\r\n") * 10_000)
        self.mute(strike)

    def check_mixed(self, strike: Strike) -> None:
        self.heard(strike, strike.heard)
        first, second, rest = strike.heard.split(b"\r\n")
        self.assertEqual((first[:4], second[:4], rest), (b"550-", strike.right[:3] + b" ", b""))

    def check_digits2(self, strike: Strike) -> None:
        self.heard(strike, strike.right[:2] + b" ok\r\n")

    def check_digits4(self, strike: Strike) -> None:
        self.heard(strike, strike.right[:3] + b"0 ok\r\n")

    def check_nosep(self, strike: Strike) -> None:
        self.heard(strike, strike.right[:3] + b"ok\r\n")

    def check_zero(self, strike: Strike) -> None:
        self.heard(strike, b"000 ok\r\n")

    def check_barelf(self, strike: Strike) -> None:
        self.heard(strike, strike.right.replace(b"\r\n", b"\n"))

    def check_multi(self, strike: Strike) -> None:
        self.heard(strike, strike.heard)
        lines = strike.heard.split(b"\r\n")
        self.assertGreaterEqual(len(lines), 4)
        self.assertEqual({line[:4] for line in lines[:-2]}, {strike.right[:3] + b"-"})
        self.assertTrue(strike.right.endswith(lines[-2] + b"\r\n"))

    def check_restart(self, strike: Strike) -> None:
        self.assertEqual(strike.heard, b"")
        self.lost(strike, ConnectionLost)
        if strike.bystander is not None:
            assert strike.bystander.lost is not None
            strike.bystander.lost.trap(ConnectionLost)
        self.assertEqual(strike.server.open_count, 0)
        self.assertTrue(strike.scene.connect().received.startswith(b"220 "))

    def check_inject(self, strike: Strike) -> None:
        self.heard(strike, b"220 go ahead\r\n250-INJECTED\r\n250 AUTH PLAIN\r\n")


def _test(point: str, kind: str, tls: bool) -> Callable[[Pairs], None]:
    def test(self: Pairs) -> None:
        self.check(point, kind, tls)

    test.__doc__ = f"{kind} at {point}{' under TLS' if tls else ''}: {KINDS[kind]}."
    return test


for _point, _kinds in APPLICABLE.items():
    for _kind in _kinds:
        for _tls in (False, True):
            if _tls and _point in {"connect", "banner", "ehlo", "starttls", "handshake", "ehlo2", "auth"}:
                continue  # these stand where they stand
            if not _tls and _kind in {"notify", "badrecord"} and _point not in {"handshake", "ehlo2", "auth"}:
                continue
            setattr(Pairs, f"test_{_point}_{_kind}{'_tls' if _tls else ''}", _test(_point, _kind, _tls))
