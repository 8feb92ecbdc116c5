"""For tests of code that sends mail: a network in memory, a scripted SMTP server with faults, certificates.

Nothing here needs a real socket or real time, and all of it works with them too.
"""

from mailcache.testing.certificates import Authority, Issued, ServerTLS, self_signed
from mailcache.testing.chaos import Chaos
from mailcache.testing.faults import APPLICABLE, KINDS, Fault
from mailcache.testing.network import MemoryReactor
from mailcache.testing.pairs import MemoryPairs
from mailcache.testing.records import Connection, Message
from mailcache.testing.scripted_cache import Script, ScriptedSessionCache, Sent
from mailcache.testing.server import CAPABILITIES, SMTPServer, Verdict
from mailcache.testing.transports import HIGH_WATER, WINDOW, MemoryTransport

__all__ = [
    "APPLICABLE",
    "CAPABILITIES",
    "HIGH_WATER",
    "KINDS",
    "WINDOW",
    "Authority",
    "Chaos",
    "Connection",
    "Fault",
    "Issued",
    "MemoryPairs",
    "MemoryReactor",
    "MemoryTransport",
    "Message",
    "SMTPServer",
    "Script",
    "ScriptedSessionCache",
    "Sent",
    "ServerTLS",
    "Verdict",
    "self_signed",
]
