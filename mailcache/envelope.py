"""The envelope of a message, and what it and its content need of a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mailcache.contents import Content
from mailcache.wire import commands
from mailcache.wire.capabilities import Capabilities

BODIES = ("7BIT", "8BITMIME")


@attrs.frozen(slots=True)
class Needs:
    """What a message demands of the server that is to take it. ``size`` is in bytes, ``None`` if unknown."""

    smtputf8: bool = False
    eightbitmime: bool = False
    size: int | None = None
    requiretls: bool = False

    def unmet_by(self, capabilities: Capabilities) -> str | None:
        """What ``capabilities`` lack of this, in words, or ``None`` if they suffice (RFC 6531, 6152, 1870, 8689)."""
        if self.smtputf8 and not capabilities.smtputf8:
            return "the server does not offer SMTPUTF8, which an address of this message needs"
        if self.eightbitmime and not capabilities.eightbitmime:
            return "the server does not offer 8BITMIME, which this content needs: encode it as 7-bit MIME"
        if self.requiretls and not capabilities.requiretls:
            return "the server does not offer REQUIRETLS, which this envelope demands"
        limit = capabilities.size
        if self.size is not None and limit and self.size > limit:
            return f"the message has {self.size} bytes and the server takes {limit} at most"
        return None


NO_NEEDS = Needs()


class Envelope:
    """Who sends and who is to receive, checked when made (RFC 5321 2.3.1).

    :param sender: the MAIL FROM address; "" is the null sender.
    :param recipients: one or more addresses; one given twice is asked for once.
    :param smtputf8: demand SMTPUTF8 even where the addresses are ASCII (for non-ASCII header fields, RFC 6531).
    :param body: "7BIT" or "8BITMIME" to say what the content is; ``None`` finds out from bytes, and takes a
        file as either.
    :param requiretls: demand REQUIRETLS of every hop (RFC 8689).
    :param ret: what reports of failure are to have of the message, "HDRS" or "FULL" (RFC 3461). This and the
        following go to servers that offer DSN, and are left out for others, as Postfix does.
    :param envid: printable ASCII by which the reports name this message.
    :param notify: when to report: "NEVER", or some of "SUCCESS", "FAILURE" and "DELAY"; a mapping has that for each
        recipient that it names.
    :param orcpt: for each recipient that it names, whom the message was for before it was forwarded:
        "rfc822;ann@example.com".
    :raises ValueError: for an address that no server could take, no recipients, or another value that can't be sent.
    """

    __slots__ = (
        "body",
        "commands",
        "dsn_commands",
        "envid",
        "notify",
        "orcpt",
        "recipients",
        "requiretls",
        "ret",
        "sender",
        "smtputf8",
    )

    def __init__(
        self,
        sender: str,
        recipients: Iterable[str],
        *,
        smtputf8: bool = False,
        body: str | None = None,
        requiretls: bool = False,
        ret: str | None = None,
        envid: str | None = None,
        notify: str | Iterable[str] | Mapping[str, str | Iterable[str]] | None = None,
        orcpt: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(recipients, str):
            raise ValueError(f"recipients: a list of addresses is wanted, not the one string {recipients!r}")
        if not isinstance(sender, str):
            raise ValueError(f'sender: an address as a string is wanted, or "", not {sender!r}')
        try:
            unique = tuple(dict.fromkeys(recipients))
            ascii_only = sender.isascii() and "".join(unique).isascii()
        except TypeError:
            raise ValueError(f"recipients: a list of addresses as strings is wanted, not {recipients!r}") from None
        if not unique:
            raise ValueError("recipients: at least one address is needed")
        if body is not None and body not in BODIES:
            raise ValueError(f"body: {body!r} is not one of {', '.join(BODIES)}, or None to find out")
        self.sender = sender
        self.recipients = unique
        self.smtputf8 = smtputf8 or not ascii_only
        self.body = body
        self.requiretls = requiretls
        self.commands = (
            commands.mail(sender, smtputf8=self.smtputf8, requiretls=requiretls)[:-2],
            b"".join([commands.rcpt(address, smtputf8=self.smtputf8) for address in unique]) + commands.DATA,
        )
        """MAIL without SIZE, BODY and CRLF, since what differs from server to server is appended; and all RCPTs in
        their order, and DATA."""
        self.ret = ret
        self.envid = envid
        self.notify: Mapping[str, tuple[str, ...]] | None = None
        self.orcpt = orcpt
        self.dsn_commands: tuple[bytes, bytes] | None = None
        """The same with what DSN has to say, for servers that offer it; ``None`` where there is nothing."""
        if ret is not None or envid is not None or notify is not None or orcpt is not None:
            self._set_dsn(notify)

    def __repr__(self) -> str:
        return f"Envelope({self.sender!r}, {list(self.recipients)!r})"

    def _set_dsn(self, notify: Any) -> None:
        if self.envid is not None and not isinstance(self.envid, str):
            raise ValueError(f"envid: printable ASCII is wanted, not {self.envid!r}")
        if notify is not None:
            self.notify = self._notified(notify)
        if self.orcpt is not None:
            self.orcpt = self._checked("orcpt", self.orcpt)
        mail = commands.mail(
            self.sender, smtputf8=self.smtputf8, ret=self.ret, envid=self.envid, requiretls=self.requiretls
        )
        rcpts = [
            commands.rcpt(
                recipient,
                smtputf8=self.smtputf8,
                notify=None if self.notify is None else self.notify.get(recipient),
                orcpt=None if self.orcpt is None else _original(self.orcpt.get(recipient)),
            )
            for recipient in self.recipients
        ]
        self.dsn_commands = (mail[:-2], b"".join(rcpts) + commands.DATA)

    def _notified(self, notify: Any) -> dict[str, tuple[str, ...]]:
        """When to report, by recipient."""
        if not isinstance(notify, Mapping):
            notify = dict.fromkeys(self.recipients, _words(notify))
        return {recipient: _words(words) for recipient, words in self._checked("notify", notify).items()}

    def _checked(self, what: str, by_recipient: Any) -> dict[str, Any]:
        if not isinstance(by_recipient, Mapping):
            raise ValueError(f"{what}: a mapping from recipients is wanted, not {by_recipient!r}")
        ours = frozenset(self.recipients)
        for recipient in by_recipient:
            if recipient not in ours:
                raise ValueError(f"{what}: {recipient!r} is not a recipient of this envelope")
        return dict(by_recipient)

    def evolved(self, *, recipients: tuple[str, ...] | None = None, smtputf8: bool | None = None) -> Envelope:
        """This with some of its recipients only, or with SMTPUTF8 demanded."""
        to = self.recipients if recipients is None else recipients
        return Envelope(
            self.sender,
            to,
            smtputf8=self.smtputf8 if smtputf8 is None else smtputf8,
            body=self.body,
            requiretls=self.requiretls,
            ret=self.ret,
            envid=self.envid,
            notify=None if self.notify is None else {each: self.notify[each] for each in to if each in self.notify},
            orcpt=None if self.orcpt is None else {each: self.orcpt[each] for each in to if each in self.orcpt},
        )

    def needs(self, content: Content) -> Needs:
        """What this envelope and ``content`` together demand of a server.

        :raises ValueError: if ``body`` says 7BIT and the content has 8-bit bytes.
        """
        if self.body == "7BIT" and content.eight_bit:
            raise ValueError("body: the content has 8-bit bytes: it is 8BITMIME, or must be encoded")
        eight_bit = self.body == "8BITMIME" or (self.body is None and content.eight_bit is True)
        if not self.smtputf8 and not eight_bit and not self.requiretls:
            size = content.size
            return NO_NEEDS if size is None or size <= ALWAYS_TAKEN else Needs(size=size)
        return Needs(self.smtputf8, eight_bit, content.size, self.requiretls)


ALWAYS_TAKEN = 65_536
"""Bytes that any server takes: RFC 5321 4.5.3.1.7 wants a minimum of 64K octets. Below it no SIZE is looked at."""


def _words(notify: Any) -> tuple[str, ...]:
    """The words of one value of ``notify``; that they are the right ones is checked where the command is made."""
    words = (notify,) if isinstance(notify, str) else tuple(notify) if isinstance(notify, Iterable) else (notify,)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f'notify: "NEVER" or a set of words is wanted, not {notify!r}')
    return words


def _original(orcpt: Any) -> tuple[str, str] | None:
    """Type and address."""
    if orcpt is None:
        return None
    kind, semicolon, address = orcpt.partition(";") if isinstance(orcpt, str) else ("", "", "")
    if not semicolon:
        raise ValueError(f'orcpt: a type and an address like "rfc822;ann@example.com" are wanted, not {orcpt!r}')
    return kind, address
