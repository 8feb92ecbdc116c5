"""
SMTP commands: values to bytes for a client, bytes to values for a server (RFC 5321 4.1 and its extensions).

Each encoder checks all that it is given and raises ValueError before there are any bytes: no value can end
the line, the path or the parameter that it stands in. An extension's parameter is written if it is asked for;
that the server has the extension is for the caller to know.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from mailcache.wire.addresses import RECIPIENT, check_address, check_host_name, quoted
from mailcache.wire.xtext import xtext_decode, xtext_encode

__all__ = [
    "DATA",
    "MAX_AUTH",
    "MAX_COMMAND",
    "NOOP",
    "QUIT",
    "RSET",
    "STARTTLS",
    "Command",
    "CommandError",
    "auth",
    "check_address",
    "ehlo",
    "helo",
    "lhlo",
    "mail",
    "parse",
    "rcpt",
    "xtext_decode",
    "xtext_encode",
]

STARTTLS: Final = b"STARTTLS\r\n"  # RFC 3207
DATA: Final = b"DATA\r\n"
RSET: Final = b"RSET\r\n"
NOOP: Final = b"NOOP\r\n"
QUIT: Final = b"QUIT\r\n"

# Bytes of a command with its CRLF. RFC 5321 4.5.3.1.4 has 512, to which extensions add some hundreds each;
# Postfix reads 2048 (line_length_limit).
MAX_COMMAND: Final = 2000
# The same for AUTH, whose initial response may be a long token: RFC 4954 section 4.
MAX_AUTH: Final = 12288

_BODIES = ("7BIT", "8BITMIME", "BINARYMIME")  # RFC 6152, RFC 3030
_RETURNS = ("FULL", "HDRS")  # RFC 3461 4.3
_NOTIFICATIONS = ("SUCCESS", "FAILURE", "DELAY")  # RFC 3461 4.1
# RFC 1870 section 3: "1*20DIGIT".
_MAX_SIZE = 10**20 - 1

_MECHANISM = re.compile(r"[A-Z0-9_-]{1,20}")  # RFC 4422 3.1
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]{1,40}")  # RFC 3461 4.2: an atom; those registered are of this kind
_PRINTABLE = re.compile(r"[ -~]+")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")  # RFC 6533 section 3

_VERB = re.compile(rb"[A-Za-z0-9-]+")
# The path: a source route, which RFC 5321 appendix C says to drop, then anything up to the first ">" outside
# quotes. All possessive: no line makes it go back.
_PATH = re.compile(
    rb"[ \t]*+<(?:@(?:\[[^\]<>\"]*+\]|[^:<>\"\[])*+:)?((?:\"(?:[^\"\\]|\\.)*+\"|[^<>\"])*+)>(?=[ \t]|\Z)",
    re.DOTALL,
)
_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\x80-\xff]+))?")


def ehlo(name: str) -> bytes:
    """
    EHLO.

    :param name: our host's domain name or address literal
    :raises ValueError: for any other name
    """
    return b"EHLO " + check_host_name(name, "the EHLO name") + b"\r\n"


def helo(name: str) -> bytes:
    """HELO, as `ehlo`."""
    return b"HELO " + check_host_name(name, "the HELO name") + b"\r\n"


def lhlo(name: str) -> bytes:
    """LMTP's LHLO (RFC 2033 4.1), as `ehlo`."""
    return b"LHLO " + check_host_name(name, "the LHLO name") + b"\r\n"


def mail(
    sender: str,
    *,
    size: int | None = None,
    body: str | None = None,
    smtputf8: bool = False,
    ret: str | None = None,
    envid: str | None = None,
    auth: str | None = None,
    requiretls: bool = False,
) -> bytes:
    """
    MAIL.

    :param sender: the reverse path; "" is the null one
    :param size: octets of the message (RFC 1870)
    :param body: "7BIT", "8BITMIME" or "BINARYMIME" (RFC 6152, RFC 3030)
    :param smtputf8: the message needs SMTPUTF8 (RFC 6531); without it the sender must be ASCII
    :param ret: what a failure report returns, "FULL" or "HDRS" (RFC 3461 4.3)
    :param envid: printable ASCII that identifies the envelope in reports (RFC 3461 4.4)
    :param auth: the mailbox of who submitted the message; "" or "<>" if not known (RFC 4954 section 5)
    :param requiretls: never to go on without TLS (RFC 8689)
    :raises ValueError: for any other value, or a line of over 2000 bytes
    """
    line = [b"MAIL FROM:<", _path(sender, "sender", smtputf8) if sender else b"", b">"]
    if size is not None:
        if not isinstance(size, int) or not 0 <= size <= _MAX_SIZE:
            raise ValueError(f"the size must be a number of octets, of at most 20 digits: {quoted(size)}")
        line.append(b" SIZE=%d" % size)
    if body is not None:
        line.append(b" BODY=" + _word("body", body, _BODIES))
    if smtputf8:
        line.append(b" SMTPUTF8")
    if ret is not None:
        line.append(b" RET=" + _word("ret", ret, _RETURNS))
    if envid is not None:
        line.append(b" ENVID=" + xtext_encode(_printable("envid", envid)))
    if auth is not None:
        known = auth not in ("", "<>")
        line.append(b" AUTH=" + (xtext_encode(_path(auth, "AUTH", smtputf8).decode()) if known else b"<>"))
    if requiretls:
        line.append(b" REQUIRETLS")
    return _line(line, MAX_COMMAND)


