"""Pair operations between two replicators over a real connection; the targets are stand-ins."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from replicator.core.errors import (
    AlreadyExists,
    BadInput,
    DaemonNotRunning,
    FarstripeError,
    MediumError,
    NotFound,
    Refused,
    TimedOut,
)
from replicator.daemon import ops_remote
from tests.unit.replicator.daemon.conftest import InProcess

Two = tuple[InProcess, InProcess]
UUID = "12" * 16


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that waits to be called does not wait long before it asks; to be requested before the pair."""
    monkeypatch.setattr("replicator.daemon.pairs.INQUIRE_EVERY_S", 0.2)


@pytest.fixture
def paired(joined: Two) -> Two:
    a, b = joined
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta", mode="sync", ack="durable", compress=3)
    return a, b


def test_create_makes_the_pair_on_both_nodes_with_one_policy(paired: Two) -> None:
    a, b = paired
    assert a.target.groups[UUID]["policy"] == b.target.groups[UUID]["policy"] == {"mode": "sync", "ack": "durable"}
    assert b.target.groups[UUID]["role"] == "secondary"
    assert [args["peer"] for op, args in a.target.asked if op == "group.arm"] == [b.node_id]
    assert [args["upstream"] for op, args in b.target.asked if op == "group.arm"] == [True]
    for node, other in ((a, "beta"), (b, "alpha")):
        [pair] = node.call("pair.list")
        assert (pair["name"], pair["peer_name"], pair["transfer"]["compress"]) == ("app", other, 3)
    adopted = next(args for op, args in b.target.asked if op == "group.adopt")
    assert adopted["volumes"] == [{"name": "v0", "size": 1 << 20, "index": 0, "born": 0}]
    assert adopted["journal_bytes"] == (1 << 20) + 8192


def test_the_two_replicators_find_each_other_and_agree(paired: Two) -> None:
    a, b = paired
    assert until(
        lambda: a.call("pair.show", group="app")["connected"] and b.call("pair.show", group="app")["connected"]
    )
    assert until(lambda: a.call("pair.show", group="app")["facts"]["decision"])
    assert a.call("pair.show", group="app")["facts"]["decision"]["label"] == "full-fresh"


def test_a_pair_is_found_again_after_a_restart(paired: Two) -> None:
    a, b = paired
    for node in (a, b):
        node.stop()
        node.start()
    assert until(lambda: a.call("pair.show", group="app")["connected"])
    assert b.call("pair.show", group=UUID)["name"] == "app"


def test_a_group_has_one_pair(paired: Two) -> None:
    a, b = paired
    with pytest.raises(AlreadyExists, match="paired with beta already"):
        a.call("pair.create", group="app", peer="beta")
    with pytest.raises(AlreadyExists):
        b.call("pair.create", group="app", peer="alpha")


def test_a_pair_is_created_on_the_primary(joined: Two) -> None:
    a, _ = joined
    a.target.add_group(UUID, "app", "secondary")
    with pytest.raises(Refused, match="secondary here"):
        a.call("pair.create", group="app", peer="beta")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"group": "nope", "peer": "beta"}, NotFound),
        ({"group": "app", "peer": "nobody"}, NotFound),
        ({"group": "app"}, BadInput),
        ({"group": "app", "peer": "beta", "compress": 99}, BadInput),
    ],
)
def test_bad_arguments_change_nothing(joined: Two, args: dict[str, Any], error: type[FarstripeError]) -> None:
    a, b = joined
    a.target.add_group(UUID, "app")
    with pytest.raises(error):
        a.call("pair.create", **args)
    assert a.call("pair.list") == b.call("pair.list") == []
    assert "group.arm" not in a.target.ops() and b.target.groups == {}


