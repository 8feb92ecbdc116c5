"""Logging in: what is chosen, what is said, that a refusal is the last word, and that no secret comes out."""

from __future__ import annotations

import base64
import json
import re
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mailcache import (
    Credentials,
    DeliveryError,
    DeliveryResult,
    Destination,
    Envelope,
    MemorySessionCache,
    TLSPolicy,
    authentication,
    deliver,
)
from mailcache.authentication import REMEMBERED
from mailcache.testing import Connection, Fault, SMTPServer
from mailcache.testing.authentication import ALL_MECHANISMS
from mailcache.testing.authentication import Authentication as ServersSide
from mailcache.wire import sasl
from mailcache.wire.replies import Reply
from mailcache.wire.scram import MAX_ITERATIONS
from tests.helpers import (
    CREDENTIALS,
    PORT,
    SMALL,
    Bed,
    KeeperBed,
    authority,
    ca_file,
    certificate,
    stored,
    verdict_of,
    verifying,
)
from tests.test_opening import USERS, Case, says

TOKEN = "ya29.vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
PASSWORDS = ("SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5")
TOKENS = ("OAUTHBEARER", "XOAUTH2")
ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


class Authentication(Case):
    def bed(self, *, offers: bytes | None = None, policy: TLSPolicy | None = None, **more: Any) -> Bed:
        server: dict[str, Any] = {"users": USERS, **more.pop("server", {})}
        if offers is not None:
            server["verdict"] = says(ehlo2=b"250-mx.test\r\n250 " + offers)
        return Bed(tls=policy, credentials=more.pop("credentials", CREDENTIALS), server=server, **more)

    def test_is_by_what_the_server_offers(self) -> None:
        for offers, mechanism in (
            (b"AUTH PLAIN LOGIN", "PLAIN"),
            (b"AUTH LOGIN PLAIN", "PLAIN"),
            (b"AUTH LOGIN", "LOGIN"),
            (b"AUTH GSSAPI LOGIN", "LOGIN"),
            (b"auth plain", "PLAIN"),
            (b"AUTH=LOGIN", "LOGIN"),
        ):
            bed = self.bed(offers=offers)
            lease = self.opened(bed)
            record = bed.server.connections[0]
            self.assertEqual((record.user, record.commands[-1]), ("user", f"AUTH {mechanism}"))
            lease.release()
            self.assertEqual(verdict_of(bed.deliver()), "SENT")
            self.assertEqual(bed.server.connection_count, 1)
            bed.close()

    def test_international_names_and_passwords(self) -> None:
        login = Credentials("\xfcser", "pa\xdf w\xf6rd\u2603")
        for offers in (b"AUTH PLAIN", b"AUTH LOGIN"):
            bed = self.bed(offers=offers, credentials=login, server={"users": {login.username: login.password}})
            self.opened(bed)
            self.assertEqual(bed.server.connections[0].user, "\xfcser")

    def test_a_refusal_is_final(self) -> None:
        """Tried again it would lock the account: not at another address either, and nothing is kept."""
        for offers in (b"AUTH PLAIN", b"AUTH LOGIN"):
            bed = self.bed(offers=offers, credentials=Credentials("user", "wrong"))
            bed.reactor.hosts["mx.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            for address in ("127.0.0.2", "127.0.0.3"):
                bed.server.listen(PORT, address)
            where = bed.to(f"[mx.test]:{PORT}", credentials=Credentials("user", "wrong"))
            error = bed.deliver(destination=where)
            self.assertEqual((verdict_of(error), error.phase, error.retriable), ("NEXT", "auth", False))
            self.assertEqual(error.reply, Reply.make(535, "5.7.8 credentials not accepted"))
            self.assertEqual(bed.server.connection_count, 1)
            bed.reactor.run_for(10)
            self.assertEqual((bed.counts(), bed.server.connections[0].quit_seen), ((0, 0, 0, 0), True))
            # Who has the right password is not kept waiting by who has not.
            self.assertEqual(
                verdict_of(bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", credentials=CREDENTIALS))), "SENT"
            )
            self.assertEqual(bed.server.connection_count, 2)
            bed.close()

    def test_a_refusal_is_final_also_where_the_server_closes_with_it(self) -> None:
        """Reply and close_notify come in one read."""

        def refuses_and_leaves(point: str, argument: str, record: Connection) -> bytes | None:
            if point == "auth":
                bed.reactor.callLater(0, bed.server._live[-1].close)
                return b"535 5.7.8 once too often"
            return None

        bed = self.bed(server={"verdict": refuses_and_leaves})
        bed.reactor.hosts["mx.test"] = ["127.0.0.1", "127.0.0.2"]
        bed.server.listen(PORT, "127.0.0.2")
        error = bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", credentials=CREDENTIALS))
        self.assertEqual((verdict_of(error), error.phase, error.retriable), ("NEXT", "auth", False))
        self.assertEqual((str(error.reply), bed.server.connection_count), ("535 5.7.8 once too often", 1))
        bed.close()

    def test_a_refusal_for_now_is_not(self) -> None:
        bed = self.bed(faults=[Fault("auth", "4xx")])
        self.refused(bed, "auth", "the server does not let us log in", "454")
        self.assertEqual(verdict_of(bed.deliver()), "SENT")

    def test_odd_answers_end_it(self) -> None:
        for reply, part in (
            (b"250 ok", "a reply out of place, 235 is due"),
            (b"220 ok", "a reply out of place, 235 is due"),
            (b"354 go", "a reply out of place, 235 is due"),
            (b"334 !", "the challenge is not base64"),
            (b"334 QUdBSU4=", "unexpected challenge in PLAIN"),
            (b"421 bye", "the server does not let us log in"),
        ):
            bed = self.bed(server={"verdict": says(auth=reply)})
            self.refused(bed, "auth", part)

    def test_challenges_do_not_go_on_for_ever(self) -> None:
        bed = self.bed(offers=b"AUTH LOGIN", server={"users": USERS})
        self.patch(sasl.Login, "respond", lambda self, challenge: b"x")
        self.patch(ServersSide, "line", lambda self, line: self.challenge(b"334 QUdBSU4=\r\n"))
        self.refused(bed, "auth", "a reply out of place, 235 is due")

    def test_no_common_mechanism_is_told(self) -> None:
        for offers, part in (
            (b"AUTH GSSAPI DIGEST-MD5", "the server offers DIGEST-MD5, GSSAPI"),
            (b"AUTH", "the server offers none"),
            (b"SIZE", "the server offers none"),
        ):
            bed = self.bed(offers=offers)
            self.refused(bed, "auth", "no common mechanism to log in with", part)
            self.assertNotIn("AUTH", self.commands(bed))

    def test_credentials_never_go_in_clear(self) -> None:
        """Level "may" found no TLS; only "none" says that clear text is meant."""
        offer = says(ehlo=b"250-mx.test\r\n250 AUTH PLAIN LOGIN")
        for policy in (TLSPolicy("may"), TLSPolicy("encrypt"), verifying()):
            for server in ({"verdict": offer}, {"verdict": offer, "certificate": None}):
                bed = self.bed(policy=policy, server=server)
                error = self.refused(bed, "auth" if policy.level == "may" else "starttls")
                if policy.level == "may":
                    self.assertIn("credentials are not sent in clear text", str(error))
                self.assertEqual(self.commands(bed), ["EHLO"])
        bed = self.bed(policy=TLSPolicy("may"), faults=[Fault("starttls", "4xx")])
        self.refused(bed, "auth", "credentials are not sent in clear text")
        bed = self.bed(policy=TLSPolicy("none"), server={"verdict": offer})
        self.assertEqual(bed.finish(bed.acquire()).phase, "auth")
        self.assertEqual(bed.server.violations, ["connection 1: AUTH in clear"], "as was asked")


class AuthCase(Case):
    """Beds whose server offers any mechanisms, at three addresses; no secret is ever logged."""

    def setUp(self) -> None:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(self.check_events, events)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

    def check_events(self, events: list[dict[str, Any]]) -> None:
        for text in [eventAsText(event) + repr(event) for event in events]:
            for secret in ("c4n4ry", CREDENTIALS.password, TOKEN, "dXNlcj1yb2JvdA", "bixhPXJvYm90"):
                self.assertNotIn(secret, text)

    def bed(self, *mechanisms: str, keeper: bool = False, **more: Any) -> Bed:
        secret = {"user": CREDENTIALS.password, "us=e,r": "t0ken", "robot": TOKEN, "role": "client.test"}
        server = {"users": secret, "mechanisms": mechanisms, **more.pop("server", {})}
        bed = (KeeperBed if keeper else Bed)(server=server, **more)
        bed.reactor.hosts["mx.test"] = ADDRESSES
        for address in ADDRESSES[1:]:
            bed.server.listen(PORT, address)
        return bed

    def client_certificate(self) -> str:
        return stored(self, authority().issue(("client.test",), client=True).private_pem)

    def ways(self, right: bool) -> list[tuple[str, dict[str, Any]]]:
        password = CREDENTIALS if right else Credentials("user", "wrong c4n4ry")
        token = Credentials("robot", token=TOKEN if right else "wrong.c4n4ry")
        external = Credentials("role" if right else "another", external=True)
        certified = {"credentials": external, "client_certificate": self.client_certificate()}
        ways: list[tuple[str, dict[str, Any]]] = [(name, {"credentials": password}) for name in PASSWORDS]
        ways += [(name, {"credentials": token}) for name in TOKENS]
        return [*ways, ("EXTERNAL", certified)]

    def auths(self, bed: Bed) -> list[str]:
        """All AUTH commands that were sent."""
        return [line for record in bed.server.connections for line in record.commands if line.startswith("AUTH")]

    def refusal(self, bed: Bed, destination: Destination, retriable: bool = False) -> DeliveryError:
        """The error of a delivery that can't log in; nothing is left of it."""
        error = bed.deliver(destination=destination)
        assert isinstance(error, DeliveryError), repr(error)
        self.assertEqual((error.phase, error.retriable), ("auth", retriable), str(error))
        self.assertNotIn("c4n4ry", str(error) + repr(error))
        bed.reactor.run_for(10)
        self.assertEqual((bed.counts(), bed.server.open_count), ((0, 0, 0, 0), 0))
        return error


class Mechanisms(AuthCase):
    """Each of them, over a cache in memory and over a keeper."""

    def test_all_are_tested(self) -> None:
        self.assertEqual({name for name, _ in self.ways(True)}, set(ALL_MECHANISMS))

    def test_right(self) -> None:
        for keeper in (False, True):
            for name, where in self.ways(True):
                bed = self.bed(name, keeper=keeper)
                for _ in range(3):
                    value = bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", **where))
                    self.assertEqual(verdict_of(value), "SENT", f"{name}: {value}")
                self.assertEqual(self.auths(bed), [f"AUTH {name}"])
                self.assertEqual(bed.server.connections[0].user, where["credentials"].username)
                self.assertEqual(bed.server.violations, [])
                bed.close()

    def test_a_refusal_is_the_last_word(self) -> None:
        """One AUTH on one connection, though there are other mechanisms and other addresses."""
        for keeper in (False, True):
            for name, where in self.ways(False):
                for offered in ((name,), ALL_MECHANISMS):
                    bed = self.bed(*offered, keeper=keeper)
                    error = self.refusal(bed, bed.to(f"[mx.test]:{PORT}", **where))
                    self.assertIn("the server refuses the credentials", str(error))
                    assert error.reply is not None
                    self.assertEqual(error.reply.code, 535)
                    self.assertEqual((len(self.auths(bed)), bed.server.connection_count), (1, 1))
                    self.assertTrue(bed.server.connections[0].quit_seen)
                    self.assertEqual(bed.server.violations, [])
                    bed.close()

    def test_a_refusal_for_now_is_not(self) -> None:
        for name, where in self.ways(True):
            bed = self.bed(name, faults=[Fault("auth", "4xx")])
            self.assertEqual(verdict_of(bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", **where))), "SENT")
            self.assertEqual(self.auths(bed), [f"AUTH {name}"] * 2)
            bed.close()

    def test_the_best_is_chosen(self) -> None:
        token, both = Credentials("robot", token=TOKEN), Credentials("user", "correct horse", mechanisms=["plain"])
        for offered, credentials, chosen in (
            (PASSWORDS[::-1], CREDENTIALS, "SCRAM-SHA-256"),
            (("CRAM-MD5", "LOGIN", "PLAIN"), CREDENTIALS, "PLAIN"),
            (("CRAM-MD5", "LOGIN"), CREDENTIALS, "LOGIN"),
            (("CRAM-MD5", "XOAUTH2"), CREDENTIALS, "CRAM-MD5"),
            (ALL_MECHANISMS, both, "PLAIN"),
            (ALL_MECHANISMS, token, "OAUTHBEARER"),
            (("PLAIN", "XOAUTH2", "LOGIN"), token, "XOAUTH2"),
        ):
            bed = self.bed(*offered)
            value = bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", credentials=credentials))
            self.assertEqual((verdict_of(value), self.auths(bed)), ("SENT", [f"AUTH {chosen}"]))
            bed.close()

    def test_what_is_asked_for_is_not_replaced(self) -> None:
        """Tokens do not go as passwords, nor passwords as tokens, nor what was not allowed."""
        for offered, credentials in (
            (PASSWORDS, Credentials("robot", token=TOKEN)),
            ((*TOKENS, "EXTERNAL"), CREDENTIALS),
            (("PLAIN", "LOGIN"), Credentials("user", "correct horse", mechanisms=("SCRAM-SHA-256",))),
        ):
            bed = self.bed(*offered)
            error = self.refusal(bed, bed.to(f"[127.0.0.1]:{PORT}", credentials=credentials), retriable=True)
            self.assertIn("no common mechanism", str(error))
            self.assertEqual(self.auths(bed), [])
            bed.close()

    def test_a_password_that_scram_can_not_carry_goes_by_another(self) -> None:
        login = Credentials("user", "\U0001f4ee pass")  # not in Unicode 3.2, so not in SASLprep
        bed = self.bed("SCRAM-SHA-256", "PLAIN", server={"users": {"user": login.password}})
        self.assertEqual(verdict_of(bed.deliver(destination=bed.to(f"[mx.test]:{PORT}", credentials=login))), "SENT")
        self.assertEqual(self.auths(bed), ["AUTH PLAIN"])
        bed.close()

    def test_names_with_separators(self) -> None:
        for name in (*PASSWORDS, *TOKENS):
            more = {"token": "t0ken"} if name in TOKENS else {"password": "t0ken"}
            bed = self.bed(name)
            where = bed.to(f"[mx.test]:{PORT}", credentials=Credentials("us=e,r", **more))
            self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT", name)
            self.assertEqual(bed.server.connections[0].user, "us=e,r")
            bed.close()

    def test_long_tokens_go_after_the_command(self) -> None:
        for length, lines in ((1000, 1), (8000, 2)):
            for name in TOKENS:
                token = "t" * length
                challenges: list[bytes] = []

                def note(_: str, octets: bytes, challenges: list[bytes] = challenges) -> None:
                    challenges.append(octets)

                bed = self.bed(name, server={"users": {"robot": token}, "challenge": note})
                where = bed.to(f"[mx.test]:{PORT}", credentials=Credentials("robot", token=token))
                self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT")
                self.assertEqual((challenges, bed.server.violations), ([b""] * (lines - 1), []))
                bed.close()
        bed = self.bed("XOAUTH2", server={"users": {"robot": token}, "challenge": lambda *_: b"334 QUdBSU4=\r\n"})
        error = self.refusal(bed, bed.to(f"[127.0.0.1]:{PORT}", credentials=where.credentials), retriable=True)
        self.assertIn("XOAUTH2: a challenge where none can be", str(error))
        bed.close()

    def test_the_status_of_a_refused_token_is_told(self) -> None:
        token = Credentials("robot", token="wrong.c4n4ry")
        secret = base64.b64encode(json.dumps({"status": "wrong.c4n4ry"}).encode())
        for name, raw, told in (
            ("OAUTHBEARER", None, "refuses the credentials (invalid_token): the server said 535"),
            ("XOAUTH2", None, "refuses the credentials (401): the server said 535"),
            ("XOAUTH2", b'{"status":400}', "(400)"),
            ("OAUTHBEARER", b"{}", "(no status)"),
            ("OAUTHBEARER", b"not JSON", "(no status)"),
            ("OAUTHBEARER", b"[" * 1400, "(no status)"),
            ("OAUTHBEARER", b'["status"]', "(no status)"),
            ("OAUTHBEARER", b'{"status":"\\u0007"}', "(no status)"),
            ("OAUTHBEARER", base64.b64decode(secret), "((the server repeats a secret))"),
        ):
            line = None if raw is None else b"334 " + base64.b64encode(raw) + b"\r\n"
            bed = self.bed(name, server={"challenge": lambda *_, line=line: line})
            error = self.refusal(bed, bed.to(f"[127.0.0.1]:{PORT}", credentials=token))
            self.assertIn(told, str(error))
            self.assertEqual(bed.server.violations, [], "the answer to it is what the mechanism demands")
            bed.close()

    def test_challenges_that_can_not_be(self) -> None:
        """Malformed, empty, or something else in their place: an error, and nothing is kept or tried after it."""
        odd = (b"334 !", b"250 ok", b"354 go", b"421 bye", b"gibberish")
        lines = {
            "SCRAM-SHA-256": (*odd, b"334 QUdBSU4="),
            "PLAIN": (*odd, b"334 QUdBSU4="),
            "LOGIN": odd,
            "CRAM-MD5": (*odd, b"334 ", b"235 2.7.0 welcome"),
            "OAUTHBEARER": odd,
            "XOAUTH2": odd,
            "EXTERNAL": (*odd, b"334 QUdBSU4="),
        }
        for name, where in self.ways(True):
            for line in lines[name]:
                bed = self.bed(name)
                if name in ("PLAIN", "EXTERNAL"):
                    bed.server.verdict = says(auth=line)  # they have no challenges
                else:
                    bed.server.challenge = lambda *_, line=line: line + b"\r\n"  # type: ignore[misc]
                if name in TOKENS:
                    where = {"credentials": Credentials("robot", token="wrong.c4n4ry")}
                self.refusal(bed, bed.to(f"[127.0.0.1]:{PORT}", **where), retriable=True)
                self.assertEqual(self.auths(bed), [f"AUTH {name}"], line)
                bed.close()

    def test_a_token_that_is_refused_and_taken(self) -> None:
        bed = self.bed("XOAUTH2", server={"verdict": says(auth=b"235 2.7.0 welcome")})
        where = bed.to(f"[127.0.0.1]:{PORT}", credentials=Credentials("robot", token="wrong"))
        self.assertIn("takes the token that it has refused (401)", str(self.refusal(bed, where, retriable=True)))

    def test_a_token_is_not_repeated_after_the_server(self) -> None:
        token = "c4n4ry." + "t0ken" * 10
        for name, said in (("XOAUTH2", b"user=robot\x01auth=Bearer "), ("OAUTHBEARER", b"n,a=robot,\x01auth=Bearer ")):
            whole = base64.b64encode(said + token.encode() + b"\x01\x01")
            for repeated in (whole, whole[:30], token.encode(), token.encode()[:12]):
                for code in (b"500", b"535", b"454", b"250"):
                    bed = self.bed(name, server={"verdict": says(auth=code + b" what is " + repeated)})
                    where = bed.to(f"[127.0.0.1]:{PORT}", credentials=Credentials("robot", token=token))
                    error = self.refusal(bed, where, retriable=code[:1] != b"5")
                    self.assertIn("the server repeats a secret", str(error))
                    self.assertNotIn(whole[:20].decode(), str(error))
                    bed.close()

    def test_cut_in_the_exchange(self) -> None:
        """At each challenge; the next attempt succeeds."""
        for name, challenges in (("SCRAM-SHA-256", 2), ("LOGIN", 2), ("CRAM-MD5", 1)):
            for number in range(1, challenges + 1):
                bed = self.bed(name)
                seen = [0]

                def cut(_: str, octets: bytes, bed: Bed = bed, seen: list[int] = seen, number: int = number) -> None:
                    seen[0] += 1
                    if seen[0] == number:
                        bed.server._live[-1].close()

                bed.server.challenge = cut
                where = bed.to(f"[mx.test]:{PORT}", credentials=CREDENTIALS)
                self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT")
                self.assertEqual(self.auths(bed), [f"AUTH {name}"] * 2)
                bed.close()

    def test_external_needs_its_certificate(self) -> None:
        external = Credentials("", external=True)
        bed = self.bed("EXTERNAL")
        where = bed.to(f"[mx.test]:{PORT}", credentials=external, client_certificate=self.client_certificate())
        self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT")
        self.assertEqual(bed.server.connections[0].user, "client.test", "the certificate says it all")
        bed.close()


class Scram(AuthCase):
    """The server has to prove that it knows the password."""

    def altered(self, pattern: bytes, by: bytes) -> Callable[[str, bytes], bytes | None]:
        def alter(_: str, octets: bytes) -> bytes | None:
            found = re.sub(pattern, by, octets)
            return None if found == octets else b"334 " + base64.b64encode(found) + b"\r\n"

        return alter

    def check(self, pattern: bytes, by: bytes, part: str, *, retriable: bool, connections: int = 1) -> None:
        bed = self.bed(*PASSWORDS, server={"challenge": self.altered(pattern, by)})
        error = self.refusal(bed, bed.to(f"[mx.test]:{PORT}", credentials=CREDENTIALS), retriable=retriable)
        self.assertIn(part, str(error))
        self.assertEqual(set(self.auths(bed)), {"AUTH SCRAM-SHA-256"}, "nothing weaker was tried")
        self.assertEqual(bed.server.connection_count, connections)
        bed.close()

    def test_a_wrong_signature_is_the_end(self) -> None:
        """At this address and at all others, as who is there may have any of them."""
        for by in (b"v=" + base64.b64encode(bytes(32)), b"v=", b"v=x", b"v=\xff"):
            self.check(b"^v=.*", by, "the server does not prove that it knows the password", retriable=False)

    def test_no_signature_is_the_end(self) -> None:
        for when in (b"r=", b"v="):

            def early(_: str, octets: bytes, when: bytes = when) -> bytes | None:
                return b"235 2.7.0 welcome\r\n" if octets.startswith(when) else None

            bed = self.bed(*PASSWORDS, server={"challenge": early})
            error = self.refusal(bed, bed.to(f"[mx.test]:{PORT}", credentials=CREDENTIALS))
            self.assertIn("the server does not prove that it knows the password", str(error))
            self.assertEqual(self.auths(bed), ["AUTH SCRAM-SHA-256"])
            bed.close()

    def test_an_error_in_place_of_it_is_told(self) -> None:
        """And what follows it is a refusal, or it can't be."""
        for said, told in ((b"e=invalid-proof", "(invalid-proof)"), (b"e=c4n4ry,x=y", "(other-error)")):
            bed = self.bed("SCRAM-SHA-256", server={"challenge": self.altered(b"^v=.*", said)})
            bed.server.verdict = says(auth=b"535 5.7.8 no")
            where = bed.to(f"[mx.test]:{PORT}", credentials=CREDENTIALS)
            self.assertIn(told, str(self.refusal(bed, where)))
            bed.server.violations.clear()
            bed.close()

    def test_so_many_iterations_are_not_computed(self) -> None:
        for iterations in (MAX_ITERATIONS + 1, 10**7):
            part = f"the server demands {iterations} iterations; {MAX_ITERATIONS} at most are computed here"
            self.check(b"i=4096", b"i=%d" % iterations, part, retriable=True, connections=3)

    def test_malformed_first_messages(self) -> None:
        for pattern, by in (
            (b"i=4096", b"i=0"),
            (b"i=4096", b"i=4095"),
            (b"i=4096", b"i=-1"),
            (b"i=4096", b"i=9" + b"9" * 500),
            (b"i=4096", b"i=x"),
            (b"^r=", b"r=x"),
            (b",s=.*,", b",s=!,"),
            (b",s=.*,", b",s=QUJD,"),
            (b",s=.*", b""),
            (b"^r=", b"m=x,r="),
            (b"^.*$", b"\xff\xfe"),
        ):
            part = "the server's first message is malformed"
            self.check(pattern, by, part, retriable=True, connections=3)


class InClear(AuthCase):
    """Level "none": what is sent then, and what never is."""

    def clear(self, *mechanisms: str) -> Bed:
        return self.bed(*mechanisms, tls=TLSPolicy("none"), server={"auth_in_clear": True})

    def test_what_hides_the_password_comes_first(self) -> None:
        for offered, chosen in (
            (PASSWORDS, "SCRAM-SHA-256"),
            (("PLAIN", "LOGIN", "CRAM-MD5"), "CRAM-MD5"),
            (("LOGIN", "PLAIN"), "PLAIN"),
        ):
            bed = self.clear(*offered)
            where = bed.to(f"[mx.test]:{PORT}", tls=TLSPolicy("none"), credentials=CREDENTIALS)
            self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT")
            self.assertEqual(self.auths(bed), [f"AUTH {chosen}"])
            bed.close()

    def test_only_level_none_means_clear_text(self) -> None:
        for credentials in (CREDENTIALS, Credentials("robot", token=TOKEN)):
            bed = self.bed(*ALL_MECHANISMS, server={"auth_in_clear": True, "certificate": None})
            where = bed.to(f"[127.0.0.1]:{PORT}", tls=TLSPolicy("may"), credentials=credentials)
            error = self.refusal(bed, where, retriable=True)
            self.assertIn("credentials are not sent in clear text", str(error))
            self.assertEqual(self.auths(bed), [])
            bed.close()


class Downgrades(AuthCase):
    """A mechanism that was offered before, and is not now: who has taken it away?"""

    def twice(self, policy: TLSPolicy, after: float = 0.0, **server: Any) -> Any:
        """What comes of a second session where the server, or somebody, offers less than for the first."""
        self.testbed = bed = self.bed("SCRAM-SHA-256", "PLAIN", server=server)
        where = bed.to(f"[127.0.0.1]:{PORT}", tls=policy, credentials=CREDENTIALS)
        self.assertEqual(verdict_of(bed.deliver(destination=where)), "SENT")
        bed.reactor.run_for(60 + after)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))
        bed.server.mechanisms = ("PLAIN",)
        return bed.deliver(destination=where)

    def test_are_refused_where_nothing_is_proven(self) -> None:
        clear = {"auth_in_clear": True}
        for policy, server in ((TLSPolicy("none"), clear), (TLSPolicy("may"), {}), (TLSPolicy("encrypt"), {})):
            error = self.twice(policy, **server)
            self.assertEqual((verdict_of(error), error.phase, error.retriable), ("NEXT", "auth", True))
            self.assertIn("the server does not offer SCRAM-SHA-256 any more", str(error))
            self.assertEqual(self.auths(self.testbed), ["AUTH SCRAM-SHA-256"])
            self.testbed.close()

    def test_are_told_where_the_server_is_proven(self) -> None:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.assertEqual(verdict_of(self.twice(verifying())), "SENT")
        self.assertEqual(self.auths(self.testbed), ["AUTH SCRAM-SHA-256", "AUTH PLAIN"])
        texts = [eventAsText(event) for event in events]
        self.assertTrue([text for text in texts if "does not offer SCRAM-SHA-256 any more" in text], texts)
        self.testbed.close()

    def test_are_forgotten_some_time(self) -> None:
        self.assertEqual(verdict_of(self.twice(TLSPolicy("encrypt"), after=REMEMBERED)), "SENT")
        self.testbed.close()


class RealSockets(TestCase):
    """Each mechanism over TCP and TLS as they are."""

    timeout = 60

    async def test_each(self) -> None:
        client = stored(self, authority().issue(("client.test",), client=True).private_pem)  # type: ignore[arg-type]
        server = SMTPServer(
            reactor,
            certificate=certificate(),
            users={"user": "correct horse", "robot": TOKEN, "role": "client.test"},
            mechanisms=ALL_MECHANISMS,
        )
        port = server.listen().getHost().port  # type: ignore[attr-defined]
        self.addCleanup(server.close)
        cache = MemorySessionCache(reactor)
        self.addCleanup(cache.close)
        for right in (True, False):
            for name in ALL_MECHANISMS:
                restricted: dict[str, Any] = {"mechanisms": (name,)}
                more: dict[str, Any] = {}
                if name in PASSWORDS:
                    login = Credentials("user", "correct horse" if right else "wrong", **restricted)
                elif name in TOKENS:
                    login = Credentials("robot", token=TOKEN if right else "wrong", **restricted)
                else:
                    login = Credentials("role" if right else "another", external=True)
                    more["client_certificate"] = client
                where = Destination(
                    f"[127.0.0.1]:{port}", credentials=login, tls=TLSPolicy("verify", ca_file=ca_file()), **more
                )
                delivering: Deferred[DeliveryResult] = deliver(cache, where, Envelope("a@b.test", ["c@d.test"]), SMALL)
                if right:
                    self.assertEqual((await delivering).accepted, ("c@d.test",))
                else:
                    error = await self.assertFailure(delivering, DeliveryError)
                    self.assertEqual((error.phase, error.retriable), ("auth", False))
                self.assertIn(f"AUTH {name}", server.connections[-1].commands)
        self.assertEqual((server.violations, server.connection_count), ([], 2 * len(ALL_MECHANISMS)))


class Secrets(SynchronousTestCase):
    """A canary for a password: it may be on the wire under TLS, and nowhere else."""

    CANARY = "c4n4ry-\xdf-5ecret"
    LOGIN = Credentials("user", CANARY)

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def forms(self) -> list[str]:
        """The password as it might show, and enough of it to be one."""
        raw = self.CANARY.encode()
        plain = b"\0user\0" + raw
        whole = [self.CANARY, raw.hex(), quote(raw), repr(raw)[2:-1], ascii(self.CANARY)[1:-1]]
        whole += [base64.b64encode(each).decode().rstrip("=") for each in (raw, plain)]
        return [*whole, "c4n4ry", *[base64.b64encode(each).decode()[10:20] for each in (raw, plain)]]

    def check(self, *shown: object) -> None:
        texts = [eventAsText(event) for event in self.events] + [repr(event) for event in self.events]
        for each in shown:
            texts += [repr(each), str(each)]
            if isinstance(each, BaseException):
                texts += traceback.format_exception(each)
                texts += [repr(vars(each)), repr(each.args)]
        for text in texts:
            for form in self.forms():
                self.assertNotIn(form, text)

    def bed(self, *, offers: bytes = b"AUTH PLAIN", right: bool = True, auth: bytes | None = None, **more: Any) -> Bed:
        replies = {"ehlo2": b"250-mx.test\r\n250 " + offers}
        if auth is not None:
            replies["auth"] = auth
        users = {"user": self.CANARY if right else "other"}
        return Bed(credentials=self.LOGIN, server={"users": users, "verdict": says(**replies)}, **more)

    def end(self, bed: Bed, value: object) -> None:
        self.check(value, bed.destination, bed.destination.identity, bed.statistics(), bed.cache, bed.server.log)
        self.check(*vars(bed.cache).values())
        bed.close()
        bed.reactor.run_for(60)
        self.check()

    def test_are_not_in_a_success(self) -> None:
        for offers in (b"AUTH PLAIN", b"AUTH LOGIN"):
            bed = self.bed(offers=offers)
            result = bed.deliver()
            self.assertEqual(verdict_of(result), "SENT")
            lease = bed.finish(bed.acquire())
            self.check(lease, lease.evidence, lease.capabilities)
            lease.release()
            self.end(bed, result)
        self.assertTrue(self.events, "something was logged")

    def test_are_not_in_a_refusal(self) -> None:
        for offers in (b"AUTH PLAIN", b"AUTH LOGIN"):
            bed = self.bed(offers=offers, right=False)
            error = bed.deliver()
            self.assertEqual(error.reply.code, 535)
            self.end(bed, error)

    def test_are_not_repeated_after_the_server(self) -> None:
        """Servers that do not know a command like to repeat it, and some cut it short."""
        token = base64.b64encode(b"\0user\0" + self.CANARY.encode())
        password = base64.b64encode(self.CANARY.encode())
        for offers, said in (
            (b"AUTH PLAIN", b"AUTH PLAIN " + token),
            (b"AUTH PLAIN", b"AUTH PLAIN " + token[:20]),
            (b"AUTH PLAIN", self.CANARY.encode()),
            (b"AUTH LOGIN", password),
            (b"AUTH LOGIN", password[:20]),
            (b"AUTH LOGIN", b"no such password: " + self.CANARY.encode()),
        ):
            for reply in (
                b'500 5.5.1 unknown command: "%s"' % said,
                b'454 4.5.1 what is "%s"?' % said,
                b"535-5.7.8 no\r\n535 5.7.8 %s" % said,
                b"250 2.0.0 %s" % said,
                b"421 4.0.0 %s" % said,
                b"250 ok\r\n250 %s" % said,
                said,
            ):
                bed = self.bed(offers=offers, auth=reply)
                error = bed.deliver()
                self.assertEqual((verdict_of(error), error.phase), ("NEXT", "auth"))
                told = None if error.reply is None else error.reply.code
                unasked_for = reply == said or reply.startswith(b"250 ok")
                self.assertEqual(told, None if unasked_for else int(reply[:3]), "the code is no secret")
                self.end(bed, error)

    def test_a_reply_without_them_is_told_as_it_is(self) -> None:
        bed = self.bed(auth=b"535 5.7.8 log in with a web browser first")
        self.assertIn("log in with a web browser first", str(bed.deliver()))

    def test_are_not_in_a_failure(self) -> None:
        for kind in ("silence", "rst", "fin", "garbage", "badrecord", "notify", "nolf", "421"):
            bed = self.bed(faults=[Fault("auth", kind)])
            self.end(bed, bed.deliver())

    def test_are_not_in_a_cancelled_delivery(self) -> None:
        for seconds in range(1, 40):
            bed = self.bed(latency=0.25)
            outcome = bed.start()
            bed.reactor.run_for(seconds * 0.125)
            outcome.deferred.cancel()
            self.end(bed, bed.finish(outcome))

    def test_are_not_in_the_report_of_a_defect(self) -> None:
        def broken(*_: object) -> bytes:
            raise RuntimeError("a defect of ours")

        self.patch(authentication.base64, "b64encode", broken)
        bed = self.bed()
        error = bed.deliver()
        self.assertEqual((verdict_of(error), len(self.flushLoggedErrors(RuntimeError))), ("NEXT", 1))
        self.patch(authentication.base64, "b64encode", self._b64encode)
        self.end(bed, error)

    _b64encode = staticmethod(base64.b64encode)

    def test_bad_ones_are_refused_unsaid(self) -> None:
        """See `tests.test_destination` too."""
        for password in (self.CANARY + "\0", self.CANARY + "\ud800", self.CANARY * 1000):
            error = self.assertRaises(ValueError, Credentials, "user", password)
            self.check(error)
