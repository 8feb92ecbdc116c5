"""
What a server says it can do: its reply to EHLO or LHLO (RFC 5321 4.1.1.1, RFC 2033).

The server chooses these bytes, so nothing in them raises: a line that cannot be read is a capability that is
not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from mailcache.wire.replies import Reply

# Lines that are looked at. A parsed reply has no more; one that was made up could.
MAX_KEYWORDS: Final = 100

# RFC 5321's ehlo-line, and "AUTH=LOGIN", which servers of before RFC 2554 send for old clients, many still.
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*|AUTH=[!-~]*", re.IGNORECASE)
# RFC 1870 section 3: "1*20DIGIT".
_SIZE = re.compile(r"[0-9]{1,20}")
# RFC 9422 section 4: zero is not allowed, six digits at most.
_LIMIT = re.compile(r"(MAILMAX|RCPTMAX|RCPTDOMAINMAX)=([1-9][0-9]{0,5})", re.IGNORECASE)

_FLAGS = {
    "pipelining": "PIPELINING",  # RFC 2920
    "eightbitmime": "8BITMIME",  # RFC 6152
    "smtputf8": "SMTPUTF8",  # RFC 6531
    "starttls": "STARTTLS",  # RFC 3207
    "chunking": "CHUNKING",  # RFC 3030
    "enhancedstatuscodes": "ENHANCEDSTATUSCODES",  # RFC 2034
    "dsn": "DSN",  # RFC 3461
    "requiretls": "REQUIRETLS",  # RFC 8689
}
_LIMITS = {"mail_max": "MAILMAX", "rcpt_max": "RCPTMAX", "rcpt_domain_max": "RCPTDOMAINMAX"}


def _fixed(keywords: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(dict(keywords))


@frozen
class Capabilities:
    """
    The capabilities of one server at one point of the session: those from before STARTTLS are void after it
    (RFC 3207 4.2), and those from before AUTH may change.

    `keywords` maps each keyword, in upper case, to its parameters as given. The rest is read from them once,
    since every delivery asks: a flag for each extension that we use, and

    `size`: None if the server has no SIZE, 0 if it names no limit, else the largest message in octets.

    `auth`: the SASL mechanisms, in upper case.

    `mail_max`, `rcpt_max`, `rcpt_domain_max`: messages in a session, recipients and recipient domains in a
    message (LIMITS, RFC 9422); None where nothing is said.
    """

    keywords: Mapping[str, tuple[str, ...]] = field(factory=dict, converter=_fixed, hash=False)
    pipelining: bool = field(init=False, repr=False)
    eightbitmime: bool = field(init=False, repr=False)
    smtputf8: bool = field(init=False, repr=False)
    starttls: bool = field(init=False, repr=False)
    chunking: bool = field(init=False, repr=False)
    enhancedstatuscodes: bool = field(init=False, repr=False)
    dsn: bool = field(init=False, repr=False)
    requiretls: bool = field(init=False, repr=False)
    size: int | None = field(init=False, repr=False)
    auth: frozenset[str] = field(init=False, repr=False)
    mail_max: int | None = field(init=False, repr=False)
    rcpt_max: int | None = field(init=False, repr=False)
    rcpt_domain_max: int | None = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        put = object.__setattr__
        for name, keyword in _FLAGS.items():
            put(self, name, keyword in self.keywords)
        put(self, "size", _size(self.keywords.get("SIZE")))
        put(self, "auth", frozenset(word.upper() for word in self.keywords.get("AUTH", ())))
        limits = _limits(self.keywords.get("LIMITS", ()))
        for name, keyword in _LIMITS.items():
            put(self, name, limits.get(keyword))

    @classmethod
    def parse(cls, reply: Reply) -> Capabilities:
        """
        Those in a positive reply to EHLO or LHLO. Its first line is the server's greeting, never a keyword.

        A keyword that comes twice has the parameters of both; those of "AUTH=LOGIN" are counted under AUTH.
        """
        keywords: dict[str, tuple[str, ...]] = {}
        for line in reply.lines[1 : 1 + MAX_KEYWORDS]:
            words = _words(line)
            if not words or _KEYWORD.fullmatch(words[0]) is None:
                continue
            name, equals, first = words[0].partition("=")
            keyword = name.upper()
            parameters = [first, *words[1:]] if equals and first else words[1:]
            keywords[keyword] = (*keywords.get(keyword, ()), *parameters)
        return cls(keywords)

    @classmethod
    def none(cls) -> Capabilities:
        """Those of a server that only knows HELO."""
        return cls()

    def without(self, keyword: str) -> Capabilities:
        """These as if the server did not name ``keyword``, which is in upper case."""
        if keyword not in self.keywords:
            return self
        return Capabilities({name: words for name, words in self.keywords.items() if name != keyword})

    def has(self, keyword: str) -> bool:
        """Whether the server names this keyword, as a whole word and in any case."""
        return keyword.upper() in self.keywords


def _words(line: bytes) -> list[str]:
    """The words of a line; none if it has anything but printable ASCII and tabs."""
    if not line.isascii():
        return []
    words = line.decode("ascii").replace("\t", " ").split(" ")
    return [word for word in words if word] if all(word.isprintable() for word in words) else []


def _size(parameters: tuple[str, ...] | None) -> int | None:
    """See `Capabilities.size`. A size that is no number is as if SIZE were not there."""
    if parameters is None:
        return None
    if not parameters:
        return 0
    return int(parameters[0]) if _SIZE.fullmatch(parameters[0]) else None


def _limits(parameters: tuple[str, ...]) -> dict[str, int]:
    """The limits that can be read; of two with one name the stricter."""
    limits: dict[str, int] = {}
    for parameter in parameters:
        match = _LIMIT.fullmatch(parameter)
        if match is not None:
            name, value = match[1].upper(), int(match[2])
            limits[name] = min(value, limits.get(name, value))
    return limits
