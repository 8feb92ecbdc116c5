"""For programs that send mail with Twisted's own senders: the same calls, over kept sessions.

* `SessionEndpoint` for ``endpoint.connect(factory)``,
* `SessionConnector` for ``reactor.connectTCP(host, port, factory)``,
* `sendmail` for ``twisted.mail.smtp.sendmail(...)``.

`twisted.mail.smtp` installs a reactor when it is imported: that is done inside functions, and here only.
"""

from __future__ import annotations

import io
from email.generator import BytesGenerator
from email.message import Message
from email.utils import parseaddr
from functools import lru_cache
from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IReactorCore, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from mailcache.contents import BytesContent, Content, FileContent
from mailcache.delivery import deliver
from mailcache.destination import Credentials, Destination
from mailcache.envelope import Envelope
from mailcache.fronting.connector import FrontConnector
from mailcache.fronting.dialling import address_of, dial, login_of
from mailcache.fronting.replies import doubt, refusal, shown
from mailcache.memory import MemorySessionCache
from mailcache.result import DeliveryError, DeliveryResult, UncertainDelivery
from mailcache.trust.policy import TLSPolicy
from mailcache.wire.addresses import RECIPIENT, check_address
from mailcache.wire.content import encode
from mailcache.wire.replies import Reply


@implementer(IStreamClientEndpoint)
class SessionEndpoint:
    """An endpoint for the factories of `twisted.mail.smtp`: their senders talk to ``destination`` over kept sessions.

    The credentials are those of the factory, or those of the destination; where both have some they must be equal. A
    factory that demands TLS (``requireTransportSecurity``) is content where the destination's policy does: with
    credentials that is "verify" unless the destination says otherwise.

    :param cache: an `ISessionCache`.
    :param destination: where the mail goes. Not with "lmtp", of whose many replies a sender of SMTP knows nothing.
    :raises ValueError: for another destination.
    """

    def __init__(self, cache: Any, destination: Destination) -> None:
        if not isinstance(destination, Destination):
            raise ValueError(f"destination: a Destination is wanted, not {type(destination).__name__}")
        if destination.protocol == "lmtp":
            raise ValueError('destination: senders of Twisted speak SMTP, and the protocol is "lmtp"')
        self._cache = cache
        self._destination = destination

    def __repr__(self) -> str:
        return f"<SessionEndpoint to {self._destination}>"

    def connect(self, protocolFactory: Any) -> Deferred[IProtocol]:
        """Connect a protocol of ``protocolFactory``.

        :return: fires the protocol. Fails with a `ConnectError` of Twisted's or `DNSLookupError` if no session can be
            had; a server's refusal comes from the protocol, as the answer to AUTH or MAIL. Can be cancelled.
        """
        protocolFactory.doStart()

        def stop(result: Any) -> Any:
            protocolFactory.doStop()
            return result

        def cancelled(failure: Failure) -> Any:
            failure.trap(CancelledError)
            raise ConnectingCancelledError(address_of(self._destination))

        dialling = Deferred.fromCoroutine(dial(self._cache, self._destination, protocolFactory, stop))
        connecting: Deferred[Any] = dialling.addCallback(lambda connected: connected[0])
        return connecting.addErrback(cancelled).addErrback(stop)