def rcpt(
    recipient: str,
    *,
    notify: Iterable[str] | None = None,
    orcpt: tuple[str, str] | None = None,
    smtputf8: bool = False,
) -> bytes:
    """
    RCPT.

    :param recipient: the forward path
    :param notify: "NEVER" alone, or any of "SUCCESS", "FAILURE" and "DELAY" (RFC 3461 4.1)
    :param orcpt: type and address of the original recipient, in printable ASCII (RFC 3461 4.2) or, with the
        type "utf-8", in any printable characters (RFC 6533)
    :param smtputf8: MAIL has asked for SMTPUTF8; without it the recipient must be ASCII
    :raises ValueError: for any other value, or a line of over 2000 bytes
    """
    line = [b"RCPT TO:<", _path(recipient, RECIPIENT, smtputf8), b">"]
    if notify is not None:
        line.append(b" NOTIFY=" + _notify(notify))
    if orcpt is not None:
        line.append(b" ORCPT=" + _original(*orcpt))
    return _line(line, MAX_COMMAND)


def bdat(size: int) -> bytes:
    """The last chunk of a content, and its octets are to follow (RFC 3030)."""
    return b"BDAT %d LAST\r\n" % size


def auth(mechanism: str, initial: bytes | None) -> bytes:
    """
    AUTH (RFC 4954 section 4).

    :param mechanism: a SASL mechanism's name, in upper case
    :param initial: the initial response, or None for none; b"" is one, and is written as "="
    :raises ValueError: for another name, or a line of over 12288 bytes
    """
    if _MECHANISM.fullmatch(mechanism) is None:
        raise ValueError(f"a SASL mechanism has 1 to 20 upper-case letters, digits, '-' and '_': {quoted(mechanism)}")
    line = [b"AUTH ", mechanism.encode("ascii")]
    if initial is not None:
        line += [b" ", base64.b64encode(initial) or b"="]
    return _line(line, MAX_AUTH)


def _line(parts: list[bytes], limit: int) -> bytes:
    """The command made of these, if it is not too long. The error quotes none of it: AUTH has secrets."""
    line = b"".join([*parts, b"\r\n"])
    if len(line) > limit:
        raise ValueError(f"{parts[0][:4].decode('ascii')} must be at most {limit} bytes, not {len(line)}")
    return line


def _path(address: str, what: str, smtputf8: bool) -> bytes:
    """A checked address, which must be ASCII without SMTPUTF8."""
    path = check_address(address, what)
    if not smtputf8 and not address.isascii():
        raise ValueError(f"the {what} address must be ASCII without SMTPUTF8: {quoted(address)}")
    return path


def _word(what: str, word: str, allowed: tuple[str, ...]) -> bytes:
    """One of a few words."""
    if word not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}: {quoted(word)}")
    return word.encode("ascii")


def _printable(what: str, text: str) -> str:
    """RFC 3461 lets xtext carry no controls here: they would come out again in somebody's report."""
    if _PRINTABLE.fullmatch(text) is None:
        raise ValueError(f"{what} must be printable ASCII: {quoted(text)}")
    return text


def _notify(notify: Iterable[str]) -> bytes:
    """The value of NOTIFY."""
    words = set() if isinstance(notify, str) else set(notify)
    if words == {"NEVER"}:
        return b"NEVER"
    if not words or not words.issubset(_NOTIFICATIONS):
        raise ValueError(f"notify must be a set: NEVER alone, or of {', '.join(_NOTIFICATIONS)}: {quoted(str(notify))}")
    return ",".join([word for word in _NOTIFICATIONS if word in words]).encode("ascii")


