"""Secrets are in no log event, no exception and no repr, whatever goes wrong, with a keeper and without."""

from __future__ import annotations

import base64
import gc
import io
import json
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from twisted.logger import Logger, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mailcache import Credentials, DeliveryResult, Destination, Envelope, Timeouts, deliver
from mailcache.contents import content_of
from mailcache.destination import SessionKey
from mailcache.remote import codec
from mailcache.testing import Fault
from tests.helpers import Bed, KeeperBed, Outcome, certificate

USER = "kanarienvogel-user-5b1e"
PASSWORD = "kanarienvogel-pass-93c7"
BODY = "kanarienvogel-body-e02f"
CONTENT = f"Subject: hello\r\n\r\n{BODY}\r\n".encode()
STREAMED = CONTENT + f"This is {BODY} again.\r\n".encode() * 20_000
CREDENTIALS = Credentials(USER, PASSWORD)


def forms(secret: str) -> set[str]:
    """How ``secret`` may look: as it is, in hexadecimal digits, and within anything in base64, wherever it begins."""
    data = secret.encode()
    found = {secret, data.hex(), secret[4:-4]}
    for before in range(3):
        # The first and the last group may have bits of what is around it.
        found.add(base64.b64encode(b"\0" * before + data).decode()[4:-4])
    return found


SECRET_FORMS = forms(PASSWORD) | forms(BODY)
NAME_FORMS = forms(USER)


def of_failure(failure: Failure) -> list[str]:
    """All texts that a `Failure` gives."""
    details = [failure.getTraceback(detail=detail) for detail in ("default", "brief", "verbose")]
    return [str(failure), repr(failure), failure.getErrorMessage(), failure.getBriefTraceback(), *details]


def of_error(error: BaseException | None) -> list[str]:
    """All texts that an exception gives, and those that it came from."""
    texts: list[str] = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
        texts += of_failure(Failure(error))
        if type(error).__module__.startswith("mailcache"):
            texts.append(repr(vars(error)))
        error = error.__cause__ or error.__context__
    return texts


class Listening(SynchronousTestCase):
    """Hears all that is logged, by anybody and at each level."""

    def setUp(self) -> None:
        self.texts: list[str] = []
        hear: Any = self.hear
        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)

    def hear(self, event: Any) -> None:
        self.texts.append(eventAsText(event, includeTraceback=True, includeTimestamp=True, includeSystem=True))
        for value in event.values():
            self.texts += [repr(value), str(value)]
            if isinstance(value, Failure):
                self.texts += of_failure(value) + of_error(value.value)

    def check(self, texts: Iterable[str], secrets: set[str]) -> None:
        for text in texts:
            for secret in secrets:
                if secret in text:
                    at = text.index(secret)
                    raise AssertionError(f"{secret!r} is in {text[max(0, at - 300) : at + 100]!r}")

    def check_heard(self) -> None:
        """Neither a secret nor who uses it was logged."""
        gc.collect()
        self.check(self.texts, SECRET_FORMS | NAME_FORMS)

    def check_value(self, value: Any) -> None:
        """What a caller was given."""
        texts = of_error(value) if isinstance(value, BaseException) else [repr(value), str(value)]
        self.check(texts, SECRET_FORMS | NAME_FORMS)


class ProbeTests(Listening):
    """What listens here hears."""

    def test_log(self) -> None:
        for said in (PASSWORD, f"x{PASSWORD}", BODY.encode(), base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())):
            self.texts.clear()
            Logger().debug("said {said!r}", said=[said])
            with self.assertRaises(AssertionError):
                self.check_heard()

    def test_failure(self) -> None:
        try:
            raise RuntimeError(PASSWORD)
        except RuntimeError:
            Logger().failure("a failure")
        self.flushLoggedErrors(RuntimeError)
        with self.assertRaises(AssertionError):
            self.check_heard()

    def test_cause(self) -> None:
        error = ValueError("outside")
        error.__cause__ = ValueError(BODY)
        with self.assertRaises(AssertionError):
            self.check_value(error)


def login_only(point: str, _argument: str, _record: Any) -> bytes | None:
    """The server offers LOGIN and no other mechanism."""
    return b"250-mx.test\r\n250-PIPELINING\r\n250 AUTH LOGIN\r\n" if point == "ehlo2" else None


