"""What commands print: tables and sentences for people, one JSON document with --json.

stdout holds the answer, stderr everything else (errors, progress), so a script can parse the one and show the other.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from replicator.core.errors import FarstripeError, Refused

if TYPE_CHECKING:  # rich takes longer to load than most commands to run: whoever draws with it loads it
    from rich.console import Console

UNKNOWN = "unknown"
_NUMBER = re.compile(r"[\d.]+( [KMGTP]?i?B)?|-")


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json; the command gets it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, errors included.")(function)


def yes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --yes; the command gets it as `yes`."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask; answers the question, overrides no refusal.")(
        function
    )


def force_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --force; the command gets it as `force`."""
    return click.option("--force", is_flag=True, help=help_text)


def console() -> Console:
    """A console on stdout. Lines are folded to a terminal, never for a file or a pipe."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000, highlight=False)


def emit(as_json: bool, document: Any, sentence: str = "") -> None:
    """Print the result of a command that changes something: `document` as JSON, or `sentence`."""
    if as_json:
        click.echo(json.dumps(document, indent=2, sort_keys=True, default=_plain))
    elif sentence:
        click.echo(sentence)


def table(as_json: bool, document: Any, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print `document` as JSON, or the rows under the columns, or `empty` when there are none."""
    if as_json:
        emit(True, document)
        return
    filled = [[_cell(value) for value in row] for row in rows]
    if not filled:
        click.echo(empty)
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for number, column in enumerate(columns):
        numeric = bool(column) and all(_NUMBER.fullmatch(row[number]) for row in filled)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in filled:
        shown.add_row(*(Text(cell) for cell in row))
    target = console()
    with target.capture() as captured:
        target.print(shown)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), color=True)


def confirm(question: str, yes: bool, as_json: bool = False) -> None:
    """Ask before something that cannot be taken back. Raises Refused when nobody can answer or the answer is no."""
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is there to answer", "say --yes if that is what you want")
    if not click.confirm(question, err=True):
        raise Refused("nothing was done")


def complain(exc: FarstripeError, as_json: bool) -> None:
    """Print an error to stderr."""
    if as_json:
        body = {"name": exc.name, "message": exc.message, "way_out": exc.way_out, "exit_code": exc.exit_code}
        click.echo(json.dumps({"error": body}), err=True)
        return
    click.echo(f"farstripe: {exc.message}", err=True)
    if exc.way_out:
        click.echo(f"way out: {exc.way_out}", err=True)


def _cell(value: object) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)
