"""Text as man(7) wants it: escaped, one sentence a line, and the macros that a page is made of.

Every "-" is a minus, so what is copied from a page can be typed; a page is plain ASCII, so it reads the same
everywhere. In prose, `code` and --options are bold, page(8) is a reference, and the names given are set as arguments.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable

_WIDTH = 78
_SPECIAL = {"\\": r"\e", "-": r"\-", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
_MARKED = re.compile(r"`(?P<code>[^`]+)`|(?<![\w-])(?P<option>--[a-z][a-z-]*)|(?P<page>[a-z][\w-]*)(?P<part>\(\d\))"
                     r"|(?P<name>\b[A-Z][A-Z_]*\b)")  # fmt: skip
_SENTENCE_END = re.compile(r"(?<=[.!?:]) +(?=[A-Z\\])")


def escape(text: str) -> str:
    """Return text that means itself; quotes stay typographic, as in prose."""
    return "".join(_SPECIAL.get(c, c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)


def literal(text: str) -> str:
    """Return text as it is typed, quotes included."""
    return escape(text).replace("'", r"\(aq").replace('"', r"\(dq")


def bold(text: str) -> str:
    return f"\\fB{literal(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{literal(text)}\\fR"


def usage(text: str) -> str:
    """Return the form of an argument or option: what is typed bold, what stands for something else in italics."""
    words = re.split(r"([\[\]{}()|,\s]+|\.\.\.)", text)
    return "".join(
        literal(word) if number % 2 else italic(word) if re.search("[A-Z]", word) else bold(word) if word else ""
        for number, word in enumerate(words)
    )


def prose(text: str, names: Collection[str] = ()) -> list[str]:
    """Return a paragraph as lines; `names` are the arguments it speaks of."""

    def mark(found: re.Match[str]) -> str:
        if found["name"]:
            return italic(found[0]) if found[0] in names else escape(found[0])
        if found["page"]:
            return bold(found["page"]) + found["part"]
        return bold(found["code"] or found["option"])

    marked, at = [], 0
    for found in _MARKED.finditer(text):
        marked += [escape(text[at : found.start()]), mark(found)]
        at = found.end()
    whole = " ".join("".join([*marked, escape(text[at:])]).split())
    return [
        _guarded(line)
        for sentence in _SENTENCE_END.split(whole)
        for line in textwrap.wrap(sentence, _WIDTH, break_long_words=False, break_on_hyphens=False)
    ]


def paragraph(text: str, names: Collection[str] = ()) -> list[str]:
    return [".PP", *prose(text, names)]


def item(tag: str, text: str, names: Collection[str] = ()) -> list[str]:
    """Return a tagged paragraph; the tag is roff already."""
    return [".TP", tag, *prose(text, names)]


def example(lines: Iterable[str]) -> list[str]:
    """Return lines that are shown as they are, indented."""
    return [".PP", ".RS 4", ".EX", *(_guarded(literal(line)) for line in lines), ".EE", ".RE"]


def help_text(text: str, names: Collection[str] = ()) -> list[str]:
    """Return the help of a click command: paragraphs, and where click is told not to wrap, lines as they are."""
    made: list[str] = []
    for block in text.split("\f")[0].strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0] == "\b":
            made += example(textwrap.dedent("\n".join(lines[1:])).splitlines())
        else:
            made += paragraph(block, names)
    return made


def section(title: str, body: Iterable[str]) -> list[str]:
    """Return a section, without the paragraph break that its heading makes anyway; nothing for an empty body."""
    return _headed(f".SH {literal(title)}", body)


def subsection(title: str, body: Iterable[str]) -> list[str]:
    return _headed(f".SS {literal(title)}", body)


def _headed(heading: str, body: Iterable[str]) -> list[str]:
    lines = list(body)
    return [heading, *(lines[1:] if lines[0] == ".PP" else lines)] if lines else []


def _guarded(line: str) -> str:
    return rf"\&{line}" if line.startswith((".", "'")) else line
