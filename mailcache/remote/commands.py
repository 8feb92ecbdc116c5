"""The commands between a borrower and its keeper, over AMP on a UNIX socket."""

from __future__ import annotations

from typing import Any

from twisted.protocols import amp


class KeeperFault(Exception):  # noqa: N818  (the keeper's fault, not an error of ours)
    """The keeper can't do it, for a reason of its own; the text says which."""


class KeeperRetiring(Exception):  # noqa: N818  (reads as the event it reports)
    """The keeper lends no more. Another may listen where it did: it is to be asked there."""


class _Command(amp.Command):
    errors = {KeeperFault: b"FAULT", KeeperRetiring: b"RETIRING"}


class _Packed(_Command):
    """A command that is called for each message. Its values are bytes and pass as they are: what AMP does about each
    name and value is much of what a lease costs."""

    def __init__(self, **values: bytes) -> None:
        self.structured = values

    @classmethod
    def makeArguments(cls, objects: dict[str, bytes], proto: amp.AMP) -> amp.AmpBox:
        return amp.Box(objects)

    @classmethod
    def parseArguments(cls, box: amp.AmpBox, protocol: amp.AMP) -> dict[str, bytes]:
        return {name.decode("ascii"): box[name] for name, _ in cls.arguments}


class Hello(_Command):
    """The first call on a link: both sides must speak the same version."""

    arguments = [(b"version", amp.Integer())]
    response = [(b"version", amp.Integer())]


class Ping(_Command):
    """The keeper is alive while it answers this."""


class Acquire(_Packed):
    """Lease a session. What a server or a limit has said comes as ``error``; only faults are AMP errors.

    The first lease of a session by a borrower brings ``descriptor`` and ``facts``; later ones name the pair. ``kept``
    is said of a session that was kept, and never used: of others their uses tell.
    """

    arguments = [
        (b"destination", amp.String()),
        (b"wanted", amp.String()),
    ]
    response = [
        (b"granted", amp.String(optional=True)),
        (b"facts", amp.String(optional=True)),
        (b"descriptor", amp.Descriptor(optional=True)),
        (b"kept", amp.String(optional=True)),
        (b"error", amp.String(optional=True)),
    ]

    @classmethod
    def makeResponse(cls, objects: dict[str, Any], proto: amp.AMP) -> amp.AmpBox:
        if "descriptor" not in objects:
            return amp.Box(objects)
        return super().makeResponse(objects, proto)

    @classmethod
    def parseResponse(cls, box: amp.AmpBox, protocol: amp.AMP) -> dict[str, Any]:
        if b"descriptor" not in box:
            named = {"granted": box.get(b"granted"), "kept": box.get(b"kept"), "error": box.get(b"error")}
            return {**named, "facts": None, "descriptor": None}
        found: dict[str, Any] = super().parseResponse(box, protocol)
        return found


class Withdraw(_Command):
    """The request of this number is not wanted any more; it is answered nonetheless, by an error or a grant."""

    arguments = [(b"number", amp.Integer())]
    requiresAnswer = False


class Release(_Packed):
    """A lease has ended. What is written in the same turn, such as the next Acquire, leaves in one piece with it."""

    arguments = [(b"released", amp.String())]
    requiresAnswer = False


class Retiring(_Command):
    """Told by the keeper: it lends no more, and what it was asked for is to be asked of whoever listens now. Leases
    that are out may end in order, and the link with the last of them."""

    requiresAnswer = False


class Statistics(_Command):
    """The keeper's counts, as JSON."""

    response = [(b"counts", amp.String())]


class Accounts(_Command):
    """What keeping sessions has saved, by destination, of those that the caller may know of: some from the one of this
    number on, as a JSON array, and whether there are more."""

    arguments = [(b"start", amp.Integer())]
    response = [(b"rows", amp.String()), (b"more", amp.Boolean())]
