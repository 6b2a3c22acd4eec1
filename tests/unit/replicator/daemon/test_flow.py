"""Flow says when nothing of the group has changed for some seconds: what ends that is seen at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from replicator.daemon.link.flow import QUIET_S, STIR_LOOK_S, Flow
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.journal.page import HEAD_SEQ, SLOTS


def make_flow() -> tuple[Flow, list[int]]:
    page = [0] * SLOTS
    flow = Flow(lambda: cast(GroupFiles, None))
    flow.files = cast(GroupFiles, SimpleNamespace(u64=page))
    return flow, page


def test_without_records_flowing_there_is_no_quiet() -> None:
    assert not Flow(lambda: cast(GroupFiles, None)).quiet(1000.0)


def test_it_is_quiet_once_nothing_has_changed_for_some_seconds() -> None:
    flow, page = make_flow()
    page[HEAD_SEQ] = 1
    assert not flow.quiet(10.0)
    assert not flow.quiet(10.0 + QUIET_S - 0.001)
    assert flow.quiet(10.0 + QUIET_S)


def test_a_change_ends_the_quiet_at_the_next_look() -> None:
    flow, page = make_flow()
    assert not flow.quiet(10.0)
    assert flow.quiet(20.0)
    page[HEAD_SEQ] = 1
    assert not flow.quiet(20.0)
    assert not flow.quiet(20.0 + QUIET_S - 0.001)
    assert flow.quiet(20.0 + QUIET_S)


def test_what_changes_all_the_time_is_never_quiet() -> None:
    flow, page = make_flow()
    now = 10.0
    while now < 10.0 + 3 * QUIET_S:
        page[HEAD_SEQ] += 1
        assert not flow.quiet(now)
        now += STIR_LOOK_S / 3