class MemoryTests(Listening):
    """With the cache in memory."""

    make_bed: Callable[..., Bed] = Bed

    def bed(self, **settings: Any) -> Bed:
        server = {"certificate": certificate(), "users": {USER: PASSWORD}, **settings.pop("server", {})}
        bed = self.make_bed(credentials=CREDENTIALS, server=server, **settings)
        self.addCleanup(bed.close)
        return bed

    def servers(self) -> list[dict[str, Any]]:
        """One that has PLAIN, and one that has only LOGIN."""
        return [{}, {"verdict": login_only}]

    def check_delivery(self, bed: Bed, value: Any) -> None:
        self.check_value(value)
        self.check_value(bed.statistics())
        self.check_heard()

    def test_success(self) -> None:
        for server in self.servers():
            for content in (CONTENT, STREAMED, io.BytesIO(STREAMED)):
                bed = self.bed(server=server)
                for _ in range(2):
                    result = bed.deliver(content)
                    self.assertIsInstance(result, DeliveryResult)
                    self.check_delivery(bed, result)
                self.assertTrue(self.texts)
                self.assertEqual(bed.server.connections[0].user, USER)
                self.assertIn(BODY.encode(), bed.server.messages[0].content)

    def test_wrong_password(self) -> None:
        for server in self.servers():
            bed = self.bed(server={**server, "users": {USER: "another"}})
            error = bed.deliver(CONTENT)
            self.assertEqual((error.phase, error.reply.code), ("auth", 535))
            self.check_delivery(bed, error)

    def test_faults(self) -> None:
        """At AUTH, in the content and behind it: each of these ends in its own way."""
        for fault in (
            *(Fault("auth", kind, times=9) for kind in ("rst", "fin", "silence", "garbage", "4xx", "421", "nolf")),
            *(Fault("content", kind, times=9) for kind in ("rst", "silence", "garbage", "5xx", "unsolicited")),
            *(Fault("dot", kind, times=9) for kind in ("rst", "garbage")),
            *(Fault("after_dot", kind, times=9) for kind in ("rst", "silence", "garbage", "5xx")),
        ):
            bed = self.bed(faults=[fault], timeouts=Timeouts(auth=2, dot=2, content=2, data=2))
            value = bed.deliver(STREAMED)
            self.assertTrue(bed.server.fired, fault)
            self.check_delivery(bed, value)

    def test_no_mechanism(self) -> None:
        def others(point: str, _argument: str, _record: Any) -> bytes | None:
            return b"250-mx.test\r\n250 AUTH GSSAPI\r\n" if point == "ehlo2" else None

        bed = self.bed(server={"verdict": others})
        error = bed.deliver(CONTENT)
        self.assertEqual(error.phase, "auth")
        self.check_delivery(bed, error)

    def test_deadline_and_cancel(self) -> None:
        for point in ("auth", "mail", "after_dot"):
            bed = self.bed(faults=[Fault(point, "silence", times=9)])
            self.check_delivery(bed, bed.finish(bed.start(CONTENT, deadline=3)))
            outcome = bed.start(CONTENT)
            bed.reactor.run_for(1)
            outcome.deferred.cancel()
            self.check_delivery(bed, bed.finish(outcome))

    def test_content_that_fails(self) -> None:
        class Torn(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > 100_000:
                    raise OSError("the disk is gone")
                return super().read(size)

        bed = self.bed()
        self.check_delivery(bed, bed.deliver(Torn(STREAMED)))

    def test_wrong_types(self) -> None:
        bed = self.bed()
        destination: Any = bed.destination
        envelope = Envelope("a@example.com", ["b@example.com"])
        contents: list[Any] = [BODY, [BODY], io.StringIO(BODY), {BODY: 1}, CREDENTIALS]
        for content in contents:
            self.check_wrong(deliver, bed.cache, destination, envelope, content)
        wrongs: list[Any] = [(USER, PASSWORD), [USER, PASSWORD], PASSWORD, {USER: PASSWORD}]
        for wrong in wrongs:
            self.check_wrong(Destination, "[mx.test]", credentials=wrong)
            self.check_wrong(deliver, bed.cache, wrong, envelope, CONTENT)
            self.check_wrong(bed.cache.acquire, wrong)
        self.check_value(bed.statistics())

    def check_wrong(self, call: Callable[..., Any], *arguments: Any, **more: Any) -> None:
        """It is refused at once, or by what it gives."""
        try:
            error = Outcome(call(*arguments, **more)).value
        except (TypeError, ValueError) as refused:
            error = refused
        self.assertIsInstance(error, (TypeError, ValueError))
        self.check_value(error)

    def test_credentials_that_can_not_be(self) -> None:
        wrong: list[tuple[Any, Any]] = [
            (USER, PASSWORD.encode()),
            (USER.encode(), PASSWORD),
            (USER, [PASSWORD]),
            (USER, PASSWORD + "\0"),
            (USER + "\0", PASSWORD),
            (USER, PASSWORD + "\udc80"),
            (USER, PASSWORD * 1_000),
            ("", PASSWORD),
        ]
        for username, password in wrong:
            with self.assertRaises(ValueError) as caught:
                Credentials(username, password)
            self.check_value(caught.exception)

    def test_dropped_lease(self) -> None:
        bed = self.bed()
        outcome = bed.acquire()
        bed.finish(outcome)
        outcome.fired.clear()
        del outcome
        gc.collect()
        bed.reactor.pump()
        self.assertTrue(any("was dropped" in text for text in self.texts))
        self.check_heard()

    def test_reprs(self) -> None:
        """The name of who logs in may be read there; what he logs in with, and what is sent, may not."""
        bed = self.bed()
        lease = bed.finish(bed.acquire())
        sending = bed.send(lease, STREAMED)
        key = lease.session.key
        self.assertIsInstance(key, SessionKey)
        self.check([repr(each) for each in self.all_of(bed, lease)], SECRET_FORMS)
        bed.finish(sending)
        self.check([repr(each) for each in self.all_of(bed, lease)], SECRET_FORMS)
        lease.release()

    def all_of(self, bed: Bed, lease: Any) -> list[Any]:
        """What somebody may print."""
        session = lease.session
        return [
            bed.destination, str(bed.destination), bed.destination.identity, CREDENTIALS, bed.destination.hop,
            session, session.key, session.connection, session.facts, session.log_facts, vars(session), lease,
            Envelope("a@example.com", ["b@example.com"]), content_of(CONTENT), content_of(io.BytesIO(CONTENT)),
            bed.cache, bed.statistics(),
        ]  # fmt: skip


class KeeperTests(MemoryTests):
    """With a keeper."""

    make_bed = KeeperBed

    def all_of(self, bed: Any, lease: Any) -> list[Any]:
        (borrower,) = bed.keeper.borrowers
        borrowed = list(bed.cache._adopted._numbered.values())
        lent = list(borrower._lent.values())
        kept = [pair.session for pair in lent] + [pair.lease for pair in lent]
        self.assertTrue(borrowed and lent)
        return [
            *super().all_of(bed, lease), bed.keeper, bed.kept, borrower, bed.cache._link, bed.cache._waiting,
            *borrowed, *lent, *kept, *(pair.relay for pair in lent), bed.finish(Outcome(bed.kept.statistics())),
        ]  # fmt: skip

    def test_defects(self) -> None:
        """Wherever the keeper, or the borrower, has one."""

        def defect(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a defect")

        for spoil in (
            lambda bed: setattr(bed.keeper, "destination", defect),
            lambda bed: setattr(bed.kept, "acquire", defect),
            lambda bed: setattr(bed.pairs, "make", defect),
            lambda bed: setattr(bed.kept._pool, "request", defect),
        ):
            bed: Any = self.bed()
            spoil(bed)
            self.check_delivery(bed, bed.deliver(CONTENT))
            self.assertTrue(self.flushLoggedErrors(RuntimeError))

    def test_keeper_is_gone(self) -> None:
        for point in ("auth", "content", "after_dot"):
            bed: Any = self.bed(faults=[Fault(point, "silence")])
            outcome = bed.start(STREAMED)
            bed.reactor.run_until(lambda bed=bed: bed.server.fired)
            (borrower,) = bed.keeper.borrowers
            borrower.drop("the test has it")
            self.check_delivery(bed, bed.finish(outcome))

    def test_destinations_that_are_refused(self) -> None:
        """What crossed and is not understood is not repeated."""
        good = json.loads(codec.encode_destination(self.bed().destination))
        for change in (
            {"credentials": [USER, PASSWORD, "more"]},
            {"credentials": [USER, 5]},
            {"credentials": {"username": USER, "password": 5}},
            {"credentials": {"username": 5, "password": PASSWORD}},
            {"credentials": {"username": USER, "password": PASSWORD + "\0"}},
            {"credentials": {"username": USER, "password": PASSWORD, "colour": PASSWORD}},
            {"credentials": ["", PASSWORD]},
            {"credentials": [USER, PASSWORD + "\0"]},
            {"next_hop": "[]"},
            {"tls": {"level": "none"}},
            {"trust_anchors": PASSWORD},
            {"colour": PASSWORD},
            {"version": 7},
        ):
            data = json.dumps({**good, **change}).encode()
            for sent in (data, data[:-1], data * 2):
                with self.assertRaises(codec.MalformedError) as caught:
                    codec.decode_destination(sent, 0)
                error = caught.exception
                self.check([str(error), repr(error), *of_failure(Failure(error))], SECRET_FORMS | NAME_FORMS)
