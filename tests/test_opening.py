"""From an endpoint to a session: what is said in which order, what is insisted on, and what is never said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectBindError
from twisted.trial.unittest import SynchronousTestCase

from mailcache import DeliveryError, Destination, Timeouts, TLSPolicy, opening
from mailcache.testing import Authority, Connection, Fault, SMTPServer, self_signed
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import Capabilities
from tests.helpers import CREDENTIALS, PORT, Bed, authority, certificate, verdict_of, verifying

USERS = {"user": CREDENTIALS.password}
DIGEST = certificate().digest().hex()
Say = Callable[[str, str, Connection], bytes | None]

LEVELS: dict[str, TLSPolicy] = {
    "none": TLSPolicy("none"),
    "may": TLSPolicy("may"),
    "encrypt": TLSPolicy("encrypt"),
    "fingerprint": TLSPolicy("fingerprint", fingerprints=(DIGEST,)),
    "verify": verifying(),
    "secure": TLSPolicy("secure", ca_file=verifying().ca_file),
}


def says(**replies: bytes) -> Say:
    """Of a scripted server: these replies at these points."""
    return lambda point, argument, record: replies.get(point)


class Case(SynchronousTestCase):
    def opened(self, bed: Bed) -> Any:
        """The lease of a new session; the server has nothing to complain of."""
        lease = bed.finish(bed.acquire())
        self.assertFalse(isinstance(lease, Exception), repr(lease))
        self.assertEqual(bed.server.violations, [])
        return lease

    def refused(self, bed: Bed, phase: str, *parts: str, retriable: bool = True) -> DeliveryError:
        """The error of a session that is not opened; its socket is gone, nothing is kept, and no mail was sent."""
        error = bed.finish(bed.acquire())
        assert isinstance(error, DeliveryError), repr(error)
        self.assertEqual((error.phase, error.retriable), (phase, retriable), str(error))
        for part in parts:
            self.assertIn(part, str(error))
        bed.reactor.run_for(10)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))
        self.assertEqual(bed.reactor.connections, [])
        commands = [command for each in bed.server.connections for command in each.commands]
        self.assertFalse([command for command in commands if command.startswith("MAIL")])
        return error

    def commands(self, bed: Bed, number: int = 1) -> list[str]:
        """The verbs that the server has had."""
        return [command.partition(" ")[0] for command in bed.server.connections[number - 1].commands]


class Hello(Case):
    def test_says_ehlo_and_takes_what_is_offered(self) -> None:
        bed = Bed(tls=TLSPolicy("none"), server={"capabilities": ["SIZE 1000", "8BITMIME", "X-ODD a b"]})
        lease = self.opened(bed)
        keywords = {"SIZE": ("1000",), "8BITMIME": (), "X-ODD": ("a", "b"), "STARTTLS": ()}
        self.assertEqual(lease.capabilities, Capabilities(keywords))
        self.assertEqual(self.commands(bed), ["EHLO"])

    def test_says_helo_to_a_server_that_knows_no_ehlo(self) -> None:
        """Only where neither TLS nor AUTH is wanted of it: it has neither."""

        def knows_no_ehlo(point: str, argument: str, record: Connection) -> bytes | None:
            return b"502 5.5.2 unknown command" if point == "ehlo" and argument.startswith("EHLO") else None

        for level in ("none", "may"):
            bed = Bed(tls=LEVELS[level], server={"verdict": knows_no_ehlo})
            lease = self.opened(bed)
            self.assertEqual((lease.capabilities, lease.evidence), (Capabilities.none(), CLEAR))
            self.assertEqual(self.commands(bed), ["EHLO", "HELO"])
            lease.release()
            self.assertEqual(verdict_of(bed.deliver()), "SENT")
            bed.close()
        for level in ("encrypt", "fingerprint", "verify", "secure"):
            bed = Bed(tls=LEVELS[level], server={"verdict": knows_no_ehlo})
            self.refused(bed, "ehlo", "the server refuses EHLO", "502")
            self.assertEqual(self.commands(bed), ["EHLO", "QUIT"])
        for level in ("none", "may"):
            bed = Bed(tls=LEVELS[level], credentials=CREDENTIALS, server={"verdict": knows_no_ehlo})
            self.refused(bed, "ehlo", "the server refuses EHLO", "502")
            self.assertEqual(self.commands(bed), ["EHLO", "QUIT"])

    def test_takes_a_refusal_of_both_for_one(self) -> None:
        for reply in (b"550 5.7.1 go away", b"554 no"):
            bed = Bed(tls=TLSPolicy("may"), server={"verdict": says(ehlo=reply)})
            self.refused(bed, "ehlo", "the server refuses HELO", reply.decode())
            self.assertEqual(self.commands(bed), ["EHLO", "HELO", "QUIT"])
        bed = Bed(tls=TLSPolicy("may"), server={"verdict": says(ehlo=b"450 later")})
        self.refused(bed, "ehlo", "the server refuses EHLO", "450 later")
        self.assertEqual(self.commands(bed), ["EHLO", "QUIT"])

    def test_does_not_go_back_to_helo_under_tls(self) -> None:
        bed = Bed(tls=TLSPolicy("may"), server={"verdict": says(ehlo2=b"502 no")})
        self.refused(bed, "ehlo", "the server refuses EHLO", "502")
        self.assertEqual(self.commands(bed), ["EHLO", "STARTTLS", "EHLO", "QUIT"])

    def test_says_lhlo_for_lmtp(self) -> None:
        bed = Bed(protocol="lmtp", tls=TLSPolicy("none"), server={"lmtp": True})
        self.opened(bed)
        self.assertEqual(self.commands(bed), ["LHLO"])
        bed = Bed(protocol="lmtp", tls=TLSPolicy("none"))
        self.refused(bed, "ehlo", "the server refuses EHLO")
        self.assertEqual(self.commands(bed), ["LHLO", "QUIT"])

    def test_waits_for_a_greeting_that_serves(self) -> None:
        for greeting, part in (
            (b"554 5.3.2 no service", "the server does not serve: the server said 554"),
            (b"450 busy", "the server does not serve: the server said 450"),
            (b"250 hello", "a reply out of place, 220 is due"),
            (b"354 hello", "a reply out of place, 220 is due"),
        ):
            bed = Bed(server={"verdict": says(banner=greeting)})
            error = self.refused(bed, "greeting", part)
            assert error.reply is not None
            self.assertEqual(str(error.reply), greeting.decode())
            self.assertEqual(self.commands(bed), ["QUIT"] if error.reply.negative else [])

    def test_says_no_quit_to_who_hangs_up(self) -> None:
        """421 at any place: the server closes by itself."""
        for point in ("banner", "ehlo", "starttls", "ehlo2", "auth"):
            bed = Bed(faults=[Fault(point, "421")], credentials=CREDENTIALS, server={"users": USERS})
            error = bed.finish(bed.acquire())
            assert isinstance(error, DeliveryError) and error.reply is not None, repr(error)
            self.assertEqual((error.reply.code, error.retriable), (421, True))
            bed.reactor.run_for(10)
            self.assertEqual((bed.server.connections[0].quit_seen, bed.server.open_count), (False, 0))
            self.assertEqual(bed.counts(), (0, 0, 0, 0))

    def test_gives_its_name(self) -> None:
        """The one that is given; else the host's full name, else its address."""
        for host, helo_name, local, said in (
            ("a.example", "given.example", "127.0.0.1", "given.example"),
            ("a.example", "[192.0.2.7]", "127.0.0.1", "[192.0.2.7]"),
            ("a.example", None, "127.0.0.1", "a.example"),
            ("A.Example", None, "127.0.0.1", "A.Example"),
            ("host", None, "127.0.0.1", "[127.0.0.1]"),
            ("localhost", None, "127.0.0.1", "[127.0.0.1]"),
            ("bad name.example", None, "127.0.0.1", "[127.0.0.1]"),
            ("a..example", None, "127.0.0.1", "[127.0.0.1]"),
            ("b\xfccher.example", None, "127.0.0.1", "[127.0.0.1]"),
            ("a\r\n.example", None, "127.0.0.1", "[127.0.0.1]"),
            ("host", None, "::1", "[IPv6:::1]"),
            ("host", None, "fe80::1%lo", "[IPv6:fe80::1]"),
        ):
            self.patch(opening.socket, "gethostname", lambda host=host: host)
            bed = Bed(tls=TLSPolicy("none"))
            bed.server.listen(PORT, local if local != "127.0.0.1" else "127.0.0.2")
            where = bed.to(f"[{local}]:{PORT}", tls=TLSPolicy("none"), helo_name=helo_name, bind_address=local)
            lease = bed.finish(bed.acquire(where))
            self.assertEqual(bed.server.connections[0].helo_name, said)
            lease.release()
            bed.close()

    def test_gives_the_same_name_again_under_tls(self) -> None:
        bed = Bed(helo_name="given.example")
        self.opened(bed)
        self.assertEqual(bed.server.connections[0].commands, ["EHLO given.example", "STARTTLS", "EHLO given.example"])


