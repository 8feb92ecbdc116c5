"""Makes ``twist mailcache`` known. It imports neither mailcache nor a reactor: every ``twist`` reads it."""

from twisted.application.service import ServiceMaker

mailcache = ServiceMaker(
    "mailcache",
    "mailcache.daemon.plugin",
    "Keep SMTP sessions open between deliveries, for all programs of this host.",
    "mailcache",
)

__all__ = ["mailcache"]
