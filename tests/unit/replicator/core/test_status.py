"""One word for every situation, and never a better one than the truth."""

from itertools import product
from typing import Any

import pytest

from replicator.core.conditions import CONDITIONS
from replicator.core.status import TABLE, describe, edge_status, lag_records
from replicator.core.takeover import plan_takeover
from replicator.core.transitions import State

STATUS: dict[str, Any] = {
    "name": "g", "role": "primary", "state": "ok", "mode": "journal", "pos": 20, "failed": "", "apply_error": "",
    "policy": {"mode": "async"}, "sync_on": False, "degraded": False, "todo_bytes": 0,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "session": "source", "linked": True, "link_reason": "", "split_wanted": False, "peer": "bb" * 16,
    "peer_role": "secondary", "peer_pos": 18, "acked": {"received": 18}, "contact_age_s": 0.5,
    "decision": {"label": "stream", "cause": "the link was away", "follow": "bb" * 16, "lost_records": 0},
}  # fmt: skip
BESIDE = {"node": "beta", "here": False, "with": "delta", "cause": "it holds more"}
SYNC = {"policy": {"mode": "sync"}}


def refused(label: str) -> dict[str, Any]:
    return {"session": "refused", "decision": {**FACTS["decision"], "label": label}}


@pytest.mark.parametrize(
    ("word", "status", "facts"),
    [
        ("TARGET-DOWN", None, FACTS),
        ("REPLICATOR-DOWN", STATUS, None),
        ("UNPAIRED", {**STATUS, "mode": "none"}, None),
        ("FAILED", {**STATUS, "failed": "disk x"}, FACTS),
        ("APPLY-STOPPED", {**STATUS, "role": "secondary", "apply_error": "no free area"}, FACTS),
        ("UNREADABLE", {"name": "g", "failed": "x", "unread_journal": {"role": "primary", "intact": True}}, FACTS),
        ("UNREADABLE", {"name": "g", "failed": "x", "unread_journal": {"role": "primary", "intact": False}}, None),
        ("FAILED", {"name": "g", "failed": "no state", "unread_journal": None}, FACTS),
        ("NO-JOURNAL", {**STATUS, "mode": "bitmap", "journal": {"error": "disk x"}}, FACTS),
        ("DAMAGED", {**STATUS, "role": "secondary", "damaged_at": 5, "apply_error": "CRC"}, FACTS),
        ("STOPPED", STATUS, {**FACTS, "session": "stopped"}),
        ("SPLIT-BRAIN", STATUS, {**FACTS, **refused("split-brain")}),
        ("SUPERSEDED", STATUS, {**FACTS, **refused("former-primary")}),
        ("SUPERSEDED", STATUS, {**FACTS, **refused("relay-lost-tail")}),
        ("SET-BACK", STATUS, {**FACTS, **refused("set-back")}),
        ("REFUSED", STATUS, {**FACTS, **refused("size-mismatch")}),
        ("ORPHANED", STATUS, {**FACTS, "session": "down", "linked": False, "turned_away": "no-pair"}),
        ("ESTRANGED", STATUS, {**FACTS, "session": "dialling", "linked": False, "turned_away": "stranger"}),
        ("JOURNAL-FULL", {**STATUS, "blocks_writers": True}, {**FACTS, "session": "down", "linked": False}),
        ("PAIR", {**STATUS, "blocks_writers": True}, FACTS),
        ("SWITCHING", STATUS, {**FACTS, "session": "draining"}),
        ("SPLIT", STATUS, {**FACTS, "session": "waiting", "split_wanted": True}),
        (
            "SOURCE-REFUSED",
            STATUS,
            {
                **FACTS,
                "session": "waiting",
                "decision": {"label": "no-primary", "cause": "x"},
                "refused_beside": BESIDE,
            },
        ),
        ("NO-PRIMARY", STATUS, {**FACTS, "session": "waiting", "decision": {"label": "no-primary", "cause": "x"}}),
        ("WAITING", STATUS, {**FACTS, "session": "waiting", "decision": {"label": "source-behind", "cause": "x"}}),
        ("STANDS", STATUS, {**FACTS, "session": "waiting", "decision": {"label": "stands-unclean", "cause": "x"}}),
        ("COPY", STATUS, {**FACTS, "session": "copy-source"}),
        ("COPY", STATUS, {**FACTS, "session": "extending"}),
        (
            "RECOVERING",
            {**STATUS, "role": "secondary", "state": "resync"},
            {**FACTS, "session": "down", "linked": False},
        ),
        ("TRACKING", {**STATUS, "mode": "bitmap"}, {**FACTS, "session": "down", "linked": False}),
        ("DEGRADED", {**STATUS, **SYNC, "degraded": True}, FACTS),
        ("SYNC", {**STATUS, **SYNC, "sync_on": True}, {**FACTS, "session": "sync-source"}),
        ("CATCH-UP", {**STATUS, **SYNC}, FACTS),
        ("PAIR", STATUS, FACTS),
        ("PAIR", {**STATUS, "role": "secondary"}, {**FACTS, "session": "target"}),
        ("STALLED", {**STATUS, **SYNC, "sync_on": True}, {**FACTS, "session": "down", "linked": False}),
        ("CONNECTING", STATUS, {**FACTS, "session": "hello"}),
        ("DISCONNECTED", STATUS, {**FACTS, "session": "down", "linked": False, "link_reason": "refused"}),
    ],
)
def test_the_word_for(word: str, status: dict | None, facts: dict | None):
    assert describe(status, facts)["word"] == word


