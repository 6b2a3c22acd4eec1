"""peer, pair, switchover, takeover: what is asked of the replicator, and what people and scripts see."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.core.errors import DaemonNotRunning, NotFound, Refused, TimedOut
from tests.unit.replicator.cli.conftest import FakeNode


def pair_view(**changes: Any) -> dict[str, Any]:
    """The replicator's view of a pair that runs well, seen from the primary."""
    return {
        "group": "f" * 32, "name": "app", "peer": "b" * 32, "peer_name": "B", "word": "SYNC", "level": "ok",
        "why": "every write waits for B", "means": "", "then": "nothing", "commands": [], "role": "primary",
        "state": "ok", "mode": "journal", "connected": True, "split": False, "lag": 0, "lag_applied": 0,
        "feeds_us": False, "losses": [], "lag_bytes": 0, "lag_s": None, "todo_bytes": 0, "policy": {"mode": "sync"},
        "facts": {"linked": True, "session": "sync-source", "acked": {"received": 7, "durable": 6, "applied": 5}},
        "status": {"pos": 7, "hist": [[(1 << 24) | 0xABCDEF, 0]], "role": "primary", "state": "ok"}, **changes,
    }  # fmt: skip


# -- peers ---------------------------------------------------------------------------------------------------


def test_a_token_is_alone_on_stdout(node: FakeNode) -> None:
    node.replicator.answers["peer.token"] = {"token": "fs1.x", "expires": 1.0}
    done = node.run("peer", "token", "--life", "60", "--address", "10.0.0.1")
    assert done.out == "fs1.x\n" and "1 min" in done.err
    assert node.replicator.asked("peer.token") == {"expires_s": 60.0, "address": "10.0.0.1"}
    assert node.run("peer", "token", "--json").json["token"] == "fs1.x"


