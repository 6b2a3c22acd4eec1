"""The pages of the manual, from the command tree and the texts beside this file.

One page a noun, one for the commands without a noun, and farstripe(8) over all. A command that is added appears on its
page by itself.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from replicator.cli import main
from replicator.cli.explain import explain_word
from replicator.cli.manual import roff
from replicator.cli.manual.examples import EXAMPLES, Example
from replicator.cli.manual.pages import FILES, INTRODUCTION, NOTES, Item
from replicator.cli.terms import TERMS
from replicator.core import conditions, errors, status

VERBS = "farstripe-verbs"


def pages() -> dict[str, str]:
    """Return every page, by its file name."""
    root = click.Context(main.cli, info_name="farstripe", **main.cli.context_settings)
    nouns = {name: context for name, context in _below(root) if isinstance(context.command, click.Group)}
    verbs = {name: context for name, context in _below(root) if name not in nouns}
    made = {"farstripe": _overview(root, list(nouns))}
    made |= {f"farstripe-{name}": _noun(name, context) for name, context in nouns.items()}
    made[VERBS] = _verbs(verbs)
    return {
        f"{page}.8": _whole(page, lines, [other for other in made if other != page]) for page, lines in made.items()
    }


def _whole(page: str, lines: list[str], others: list[str]) -> str:
    also = ", ".join(f"{other}(8)" for other in others)
    head = [
        r".\" Made by `make man` from the command tree; do not edit.",
        ".nr HY 0",  # no hyphenation: a name must not be taken apart; groff looks at it in .TH
        f'.TH {roff.literal(page.upper())} 8 "" farstripe "farstripe manual"',
        ".ad l",
    ]
    return "\n".join([*head, *lines, *roff.section("SEE ALSO", roff.prose(also)), ""])


def _overview(root: click.Context, nouns: list[str]) -> list[str]:
    commands = [
        line
        for name, (_, _, text) in main.COMMANDS.items()
        for line in roff.item(roff.bold(name), f"{text} See {f'farstripe-{name}' if name in nouns else VERBS}(8).")
    ]
    return [
        *_name(["farstripe"], "replicated block volumes in userland"),
        *roff.section(
            "SYNOPSIS", [f"{roff.bold('farstripe')} [{roff.italic('options')}] {roff.italic('command')} ..."]
        ),
        *roff.section("DESCRIPTION", _items(INTRODUCTION)),
        *roff.section("OPTIONS", _options(root, every=True)),
        *roff.section("COMMANDS", commands),
        *roff.section("WORDS", [line for word, term in TERMS.items() for line in roff.item(word, term.text)]),
        *roff.section("EXIT STATUS", _exit_codes()),
        *roff.section("ENVIRONMENT", _items(NOTES["environment"])),
        *_last("farstripe"),
    ]


def _noun(name: str, noun: click.Context) -> list[str]:
    below = list(_all_below(noun))
    return [
        *_name([f"farstripe-{name}"], main.COMMANDS[name][2]),
        *_synopsis(below),
        *roff.section("DESCRIPTION", [*_help(noun), *_items(NOTES.get(name, ()))]),
        *_commands(below),
        *_last(name),
    ]


def _verbs(verbs: dict[str, click.Context]) -> list[str]:
    states = [
        line
        for word in (*(row.word for row in status.TABLE), *(one.label for one in conditions.CONDITIONS))
        if (known := explain_word(word))
        for line in roff.item(roff.bold(word), known["text"])
    ]
    return [
        *_name([VERBS, *(f"farstripe-{name}" for name in verbs)], "commands that stand by themselves"),
        *_synopsis(list(verbs.values())),
        *_commands(list(verbs.values())),
        *roff.section("STATES", [*_items(NOTES["states"]), *states]),
        *_last("verbs"),
    ]


def _last(name: str) -> list[str]:
    lines = roff.section("FILES", _items(FILES.get(name, ())))
    if name != "farstripe":
        codes = " ".join((main.__doc__ or "").split("Exit codes (stable):")[1].split())
        lines = [*roff.section("EXIT STATUS", roff.prose(f"{codes} See farstripe(8).")), *lines]
    return [*lines, *roff.section("EXAMPLES", [line for one in EXAMPLES.get(name, ()) for line in _example(one)])]


def _example(one: Example) -> list[str]:
    return [*roff.paragraph(one.what), *roff.example(one.lines), *roff.paragraph(one.happens)]


def _name(names: list[str], text: str) -> list[str]:
    what = text[0].lower() + text[1:].rstrip(".")
    return roff.section("NAME", [rf"{', '.join(map(roff.escape, names))} \- {roff.escape(what)}"])


def _items(items: tuple[Item, ...]) -> list[str]:
    return [
        line
        for one in items
        for line in (roff.paragraph(one) if isinstance(one, str) else roff.item(roff.bold(one[0]), one[1]))
    ]


def _below(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    """Yield the commands of a group with their names; what click hides is left out."""
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        if command is not None and not command.hidden:
            yield name, click.Context(command, info_name=name, parent=context)


def _all_below(context: click.Context) -> Iterator[click.Context]:
    for _, below in _below(context):
        yield below
        if isinstance(below.command, click.Group):
            yield from _all_below(below)


def _synopsis(contexts: list[click.Context]) -> list[str]:
    lines = [_usage(one) for one in contexts if not isinstance(one.command, click.Group)]
    return roff.section("SYNOPSIS", "\n.br\n".join(lines).splitlines())


def _usage(context: click.Context) -> str:
    """Return a command with its arguments and the options it cannot do without."""
    words = [roff.bold(context.command_path), *map(roff.usage, arguments(context))]
    optional = False
    for option in _own_options(context):
        record = option.get_help_record(context)
        if option.required and record:
            words.append(roff.usage(record[0]))
        else:
            optional = True
    return " ".join([*words, *([f"[{roff.italic('options')}]"] if optional else [])])


def arguments(context: click.Context) -> list[str]:
    """Return the arguments of a command as its usage line shows them."""
    return [piece for piece in context.command.collect_usage_pieces(context) if piece != "[OPTIONS]"]


def _own_options(context: click.Context, every: bool = False) -> list[click.Option]:
    """Return the options of a command, --help among them only where `every` is asked for."""
    shown = [one for one in context.command.get_params(context) if isinstance(one, click.Option) and not one.hidden]
    return shown if every else [one for one in shown if set(one.opts) != set(context.help_option_names)]


def _options(context: click.Context, every: bool = False, names: frozenset[str] = frozenset()) -> list[str]:
    records = [one.get_help_record(context) for one in _own_options(context, every)]
    return [line for record in records if record for line in roff.item(roff.usage(record[0]), record[1], names)]


def _help(context: click.Context, names: frozenset[str] = frozenset()) -> list[str]:
    texts = (context.command.help, context.command.epilog)
    return [line for text in texts if text for line in roff.help_text(inspect.cleandoc(text), names)]


def _commands(contexts: list[click.Context]) -> list[str]:
    lines: list[str] = []
    for one in contexts:
        names = frozenset(re.findall(r"[A-Z][A-Z_]*", " ".join(arguments(one))))
        is_group = isinstance(one.command, click.Group)
        body = [
            *([] if is_group else [_usage(one)]),
            *_help(one, names),
            *([] if is_group else _options(one, names=names)),
        ]
        lines += roff.subsection(one.command_path, body)
    return roff.section("COMMANDS", lines)


def _exit_codes() -> list[str]:
    told = {
        errors.EXIT_OK: "Done.",
        errors.EXIT_USAGE: "Wrong usage: an option or argument that the command does not have.",
    }
    for kind in errors.FarstripeError.__subclasses__():
        told.setdefault(kind.exit_code, " ".join((kind.__doc__ or "").split()))
    told[main.EXIT_INTERRUPTED] = "Ended by Ctrl-C. What was asked of the node goes on there."
    return [line for code in sorted(told) for line in roff.item(roff.bold(str(code)), told[code])]
