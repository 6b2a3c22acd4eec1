"""The manual says what the commands are, its examples can be typed, and man shows it without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from nbdplugin.nodeconfig import DEFAULT_THREADS
from replicator.capture.state import Policy
from replicator.cli import main, policy
from replicator.cli.manual import generate, roff
from replicator.cli.manual.examples import EXAMPLES
from replicator.cli.pool import parse_layout
from replicator.core import errors
from replicator.core.session.base import SWITCHOVER_S
from tests.testing.needs import needs

ROOT = Path(__file__).resolve().parents[4]
FOLDER = ROOT / "docs/man"
PAGES = generate.pages()
TYPED = [
    (page, line) for page, examples in EXAMPLES.items() for one in examples for line in one.lines
    if re.search(r"\bfarstripe\b", line)
]  # fmt: skip


def commands(context: click.Context) -> Iterator[click.Context]:
    """Every command below `context` that is not a group."""
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands(below)
        else:
            yield below


COMMANDS = list(commands(click.Context(main.cli, info_name="farstripe")))
EACH_COMMAND = pytest.mark.parametrize("context", COMMANDS, ids=lambda one: one.command_path)


def page_of(context: click.Context) -> str:
    """The page of a command as plain text, without fonts."""
    noun = context.command_path.split()[1]
    text = PAGES.get(f"farstripe-{noun}.8") or PAGES["farstripe-verbs.8"]
    return re.sub(r"\\f[BIR]", "", text).replace(r"\-", "-")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_what_the_generator_makes(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name], "run: make man"


def test_there_is_no_page_of_a_command_that_is_gone() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.8")) == sorted(PAGES)


@EACH_COMMAND
def test_every_command_and_option_has_its_place(context: click.Context) -> None:
    part = page_of(context).partition(f".SS {context.command_path}\n")[2].partition("\n.S")[0]
    assert part
    for param in context.command.params:
        if isinstance(param, click.Option) and not param.hidden:
            tags = [line for line in part.splitlines() if line.startswith("-")]
            assert any(all(word in tag.replace(",", "").split() for word in param.opts) for tag in tags), param.opts


@EACH_COMMAND
def test_every_argument_and_option_is_explained(context: click.Context) -> None:
    text = context.command.help or ""
    for param in context.command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{context.command_path} {param.opts[0]} has no help"
    for word in re.findall(r"[A-Z][A-Z_]*", " ".join(generate.arguments(context))):
        assert re.search(rf"\b{word}\b", text), f"the help of {context.command_path} does not speak of {word}"


@pytest.mark.parametrize("key", policy.KEYS)
def test_what_the_policy_is_at_first_is_told_as_it_is(key: str) -> None:
    value = getattr(Policy(), key)
    assert f"At first: {value if isinstance(value, str) else format(value, 'g')}." in help_of("group policy", key)


def test_what_is_taken_when_an_option_is_left_out_is_told_as_it_is() -> None:
    assert f"{SWITCHOVER_S:g} when left out" in help_of("switchover", "deadline_s")
    assert f"{DEFAULT_THREADS} when left out" in help_of("node init", "threads")


def help_of(command: str, name: str) -> str:
    (context,) = [one for one in COMMANDS if one.command_path == f"farstripe {command}"]
    (option,) = [one for one in context.command.params if one.name == name]
    assert isinstance(option, click.Option)
    return option.help or ""


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_page_has_worked_examples(name: str) -> None:
    assert ".SH EXAMPLES" in PAGES[name], f"add some to replicator/cli/manual/examples.py for {name}"


@pytest.mark.parametrize(("page", "line"), TYPED, ids=[line for _, line in TYPED])
def test_an_example_can_be_typed(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[dict[str, Any]] = []
    for context in COMMANDS:
        monkeypatch.setattr(context.command, "callback", lambda *_, **given: ran.append(given))
    farstripe = [words for words in split_commands(line) if words[0] == "farstripe"]
    for words in farstripe:
        main.cli.main(args=words[1:], prog_name="farstripe", standalone_mode=False)
    assert len(ran) == len(farstripe)
    for given in ran:
        if "layout" in given:
            parse_layout(given["layout"])


def split_commands(line: str) -> list[list[str]]:
    """The words of each command of a shell line, braces expanded; what stands before `farstripe` is one by itself."""
    line = re.sub(r"^\w+# ", "", line)
    if "{" in line and "'" not in line:
        line = subprocess.check_output(["bash", "-c", f'printf "%s " {line}'], text=True)
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;>")  # "> FILE" ends a command as a pipe does
    words.whitespace_split = True
    made: list[list[str]] = [[]]
    for word in words:
        if word[0] in "|&;>":
            made.append([])
        elif word == "farstripe":
            made.append([word])
        else:
            made[-1].append(word)
    return [one for one in made if one]


def test_a_misspelt_example_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.UsageError):
        test_an_example_can_be_typed("", "alpha# farstripe pair wait shop --progres", monkeypatch)


def test_every_exit_code_is_told() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {main.EXIT_INTERRUPTED}
    for name, page in PAGES.items():
        told = page.partition(".SH EXIT STATUS\n")[2].partition(".SH")[0]
        found = re.findall(r"^\\fB(\d+)\\fR$" if name == "farstripe.8" else r"\b(\d+)\s[a-z]", told, re.MULTILINE)
        assert {int(code) for code in found} == codes, name


def test_every_variable_of_the_environment_is_told() -> None:
    sources = [path for folder in ("replicator", "nbdplugin", "raidlib") for path in (ROOT / folder).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"environ[.\w]*[\[(]\"(FARSTRIPE_\w+)", path.read_text())}
    inner = {"FARSTRIPE_READY_FD"}  # from the target to itself
    for name in read - inner | {"FARSTRIPE_STATE", "FARSTRIPE_RUN"}:
        assert name in PAGES["farstripe.8"]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_man_shows_a_page_without_a_warning(name: str) -> None:
    needs("groff")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", str(FOLDER / name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- roff ----------------------------------------------------------------------------------------------------


def test_nothing_in_a_text_is_taken_for_roff() -> None:
    assert roff.prose(r".so /etc/passwd and \fB") == [r"\&.so /etc/passwd and \efB"]
    assert roff.example(["'quoted' \"x\" `y` ~ ^"])[3] == r"\(aqquoted\(aq \(dqx\(dq \(gay\(ga \(ti \(ha"
    assert roff.literal("…") == r"\[u2026]"


def test_a_sentence_begins_a_line_and_marks_survive() -> None:
    assert roff.prose("See `pool status`. Or NAME with --force.", {"NAME"}) == [
        r"See \fBpool status\fR.",
        r"Or \fINAME\fR with \fB\-\-force\fR.",
    ]


def test_what_click_must_not_wrap_is_not_wrapped() -> None:
    assert ".EX\nfarstripe pool a\nfarstripe pool b\n.EE" in "\n".join(
        roff.help_text("Text.\n\n\b\n  farstripe pool a\n  farstripe pool b")
    )


@pytest.mark.parametrize(("form", "made"), [
    ("--size SIZE", r"\fB\-\-size\fR \fISIZE\fR"),
    ("-y, --yes", r"\fB\-y\fR, \fB\-\-yes\fR"),
    ("{bash|fish}", r"{\fBbash\fR|\fBfish\fR}"),
])  # fmt: skip
def test_what_is_typed_is_bold_and_what_stands_for_something_is_not(form: str, made: str) -> None:
    assert roff.usage(form) == made