def test_every_word_has_a_story_above():
    mark = test_the_word_for.pytestmark[0]
    assert {case[0] for case in mark.args[1]} == {row.word for row in TABLE}


def test_every_combination_gets_a_whole_explanation():
    roles, copies, modes, flags = (
        ("primary", "secondary"),
        ("fresh", "ok", "resync", "diverged"),
        ("none", "journal", "bitmap"),
        (False, True),
    )
    for session, role, copy, mode, sync_on, degraded, linked in product(
        State, roles, copies, modes, flags, flags, flags
    ):
        status = {**STATUS, "role": role, "state": copy, "mode": mode, "sync_on": sync_on, "degraded": degraded, **SYNC}
        shown = describe(status, {**FACTS, "session": session.value, "linked": linked})
        assert "{" not in "".join([shown["why"], shown["means"], shown["then"], *shown["commands"]])
        if shown["word"] == "SYNC":
            assert (sync_on and not degraded) or session is State.SYNC_SOURCE
        if shown["level"] == "ok":
            assert session in (State.SOURCE, State.SYNC_SOURCE, State.TARGET)
            assert not degraded and copy != "resync" and mode != "bitmap"


@pytest.mark.parametrize(
    ("label", "allowed", "forced", "status", "facts"),
    [
        ("already-primary", False, False, {"role": "primary"}, {}),
        ("no-copy", False, False, {"role": "secondary", "state": "fresh"}, {}),
        ("inconsistent", False, False, {"role": "secondary", "state": "resync"}, {}),
        ("failed", False, False, {"role": "secondary", "state": "ok", "failed": "disk"}, {}),
        ("diverged", False, True, {"role": "secondary", "state": "diverged"}, {}),
        ("primary-alive", False, True, {"role": "secondary", "state": "ok"}, {"linked": True, "peer_role": "primary"}),
        ("clean", True, True, {"role": "secondary", "state": "ok"}, {"linked": False, "peer_role": "primary"}),
    ],
)
def test_takeover(label: str, allowed: bool, forced: bool, status: dict, facts: dict):
    plan = plan_takeover(status, facts, force=False)
    assert (plan.label, plan.allowed, plan_takeover(status, facts, force=True).allowed) == (label, allowed, forced)
    assert plan.message and (plan.allowed or plan.way_out)


