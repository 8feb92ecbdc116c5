"""Addresses, host names and next hops: taken, and then read by every server as they were meant, or a `ValueError`."""

from __future__ import annotations

import re

from mailcache.destination import PORTS, Destination, NextHop
from mailcache.remote import codec
from mailcache.wire import commands
from mailcache.wire.addresses import MAX_ADDRESS, RECIPIENT, check_address, check_host_name
from mailcache.wire.commands import CommandError
from tests.fuzz.choices import Choices, expanded
from tests.fuzz.target import Target

# What ends a line, for whoever reads it.
_ENDS_A_LINE = re.compile("[\r\n\0\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def check(data: bytes) -> None:
    """Each way to give such a text."""
    choices = Choices(data)
    way = _WAYS[choices.below(len(_WAYS))]
    way(expanded(choices.rest()))


def refused(error: ValueError) -> None:
    """It says what is wrong, in a printable line that does not quote all of it."""
    said = str(error)
    assert said and len(said) < 1_000 and not _ENDS_A_LINE.search(said), said


def address(octets: bytes) -> None:
    """As a program gives it."""
    text = octets.decode("utf-8", "surrogatepass" if octets[:1] < b"\x80" else "replace") if _decodes(octets) else ""
    for what in ("sender", RECIPIENT):
        try:
            taken = check_address(text, what)
        except ValueError as error:
            refused(error)
            continue
        assert taken.decode() == text and len(taken) <= MAX_ADDRESS
        assert not _ENDS_A_LINE.search(text), "it ends a line"
        line = commands.rcpt(text, smtputf8=True) if what == RECIPIENT else commands.mail(text, smtputf8=True)
        assert line.count(b"\r\n") == 1
        # What a server reads in the command is the address, the whole of it, and no parameter more.
        heard = commands.parse(line[:-2])
        assert heard.path == text, (heard.path, text)
        assert list(heard.parameters) == ([] if what == RECIPIENT else ["SMTPUTF8"])


def _decodes(octets: bytes) -> bool:
    try:
        octets.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def host(octets: bytes) -> None:
    """As the name for EHLO."""
    text = octets.decode("utf-8", "replace")
    try:
        name = check_host_name(text, "the name")
    except ValueError as error:
        refused(error)
        return
    assert re.fullmatch(rb"[A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f.:IPVipv]+\]", name), name
    assert commands.ehlo(text) == b"EHLO " + name + b"\r\n"


def hop(octets: bytes) -> None:
    """As a next hop: what is taken is written in one way, which means the same, and crosses to a keeper."""
    text = octets.decode("utf-8", "replace")
    try:
        where = Destination(text)
    except ValueError as error:
        assert str(error)
        return
    for protocol in PORTS:
        found = NextHop.parse(text, PORTS[protocol])
        assert NextHop.parse(str(found), PORTS[protocol]) == found
    assert Destination(where.next_hop) == where and hash(Destination(where.next_hop)) == hash(where)
    if where.hop.kind != "unix" and "%" not in where.hop.name:
        assert where.hop.name == where.hop.name.lower() and 1 <= (where.hop.port or 0) <= 65_535
    assert codec.decode_destination(codec.encode_destination(where), None) == where


def command(octets: bytes) -> None:
    """As a client of the front says it: what is read of it can be said again, and is read as the same."""
    line = octets
    try:
        found = commands.parse(line)
    except CommandError as error:
        assert error.code in (500, 501) and error.text.isprintable() and len(str(error)) < 200
        return
    assert found.verb.isascii() and found.verb == found.verb.upper()
    if found.path is None:
        return
    if found.verb == "MAIL":
        again = commands.mail(found.path, smtputf8=True)
    else:
        again = commands.rcpt(found.path, smtputf8=True)
    assert commands.parse(again[:-2]).path == found.path


_WAYS = (address, host, hop, command)

TARGET = Target(
    "addresses",
    check,
    tuple(b"\0" + text for text in (
        b"a@example.com", b'"a b"@example.com', b"a@[192.0.2.1]", b"a@[IPv6:2001:db8::1]", b"postmaster",
        "ü@bücher.example".encode(), b"a\r\nRCPT TO:<b@x>@example.com", b'"\\"\\\\"@x',
        b"a..b@x.", b"a\xe2\x80\xa8b@x", b"a\xc2\x85@x", b'"a\xe2\x80\xa9"@x', b"a@b>c",
        b"a\xfd\x01@x", b"a@x.\xfd\x04y", b"\xed\xa0\x80@x",
    ))
    + tuple(b"\1" + text for text in (b"mx.example.com", b"[192.0.2.1]", b"[IPv6:::1]", b"a_b.c", b"-a", b"a b"))
    + tuple(b"\2" + text for text in (
        b"example.com", b"example.com:587", b"[mail.example.com]", b"[192.0.2.1]:25", b"[2001:DB8::1]:25",
        b"unix:/run/x", b"unix", b"UNIX.", b"[unix]", b"[fe80::1%lo]",
        b"xn--bcher-kva.example.", b"[ipv6:::1]", b"a:0", b"a:65536", b"[a]:",
    ))
    + tuple(b"\3" + text for text in (
        b"MAIL FROM:<a@x> SIZE=100 BODY=8BITMIME", b"RCPT TO:<@r.example:b@y>", b'RCPT TO:<"a>b"@x> NOTIFY=NEVER',
        b"mail from:<>", b"MAIL FROM:<a@x> A A", b"MAIL FROM: <a@x>", b"AUTH PLAIN AAA=", b"EHLO x", b"\xff",
    )),
    (b"@", b"<", b">", b'"', b"\\", b"[IPv6:", b"\r\n", b"\0", b"\xe2\x80\xa8", b"unix:/", b"xn--", b" SIZE=", b"%"),
)  # fmt: skip
