from __future__ import annotations

from pathlib import Path

import pytest

from replicator.cli import main
from replicator.cli.main import COMMANDS, cli
from replicator.cli.pool import parse_layout
from replicator.core.errors import FarstripeError, MediumError, NotFound
from tests.unit.replicator.cli.conftest import FakeNode


def walk(command: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    import click

    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found += walk(command.get_command(context, name), (*path, name))
    return found


EVERY = [pytest.param(path, id=" ".join(path) or "farstripe") for path, _ in walk(cli)]


@pytest.mark.parametrize("path", EVERY)
def test_every_command_has_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: farstripe")
    assert len(out.splitlines()) > 4


@pytest.mark.parametrize("path", EVERY)
def test_every_command_that_prints_has_json(path: tuple[str, ...]) -> None:
    import click

    command = dict(walk(cli))[path]
    if isinstance(command, click.Group) or path in {("completion",), ("node", "run")}:
        return
    assert isinstance(command, click.Command)
    assert "as_json" in [parameter.name for parameter in command.params], path


def test_yes_and_force_are_two_things() -> None:
    for path, command in walk(cli):
        for parameter in getattr(command, "params", ()):
            if "--yes" in parameter.opts:
                assert "--force" not in parameter.opts, path


def test_the_list_of_commands_needs_no_import(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("farstripe, version ")


@pytest.mark.parametrize(
    "argv",
    [[], ["nonsense"], ["volume"], ["volume", "create"], ["status", "--no"]],
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(argv) in (0, 2)
    if argv:
        seen = capsys.readouterr()
        assert seen.err.startswith("farstripe: ") or "Usage:" in seen.err + seen.out


def test_errors_are_one_line_and_a_way_out(node: FakeNode) -> None:
    node.target.answers["volume.list"] = NotFound("no such thing", "look elsewhere")
    done = node.run("volume", "list")
    assert (done.code, done.out, done.err) == (5, "", "farstripe: no such thing\nway out: look elsewhere\n")


def test_with_json_errors_are_json(node: FakeNode) -> None:
    node.target.answers["volume.list"] = MediumError("a disk is gone")
    done = node.run("volume", "list", "--json")
    assert done.code == 9
    assert done.error == {"name": "MediumError", "message": "a disk is gone", "way_out": "", "exit_code": 9}
    for argv, code in ((["--size", "17"], 3), (["--size", "many"], 3), (["--sise", "17"], 2)):
        done = node.run("volume", "create", "x", *argv, "--json")
        assert done.code == done.error["exit_code"] == code


def test_an_exit_code_of_another_package_passes_through(node: FakeNode) -> None:
    class Foreign(FarstripeError):
        exit_code = 10

    node.target.answers["volume.list"] = Foreign("checksum")
    assert node.run("volume", "list").code == 10


def test_a_defect_of_ours_says_where(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.target.answers["volume.list"] = [{"nonsense": 1}]
    done = node.run("volume", "list")
    assert done.code == 1
    assert "volume.py" in done.err and "KeyError" in done.err


def test_ctrl_c_is_130(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_a: object, **_k: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("replicator.cli.access.Node.target", interrupt)
    assert node.run("volume", "list").code == 130


def test_a_node_that_was_never_made(node: FakeNode) -> None:
    node.target.stop()
    (node.state / "node.json").unlink()
    done = node.run("volume", "list")
    assert done.code == 5 and "node init" in done.err


def test_a_process_that_does_not_run(node: FakeNode) -> None:
    node.target.stop()
    done = node.run("volume", "list")
    assert done.code == 7 and "the target does not answer" in done.err and "node status" in done.err


def test_a_run_directory_too_long_for_a_socket(node: FakeNode) -> None:
    done = node.run("--run", "/tmp/" + "x" * 120, "volume", "list")
    assert done.code == 3 and "--run" in done.err


def test_the_environment_names_the_node(node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    node.target.answers["volume.list"] = []
    monkeypatch.setenv("FARSTRIPE_STATE", str(node.state))
    monkeypatch.setenv("FARSTRIPE_RUN", str(node.run_dir))
    assert main.run(["volume", "list"]) == 0


def test_what_only_root_may_see_says_so(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *_a: object, **_k: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", deny)
    for argv in (["status"], ["node", "status"]):
        done = node.run(*argv)
        assert done.code == 4 and "run as root" in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert "_FARSTRIPE_COMPLETE" in capsys.readouterr().out


def complete(
    node: FakeNode, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What bash would be told for the last word of a command line."""
    line = f"farstripe --state {node.state} --run {node.run_dir} {words}"
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    monkeypatch.setenv("_FARSTRIPE_COMPLETE", "bash_complete")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main.run([])
    return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line]


def test_completion_knows_names(
    node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.target.answers["volume.list"] = [{"name": "data"}, {"name": "log"}]
    node.replicator.answers["pair.list"] = [{"name": "app"}]
    assert complete(node, "vol", capsys, monkeypatch) == ["volume"]
    assert complete(node, "volume delete d", capsys, monkeypatch) == ["data"]
    assert complete(node, "takeover a", capsys, monkeypatch) == ["app"]
    node.target.stop()
    assert complete(node, "volume delete d", capsys, monkeypatch) == []


def test_the_example_of_the_help_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "pool create main" in line)
    assert parse_layout(["raid6", *(f"/disks/{n}" for n in range(6))])[0]["level"] == 6
    assert line.split("pool create main ")[1] == "raid6 /disks/{0..5}"
