"""status and explain: never more than is known."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click
import pytest

from replicator.cli import view
from replicator.cli.explain import explain_word
from replicator.cli.main import cli
from replicator.cli.status import lost_text
from replicator.cli.terms import TERMS
from replicator.core import conditions, decisions, takeover
from replicator.core import status as states
from tests.unit.replicator.cli.conftest import FakeNode
from tests.unit.replicator.cli.test_pairs import pair_view

UUID = "f" * 32


def group_status(**changes: Any) -> dict[str, Any]:
    return {
        "uuid": UUID, "name": "app", "role": "primary", "state": "ok", "mode": "journal", "pos": 100, "degraded": False,
        "policy": {"mode": "sync", "ack": "receive", "on_loss": "stall"}, "held": False, "copying": False,
        "todo_bytes": 0,
        "journal": {"used": 1 << 20, "capacity": 4 << 20, "head_off": 5000, "peer_durable_off": 3000}, "failed": "",
        "behind": {"writes": 10, "bytes": 2048, "seconds": 42.2},
        "peer": {"received": 0}, "volumes": [{"name": "data", "index": 0, "size": 1 << 30}], "size": 1 << 30,
        "sync_on": True, **changes,
    }  # fmt: skip


def with_pair(**changes: Any) -> dict[str, Any]:
    return {"node": {}, "pairs": [pair_view(group=UUID, **changes)], "peers": []}


def facts(session: str, linked: bool, **more: Any) -> dict[str, Any]:
    return {"session": session, "linked": linked, "contact_age_s": 0.1 if linked else 42.0, "peer_name": "B", **more}


def test_a_pair_that_runs_well(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status()]
    node.replicator.answers["status"] = with_pair(facts=facts("sync-source", True))
    done = node.run("status")
    assert done.code == 0
    assert re.search(r"app +primary +SYNC +sync \(receive, stall on loss\) +B +nothing +25 % of 4 MiB", done.out)
    one = node.run("status", "--json").json["groups"][0]
    assert one["rpo"] == {"writes": 0, "bytes": 0, "seconds": 0.0, "bound": "exact", "as_of_s": 0.0}
    assert one["journal"]["ratio"] == 0.25 and one["paired"] is True and one["volumes"] == ["data"]


def test_degraded_is_loud(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status(degraded=True)]
    node.replicator.answers["status"] = with_pair(facts=facts("down", False, acked={"received": 90}), connected=False)
    out = node.run("status").out
    assert "DEGRADED" in out and "hosts get answers without B" in out and "What to do" in out
    assert "at most 10 writes, 2 KiB, 42" in out and "not heard for 42 s" in out


def test_without_the_replicator_links_are_unknown(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status()]
    node.replicator.stop()
    one = node.run("status", "--json").json["groups"][0]
    assert one["word"] == "REPLICATOR-DOWN" and one["paired"] is None and one["peer"] is None
    assert one["rpo"] is None
    out = node.run("status").out
    assert "does not answer: replicator" in out and "unknown" in out


def test_without_the_target_roles_are_unknown(node: FakeNode) -> None:
    node.replicator.answers["status"] = with_pair(facts=facts("down", False), status=None)
    node.target.stop()
    one = node.run("status", "--json").json["groups"][0]
    assert (one["name"], one["word"], one["role"], one["rpo"]) == ("app", "TARGET-DOWN", None, None)
    assert "does not answer: target" in node.run("status").out


def test_groups_are_not_denied_while_nobody_can_name_them(node: FakeNode) -> None:
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    node.target.stop()
    out = node.run("status").out
    assert "unknown while the target does not answer" in out and "group create" not in out


def test_a_process_that_hangs_is_asked_once_and_named(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "PATIENCE_S", 0.3)
    node.replicator.answers["status"] = with_pair(facts=facts("down", False), status=None)
    node.target.answers["group.list"] = lambda _args: time.sleep(0.6)
    done = node.run("status")
    assert done.code == 0 and "target (it runs, but was silent for 0.3 s)" in done.out and "TARGET-DOWN" in done.out
    node.replicator.answers["status"] = lambda _args: time.sleep(0.6)
    done = node.run("status")
    assert done.code == 11 and "the target runs but does not answer" in done.err
    assert [op for op, _ in node.target.calls] == ["group.list"] * 2


def test_a_group_is_not_denied_while_the_target_is_away(node: FakeNode) -> None:
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    node.target.stop()
    done = node.run("status", "app")
    assert done.code == 5 and "while the target does not answer" in done.err


def test_without_both_there_is_nothing_to_say(node: FakeNode) -> None:
    node.target.stop()
    node.replicator.stop()
    assert node.run("status").code == 7


def test_a_group_that_the_replicator_does_not_know_is_unpaired(node: FakeNode) -> None:
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    for mode in ("none", "journal"):
        node.target.answers["group.list"] = [group_status(mode=mode)]
        one = node.run("status", "--json").json["groups"][0]
        assert (one["word"], one["paired"], one["rpo"], one["mode"]) == ("UNPAIRED", False, None, mode)


def test_a_broken_group_shows_its_reason(node: FakeNode) -> None:
    node.target.answers["group.list"] = [{"uuid": UUID, "name": "app", "volumes": [], "failed": "journal is damaged"}]
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    done = node.run("status")
    assert done.code == 0 and "FAILED" in done.out and "journal is damaged" in done.out


def test_one_group(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status(), group_status(uuid="e" * 32, name="other")]
    node.replicator.answers["status"] = with_pair(facts=facts("sync-source", True))
    assert [g["name"] for g in node.run("status", "app", "--json").json["groups"]] == ["app"]
    assert node.run("status", "nope").code == 5


# -- what would be lost --------------------------------------------------------------------------------------


def rpo(status: dict[str, Any], **pair: Any) -> dict[str, Any]:
    return view.rpo(status, pair_view(feeds_us=status["role"] == "secondary", **pair))


def test_rpo_with_records_flowing_is_exact() -> None:
    found = rpo(group_status(), lag=3, lag_bytes=4096, lag_s=0.5, facts=facts("source", True))
    assert found == {"writes": 3, "bytes": 4096, "seconds": 0.5, "bound": "exact", "as_of_s": 0.0}


def test_what_is_not_known_is_not_made_up() -> None:
    assert rpo(group_status(), lag=3, lag_bytes=None, facts=facts("source", True))["bytes"] is None
    assert rpo(group_status(), facts=facts("down", False))["bound"] == "unknown"  # nothing was ever acknowledged
    assert rpo(group_status(), facts={})["bound"] == "unknown"
    assert view.rpo(group_status(), None)["bound"] == "unknown"


def test_a_link_alone_does_not_make_positions_current() -> None:
    found = rpo(group_status(), lag=100, facts=facts("waiting", True, acked={"received": 0}))
    assert found["bound"] == "unknown" and found["writes"] is None


def test_a_secondary_that_hears_nothing_knows_a_lower_limit() -> None:
    found = rpo(group_status(role="secondary", pos=95), facts=facts("down", False, peer_pos=100))
    assert (found["writes"], found["seconds"], found["bound"]) == (5, 42.0, "at least")


def test_while_a_copy_runs_there_is_nothing_to_take_over() -> None:
    for status, session in (
        (group_status(copying=True), "source"),
        (group_status(state="resync"), "target"),
        (group_status(), "copy-source"),
    ):
        assert rpo(status, facts=facts(session, True))["bound"] == "no copy"


def test_in_bitmap_mode_the_bytes_are_unknown() -> None:
    found = rpo(group_status(mode="bitmap", behind=None), facts=facts("down", False, acked={"received": 90}))
    assert (found["writes"], found["bytes"], found["bound"]) == (10, None, "at most")


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (None, "unknown"),
        ({"bound": "unknown"}, "unknown"),
        ({"bound": "no copy"}, "everything: the copy is not complete"),
        ({"bound": "at most", "writes": 0, "bytes": 0, "seconds": 0.0}, "nothing"),
        ({"bound": "at least", "writes": 0, "bytes": None, "seconds": 9.0}, "at least 0 writes, unknown bytes, 9.0 s"),
        ({"bound": "exact", "writes": 2, "bytes": 8192, "seconds": None}, "2 writes, 8 KiB, unknown seconds"),
    ],
)
def test_rpo_in_words(known: dict[str, Any] | None, text: str) -> None:
    assert lost_text(known) == text


# -- explain -------------------------------------------------------------------------------------------------


def test_explain_a_group(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status()]
    node.replicator.answers["status"] = with_pair(facts=facts("down", False, link_reason="cable"), connected=False)
    out = node.run("explain", "app").out
    assert "app: STALLED" in out and "cable" in out and "farstripe group policy app" in out
    assert node.run("explain", "--json").json[0]["word"] == "STALLED"


def test_words_need_no_node(node: FakeNode) -> None:
    node.target.stop()
    node.replicator.stop()
    assert "Acknowledged writes" in node.run("explain", "resync").out
    assert node.run("explain", "SPLIT-BRAIN", "--json").json["kind"] == "state of a pair"


def test_a_group_goes_before_a_word(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status(name="journal")]
    node.replicator.answers["status"] = with_pair(facts=facts("sync-source", True))
    assert node.run("explain", "journal").out.startswith("group journal: SYNC")


def test_an_unknown_word_lists_the_known_ones(node: FakeNode) -> None:
    node.target.answers["group.list"] = []
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    done = node.run("explain", "flux")
    assert done.code == 5 and "epoch" in done.err and "DEGRADED" in done.err


EVERY_WORD = [
    *(row.word for row in states.TABLE),
    *(row.label for row in conditions.CONDITIONS),
    *(row.label for row in decisions.TABLE),
    *(row.label for row in takeover.TABLE),
    *TERMS,
]


@pytest.mark.parametrize("word", EVERY_WORD)
def test_every_word_has_an_explanation_without_gaps(word: str) -> None:
    found = explain_word(word)
    assert found is not None and len(found["text"]) > 20
    assert not re.search(r"[{}]", found["text"] + " ".join(found["commands"]))


# -- advice that can be followed -----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[4]
SOURCES = [path for folder in ("replicator", "nbdplugin", "raidlib") for path in (ROOT / folder).rglob("*.py")]


def advised() -> list[tuple[str, str]]:
    """Every `farstripe …` command that a message, a help text or a table names, with the file that does."""
    found = []
    for path in SOURCES:
        for command in re.findall(r"farstripe((?: (?:--?)?[a-z][a-z-]*)+)", path.read_text()):
            found.append((str(path.relative_to(ROOT)), command.strip()))
    return sorted(set(found))


def test_every_command_that_a_text_advises_exists() -> None:
    wrong = []
    for where, words in advised():
        command: click.Command | None = cli
        context = click.Context(cli)
        for word in words.split():
            if not isinstance(command, click.Group):
                if word.startswith("--") and isinstance(command, click.Command):
                    known = {"--help", *(name for parameter in command.params for name in parameter.opts)}
                    if word not in known:
                        wrong.append(f"{where}: farstripe {words}: no option {word}")
                break
            command = command.get_command(context, word)
            if command is None:
                if words.split()[0] in ("node", "pool", "volume", "group", "peer", "pair"):
                    wrong.append(f"{where}: farstripe {words}")
                break
    assert not wrong, "\n".join(wrong)


def test_a_copy_that_stands_at_a_marker_says_so_once_and_how_it_goes_on(node: FakeNode) -> None:
    node.target.answers["group.list"] = [group_status(role="secondary", limit_seq=42)]
    node.replicator.answers["status"] = with_pair(facts=facts("target", True), feeds_us=True)
    for command in (("status",), ("explain", "app")):
        out = node.run(*command).out
        assert out.count("farstripe marker resume --groups app") == 1
        assert out.count("record 42") == 1
    assert "STANDS AT A MARKER" in node.run("status").out
