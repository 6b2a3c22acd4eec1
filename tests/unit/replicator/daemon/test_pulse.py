"""Which of the quiet links to a peer carries the heartbeat, and what becomes of the others when it ends."""

from __future__ import annotations

from replicator.daemon.link.pulse import Pulse


def test_the_first_link_carries_and_the_others_rest() -> None:
    pulse = Pulse("here")
    assert not pulse.rests("g1", "peer", lambda: None)
    assert pulse.rests("g2", "peer", lambda: None)
    assert not pulse.rests("g1", "peer", lambda: None), "it does not rest on itself"


def test_when_the_carrier_ends_the_others_are_stirred_and_one_carries_on() -> None:
    pulse = Pulse("here")
    stirred: list[str] = []
    for name in ("g1", "g2", "g3"):
        pulse.rests(name, "peer", lambda name=name: stirred.append(name))  # type: ignore[misc]
    pulse.leave("g2")
    assert stirred == []
    pulse.leave("g1")
    assert stirred == ["g3"]
    assert not pulse.rests("g3", "peer", lambda: None)
    pulse.leave("g1")
    assert stirred == ["g3"], "it had left"


def test_a_process_of_the_peer_that_is_gone_speaks_for_no_link_to_its_successor() -> None:
    pulse = Pulse("here")
    pulse.rests("old", "before", lambda: None)
    pulse.beat("before", 10.0)
    assert not pulse.rests("new", "after", lambda: None)
    pulse.beat("after", 20.0)
    assert pulse.heard("before") == 10.0 and pulse.heard("after") == 20.0


def test_what_nobody_is_linked_to_is_forgotten() -> None:
    pulse = Pulse("here")
    pulse.rests("g1", "peer", lambda: None)
    pulse.beat("peer", 10.0)
    pulse.leave("g1")
    assert pulse.heard("peer") == 0.0


def test_a_carrier_that_hears_nothing_stirs_those_that_rest() -> None:
    pulse = Pulse("here")
    stirred: list[str] = []
    for name in ("g1", "g2", "g3"):
        pulse.rests(name, "peer", lambda name=name: stirred.append(name))  # type: ignore[misc]
    pulse.fails("g2")
    assert stirred == [], "it carries nothing"
    pulse.fails("g1")
    assert stirred == ["g2", "g3"]
