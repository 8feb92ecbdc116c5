"""The keeper as a service: it listens, lends, and ends in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailcache.daemon.config import Configuration, ConfigurationError, load
from mailcache.daemon.listening import Listener, Place
from mailcache.daemon.reporting import Reporter
from mailcache.daemon.retirement import Life, Retirement
from mailcache.daemon.supervising import Supervisor
from mailcache.memory import MemorySessionCache
from mailcache.remote.keeper import FAREWELL, Keeper


class KeeperService(Service):
    """A keeper that listens while it is running.

    :param endpoint: a server endpoint description; its mode is 600 unless it says otherwise.
    :param life: when it retires by itself.
    :param takeover: whether it takes the place of a keeper that listens there.
    :param on_end: called when it has retired, of itself or for `retire`: it lends no more, and all has ended.
    :param environ: what a supervisor has set; ``None`` is this process's own environment.
    :raises CannotListen: for an endpoint of another kind; when started, for a path that can't be taken.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        configuration: Configuration,
        *,
        life: Life | None = None,
        takeover: bool = False,
        on_end: Callable[[], None] | None = None,
        environ: MutableMapping[str, str] | None = None,
    ) -> None:
        self._reactor = reactor
        self._place = Place.parse(endpoint)
        self._configuration = configuration
        self._life = life if life is not None else Life()
        self._on_end = on_end
        environ = environ if environ is not None else os.environ
        self._listener = Listener(reactor, self._place, takeover=takeover)
        self._supervisor = Supervisor(reactor, environ)
        self._retirement = Retirement(reactor, self._life, self._retire)
        self._keeper: Keeper | None = None
        self._reporter: Reporter | None = None
        self._retiring = False

    def check(self) -> None:
        """See whether it can be started.

        :raises CannotListen: if it can't listen.
        """
        self._listener.check()

    def startService(self) -> None:
        cache = MemorySessionCache(self._reactor, self._configuration.limits, self._configuration.timeouts)
        keeper = Keeper(self._reactor, cache, configuration=self._configuration)
        self._listener.open(keeper)
        super().startService()
        self._keeper = keeper
        self._retiring = False
        self._retirement.start()
        self._reporter = Reporter(self._reactor, cache, lambda: time.strftime("%b %d %H:%M:%S"))
        self._reporter.start()
        self._log.info("lending sessions on {place}", place=str(self._place))
        # What it has told before it runs would be a promise.
        self._reactor.callWhenRunning(self._tell_ready)

    def _tell_ready(self) -> None:
        if self._keeper is not None and not self._retiring:
            self._supervisor.ready(f"lending sessions on {self._place}")

    def retire(self, why: str) -> None:
        """End in order, then call ``on_end``; called once more, end now: what is under way is cut."""
        if not self._retiring:
            self._retire(why)
        elif self._keeper is not None:
            self._log.warn("ending now: {why}", why=why)
            self._keeper.drain(0.0)

    def _retire(self, why: str) -> None:
        ending = self._end(why)
        if self._on_end is not None:
            on_end = self._on_end
            ending.addCallback(lambda _: on_end())
        ending.addErrback(self._surprised)

    def stopService(self) -> Deferred[None]:
        """End in order. Fires when all has ended."""
        super().stopService()
        return self._end("the service is stopped")

    @inlineCallbacks
    def _end(self, why: str) -> Any:
        keeper = self._keeper
        if keeper is None:
            return
        limit = self._life.drain_limit
        if not self._retiring:
            self._retiring = True
            self._log.info("ending, with {limit:g} s for what is under way: {why}", limit=limit, why=why)
            self._retirement.stop()
            quitting = self._configuration.timeouts.quit
            self._supervisor.stopping(f"ending: {why}", limit + quitting + FAREWELL)
        # Who has connected already is told where to go, so the keeper ends behind its port. That takes a turn of the
        # reactor, in which it hears what borrowers that have just ended have said last.
        yield self._listener.close()
        yield keeper.drain(limit)
        if self._keeper is keeper:
            self._keeper = None
            if self._reporter is not None:
                self._reporter.stop()
            self._supervisor.stopped()
            self._log.info("ended")

    def hang_up(self) -> None:
        """SIGHUP has come: read the configuration again, with word to the supervisor."""
        if self._keeper is None or self._retiring:
            return
        self._supervisor.reloading()
        try:
            self.reload()
        finally:
            self._tell_ready()

    def reload(self) -> None:
        """Read the configuration again. What is wrong is logged, line by line, and then nothing changes."""
        path = self._configuration.path
        if path is None:
            self._log.warn("there is no configuration file to read again: give --config")
            return
        try:
            configuration = load(path)
        except ConfigurationError as error:
            for line in error.lines:
                self._log.error("{line}", line=line)
            self._log.error("{path} is not used: all stays as it was", path=path)
            return
        self._configuration = configuration
        if self._keeper is not None:
            self._keeper.reconfigure(configuration)
        self._log.info("{path} is in force", path=path)

    def _surprised(self, failure: Failure) -> None:
        self._log.failure("a defect in the keeper", failure)