def _original(kind: str, address: str) -> bytes:
    """The value of ORCPT."""
    if _ADDRESS_TYPE.fullmatch(kind) is None:
        raise ValueError(f"the type in orcpt must be a word like rfc822: {quoted(kind)}")
    head = kind.encode("ascii") + b";"
    if kind.lower() != "utf-8":
        return head + xtext_encode(_printable("the address in orcpt", address))
    if not address.isprintable() or not address:
        raise ValueError(f"the address in orcpt must be printable: {quoted(address)}")
    # utf-8-addr-xtext: good with and without SMTPUTF8.
    return head + _NOT_QCHAR.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address).encode("ascii")


class CommandError(ValueError):
    """
    A command that cannot be obeyed, with the reply that says so.

    `code` is the reply code, `enhanced` the enhanced status ("5.5.4"), `text` one printable line.
    """

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(code, enhanced, text)
        self.code = code
        self.enhanced = enhanced
        self.text = text

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}"


@frozen
class Command:
    """
    One command as a server reads it.

    `verb` is in upper case; `argument` is what follows it, as sent, without the spaces around it.

    For MAIL and RCPT `path` is the mailbox between the angle brackets, "" for the null sender, and
    `parameters` has the ESMTP parameters: keyword in upper case to value as sent (xtext is not decoded), None
    for one without a value. For all other verbs they are None and empty.
    """

    verb: str
    argument: bytes = b""
    path: str | None = None
    parameters: Mapping[str, str | None] = field(factory=lambda: MappingProxyType({}), hash=False)


def parse(line: bytes) -> Command:
    """
    Read one command line. Verbs that nobody knows are no error here, nor are parameters.

    :param line: without its CRLF
    :raises CommandError: 500 5.5.2 for what is no command, 501 5.5.4 for a bad argument, 501 5.1.7 for a bad
        sender address, 501 5.1.3 for a bad recipient address
    """
    verb_bytes, _, argument = line.partition(b" ")
    if _VERB.fullmatch(verb_bytes) is None or b"\r" in line or b"\n" in line or b"\0" in line:
        raise CommandError(500, "5.5.2", "Syntax error, command unrecognized")
    verb = verb_bytes.decode("ascii").upper()
    if len(line) + 2 > (MAX_AUTH if verb == "AUTH" else MAX_COMMAND):
        raise CommandError(500, "5.5.2", "Line too long")
    argument = argument.strip(b" \t")
    if verb == "MAIL":
        return _parse_envelope(verb, argument, b"FROM:")
    if verb == "RCPT":
        return _parse_envelope(verb, argument, b"TO:")
    return Command(verb, argument)


def _parse_envelope(verb: str, argument: bytes, keyword: bytes) -> Command:
    """The argument of MAIL or RCPT."""
    match = None
    if argument[: len(keyword)].upper() == keyword:
        match = _PATH.match(argument, len(keyword))
    if match is None:
        raise CommandError(501, "5.5.4", f"Syntax: {verb} {keyword.decode('ascii')}<address>")
    return Command(verb, argument, _parse_path(verb, match[1]), _parse_parameters(argument[match.end() :]))


def _parse_path(verb: str, octets: bytes) -> str:
    """A mailbox that `mail` or `rcpt` could have written."""
    if verb == "MAIL" and not octets:
        return ""
    try:
        path = octets.decode("utf-8")
        check_address(path, "sender" if verb == "MAIL" else RECIPIENT)
    except ValueError:
        enhanced = "5.1.7" if verb == "MAIL" else "5.1.3"
        raise CommandError(501, enhanced, "Bad address syntax") from None
    return path


def _parse_parameters(octets: bytes) -> Mapping[str, str | None]:
    """The ESMTP parameters behind a path (RFC 5321 4.1.2, RFC 6531 3.3)."""
    parameters: dict[str, str | None] = {}
    for word in octets.replace(b"\t", b" ").split(b" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise CommandError(501, "5.5.4", "Bad parameter syntax")
        keyword = match[1].decode("ascii").upper()
        if keyword in parameters:
            raise CommandError(501, "5.5.4", f"Parameter {keyword[:40]} given twice")
        try:
            parameters[keyword] = None if match[2] is None else match[2].decode("utf-8")
        except UnicodeDecodeError:
            raise CommandError(501, "5.5.4", "Parameter is not UTF-8") from None
    return MappingProxyType(parameters)