class StartTLS(Case):
    """T2.2, T2.3: what may be stripped away, and what may not."""

    def test_is_said_where_it_is_offered(self) -> None:
        for level, policy in LEVELS.items():
            bed = Bed(tls=policy)
            lease = self.opened(bed)
            self.assertEqual(self.commands(bed), ["EHLO"] if level == "none" else ["EHLO", "STARTTLS", "EHLO"])
            self.assertEqual(lease.evidence is CLEAR, level == "none")
            lease.release()
            bed.close()

    def test_is_insisted_on_where_the_level_demands_it(self) -> None:
        """Not offered, refused, or offered as something else: nothing but EHLO, STARTTLS and QUIT in clear."""
        hello = b"250-mx.test\r\n250-PIPELINING\r\n250 "
        for what, server, faults in (
            ("not offered", {"certificate": None}, ()),
            ("X", {"verdict": says(ehlo=hello + b"XSTARTTLS")}, ()),
            ("more", {"verdict": says(ehlo=hello + b"STARTTLSX")}, ()),
            ("as a parameter", {"verdict": says(ehlo=hello + b"AUTH STARTTLS")}, ()),
            ("in the greeting", {"certificate": None, "hostname": "STARTTLS"}, ()),
            ("refused", {}, ("4xx", "5xx")),
        ):
            for fault in faults or (None,):
                for level, policy in LEVELS.items():
                    struck = [Fault("starttls", fault, times=9)] if fault else []
                    bed = Bed(tls=policy, server=server, faults=struck)
                    if level in ("none", "may"):
                        lease = self.opened(bed)
                        self.assertIs(lease.evidence, CLEAR, what)
                        lease.release()
                        self.assertEqual(verdict_of(bed.deliver()), "SENT")
                        bed.close()
                    else:
                        problem = "the server refuses STARTTLS" if fault else "the server does not offer STARTTLS"
                        self.refused(bed, "starttls", f"TLS is demanded, and {problem}")
                        wanted = ["EHLO", "STARTTLS", "QUIT"] if fault else ["EHLO"]
                        self.assertEqual(self.commands(bed), wanted, what)

    def test_may_be_offered_in_any_case(self) -> None:
        for keyword in (b"starttls", b"StartTLS", b"STARTTLS now"):
            bed = Bed(server={"verdict": says(ehlo=b"250-mx.test\r\n250 " + keyword)})
            self.assertEqual(self.opened(bed).evidence.version, "TLSv1.3")

    def test_a_session_in_clear_is_known_as_that(self) -> None:
        """Level "may" took it; a delivery that demands TLS does not get it."""
        bed = Bed(tls=TLSPolicy("may"), server={"certificate": None})
        self.assertEqual(verdict_of(bed.deliver()), "SENT")
        error = bed.deliver(destination=bed.to(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("encrypt")))
        self.assertEqual((verdict_of(error), error.phase), ("NEXT", "starttls"))
        self.assertEqual(bed.server.message_count, 1)
        bed.close()

    def test_other_answers_to_it_are_the_end(self) -> None:
        for reply, part in ((b"250 ok", "220 is due"), (b"334 go on", "220 is due"), (b"221 bye", "220 is due")):
            for level in ("may", "verify"):
                bed = Bed(tls=LEVELS[level], server={"verdict": says(starttls=reply)})
                error = bed.finish(bed.acquire())
                self.assertEqual((verdict_of(error), error.phase), ("NEXT", "starttls"))
                self.assertIn(part, str(error))

    def test_a_flawed_answer_or_421_is_the_end_at_any_level(self) -> None:
        """Clear text is gone on with only where the server has refused TLS and nothing else is odd."""
        for kind in ("barelf", "421", "nul", "multi"):
            for level in ("may", "verify"):
                bed = Bed(tls=LEVELS[level], faults=[Fault("starttls", kind)])
                value = bed.finish(bed.acquire())
                if kind == "multi":
                    self.assertEqual(value.evidence.version, "TLSv1.3", "several lines are no flaw")
                else:
                    self.assertEqual((verdict_of(value), value.phase), ("NEXT", "starttls"))
                    self.assertNotIn("MAIL", self.commands(bed))
                    self.assertEqual(bed.server.handshake_count, 0)

    def test_what_was_offered_in_clear_is_forgotten(self) -> None:
        """RFC 3207 4.2: somebody in between may have said it."""
        clear = b"250-evil.test\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250-SIZE 1\r\n250-PIPELINING\r\n250 SMTPUTF8"
        server = {"verdict": says(ehlo=clear, ehlo2=b"250-mx.test\r\n250 8BITMIME"), "capabilities": ["8BITMIME"]}
        bed = Bed(server=server)
        lease = self.opened(bed)
        self.assertEqual(lease.capabilities, Capabilities({"8BITMIME": ()}))
        lease.release()
        self.assertEqual(verdict_of(bed.deliver()), "SENT")
        self.assertEqual(bed.server.violations, [], "nothing was pipelined")
        bed.close()

    def test_is_not_said_twice(self) -> None:
        bed = Bed(server={"verdict": says(ehlo2=b"250-mx.test\r\n250 STARTTLS")})
        self.opened(bed)
        self.assertEqual(self.commands(bed), ["EHLO", "STARTTLS", "EHLO"])

    def test_a_certificate_that_does_not_do_ends_it(self) -> None:
        """Before a byte of SMTP is written over TLS."""
        for issued, policy, part in (
            (self_signed(("localhost",)), verifying(), "self signed"),
            (Authority("other").issue(), verifying(), "self signed cert in chain"),
            (authority().issue(("other.test",), ()), verifying(), "the certificate is for other.test"),
            (certificate(), TLSPolicy("fingerprint", fingerprints=("ab" * 32,)), "neither the certificate nor"),
            (certificate(), TLSPolicy("verify"), "the certificate is not trusted"),
        ):
            bed = Bed(tls=policy, server={"certificate": issued})
            self.refused(bed, "trust", part)
            self.assertEqual(self.commands(bed), ["EHLO", "STARTTLS"])
            self.assertTrue(bed.server.connections[0].close_notify)

    def test_the_server_name_is_sent(self) -> None:
        for policy, sni in ((verifying(), None), (verifying(servername="mx.test"), "mx.test")):
            bed = Bed(tls=policy)
            self.opened(bed)
            self.assertEqual(bed.server.connections[0].sni, sni, "an address is none (RFC 6066 3)")
        bed = Bed()
        bed.reactor.hosts["mx.test"] = ["127.0.0.1"]
        bed.finish(bed.acquire(bed.to(f"[MX.test.]:{PORT}")))
        self.assertEqual(bed.server.connections[0].sni, "mx.test")