def test_data_at_the_peer_is_not_overwritten_unasked(joined: Two) -> None:
    a, b = joined
    a.target.add_group(UUID, "app")
    b.target.volumes = [{"name": "v0", "size": 1 << 20, "allocated": 4096, "group": None}]
    with pytest.raises(Refused, match="v0 exists on beta and holds data"):
        a.call("pair.create", group="app", peer="beta")
    assert b.target.groups == {} and a.call("pair.list") == []
    a.call("pair.create", group="app", peer="beta", overwrite=True)


def test_what_the_peers_target_refuses_is_passed_on_and_taken_back(joined: Two) -> None:
    a, b = joined
    a.target.add_group(UUID, "app", policy={"mode": "async"})
    b.target.fail["group.adopt"] = BadInput("volume v0 has 1 byte here", "make the sizes equal")
    with pytest.raises(BadInput, match="on beta: volume v0 has 1 byte here") as caught:
        a.call("pair.create", group="app", peer="beta", mode="sync")
    assert caught.value.way_out == "make the sizes equal"
    assert a.target.groups[UUID]["policy"]["mode"] == "async"
    del b.target.fail["group.adopt"]
    b.target.fail["group.policy"] = BadInput("no such policy")
    with pytest.raises(BadInput, match="no such policy"):
        a.call("pair.create", group="app", peer="beta")
    assert b.target.groups == {} and b.call("pair.list") == []


def test_a_failure_here_after_the_peer_adopted_is_undone_there(joined: Two) -> None:
    a, b = joined
    a.target.add_group(UUID, "app")
    a.target.fail["group.arm"] = MediumError("the journal cannot be written")
    with pytest.raises(MediumError):
        a.call("pair.create", group="app", peer="beta")
    assert b.target.groups == {} and b.call("pair.list") == a.call("pair.list") == []


def test_create_with_a_dead_peer_or_a_dead_target_says_which(joined: Two) -> None:
    a, b = joined
    a.target.add_group(UUID, "app")
    b.target.server.stop()
    with pytest.raises(DaemonNotRunning, match=r"target\.sock"):
        a.call("pair.create", group="app", peer="beta")
    b.stop()
    with pytest.raises(FarstripeError, match="beta cannot be reached"):
        a.call("pair.create", group="app", peer="beta")
    assert a.call("pair.list") == []


def test_delete_ends_both_halves(paired: Two) -> None:
    a, b = paired
    assert a.call("pair.delete", group="app") == {"peer_note": ""}
    assert a.call("pair.list") == b.call("pair.list") == []
    assert "group.disarm" in a.target.ops() and "group.disarm" in b.target.ops()
    with pytest.raises(NotFound, match="has no pair"):
        a.call("pair.show", group="app")


def test_delete_without_the_peer_says_that_its_half_remains(paired: Two) -> None:
    a, b = paired
    b.stop()
    assert "beta still has its half" in a.call("pair.delete", group="app")["peer_note"]
    b.start()
    assert [pair["name"] for pair in b.call("pair.list")] == ["app"]
    assert b.call("pair.delete", group="app")["peer_note"] == "alpha had no such pair any more"
    assert b.call("pair.list") == []


def roles_of_dialling(one: InProcess, other: InProcess) -> tuple[InProcess, InProcess]:
    """(the node that makes the connections, the one that waits to be called)"""
    return (one, other) if one.node_id < other.node_id else (other, one)


@pytest.mark.parametrize("remains", ["dials", "waits"])
def test_a_half_whose_peer_deleted_the_pair_says_so(asks_often: None, paired: Two, remains: str) -> None:
    dials, waits = roles_of_dialling(*paired)
    left, gone = (dials, waits) if remains == "dials" else (waits, dials)
    assert until(lambda: left.call("pair.show", group="app")["connected"])
    gone.call("pair.delete", group="app", local_only=True)
    assert until(lambda: left.call("pair.show", group="app")["word"] == "ORPHANED")
    shown = left.call("explain", group="app")
    assert gone.name in shown["why"] and f"farstripe pair delete app {gone.name} --local-only" in shown["commands"]
    assert f"{gone.name} has no pair of group app" in shown["pair"]["facts"]["link_reason"]
    gone.stop()
    assert until(lambda: left.call("pair.show", group="app")["word"] == "DISCONNECTED")


