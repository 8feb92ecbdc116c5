"""Replies to EHLO: `mailcache.wire.capabilities` against the grammar, and across the link with a keeper."""

from __future__ import annotations

import re

from mailcache.destination import Endpoint
from mailcache.envelope import Needs
from mailcache.remote import codec
from mailcache.remote.codec import Facts, MalformedError
from mailcache.trust.evidence import CLEAR
from mailcache.wire.capabilities import MAX_KEYWORDS, Capabilities
from mailcache.wire.replies import Reply, ReplyParser
from tests.fuzz.choices import Choices, expanded
from tests.fuzz.target import Target

_FLAGS = {
    "PIPELINING": "pipelining", "8BITMIME": "eightbitmime", "SMTPUTF8": "smtputf8", "STARTTLS": "starttls",
    "CHUNKING": "chunking", "ENHANCEDSTATUSCODES": "enhancedstatuscodes", "DSN": "dsn", "REQUIRETLS": "requiretls",
}  # fmt: skip


def expected(reply: Reply) -> dict[str, list[str]]:
    """The keywords of an EHLO reply and their parameters, by RFC 5321's grammar."""
    found: dict[str, list[str]] = {}
    for line in reply.lines[1 : MAX_KEYWORDS + 1]:
        if re.fullmatch(rb"[\t -~]*", line) is None:
            continue
        words = line.decode().split()
        if words and re.fullmatch("(?i)auth=[!-~]*", words[0]):
            words = ["AUTH", *filter(None, [words[0][5:]]), *words[1:]]
        if words and re.fullmatch("[A-Za-z0-9][A-Za-z0-9-]*", words[0]):
            found.setdefault(words[0].upper(), []).extend(words[1:])
    return found


def check(data: bytes) -> None:
    """Nothing in such a reply raises; what is read of it is what the grammar says, and the same in a borrower."""
    choices = Choices(data)
    framed = choices.flag()
    stream = expanded(choices.rest())
    if framed:
        lines = stream.split(b"\n")[:99]
        stream = b"".join(b"250-" + line.replace(b"\r", b"")[:2_000] + b"\r\n" for line in lines) + b"250 HELP\r\n"
    replies = ReplyParser().feed(stream)
    for reply in replies[:3]:
        found = Capabilities.parse(reply)
        assert {name: list(words) for name, words in found.keywords.items()} == expected(reply)
        check_meaning(found)
        check_crossing(found)
        swapped = Capabilities.parse(Reply(reply.code, _swapped(reply)))
        assert swapped.keywords.keys() == found.keywords.keys(), "the case of a keyword matters"
        assert (swapped.auth, swapped.size, swapped.rcpt_max) == (found.auth, found.size, found.rcpt_max)


def _swapped(reply: Reply) -> bytes:
    return b"".join(b"%d-%s\r\n" % (reply.code, line.swapcase()) for line in reply.lines)


def check_meaning(found: Capabilities) -> None:
    """What the session asks of them."""
    words = found.keywords
    for keyword, name in _FLAGS.items():
        assert getattr(found, name) == (keyword in words) == found.has(keyword.lower())
        assert not getattr(found.without(keyword), name)
    said = words.get("SIZE")
    if said is None or (said and not re.fullmatch("[0-9]{1,20}", said[0])):
        assert found.size is None
    else:
        assert found.size == (int(said[0]) if said else 0)
    assert found.auth == frozenset(word.upper() for word in words.get("AUTH", ()))
    for name, value in (("MAILMAX", found.mail_max), ("RCPTMAX", found.rcpt_max)):
        said_of_it = [
            int(word.partition("=")[2])
            for word in words.get("LIMITS", ())
            if re.fullmatch(f"(?i){name}=[1-9][0-9]{{0,5}}", word)
        ]
        assert value == min(said_of_it, default=None)
    unmet = Needs(smtputf8=True, eightbitmime=False, size=1_000, requiretls=False).unmet_by(found)
    assert unmet is None or unmet.isprintable()


def check_crossing(found: Capabilities) -> None:
    """A keeper tells them to a borrower as they are, or not at all where there are too many."""
    facts = Facts("1", Endpoint("smtp", "192.0.2.1", 25), "mx.test", found, CLEAR, "not judged", 0.5)
    try:
        data = codec.encode_facts(facts)
    except MalformedError:
        return
    assert codec.decode_facts(data).capabilities == found


TARGET = Target(
    "ehlo",
    check,
    (
        b"\1mx.test\nPIPELINING\nSIZE 52428800\n8BITMIME\nSTARTTLS\nENHANCEDSTATUSCODES\nCHUNKING\nDSN\nSMTPUTF8",
        b"\1mx.test\nAUTH PLAIN LOGIN\nAUTH=LOGIN PLAIN\nauth= scram-sha-256",
        b"\1mx.test\nSIZE\nsize 0\nSIZE 99999999999999999999\nSIZE x",
        b"\1mx.test\nLIMITS RCPTMAX=100 MAILMAX=50 RCPTDOMAINMAX=5\nlimits rcptmax=1",
        b"\1mx.test\nREQUIRETLS\n-BAD\n\xff\xfe\nX-Y Z\tz\nAUTH=\nLIMITS RCPTMAX=0 RCPTMAX=1000000",
        b"\1mx.test\nX1\xfd\x1c \n\xfe\x60SIZE 5",
        b"\1mx.test\nX1\n\xfe\xff",
        b"\0250-mx.test\r\n250 SIZE 5\r\n250 STARTTLS\r\n",
        b"\0250 mx.test\n",
    ),
    (
        b"PIPELINING", b"SIZE ", b"8BITMIME", b"STARTTLS", b"AUTH ", b"AUTH=", b"LIMITS ", b"RCPTMAX=", b"MAILMAX=",
        b"REQUIRETLS", b"CHUNKING", b"DSN", b"SMTPUTF8", b"\n", b"\t", b"\xfe\x60", b"\xfd\x1c",
    ),
)  # fmt: skip
