"""How Sphinx builds these pages: ``sphinx-build -W --keep-going -b html docs FOLDER``."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import attrs

project = "mailcache"
release = version = metadata.version("mailcache")
copyright = "the authors of mailcache; MIT licence"  # noqa: A001  (Sphinx's name)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "alabaster"
html_theme_options = {"fixed_sidebar": True, "page_width": "1080px", "sidebar_width": "240px"}
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
# What has no language is a diagram or what a program prints.
highlight_language = "text"
# In docstrings `name` is a link where the name has an entry here, and code where not.
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 100

_FIELD = re.compile(r"^(\s*)@(param|ivar|return|raise)\b")
_MARKUP = ((re.compile(r"\bL\{([^}]*)\}"), r"`\1`"), (re.compile(r"\bC\{([^}]*)\}"), r"``\1``"))


def _as_fields(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Epytext, which is what the docstrings of `mailcache.testing` are written in, like Twisted's own, as fields."""
    for number, line in enumerate(lines):
        text = _FIELD.sub(r"\1:\2", line)
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
        lines[number] = text


_DEFAULT = re.compile(r"attr_dict\['(\w+)'\]\.default")
_INTERFACE = re.compile(r"<InterfaceClass [\w.]*?(\w+)>")


def _readable(
    _app: Any, _what: str, _name: str, described: Any, _options: Any, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Signatures with the defaults of attrs' classes as values, and with zope's interfaces by their names."""

    def default(found: re.Match[str]) -> str:
        return repr(attrs.fields_dict(described)[found[1]].default)

    if arguments is not None:
        arguments = _INTERFACE.sub(r"\1", _DEFAULT.sub(default, arguments)).replace("= NOTHING", "= ...")
    return arguments, None if result is None else _INTERFACE.sub(r"\1", result)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _readable)
    app.connect("autodoc-process-docstring", _as_fields)
