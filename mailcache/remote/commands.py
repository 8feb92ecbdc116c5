"""The commands between a borrower and its keeper, over AMP on a UNIX socket."""

from __future__ import annotations

from twisted.protocols import amp


class KeeperFault(Exception):  # noqa: N818  (the keeper's fault, not an error of ours)
    """The keeper can't do it, for a reason of its own; the text says which."""


class _Command(amp.Command):
    errors = {KeeperFault: b"FAULT"}


class Hello(_Command):
    """The first call on a link: both sides must speak the same version."""

    arguments = [(b"version", amp.Integer())]
    response = [(b"version", amp.Integer())]


class Ping(_Command):
    """The keeper is alive while it answers this."""


class Acquire(_Command):
    """Lease a session. What a server or a limit has said comes as ``error``; only faults are AMP errors.

    The first lease of a session by a borrower brings ``descriptor`` and ``facts``; later ones name the pair.
    """

    arguments = [
        (b"number", amp.Integer()),
        (b"destination", amp.String()),
        (b"request", amp.String()),
    ]
    response = [
        (b"granted", amp.String(optional=True)),
        (b"facts", amp.String(optional=True)),
        (b"descriptor", amp.Descriptor(optional=True)),
        (b"error", amp.String(optional=True)),
    ]


class Withdraw(_Command):
    """The request of this number is not wanted any more; it is answered nonetheless, by an error or a grant."""

    arguments = [(b"number", amp.Integer())]
    requiresAnswer = False


class Release(_Command):
    """A lease has ended. What is written in the same turn, such as the next Acquire, leaves in one piece with it."""

    arguments = [(b"released", amp.String())]
    requiresAnswer = False


class Statistics(_Command):
    """The keeper's counts, as JSON."""

    response = [(b"counts", amp.String())]
