"""STARTTLS: what is said in clear text counts for nothing under TLS, and nothing is said in clear that TLS is for.

Whoever stands between client and server can put in words and take out words until the handshake is over. What a single
connection makes of that is tested with it; here it is what comes of the message, and of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mailcache import Credentials, DeliveryError, TLSPolicy
from mailcache.testing import Connection, Fault
from mailcache.testing.misreplies import INJECTED
from tests.helpers import ca_file, certificate, verifying
from tests.security.callers import BORROWERS, MEMORY, SENDERS, Callers, SharingCase, to

USERS = {"anne": "secret"}
LOGIN = Credentials("anne", "secret")
MORE = b"250-PIPELINING\r\n250-INJECTED\r\n250 AUTH PLAIN\r\n"
OPENING = {"EHLO", "STARTTLS", "QUIT"}

POLICIES = {
    "may": TLSPolicy("may", ca_file=ca_file()),
    "encrypt": TLSPolicy("encrypt", ca_file=ca_file()),
    "fingerprint": TLSPolicy("fingerprint", fingerprints=(certificate().digest().hex(),), ca_file=ca_file()),
    "verify": verifying(),
    "secure": TLSPolicy("secure", ca_file=ca_file()),
}
DEMANDING = tuple(level for level in POLICIES if level != "may")


def where(level: str, **more: Any) -> Any:
    return to("[localhost]:2525" if level == "secure" else "[127.0.0.1]:2525", tls=POLICIES[level], **more)


def says(point: str, reply: bytes) -> Callable[[Callers, str], bytes | None]:
    """Has this at one point in place of the right reply."""
    return lambda _, where: reply if where == point else None


class Between(SharingCase):
    """Somebody between the cache and its server, on the first connection."""

    @contextmanager
    def with_one(self, way: str, meddles: Callable[[Callers, str], bytes | None], *faults: Fault) -> Iterator[Callers]:
        """Callers whose first connection is meddled with: what is given in place of a reply goes out."""

        def verdict(point: str, _: str, record: Connection) -> bytes | None:
            return meddles(callers, point) if record.number == 1 else None

        # It would take a login in clear text, too: that there is none is the client's doing.
        server = {"verdict": verdict, "users": USERS, "auth_in_clear": True}
        with self.callers(way, server=server, faults=faults, latency=0.01) as callers:
            callers.bed.reactor.hosts["localhost"] = ["127.0.0.1"]
            yield callers

    def verbs(self, record: Connection) -> set[str]:
        return {command.split(" ")[0] for command in record.commands}

    def assert_nothing_came_of(self, callers: Callers, level: str, value: Any, *phases: str) -> None:
        """Nothing but the opening was said there, nothing was kept, and the next message has an honest connection."""
        self.assertIsInstance(value, DeliveryError)
        self.assertIn(value.phase, phases, value)
        self.assertEqual(callers.bed.counts(), (0, 0, 0, 0))
        (first,) = callers.connections
        self.assertLessEqual(self.verbs(first), OPENING)
        self.assertFalse(first.tls)
        result = self.sent(callers.deliver(1, where(level, credentials=LOGIN)))
        self.assertIsNotNone(result.session.tls)
        _, second = callers.connections
        self.assertEqual((second.tls, second.user, len(second.messages)), (True, "anne", 1))


class Injections(Between):
    """CVE-2011-0411 (Postfix), CVE-2021-38371 (Exim), CVE-2021-22947 (curl): replies behind the one to STARTTLS."""

    ONE_SEGMENT = (
        INJECTED,
        b"220 go\r\n" + MORE,
        b"220-go\r\n220 go\r\n250 ok\r\n",
        b"220 go\r\n250-x\r\n",
        b"220 go\r\n\r\n",
    )
    LATER = (MORE, b"250-x", b"2", b"\0", b"\r\n", b"235 2.7.0 welcome\r\n")

    def test_in_one_segment(self) -> None:
        def said(segment: bytes) -> Callable[[Callers], bytes]:
            return lambda _: segment

        for segment in self.ONE_SEGMENT:
            for level in POLICIES:
                with self.about(segment, level):
                    self.assert_harmless(MEMORY, level, said(segment))
            with self.about(segment, BORROWERS):
                self.assert_harmless(BORROWERS, "verify", said(segment))

    def test_in_a_segment_of_its_own(self) -> None:
        """At once and a millisecond later, whole lines and a fragment of one: before the server's own handshake."""

        def later(seconds: float, data: bytes) -> Callable[[Callers], None]:
            def meddle(callers: Callers) -> None:
                stream = callers.bed.server._live[-1]
                callers.bed.reactor.callLater(seconds, lambda: stream._under.write(data))

            return meddle

        for data in self.LATER:
            for seconds in (0, 0.001):
                for way in (MEMORY, BORROWERS):
                    with self.about(data, seconds, way):
                        self.assert_harmless(way, "verify", later(seconds, data))
            for level in POLICIES:
                with self.about(data, level):
                    self.assert_harmless(MEMORY, level, later(0.001, data))

    def assert_harmless(self, way: str, level: str, meddle: Callable[[Callers], bytes | None]) -> None:
        def at_starttls(callers: Callers, point: str) -> bytes | None:
            return meddle(callers) if point == "starttls" else None

        with self.with_one(way, at_starttls) as callers:
            value = callers.deliver(0, where(level, credentials=LOGIN))
            self.assert_nothing_came_of(callers, level, value, "starttls", "tls")

    def test_all_replies_at_once(self) -> None:
        """CVE-2020-15953 (libEtPan) and PREAUTH of others: the server's part of the whole opening comes unasked."""
        ehlo = b"250-mx.test\r\n250 STARTTLS\r\n"
        rest = b"250-mx.test\r\n250 AUTH PLAIN\r\n235 welcome\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n"
        for behind in (ehlo, ehlo + b"220 go\r\n", rest, None):
            greeting = b"250 PREAUTH\r\n" if behind is None else b"220 mx.test\r\n" + behind
            for level in POLICIES:
                with self.about(greeting, level), self.with_one(MEMORY, says("banner", greeting)) as callers:
                    value = callers.deliver(0, where(level, credentials=LOGIN))
                    self.assert_nothing_came_of(callers, level, value, "greeting")