def test_a_takeover_says_how_many_records_are_missing():
    plan = plan_takeover(
        {"role": "secondary", "state": "ok", "pos": 7}, {"peer_pos": 12, "contact_age_s": 3.2}, force=False
    )
    assert "at least 5 records" in plan.message and "3.2 s" in plan.message


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"on_loss": "stall", "loss_timeout_s": 5.0}, "a write waits 5 s for it; then writes fail"),
        ({"on_loss": "degrade", "loss_timeout_s": 2.5}, "a write waits 2.5 s for it; then writes go on here alone"),
        ({"on_loss": "degrade", "loss_timeout_s": 0.0}, "however long it takes"),
    ],
)
def test_what_writers_of_a_stalled_group_wait_for(policy: dict, text: str):
    status = {**STATUS, "policy": {"mode": "sync", **policy}, "sync_on": True}
    shown = describe(status, {**FACTS, "session": "down", "linked": False, "link_reason": "cable"})
    assert text in shown["means"] and "cable" in shown["why"]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"on_full": "fail", "full_timeout_s": 10.0}, "writes of hosts fail, also where other peers"),
        ({"on_full": "stall", "full_timeout_s": 2.5}, "wait 2.5 s for room, and fail then"),
        ({"on_full": "stall", "full_timeout_s": 0.0}, "however long it takes"),
    ],
)
def test_who_keeps_the_journal_full_is_named_and_what_writers_do(policy: dict, text: str):
    status = {**STATUS, "policy": {"mode": "async", **policy}, "blocks_writers": True}
    shown = describe(status, {**FACTS, "session": "down", "linked": False, "link_reason": "cable", "peer_name": "B"})
    assert text in shown["means"] and "what B lacks" in shown["why"] and "cable" in shown["why"]


def test_a_peer_that_was_not_asked_for_its_position_is_not_taken_to_have_nothing():
    told = {**FACTS, "linked": True, "acked": {"received": 0}}
    assert lag_records({**STATUS, "role": "primary", "pos": 40}, {**told, "session": "refused"}) is None
    assert lag_records({**STATUS, "role": "primary", "pos": 40}, {**told, "session": "source"}) == 40


def test_commands_name_the_peer_for_a_group_may_have_several():
    shown = describe({**STATUS, **SYNC}, {**FACTS, "session": "refused", "peer_name": "B"})
    assert any(command.startswith("farstripe pair ") for command in shown["commands"])
    assert all(f" {STATUS['name']} B" in one for one in shown["commands"] if one.startswith("farstripe pair "))


def test_no_link_is_promised_where_none_will_come():
    away = {**FACTS, "session": "down", "linked": False, "peer_name": "B", "turned_away": "no-pair"}
    shown = describe({**STATUS, **SYNC, "sync_on": True}, away)
    assert shown["word"] == "ORPHANED" and "farstripe pair delete g B --local-only" in shown["commands"]
    shown = describe(STATUS, {**away, "turned_away": "stranger", "link_reason": "B does not know this node"})
    assert "B does not know this node" in shown["why"] and "farstripe peer delete B" in shown["commands"]


def test_states_that_pass_by_themselves_need_no_operator():
    passing = {"COPY", "CATCH-UP", "CONNECTING", "DISCONNECTED", "SWITCHING", "RECOVERING", "STALLED", "TARGET-DOWN"}
    assert not passing & {row.word for row in TABLE if row.operator}
    assert {"SPLIT", "SPLIT-BRAIN", "SUPERSEDED", "REFUSED", "STOPPED"} < {row.word for row in TABLE if row.operator}


def test_why_an_older_link_ended_is_no_reason_while_one_is_up():
    status = {**STATUS, **SYNC, "degraded": True}
    shown = describe(status, {**FACTS, "session": "source", "linked": True, "link_reason": "cable"})
    assert shown["word"] == "DEGRADED" and "cable" not in shown["why"]