class SessionConnector:
    """Connects factories of `twisted.mail.smtp` as a reactor does: for programs that call ``reactor.connectTCP``.

    :param cache: an `ISessionCache`.
    :param tls: the policy for all destinations; ``None`` is "verify" for `connectSSL`, and for `connectTCP` where the
        factory has a password or demands TLS; else "may".
    :param namespace: equal namespaces share sessions, others never do.
    """

    def __init__(self, cache: Any, tls: TLSPolicy | None = None, namespace: str = "default") -> None:
        self._cache = cache
        self._tls = tls
        self._namespace = namespace

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float | None = 30, bindAddress: Any = None
    ) -> FrontConnector:
        """As `IReactorTCP.connectTCP`; STARTTLS is the policy's affair.

        :raises ValueError: for a host that is none.
        """
        # The factory has no public name for it; one that demands TLS and is not understood gets none, and says so.
        demanded = bool(login_of(factory)[1]) or getattr(factory, "_requireTransportSecurity", False)
        tls = self._tls if self._tls is not None else TLSPolicy("verify" if demanded else "may")
        return self._connect("smtp", tls, host, port, factory, timeout, bindAddress)

    def connectSSL(
        self,
        host: str,
        port: int,
        factory: Any,
        contextFactory: Any,
        timeout: float | None = 30,
        bindAddress: Any = None,
    ) -> FrontConnector:
        """As `IReactorSSL.connectSSL`. ``contextFactory`` is not used: the policy says what is demanded of TLS.

        :raises ValueError: for a host that is none.
        """
        tls = self._tls if self._tls is not None else TLSPolicy("verify")
        return self._connect("smtps", tls, host, port, factory, timeout, bindAddress)

    def _connect(
        self, protocol: str, tls: TLSPolicy, host: str, port: int, factory: Any, timeout: float | None, bind: Any
    ) -> FrontConnector:
        destination = Destination(
            f"[{host}]:{port}",
            protocol=protocol,
            namespace=self._namespace,
            bind_address=bind[0] or None if isinstance(bind, tuple) else bind,
            tls=tls,
        )
        connector = FrontConnector(self._cache, destination, factory, timeout)
        connector.connect()
        return connector


# -- sendmail ----------------------------------------------------------------------------------------------------

_caches: dict[Any, MemorySessionCache] = {}


def sendmail(
    smtphost: str | bytes,
    from_addr: Any,
    to_addrs: Any,
    msg: Any,
    senderDomainName: str | bytes | None = None,
    port: int = 25,
    reactor: Any = None,
    username: str | bytes | None = None,
    password: str | bytes | None = None,
    requireAuthentication: bool = False,
    requireTransportSecurity: bool = False,
    *,
    cache: Any = None,
    tls: TLSPolicy | None = None,
) -> Deferred[tuple[int, list[tuple[bytes, int, bytes]]]]:
    """`twisted.mail.smtp.sendmail` over kept sessions: two round trips for a message on one of them.

    :param msg: bytes, a binary file, an `email.message.Message` or what ``bytes()`` takes; line ends may be any.
    :param reactor: ``None`` is the global one.
    :param cache: an `ISessionCache`; ``None`` is one for each reactor, closed when that shuts down.
    :param tls: ``None`` is "verify" with a password or ``requireTransportSecurity``, else "may".
    :raises AddressError: of `twisted.mail.smtp`, for an address that no server could take.
    :raises ValueError: for a host that is none, or a ``msg`` that can't be read.
    :return: fires ``(number accepted, [(address, code, text), ...])`` if anybody was accepted. Fails as Twisted's does:
        `SMTPDeliveryError` with the server's refusal, `SMTPConnectError`, `AUTHDeclinedError`, `AUTHRequiredError`,
        `TLSRequiredError`, `EHLORequiredError`. It is an `SMTPDeliveryError` with code 554 and an `UncertainDelivery`
        as its cause where nobody can know. Can be cancelled: before the end of content was written it fails with
        `CancelledError`, after it as where nobody can know.
    """
    from twisted.mail import smtp

    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = installed
    recipients = [to_addrs] if isinstance(to_addrs, (str, bytes)) else list(to_addrs)
    try:
        asked = [_address(each, RECIPIENT) for each in recipients]
        envelope = Envelope(_address(from_addr, "sender"), asked)
    except ValueError as error:
        raise smtp.AddressError(str(error)) from error
    credentials = None
    if password:
        credentials = Credentials(_text(username or ""), _text(password))
    elif requireAuthentication:
        return fail(smtp.AUTHRequiredError(502, b"authentication is required, and there is no password"))
    demanded = credentials is not None or requireTransportSecurity
    policy = tls if tls is not None else TLSPolicy("verify" if demanded else "may")
    if requireTransportSecurity and not policy.resolve("host", "host").demands_tls:
        return fail(smtp.TLSRequiredError(502, f'TLS is required, and level "{policy.level}" does not'.encode()))
    helo_name = None if senderDomainName is None else _text(senderDomainName)
    where = _destination(_text(smtphost), port, helo_name, credentials, policy)
    sending = deliver(cache if cache is not None else _cache_of(reactor), where, envelope, _content(msg))
    return sending.addCallbacks(_sent, _not_sent, callbackArgs=(asked,))


