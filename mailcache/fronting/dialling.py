"""From the factory of a stock client to its protocol, connected to a front with a session behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import HostnameAddress, UNIXAddress
from twisted.internet.error import ConnectError, DNSLookupError, NoProtocol
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from mailcache.destination import Credentials, Destination
from mailcache.front import Front
from mailcache.fronting.relaying import Relay, same_login, with_credentials
from mailcache.fronting.transport import FrontTransport
from mailcache.result import DeliveryError
from mailcache.wire.replies import Reply


def address_of(destination: Destination) -> IAddress:
    """What a client is told of where it is connected to."""
    hop = destination.hop
    if hop.port is None:
        return UNIXAddress(hop.name)
    return HostnameAddress(hop.name.encode("ascii"), hop.port)


def is_encrypted(destination: Destination) -> bool:
    """Whether no session with ``destination`` is in clear text."""
    return destination.tls.resolve(destination.hop.name, destination.hop.name).demands_tls


def login_of(factory: Any) -> tuple[bool, Credentials | None]:
    """Whether it is known, and if so how, the clients of ``factory`` will log in: as those of an
    ``ESMTPSenderFactory`` do, which have its ``username`` and ``password``."""
    try:
        username, password = factory.username, factory.password
    except AttributeError:
        return False, None
    if not password:
        return True, None
    try:
        return True, Credentials(_text(username), _text(password))
    except ValueError:
        return False, None


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def unwrapped(factory: Any, destination: Destination) -> Any:
    """The factory of the mail client itself where ``factory`` puts TLS around it: sessions have TLS of their own.

    :raises ConnectError: if ``destination`` could do without.
    """
    while isinstance(factory, TLSMemoryBIOFactory):
        if not is_encrypted(destination):
            raise ConnectError(string=f"the factory demands TLS, and the policy for {destination} does not")
        factory = factory.wrappedFactory
    return factory


async def dial(
    cache: Any,
    destination: Destination,
    factory: Any,
    on_lost: Callable[[Failure], None],
    verdict: Reply | None = None,
) -> tuple[Any, Relay]:
    """Connect a protocol of ``factory`` to a front.

    A session is had first wherever it is known who logs in, so that what keeps one from being opened comes from here,
    as from any endpoint; but what the server itself has said against it comes from the front.

    :param on_lost: called with the reason when the connection of the protocol has ended.
    :param verdict: what MAIL is to be answered with, without any session.
    :raises ConnectError: where no session could be had, as a subclass of it that says why; or `DNSLookupError`.
    :return: the protocol, and what is behind its front.
    """
    # A client that has just been told of a refusal has not yet given its session back: a turn later it has.
    await deferLater(cache.clock, 0, lambda: None)
    known, credentials = login_of(factory)
    eager = destination.credentials is not None or known
    if credentials is not None:
        if destination.credentials is None:
            destination = with_credentials(destination, credentials)
        # Others are refused when they are sent.
        eager = same_login(destination.credentials or credentials, credentials)
    factory = unwrapped(factory, destination)
    relay = Relay(cache, destination)
    relay.verdict = verdict
    if eager and verdict is None:
        try:
            await relay.prepare()
        except DeliveryError as error:
            if error.phase != "auth" and (error.reply is None or not error.reply.negative):
                raise _connection_failure(error) from error
            relay.failed = error
    address = address_of(destination)
    try:
        protocol = factory.buildProtocol(address)
        if protocol is None:
            raise NoProtocol
    except BaseException:
        relay.end()
        raise
    transport = FrontTransport(cache.clock, protocol, address, is_encrypted(destination), on_lost)
    name = "localhost" if destination.hop.port is None else destination.hop.name
    front = Front(transport, relay, name, cache.clock)
    transport.begin(front)
    front.greet()
    return protocol, relay


def _connection_failure(error: DeliveryError) -> Exception:
    """What an endpoint fails with."""
    cause = error.__cause__
    if error.phase == "routing":
        return DNSLookupError(str(error))
    if isinstance(cause, ConnectError):
        return type(cause)(cause.osError, str(error))
    return ConnectError(string=str(error))
