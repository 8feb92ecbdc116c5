"""mailcache keeps SMTP sessions open between deliveries, TLS included, and shares them."""

from mailcache.delivery import deliver
from mailcache.destination import Credentials, Destination
from mailcache.dropin import SessionConnector, SessionEndpoint, sendmail
from mailcache.envelope import Envelope
from mailcache.limits import Limits, Timeouts
from mailcache.memory import MemorySessionCache
from mailcache.remote.client import RemoteSessionCache
from mailcache.result import DeliveryError, DeliveryResult, UncertainDelivery
from mailcache.trust.policy import TLSPolicy

__all__ = [
    "Credentials",
    "DeliveryError",
    "DeliveryResult",
    "Destination",
    "Envelope",
    "Limits",
    "MemorySessionCache",
    "RemoteSessionCache",
    "SessionConnector",
    "SessionEndpoint",
    "TLSPolicy",
    "Timeouts",
    "UncertainDelivery",
    "deliver",
    "sendmail",
]