def _cache_of(reactor: Any) -> MemorySessionCache:
    """The cache for all who give none."""
    cache = _caches.get(reactor)
    if cache is None:
        cache = _caches[reactor] = MemorySessionCache(reactor)

        def close() -> Deferred[None]:
            del _caches[reactor]
            return cache.close()

        if IReactorCore.providedBy(reactor):
            reactor.addSystemEventTrigger("before", "shutdown", close)
    return cache


@lru_cache(maxsize=64)
def _destination(
    host: str, port: int, helo_name: str | None, credentials: Credentials | None, tls: TLSPolicy
) -> Destination:
    return Destination(f"[{host}]:{port}", helo_name=helo_name, credentials=credentials, tls=tls)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _address(value: Any, what: str) -> str:
    """The address in ``value``, which may have a name before it: "Ann <ann@example.com>", as Twisted takes it."""
    text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    if text in ("", "<>"):
        return ""
    try:
        check_address(text, what)
    except ValueError:
        address = parseaddr(text)[1]
        if not text.endswith(f"<{address}>"):
            raise
        return address
    return text


class _EightBit(BytesContent):
    """Content with 8-bit bytes, declared where the server offers 8BITMIME, and sent all the same where it does not."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._all = encode(data)
        self.eight_bit = None

    def whole(self) -> bytes:
        return self._all


def _content(msg: Any) -> Content:
    if type(msg) is io.BytesIO:
        msg = msg.read()
    elif hasattr(msg, "read"):
        file: BinaryIO = msg
        return FileContent(file)
    elif isinstance(msg, Message):
        out = io.BytesIO()
        BytesGenerator(out, mangle_from_=False).flatten(msg)
        msg = out.getvalue()
    data = msg.encode("utf-8") if isinstance(msg, str) else bytes(msg)
    return BytesContent(data) if data.isascii() else _EightBit(data)


def _resp(reply: Reply) -> bytes:
    return b"\n".join(shown(reply))


def _sent(result: DeliveryResult, asked: list[str]) -> tuple[int, list[tuple[bytes, int, bytes]]]:
    from twisted.mail import smtp

    answers = []
    for address in asked:
        reply = result.rejected.get(address)
        code, resp = (250, b"2.1.5 Ok") if reply is None else (reply.code, _resp(reply))
        answers.append((address.encode("utf-8"), code, resp))
    if result.accepted:
        return sum(code == 250 for _, code, _ in answers), answers
    log = b"\n".join([b"%s: %03d %s" % answer for answer in answers])
    raise smtp.SMTPDeliveryError(result.reply.code, _resp(result.reply), log, answers)


def _not_sent(failure: Failure) -> Any:
    """The exception of `twisted.mail.smtp` that callers of its ``sendmail`` know."""
    error = failure.value
    if not isinstance(error, (DeliveryError, UncertainDelivery)):
        return failure
    raise _exception(error) from error


def _exception(error: DeliveryError | UncertainDelivery) -> Exception:
    from twisted.mail import smtp

    if isinstance(error, UncertainDelivery):
        reply = doubt(error)
        answers = {**dict.fromkeys(error.undecided, reply), **error.rejected}
        known = [(each.encode("utf-8"), 250, b"2.1.5 Ok") for each in error.accepted]
        told = [(each.encode("utf-8"), answer.code, _resp(answer)) for each, answer in answers.items()]
        return smtp.SMTPDeliveryError(reply.code, _resp(reply), addresses=known + told)
    refused = error.reply is not None and error.reply.negative
    reply = refusal(error)
    code, resp = reply.code, _resp(reply)
    if error.phase == "auth":
        return smtp.AUTHDeclinedError(code, resp) if refused else smtp.AUTHRequiredError(502, resp)
    if error.phase == "ehlo" and refused:
        return smtp.EHLORequiredError(code, resp)
    if error.phase == "starttls":
        return smtp.TLSError(code, resp) if refused else smtp.TLSRequiredError(502, resp)
    if error.phase == "greeting" and refused:
        return smtp.SMTPConnectError(code, resp)
    if refused or error.phase in ("needs", "content"):
        return smtp.SMTPDeliveryError(code, resp)
    return smtp.SMTPConnectError(-1, f"Unable to connect to SMTP server: {error}")