def test_a_token_can_come_from_stdin(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    node.replicator.answers["peer.join"] = {"name": "B", "node_id": "b" * 32}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fs1.secret\n")))
    assert node.run("peer", "join", "-").code == 0
    assert node.replicator.asked("peer.join") == {"token": "fs1.secret"}


def test_peer_list_and_delete(node: FakeNode) -> None:
    node.replicator.answers["peer.list"] = [
        {"name": "B", "node_id": "b" * 32, "address": "10.0.0.2", "port": 10810, "joined": 0.0, "pairs": ["app"]}
    ]
    node.replicator.answers["peer.delete"] = Refused("peer B has pairs here: app")
    out = node.run("peer", "list").out
    assert "10.0.0.2 port 10810" in out and "app" in out
    assert node.run("peer", "delete", "B").code == 4
    assert [op for op, _ in node.replicator.calls] == ["peer.list"]  # not confirmed, not asked
    assert node.run("peer", "delete", "B", "--yes").code == 4


# -- pairs ---------------------------------------------------------------------------------------------------


def test_pair_create_passes_only_what_was_said(node: FakeNode) -> None:
    node.replicator.answers["pair.create"] = pair_view()
    assert node.run("pair", "create", "app", "--peer", "B").code == 0
    assert node.replicator.asked("pair.create") == {"group": "app", "peer": "B", "overwrite": False}
    argv = ["--mode", "sync", "--on-loss", "stall", "--loss-timeout", "2", "--compress", "3", "--journal", "64M"]
    assert node.run("pair", "create", "app", "--peer", "B", *argv, "--overwrite").code == 0
    assert node.replicator.asked("pair.create") == {
        "group": "app", "peer": "B", "compress": 3, "overwrite": True, "mode": "sync", "on_loss": "stall",
        "loss_timeout_s": 2.0, "journal_bytes": 64 << 20,
    }  # fmt: skip


def test_pair_show_has_both_sides_positions_on_the_primary_only(node: FakeNode) -> None:
    node.replicator.answers["pair.show"] = pair_view()
    out = node.run("pair", "show", "app").out
    assert "SYNC: every write waits for B" in out
    assert "B durable" in out and "epoch 1 of abcdef from 0" in out
    node.replicator.answers["pair.show"] = pair_view(role="secondary", feeds_us=True)
    assert "B durable" not in node.run("pair", "show", "app").out


def test_pair_show_without_the_target_says_unknown(node: FakeNode) -> None:
    node.replicator.answers["pair.show"] = pair_view(
        status=None, role=None, state=None, mode=None, policy=None, facts={}
    )
    out = node.run("pair", "show", "app").out
    assert out.count("unknown") > 5


def test_split_and_resync(node: FakeNode) -> None:
    node.replicator.answers |= {"pair.split": {}, "pair.resync": {}}
    assert node.run("pair", "split", "app").code == 0
    assert node.run("pair", "resync", "app").code == 0
    assert node.replicator.asked("pair.resync") == {"group": "app"}


def test_giving_up_writes_asks_first(node: FakeNode) -> None:
    node.replicator.answers["pair.resync"] = {}
    assert node.run("pair", "resync", "app", "--discard", "B").code == 4
    assert node.replicator.calls == []
    assert node.run("pair", "resync", "app", "--discard", "B", "--yes").code == 0
    assert node.replicator.asked("pair.resync") == {"group": "app", "discard": "B"}


def test_pair_delete_passes_on_what_the_peer_did_not_do(node: FakeNode) -> None:
    node.replicator.answers["pair.delete"] = {"peer_note": "B still has its half: gone"}
    assert node.run("pair", "delete", "app").code == 4
    done = node.run("pair", "delete", "app", "--yes", "--local-only")
    assert done.code == 0 and "still has its half" in done.out
    assert node.replicator.asked("pair.delete") == {"group": "app", "local_only": True}


def test_waiting_shows_the_copy_and_ends_with_the_state(node: FakeNode) -> None:
    tries = iter([TimedOut("not yet"), TimedOut("not yet"), pair_view(word="PAIR")])
    shows = iter([12 << 20, 12 << 20, 3 << 20])

    def wait(_args: dict[str, Any]) -> Any:
        answer = next(tries)
        if isinstance(answer, Exception):
            raise answer
        return answer

    node.replicator.answers["pair.wait"] = wait
    node.replicator.answers["pair.show"] = lambda _args: pair_view(word="COPY", todo_bytes=next(shows))
    done = node.run("pair", "wait", "app", "--state", "ok", "--progress")
    assert done.code == 0 and done.out == "group app is PAIR\n"
    assert "12 MiB of 12 MiB left" in done.err and "70 %" in done.err and "100 %" in done.err
    assert node.replicator.asked("pair.wait")["state"] == "ok"


def test_waiting_has_an_end(node: FakeNode) -> None:
    node.replicator.answers["pair.wait"] = TimedOut("no")
    node.replicator.answers["pair.show"] = pair_view(word="DISCONNECTED")
    done = node.run("pair", "wait", "app", "--timeout", "0.2")
    assert done.code == 11 and "DISCONNECTED" in done.err


def stuck(word: str, **changes: Any) -> dict[str, Any]:
    return pair_view(
        word=word, operator=True, why="an operator split it", then="resync", commands=["farstripe pair resync app"],
        **changes,
    )  # fmt: skip


def test_waiting_ends_where_only_an_operator_can_go_on(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.cli.pair.SETTLE_S", 0.3)
    node.replicator.answers |= {"pair.wait": TimedOut("no"), "pair.show": stuck("SPLIT")}
    for state in ("ok", "equal", "sync", "connected", "pair"):
        done = node.run("pair", "wait", "app", "--state", state)
        assert done.code == 4 and "SPLIT" in done.err and "farstripe pair resync app" in done.err
    for state in ("split-brain", "split", "primary", "disconnected"):
        assert node.run("pair", "wait", "app", "--state", state, "--timeout", "0.6").code == 11


def test_a_state_that_passes_at_once_does_not_end_the_waiting(node: FakeNode) -> None:
    words = iter([stuck("SPLIT"), stuck("SPLIT"), pair_view(word="COPY")])
    tries = iter([TimedOut("no"), TimedOut("no"), pair_view(word="PAIR")])

    def wait(_args: dict[str, Any]) -> Any:
        answer = next(tries)
        if isinstance(answer, Exception):
            raise answer
        return answer

    node.replicator.answers |= {"pair.wait": wait, "pair.show": lambda _args: next(words)}
    assert node.run("pair", "wait", "app").code == 0


def test_a_replicator_that_answers_is_not_said_to_be_silent(node: FakeNode) -> None:
    node.replicator.answers["pair.split"] = DaemonNotRunning("nothing answers on /run/x/target.sock", "start it")
    done = node.run("pair", "split", "app")
    assert done.code == 7 and "target.sock" in done.err and "the replicator does not answer" not in done.err


def test_waiting_for_a_pair_that_is_not_there(node: FakeNode) -> None:
    node.replicator.answers["pair.show"] = NotFound("group app has no pair")
    assert node.run("pair", "wait", "app").code == 5


# -- roles ---------------------------------------------------------------------------------------------------

NOTHING = {"records": 0, "bytes": 0, "seconds": 0.0, "certain": True}
SOME = {"records": 3, "bytes": None, "seconds": 4.2, "certain": False}


def plan(allowed: bool = True, lost: dict[str, Any] = SOME) -> dict[str, Any]:
    label = "clean" if allowed else "primary-alive"
    return {
        "label": label,
        "allowed": allowed,
        "message": "the primary is alive",
        "way_out": "switch",
        "lost": lost,
        "peer": {},
    }


def test_switchover(node: FakeNode) -> None:
    node.replicator.answers["switchover"] = {"primary": "b" * 32, "primary_name": "B"}
    assert node.run("switchover", "app", "--deadline", "5").out == "B is primary of group app now\n"
    assert node.replicator.asked("switchover") == {"group": "app", "deadline_s": 5.0}


def test_takeover_says_what_is_lost_and_asks(node: FakeNode) -> None:
    node.replicator.answers |= {"takeover.plan": plan(), "takeover": {"epoch": 2, "lost": SOME}}
    done = node.run("takeover", "app")
    assert done.code == 4
    assert "3 writes, unknown bytes" in done.err and "4.2 s" in done.err and "--yes" in done.err
    assert [op for op, _ in node.replicator.calls] == ["takeover.plan"]
    assert node.run("takeover", "app", "--yes").code == 0
    assert node.replicator.asked("takeover") == {"group": "app", "force": False}


def test_yes_does_not_force(node: FakeNode) -> None:
    node.replicator.answers |= {"takeover.plan": plan(allowed=False), "takeover": Refused("alive", "switchover")}
    assert node.run("takeover", "app", "--yes").code == 4
    assert node.replicator.asked("takeover")["force"] is False


def test_force_does_not_answer_the_question(node: FakeNode) -> None:
    node.replicator.answers |= {"takeover.plan": plan(lost=NOTHING), "takeover": {"epoch": 2}}
    done = node.run("takeover", "app", "--force")
    assert done.code == 4 and "Nothing is lost" in done.err
    assert node.run("takeover", "app", "--force", "--yes").code == 0
    assert node.replicator.asked("takeover")["force"] is True


@pytest.mark.parametrize("records", [0, 3])
def test_a_primary_that_goes_on_writes_more_than_was_counted(node: FakeNode, records: int) -> None:
    living = {"records": records, "bytes": None, "seconds": 0.1, "certain": True, "alive": True}
    node.replicator.answers |= {"takeover.plan": plan(lost=living), "takeover": {"epoch": 2, "lost": living}}
    done = node.run("takeover", "app", "--force", "--yes")
    assert "Nothing is lost" not in done.out and "until it hears of the takeover is lost too" in done.out


def test_a_plan_changes_nothing(node: FakeNode) -> None:
    node.replicator.answers["takeover.plan"] = plan(allowed=False)
    done = node.run("takeover", "app", "--plan")
    assert done.code == 0 and "refused (primary-alive)" in done.out and "way out: switch" in done.out
    assert node.run("takeover", "app", "--plan", "--json").json["label"] == "primary-alive"
    assert {op for op, _ in node.replicator.calls} == {"takeover.plan"}
