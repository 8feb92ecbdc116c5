"""The keeper's configuration: it is read, or each error names its line. Nothing else, and no secret."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

from mailcache.daemon.config import Configuration, ConfigurationError, load, summary
from tests.fuzz.choices import Choices, expanded
from tests.fuzz.target import Target
from tests.helpers import authority, certificate

SECRET = "c4n4ry-secret"
SHIPPED = Path(__file__).parent.parent.parent / "contrib" / "mailcache.toml"


@cache
def folder() -> Path:
    """A folder with files that a configuration can name."""
    made = Path(tempfile.mkdtemp(prefix="mailcache-fuzz-"))
    atexit.register(shutil.rmtree, made, True)
    for name, mode, content in (
        ("good", 0o600, f"{SECRET}\n".encode()),
        ("open", 0o640, SECRET.encode()),
        ("binary", 0o600, SECRET.encode() + b"\xff"),
        ("ca", 0o600, authority().certificate_pem),
        ("client", 0o600, certificate().certificate_pem + certificate().key_pem),
    ):
        path = made / name
        path.write_bytes(content)
        path.chmod(mode)
    os.mkfifo(made / "pipe", 0o600)
    return made


Outcome = Configuration | list[tuple[int, str]]
"""What was read, or the lines and keys that are wrong."""


def read(content: bytes) -> Outcome:
    """What comes of a file with this content."""
    path = folder() / "keeper.toml"
    path.write_bytes(content)
    try:
        found = load(str(path))
    except ConfigurationError as error:
        return [_place(str(path), line, content) for line in error.lines]
    shown = summary(found)
    assert shown.endswith("\n") and SECRET not in shown + repr(found)
    return found


def _place(path: str, line: str, content: bytes) -> tuple[int, str]:
    """The line and the key that an error names."""
    match = re.fullmatch(rf"{re.escape(path)}:([0-9]+): ([^\n]+)", line)
    assert match is not None, line
    number = int(match[1])
    assert 1 <= number <= content.count(b"\n") + 1, (number, line)
    assert SECRET not in line, "a secret is told"
    key = match[2].partition(": ")[0]
    text = content.replace(b"\r\n", b"\n").split(b"\n")[number - 1].decode("utf-8", "replace")
    if key not in ("no TOML", "") and number > 1 and "\\" not in text and key.isascii():
        # It is the line of the key, or of a table that it is in.
        assert any(part.strip("'") in text for part in key.split(".")), (line, text)
    return number, key


def check(data: bytes) -> None:
    """It is read or refused; and a line more in front of it moves each error by one line, whatever its line ends."""
    choices = Choices(data)
    with_login = choices.flag()
    content = (LOGIN if with_login else b"") + expanded(choices.rest())
    found = read(content)
    assert read(content) == found
    below = read(b"# a line more\n" + content)
    if isinstance(found, list):
        assert isinstance(below, list), "a comment makes it right"
        assert sorted(below) == sorted((number + 1, key) for number, key in found), (found, below)
    else:
        assert below == found, "a comment makes a difference"
    if b"\r" not in content:
        assert read(content.replace(b"\n", b"\r\n")) == found, "line ends make a difference"


LOGIN = b'[credentials.relay]\nusername = "u"\npassword_file = "good"\nusers = ["root"]\n'


def _shipped() -> bytes:
    """The shipped file, with all that it shows in comments."""
    return re.sub(rb"(?m)^#(?=[\[a-z])", b"", SHIPPED.read_bytes())[:3_900]


def _beginnings() -> tuple[bytes, ...]:
    from tests.daemon.test_config import NO_TOML, WRONG

    whole = (
        b'[anchors.ours]\nfile = "ca"\n[namespace.bulk]\nlimits = { max_uses = 5, idle_timeout = 3 }\n'
        b'tls.level = "encrypt"\n[[next_hop]]\nmatch = "*.example.com:587"\ncredentials = "relay"\n'
        b'client_certificate = "client"\nbind_address = "192.0.2.1"\nhelo_name = "x.example"\nlimits.max_uses = 9\n'
        b'timeouts.dot = 9\n[next_hop.tls]\nanchors = "ours"\nmatch = [".example.com"]\n'
        b'[access]\nusers = ["root", 77]\n[sharing]\nbetween = [[3, 4], [1, 2]]\n'
    )
    wrong = [content.encode() for content, *_ in WRONG]
    no_toml = [content for content, *_ in NO_TOML if len(content) < 1_000]
    no_toml += [b"[limits]\n\nsessions = 9\xfd\x50\n", b"a = 0xf\xfd\x50\n", b"[limits]\nsessions = 0xf\xfd\x10\n"]
    texts = [
        _shipped(),
        b"  [limits]\nmax_age = inf\n",
        b"",
        b'a = """\nx\n"""\nb = 1\n',
        b"a = [\n1,\n# x\n2]\nlimits.x = 1\n",
        *wrong,
        *no_toml,
    ]
    # Each wrong thing above the next one, below a login, and the shipped file up to each of its lines.
    both = [above + below for above, below in pairwise(wrong)]
    shipped = _shipped().splitlines(keepends=True)
    begun = [b"".join(shipped[:length]) for length in range(1, len(shipped))]
    return (b"\1" + whole, *(b"\0" + text for text in (*texts, *both, *begun)), *(b"\1" + text for text in wrong))


TARGET = Target(
    "configuration",
    check,
    _beginnings(),
    (
        b"[limits]\n", b"[timeouts]\n", b"[[next_hop]]\n", b"[namespace.x]\n", b"[credentials.a]\n", b"[anchors.a]\n",
        b"[access]\n", b"[sharing]\n", b"match = ", b"tls.", b"level = ", b'"verify"', b'"""', b"'''", b"= {", b"}\n",
        b"= [", b"]\n", b"sessions = ", b"users = ", b"between = ", b"1979-05-27", b"inf", b"nan", b"true", b"\\u0000",
        b"file = 'ca'", b"'good'", b"'client'", b"\xfe\x40", b"\xfd\x20", b"# ", b"\r\n",
    ),
)  # fmt: skip
