"""The options of ``twist mailcache``."""

from __future__ import annotations

from twisted.python import usage

from mailcache.daemon.config import Configuration, ConfigurationError, load

DEFAULT_LISTEN = "unix:/run/mailcache/mailcache.sock:mode=600"


class Options(usage.Options):
    """What a keeper can be told on its command line."""

    synopsis = "[--listen ENDPOINT] [--config FILE.toml]"
    longdesc = "Keep SMTP sessions open between deliveries, for all programs of this host."
    optParameters = [
        ["listen", "l", DEFAULT_LISTEN, "Where to listen for borrowers: unix:PATH:mode=600."],
        ["config", "c", None, "A TOML file with [limits] and [timeouts]."],
    ]

    def postOptions(self) -> None:
        try:
            self["configuration"] = Configuration() if self["config"] is None else load(self["config"])
        except ConfigurationError as error:
            raise usage.UsageError(str(error)) from error
