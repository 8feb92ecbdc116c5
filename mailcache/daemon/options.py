"""The options of ``twist mailcache``."""

from __future__ import annotations

from twisted.python import usage

from mailcache.daemon.config import Configuration, ConfigurationError, load
from mailcache.daemon.retirement import Life

_LIFE = ("retire_after", "max_memory", "drain_limit")
DEFAULT_LISTEN = "unix:/run/mailcache/mailcache.sock:mode=600"


class Options(usage.Options):
    """What a keeper can be told on its command line."""

    synopsis = "[--listen ENDPOINT] [--config FILE.toml] [--takeover] [--retire-after SECONDS] [--max-memory BYTES]"
    longdesc = "Keep SMTP sessions open between deliveries, for all programs of this host."
    optParameters = [
        ["listen", "l", DEFAULT_LISTEN, "Where to listen for borrowers: unix:PATH:mode=600, or systemd."],
        ["config", "c", None, "A TOML file: see contrib/mailcache.toml. SIGHUP has it read again."],
        ["retire-after", None, None, "Seconds after which to end in order, for a supervisor to start it anew.", float],
        ["max-memory", None, None, "Bytes of resident memory above which to end so.", int],
        ["drain-limit", None, None, "Seconds that deliveries under way have then; 30 if not given.", float],
    ]
    optFlags = [["takeover", None, "Take the place of the keeper that listens there, which ends in order."]]

    def postOptions(self) -> None:
        try:
            self["configuration"] = Configuration() if self["config"] is None else load(self["config"])
        except ConfigurationError as error:
            raise usage.UsageError(str(error)) from error
        given = {name: self[name.replace("_", "-")] for name in _LIFE}
        try:
            self["life"] = Life(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            raise usage.UsageError(str(error)) from error