def test_a_journal_that_could_not_be_read_is_given_up_by_force_only_where_it_may_be_needed():
    told = {
        intact: describe(
            {"name": "g", "failed": "gone", "unread_journal": {"role": "primary", "intact": intact}}, FACTS
        )
        for intact in (True, False)
    }
    assert told[True]["commands"][0] == "farstripe group journal replace g"
    assert "every write that was answered" in told[True]["means"]
    assert told[False]["commands"][0] == "farstripe group journal replace g --force"
    assert "take over on" in told[False]["then"] and "gone" in told[False]["why"]


def test_a_node_below_one_that_is_refused_is_told_by_whom_and_why():
    waits = {**FACTS, "session": "waiting", "decision": {"label": "no-primary", "cause": "x"}, "peer_name": "beta"}
    below = describe(STATUS, {**waits, "refused_beside": BESIDE})
    assert below["why"] == "beta, which would feed this node, and delta do not go together: it holds more"
    assert below["commands"] == ["farstripe explain g  (on beta)"]
    here = describe(STATUS, {**waits, "refused_beside": {**BESIDE, "here": True}})
    assert here["why"].startswith("this node and delta") and here["commands"] == ["farstripe explain g"]


def test_a_copy_that_hears_nothing_is_told_what_a_takeover_would_cost():
    alone = {**FACTS, "session": "down", "linked": False, "peer_pos": 30, "contact_age_s": 12.0, "peer": "ab"}
    copy = {**STATUS, "role": "secondary", "upstream": "ab"}
    told = describe(copy, alone)
    assert told["word"] == "DISCONNECTED" and told["commands"][-1] == "farstripe takeover g --plan"
    assert "at least 10 records" in told["then"] and "12.0 s" in told["then"]
    for status in (STATUS, {**copy, "upstream": "cd"}, {**copy, "state": "diverged"}):
        assert "take over" not in describe(status, alone)["then"]
        assert "" not in describe(status, alone)["commands"]


def test_of_a_group_with_several_pairs_each_is_told_how_far_its_peer_is_behind() -> None:
    edge = {"slot": 0, "mode": "async", "linked": True, "received": 7, "durable": 7, "applied": 7, "upstream": False}
    behind = {"writes": 13, "bytes": 1300, "seconds": 2.0}
    edges = [{**edge, "peer": "b", "behind": None}, {**edge, "peer": "c", "slot": 1, "behind": behind}]
    whole = {**STATUS, "edges": edges, "behind": None, "peer": {"received": 5}}
    found = edge_status(whole, "c")
    assert found is not None and found["behind"] == behind and found["peer"]["received"] == 7


WRITERS = {"waits": False, "fails": False, "what": "room", "peer": FACTS["peer"], "since_s": 9.0, "failed": 0}


@pytest.mark.parametrize(
    ("label", "level", "status", "facts"),
    [
        ("WRITERS-WAIT-FULL", "bad", {"writers": {**WRITERS, "waits": True}}, {}),
        ("WRITES-FAIL-FULL", "bad", {"writers": {**WRITERS, "fails": True}}, {}),
        ("WRITERS-WAIT-UNANSWERED", "bad", {"writers": {**WRITERS, "what": "peer", "waits": True}}, {}),
        ("WRITES-FAIL-UNANSWERED", "bad", {"writers": {**WRITERS, "what": "peer", "fails": True}}, {}),
        ("STANDS-AT-A-MARKER", "busy", {}, {"peer_stands": 12}),
        ("STANDS-AT-A-MARKER", "busy", {"role": "secondary", "limit_seq": 12}, {"session": "target"}),
        ("COPY-JOURNAL-FULL", "warn", {}, {"peer_full_s": 3}),
        ("COPY-JOURNAL-FULL", "warn", {"role": "secondary"}, {"session": "target", "full_s": 2.5}),
    ],
)
def test_what_is_said_besides_the_word(label: str, level: str, status: dict, facts: dict):
    found = describe({**STATUS, **status}, {**FACTS, **facts})
    assert found["word"] == "PAIR" and found["level"] == level
    assert [one["label"] for one in found["conditions"]] == [label]
    assert "{" not in str([one["text"] + one["then"] for one in found["conditions"]])