class ImplicitTLS(Case):
    """Protocol "smtps": TLS from the first byte."""

    def test_greeting_and_all_else_come_under_it(self) -> None:
        for credentials in (None, CREDENTIALS):
            server = {"implicit_tls": True, "users": USERS}
            bed = Bed(protocol="smtps", tls=verifying(), credentials=credentials, server=server)
            lease = self.opened(bed)
            self.assertEqual(lease.evidence.summary, "TLSv1.3 TLS_AES_256_GCM_SHA384")
            self.assertEqual(self.commands(bed), ["EHLO"] if credentials is None else ["EHLO", "AUTH"])
            lease.release()
            for _ in range(2):
                self.assertEqual(verdict_of(bed.deliver()), "SENT")
            self.assertEqual((bed.server.connection_count, bed.server.handshake_count), (1, 1))
            bed.close()

    def test_the_greeting_may_come_with_the_last_of_the_handshake(self) -> None:
        """As it does with TLS 1.2, where the server finishes last."""
        issued = authority().issue()
        issued.server_creator().context.set_max_proto_version(SSL.TLS1_2_VERSION)
        for kind, words in ((None, "SENT"), ("split", "SENT"), ("4xx", "greeting"), ("garbage", "tls"), ("dup", "tls")):
            faults = [] if kind is None else [Fault("banner", kind)]
            bed = Bed(protocol="smtps", server={"implicit_tls": True, "certificate": issued}, faults=faults)
            value = bed.deliver()
            if words == "SENT":
                self.assertEqual((verdict_of(value), value.session.tls[:7]), ("SENT", "TLSv1.2"))
            else:
                self.assertEqual((verdict_of(value), value.phase), ("NEXT", words))
            bed.close()

    def test_the_greeting_has_its_own_time(self) -> None:
        bed = Bed(
            protocol="smtps",
            server={"implicit_tls": True},
            faults=[Fault("banner", "silence")],
            timeouts=Timeouts(starttls=5, greeting=20),
        )
        began = bed.reactor.seconds()
        error = bed.deliver()
        self.assertEqual((error.phase, round(bed.reactor.seconds() - began)), ("greeting", 20))

    def test_failures_have_their_phase(self) -> None:
        implicit = {"implicit_tls": True}
        for fault, phase in (
            (Fault("connect", "rst"), "tls"),
            (Fault("connect", "silence"), "tls"),
            (Fault("handshake", "badrecord"), "tls"),
            (Fault("handshake", "garbage"), "tls"),
            (Fault("banner", "5xx"), "greeting"),
            (Fault("banner", "silence"), "greeting"),
            (Fault("banner", "garbage"), "greeting"),
            (Fault("ehlo", "5xx"), "ehlo"),
        ):
            bed = Bed(protocol="smtps", tls=verifying(), server=implicit, faults=[fault])
            self.refused(bed, phase)
        bed = Bed(protocol="smtps", tls=verifying(), server={**implicit, "certificate": self_signed()})
        self.refused(bed, "trust", "self signed")
        self.assertEqual(self.commands(bed), [])

    def test_a_server_in_clear_is_none(self) -> None:
        bed = Bed(protocol="smtps", tls=TLSPolicy("encrypt"))
        self.refused(bed, "tls", "TLS failed")
        self.assertNotIn("EHLO", self.commands(bed))