@pytest.mark.parametrize("remains", ["dials", "waits"])
def test_a_half_whose_peer_does_not_know_this_node_says_so(asks_often: None, paired: Two, remains: str) -> None:
    dials, waits = roles_of_dialling(*paired)
    left, gone = (dials, waits) if remains == "dials" else (waits, dials)
    gone.call("pair.delete", group="app", local_only=True)
    gone.call("peer.delete", peer=left.name)
    assert until(lambda: left.call("pair.show", group="app")["word"] == "ESTRANGED")
    shown = left.call("explain", group="app")
    assert "certificate" in shown["why"] and f"farstripe peer delete {gone.name}" in shown["commands"]


def test_a_split_that_cannot_be_stored_names_the_disk(paired: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = paired
    assert until(lambda: a.call("pair.show", group="app")["connected"])

    def full(_path: object, _value: object) -> None:
        raise MediumError("pairs/app.json cannot be written: No space left on device")

    monkeypatch.setattr("replicator.daemon.pairstore.write_json", full)
    with pytest.raises(MediumError, match="No space"):
        a.call("pair.split", group="app")
    assert "pair.internal" in a.events()


def test_status_does_not_wait_for_a_target_that_hangs(paired: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = paired
    monkeypatch.setattr("replicator.daemon.pairview.STATUS_TARGET_S", 0.2)
    a.target.delay_s = 1.0
    began = time.monotonic()
    assert a.call("status")["pairs"][0]["word"] == "TARGET-DOWN"
    assert time.monotonic() - began < 0.9


def test_split_is_remembered_and_resync_takes_it_back(paired: Two) -> None:
    a, b = paired
    a.call("pair.split", group="app")
    a.stop()
    a.start()
    assert until(lambda: a.call("pair.show", group="app")["word"] == "SPLIT")
    assert a.call("explain", group="app")["commands"] == ["farstripe pair resync app beta"]
    a.call("pair.resync", group="app")
    assert until(
        lambda: not a.call("pair.show", group="app")["split"] and not b.call("pair.show", group="app")["split"]
    )


def test_resync_refuses_to_discard_a_stranger(paired: Two) -> None:
    with pytest.raises(NotFound, match="no peer 'gamma'"):
        paired[0].call("pair.resync", group="app", discard="gamma")


def test_wait_times_out_and_says_what_is(paired: Two) -> None:
    with pytest.raises(TimedOut, match="not sync, after"):
        paired[0].call("pair.wait", group="app", state="sync", timeout_s=0.3)
    assert paired[0].call("pair.wait", group="app", state="primary", timeout_s=5)["role"] == "primary"
    with pytest.raises(BadInput, match="'sink'"):  # no state of that name comes, however long one waits
        paired[0].call("pair.wait", group="app", state="sink", timeout_s=60)


def test_wait_accepts_the_words_of_status(paired: Two) -> None:
    a, _ = paired
    a.call("pair.split", group="app")
    assert a.call("pair.wait", group="app", state="split", timeout_s=5)["word"] == "SPLIT"


def test_status_shows_everything_also_without_a_target(paired: Two) -> None:
    a, _ = paired
    assert [pair["name"] for pair in a.call("status")["pairs"]] == ["app"]
    a.target.server.stop()
    status = a.call("status")
    assert status["pairs"][0]["word"] == "TARGET-DOWN"
    assert status["node"]["name"] == "alpha" and status["peers"][0]["pairs"] == ["app"]


# -- roles ------------------------------------------------------------------------------------------------------------


def test_switchover_is_refused_where_there_is_nothing_to_switch(paired: Two) -> None:
    with pytest.raises(Refused):
        paired[0].call("switchover", group="app")
    with pytest.raises(Refused):  # asked on the secondary, the primary answers
        paired[1].call("switchover", group="app")


def test_takeover_asks_a_living_primary_and_is_refused(paired: Two) -> None:
    a, b = paired
    b.target.groups[UUID] |= {"state": "ok", "pos": 7}
    a.target.groups[UUID] |= {"pos": 10}
    with pytest.raises(Refused, match="alive"):
        b.call("takeover", group="app")
    plan = b.call("takeover.plan", group="app")
    assert plan["label"] == "primary-alive" and not plan["allowed"]
    assert plan["lost"]["records"] == 3 and plan["lost"]["certain"] and plan["lost"]["alive"]
    assert plan["lost"]["bytes"] is None  # all was sent and nothing has arrived: that is not 0 bytes
    assert "group.promote" not in b.target.ops()


def test_takeover_with_force_abandons_a_living_primary(paired: Two) -> None:
    b = paired[1]
    b.target.groups[UUID] |= {"state": "ok", "pos": 7}
    told = b.call("takeover", group="app", force=True)
    assert told["label"] == "primary-alive"
    assert "group.promote" in b.target.ops()


def test_takeover_needs_no_force_when_the_primary_is_gone(paired: Two) -> None:
    a, b = paired
    b.target.groups[UUID] |= {"state": "ok", "pos": 7}
    a.stop()
    told = b.call("takeover", group="app")
    assert told["label"] == "clean" and not told["lost"]["certain"]


def test_takeover_needs_no_force_when_only_the_primarys_replicator_is_left(paired: Two) -> None:
    a, b = paired
    b.target.groups[UUID] |= {"state": "ok", "pos": 7}
    a.target.server.stop()
    assert b.call("takeover", group="app")["label"] == "clean"


@pytest.mark.parametrize("state", ["fresh", "resync"])
def test_no_force_makes_an_incomplete_copy_primary(paired: Two, state: str) -> None:
    a, b = paired
    a.stop()
    b.target.groups[UUID] |= {"state": state}
    with pytest.raises(Refused):
        b.call("takeover", group="app", force=True)
    assert "group.promote" not in b.target.ops()


# -- what a peer may ask -----------------------------------------------------------------------------------------------


def test_a_peer_may_not_touch_pairs_of_others(paired: Two, make_node: Callable[[str], InProcess]) -> None:
    a, b = paired
    gamma = make_node("gamma")
    gamma.call("peer.join", token=a.call("peer.token")["token"])
    assert gamma.replicator is not None
    node = gamma.replicator.node
    alpha = node.peers.find("alpha")
    for op in ("pair.forget", "pair.peek", "pair.switchover"):
        with pytest.raises(NotFound, match="no pair with gamma"):
            node.call(alpha, op, group=UUID)
    with pytest.raises(AlreadyExists, match="paired with beta"):
        node.call(
            alpha, "pair.adopt", group=UUID, name="app", volumes=[], journal_bytes=1 << 20, policy={}, overwrite=True
        )
    with pytest.raises(NotFound, match="knows no operation"):
        node.call(alpha, "node.stop")
    assert b.call("pair.list")


def test_a_peer_may_not_adopt_over_a_primary_of_ours(joined: Two) -> None:
    a, b = joined
    b.target.add_group(UUID, "app", "primary")
    a.target.add_group(UUID, "app")
    with pytest.raises(Refused, match="data of its own"):
        a.call("pair.create", group="app", peer="beta", overwrite=True)
    assert b.target.groups[UUID]["role"] == "primary"


def test_every_remote_operation_is_documented(joined: Two) -> None:
    a, _ = joined
    assert a.replicator is not None and ops_remote.__doc__ is not None
    for op in ops_remote.handlers(a.replicator.node):
        assert f"    {op} {{" in ops_remote.__doc__