def test_every_condition_has_a_story_above():
    mark = test_what_is_said_besides_the_word.pytestmark[0]
    assert {case[0] for case in mark.args[1]} == {row.label for row in CONDITIONS}


def test_a_copy_that_stands_is_resumed_where_it_is():
    full = {"peer_stands": 12, "peer_full_s": 3, "peer_name": "B"}
    there = describe(STATUS, {**FACTS, **full})["conditions"]
    assert all(one["commands"][0] == "farstripe marker resume --groups g  (on B)" for one in there) and len(there) == 2
    here = describe({**STATUS, "role": "secondary", "limit_seq": 12}, {**FACTS, "session": "target", "full_s": 3})
    assert {one["commands"][0] for one in here["conditions"]} == {"farstripe marker resume --groups g"}


DOWN = {**FACTS, "session": "down", "linked": False, "link_reason": "x"}


@pytest.mark.parametrize(
    ("word", "status", "facts"),
    [
        ("STANDS", {}, {**FACTS, "session": "waiting", "peer_stands": 12, "decision": {"label": "stands-parted"}}),
        ("STALLED", {**SYNC, "sync_on": True, "writers": {**WRITERS, "what": "peer", "waits": True}}, DOWN),
        ("JOURNAL-FULL", {"blocks_writers": True, "writers": {**WRITERS, "waits": True}}, DOWN),
    ],
)
def test_what_the_word_says_is_not_said_again(word: str, status: dict, facts: dict):
    found = describe({**STATUS, **status}, facts)
    assert (found["word"], found["conditions"]) == (word, [])


def test_a_copy_that_keeps_the_journal_full_is_not_called_away():
    full = {**STATUS, "blocks_writers": True, "writers": {**WRITERS, "waits": True}}
    found = describe(full, {**FACTS, "session": "copy-source"})
    assert found["word"] == "COPY" and [one["label"] for one in found["conditions"]] == ["WRITERS-WAIT-FULL"]


def test_what_writers_wait_for_is_said_by_the_policy_for_a_peer_that_is_away_also_while_nobody_ships():
    policy = {"on_full": "stall", "full_timeout_s": 30.0}
    status = {**STATUS, "writers": {**WRITERS, "waits": True}, "policy": policy}
    assert "30 s at most, then it fails" in describe(status, None)["conditions"][0]["text"]


def test_nothing_is_said_besides_of_a_pair_that_is_well_and_of_another_pairs_trouble():
    assert describe(STATUS, {**FACTS, "full_s": 0.0, "peer_full_s": 1})["conditions"] == []
    other = {**STATUS, "writers": {**WRITERS, "waits": True, "peer": "cc" * 16}}
    assert describe(other, FACTS)["level"] == "ok"


@pytest.mark.parametrize(
    ("policy", "sync_on", "text"),
    [
        ({"on_full": "bitmap", "full_timeout_s": 30.0}, False, "30 s at most, then the peer is given up"),
        ({"on_full": "bitmap", "full_timeout_s": 30.0, "on_loss": "stall"}, True, "30 s at most, then it fails"),
        ({"on_full": "stall", "full_timeout_s": 30.0}, False, "however long it takes"),
        ({"on_full": "fail", "full_timeout_s": 30.0}, False, "they fail"),
    ],
)
def test_what_writers_wait_for_while_a_connected_peer_is_too_slow(policy: dict, sync_on: bool, text: str):
    status = {**STATUS, "writers": {**WRITERS, "waits": True}, "policy": policy, "sync_on": sync_on}
    assert text in describe(status, FACTS)["conditions"][0]["text"]