class Places(Case):
    """Where a connection comes from and goes to."""

    def test_a_local_socket(self) -> None:
        for protocol, policy, server in (
            ("lmtp", TLSPolicy("none"), {"lmtp": True}),
            ("smtp", TLSPolicy("may"), {}),
            ("smtp", verifying(), {}),
            ("smtps", verifying(), {"implicit_tls": True}),
        ):
            bed = Bed(server=server)
            bed.server.listen_unix("/run/smtp")
            self.patch(opening.socket, "gethostname", lambda: "host")
            where = bed.to("unix:/run/smtp", protocol=protocol, tls=policy)
            result = bed.deliver(destination=where)
            self.assertEqual(verdict_of(result), "SENT", result)
            self.assertEqual(bed.server.connections[0].helo_name, "localhost")
            self.assertEqual(result.session.peer, f"{protocol}:unix:/run/smtp")
            self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT")
            self.assertEqual(bed.server.connection_count, 1)
            bed.close()

    def test_a_local_socket_that_is_not_there(self) -> None:
        bed = Bed()
        error = bed.deliver(destination=bed.to("unix:/run/none"))
        self.assertEqual((error.phase, error.retriable, error.endpoint), ("connect", True, "smtp:unix:/run/none"))

    def test_the_bind_address_is_where_it_comes_from(self) -> None:
        for address, bound, seen in (
            ("127.0.0.1", None, "127.0.0.1"),
            ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
            ("::1", "2001:db8::7", "2001:db8::7"),
        ):
            bed = Bed(tls=TLSPolicy("none"))
            if address == "::1":
                bed.server.listen(PORT, address)
            lease = bed.finish(bed.acquire(bed.to(f"[{address}]:{PORT}", tls=TLSPolicy("none"), bind_address=bound)))
            peer = bed.server.connections[0].peer
            assert isinstance(peer, IPv4Address | IPv6Address)
            self.assertEqual(peer.host, seen)
            lease.release()
            bed.close()

    def test_a_bind_address_of_the_other_family_goes_nowhere(self) -> None:
        """It is the destination's fault, not the server's: others reach it."""
        bed = Bed(bind_address="2001:db8::7")
        for _ in range(5):
            error = bed.finish(bed.acquire())
            self.assertEqual((error.phase, error.retriable, bed.server.connection_count), ("bind", True, 0))
            self.assertIn(
                "(bind at smtp:[127.0.0.1]:2525): the bind address 2001:db8::7 can't reach an IPv4", str(error)
            )
        self.assertEqual(verdict_of(bed.deliver(destination=bed.to(f"[127.0.0.1]:{PORT}"))), "SENT")
        bed.close()

    def test_a_bind_address_chooses_among_the_addresses(self) -> None:
        bed = Bed()
        bed.reactor.hosts["mx.test"] = ["2001:db8::1", "127.0.0.1"]
        result = bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", bind_address="127.0.0.1"))
        self.assertEqual((verdict_of(result), bed.server.connection_count), ("SENT", 1))
        bed.close()

    def test_a_bind_address_that_is_not_ours_goes_nowhere(self) -> None:
        bed = Bed(bind_address="192.0.2.7")

        def unbindable(*_: object, **__: object) -> Any:
            raise ConnectBindError(99, "cannot assign requested address")

        self.patch(bed.reactor, "connectTCP", unbindable)
        error = bed.finish(bed.acquire())
        self.assertEqual((error.phase, error.retriable), ("bind", True))
        self.assertIn("cannot assign requested address", str(error))

    def test_who_refuses_a_connection_is_told(self) -> None:
        bed = Bed()
        bed.server.stop_listening()
        error = self.refused(bed, "connect", "no connection: ", "refused", "at smtp:[127.0.0.1]:2525")
        self.assertIsNotNone(error.__cause__)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_who_does_not_answer_is_given_up(self) -> None:
        bed = Bed(timeouts=Timeouts(connect=7))
        bed.reactor.black_holes.add(("127.0.0.1", PORT))
        began = bed.reactor.seconds()
        self.refused(bed, "connect", "no connection: ")
        self.assertAlmostEqual(bed.reactor.seconds() - began, 17, delta=0.1)  # 10 of them in `refused`


