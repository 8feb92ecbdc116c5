"""What the scripted server has seen: a record for each connection and each message."""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IAddress


@attrs.define(eq=False)
class Connection:
    """
    One connection as the server saw it.

    @ivar number: from 1, in the order of accepting.
    @ivar peer: the client's address.
    @ivar handshakes: TLS handshakes completed.
    @ivar flights: round trips the client had to wait for: one for the connect, one for the greeting, one for
        each TLS handshake (as in TLS 1.3), and one for each write of replies.
    @ivar commands: the command lines in order, as text; of AUTH no more than the mechanism.
    @ivar messages: those whose content came to its end.
    @ivar transactions: MAIL commands seen in their place, refused ones too.
    @ivar closed: None while it lives. Then how it ended: "quit", "fin" or "reset" by the client, or "server".
    @ivar close_notify: TLS's close_notify has come from the client.
    @ivar helo_name: what the client called itself last.
    @ivar user: who has authenticated.
    @ivar sni: the server name of the TLS handshake.
    @ivar client_name: the common name of the client's certificate, if it was asked for one and has shown it.
    """

    number: int
    peer: IAddress
    handshakes: int = 0
    flights: int = 1
    commands: list[str] = attrs.field(factory=list)
    messages: list[Message] = attrs.field(factory=list, repr=lambda messages: str(len(messages)))
    transactions: int = 0
    closed: str | None = None
    quit_seen: bool = False
    close_notify: bool = False
    tls: bool = False
    helo_name: str | None = None
    user: str | None = None
    sni: str | None = None
    client_name: str | None = None


@attrs.define(eq=False)
class Message:
    """
    One message whose end of content the server saw.

    @ivar connection: where it came.
    @ivar transaction: which transaction of the connection it was, from 1.
    @ivar sender: the reverse path; "" for none.
    @ivar recipients: those the server had accepted at RCPT.
    @ivar parameters: those of MAIL as they came, such as C{("SIZE=100", "BODY=8BITMIME")}.
    @ivar recipient_parameters: those of RCPT, by recipient.
    @ivar content: its octets, dots unstuffed; nothing if the server keeps no content.
    @ivar octets: how many came, dots added.
    @ivar accepted: recipients the server has taken the responsibility for. With SMTP all or none.
    @ivar answered: recipients for whom a reply that can be read whole was handed to the transport, on a
        connection that the script did not break at that moment.
    @ivar reply: what went out in answer to the content, faulty or not.
    """

    connection: Connection = attrs.field(repr=lambda connection: str(connection.number))
    transaction: int
    sender: str
    recipients: tuple[str, ...]
    parameters: tuple[str, ...]
    recipient_parameters: dict[str, tuple[str, ...]]
    content: bytes = attrs.field(repr=lambda content: f"{len(content)} octets")
    octets: int
    accepted: list[str] = attrs.field(factory=list)
    answered: list[str] = attrs.field(factory=list)
    reply: bytes = b""

    @property
    def committed(self) -> bool:
        """The server has taken the message, for one recipient at least."""
        return bool(self.accepted)

    @property
    def reply_sent(self) -> bool:
        """The client can know what became of all its recipients."""
        return bool(self.answered) and len(self.answered) == len(self.recipients)
