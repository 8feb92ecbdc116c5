"""Writing past a transport: straight into its socket, as long as nothing waits in the transport."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.interfaces import ISystemHandle


class Writer:
    """Writes to ``wire``, a transport.

    What is written mostly goes into the socket at once, which saves two epoll_ctl and a turn of the loop for each
    write. What does not, or any error, goes through the transport, and then all that follows until its owner knows
    that nothing waits there any more.

    :ivar behind: bytes may be waiting in the transport, that must go first.
    """

    __slots__ = ("_send", "_wire", "behind")

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        handle = wire.getHandle() if ISystemHandle.providedBy(wire) else None
        self._send = handle.send if isinstance(handle, socket.socket) else None
        self.behind = self._send is None

    def write(self, data: bytes) -> None:
        """Write ``data`` behind all that was written before."""
        if not self.behind and self._send is not None:
            try:
                sent = self._send(data)
            except OSError:
                sent = 0
            if sent == len(data):
                return
            self.behind = True
            data = data[sent:]
        self._wire.write(data)