class Addresses(Case):
    """A host has several: they are tried in turn, five at most."""

    def bed(self, count: int, **more: Any) -> tuple[Bed, Destination, list[SMTPServer]]:
        """A host with this many addresses, and a server at each."""
        bed = Bed(**more)
        addresses = [f"192.0.2.{number}" for number in range(1, count + 1)]
        bed.reactor.hosts["mx.test"] = addresses
        servers = []
        for address in addresses:
            server = SMTPServer(bed.reactor, certificate=certificate())
            server.listen(PORT, address)
            servers.append(server)
        return bed, bed.to(f"[mx.test]:{PORT}"), servers

    def tried(self, servers: Sequence[SMTPServer]) -> list[int]:
        return [number for number, server in enumerate(servers, 1) if server.connection_count]

    def test_the_first_that_serves_is_taken(self) -> None:
        bed, where, servers = self.bed(3)
        result = bed.deliver(destination=where)
        self.assertEqual((verdict_of(result), self.tried(servers)), ("SENT", [1]))
        self.assertEqual(result.session.peer, f"mx.test[192.0.2.1]:{PORT}")
        bed.close()

    def test_whatever_is_wrong_before_mail_leads_to_the_next(self) -> None:
        for point, kind in (
            ("connect", "rst"),
            ("connect", "fin"),
            ("banner", "4xx"),
            ("banner", "5xx"),
            ("banner", "421"),
            ("banner", "garbage"),
            ("ehlo", "5xx"),
            ("starttls", "4xx"),
            ("starttls", "inject"),
            ("handshake", "badrecord"),
            ("handshake", "fin"),
            ("ehlo2", "notify"),
            ("ehlo2", "4xx"),
        ):
            bed, where, servers = self.bed(3)
            servers[0].arm(Fault(point, kind))
            servers[1].arm(Fault(point, kind))
            result = bed.deliver(destination=where)
            self.assertEqual((verdict_of(result), self.tried(servers)), ("SENT", [1, 2, 3]), f"{kind} at {point}")
            self.assertEqual([server.message_count for server in servers], [0, 0, 1])
            bed.close()

    def test_a_certificate_that_does_not_do_leads_to_the_next(self) -> None:
        bed, where, servers = self.bed(2)
        servers[0].certificate = self_signed(("mx.test",))
        result = bed.deliver(destination=where)
        self.assertEqual((verdict_of(result), self.tried(servers)), ("SENT", [1, 2]))
        bed.close()

    def test_five_are_enough(self) -> None:
        """The error is that of the last (Postfix smtp_mx_address_limit)."""
        bed, where, servers = self.bed(7)
        for server in servers:
            server.arm(Fault("banner", "5xx"))
        error = bed.deliver(destination=where)
        self.assertEqual((verdict_of(error), self.tried(servers)), ("NEXT", [1, 2, 3, 4, 5]))
        self.assertEqual((error.phase, error.endpoint), ("greeting", f"smtp:[192.0.2.5]:{PORT}"))
        bed.close()

    def test_a_host_without_addresses_has_none_to_try(self) -> None:
        bed = Bed()
        error = bed.deliver(destination=bed.to("[none.test]:25"))
        self.assertEqual((error.phase, error.retriable, error.endpoint), ("routing", True, None))