class Stripping(Between):
    """CVE-2016-0772 (smtplib), CVE-2021-22946 (curl): TLS is taken away, and the client goes on without."""

    STRIPPED = (
        b"250-mx.test\r\n250-PIPELINING\r\n250 AUTH PLAIN LOGIN",
        b"250-mx.test\r\n250-XSTARTTLS\r\n250 AUTH PLAIN LOGIN",
        b"250-mx.test\r\n250-STARTTLSX\r\n250 AUTH PLAIN LOGIN",
        b"250-STARTTLS\r\n250 AUTH PLAIN LOGIN",
        b"250-mx.test STARTTLS\r\n250 AUTH PLAIN LOGIN",
    )
    REFUSED = ("4xx", "5xx")
    ODD = ("garbage", "digits2", "digits4", "nosep", "zero", "mixed", "421", "silence", "fin")

    def ways_to_strip(self) -> Iterator[tuple[Callable[[Callers, str], bytes | None], tuple[Fault, ...]]]:
        """What stands between says of the first connection that there is no TLS, in so many ways."""
        for said in self.STRIPPED:
            yield says("ehlo", said), ()
        for kind in self.REFUSED:
            yield says("nowhere", b""), (Fault("starttls", kind, connection=1),)

    def test_who_demands_tls_says_nothing_in_clear(self) -> None:
        for meddles, faults in self.ways_to_strip():
            for level in DEMANDING:
                with self.about(faults, level), self.with_one(MEMORY, meddles, *faults) as callers:
                    value = callers.deliver(0, where(level, credentials=LOGIN))
                    self.assert_nothing_came_of(callers, level, value, "starttls")

    def test_credentials_stay_out_of_clear_text_where_it_would_do_for_mail(self) -> None:
        for meddles, faults in self.ways_to_strip():
            with self.about(faults), self.with_one(MEMORY, meddles, *faults) as callers:
                value = callers.deliver(0, where("may", credentials=LOGIN))
                self.assert_nothing_came_of(callers, "may", value, "auth")

    def test_an_odd_answer_is_no_leave_to_go_on_in_clear(self) -> None:
        for kind in self.ODD:
            for level in POLICIES:
                fault = Fault("starttls", kind, connection=1)
                with self.about(kind, level), self.with_one(MEMORY, says("nowhere", b""), fault) as callers:
                    value = callers.deliver(0, where(level, credentials=LOGIN))
                    self.assert_nothing_came_of(callers, level, value, "starttls")

    def test_a_session_in_clear_is_for_nobody_who_demands_tls(self) -> None:
        """CVE-2026-4873 (curl): "may" has made one where TLS was taken away, and it is there when the others come."""
        for meddles, faults in self.ways_to_strip():
            for way in (MEMORY, BORROWERS):
                for level in ("encrypt", "verify"):
                    with self.about(faults, way, level), self.with_one(way, meddles, *faults) as callers:
                        self.assertIsNone(self.sent(callers.deliver(0, where("may"))).session.tls)
                        self.assertEqual(callers.bed.counts(), (0, 1, 0, 0))
                        self.assertIsNotNone(self.sent(callers.deliver(1, where(level))).session.tls)
                        first, second = callers.connections
                        self.assertEqual((first.tls, second.tls), (False, True))
                        self.assertEqual([message.sender for message in first.messages], [SENDERS[0]])
