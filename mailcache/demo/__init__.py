"""``mailcache demo``: the same mail sent in several ways to a server on loopback, and what each has cost."""

from mailcache.demo.measuring import MAX_MESSAGES, MAX_SENDERS, DemoFailed
from mailcache.demo.running import INTERRUPTED, run

__all__ = ["INTERRUPTED", "MAX_MESSAGES", "MAX_SENDERS", "DemoFailed", "run"]
