"""What a relay tells those below about write times is of the history that it follows now."""

from __future__ import annotations

from replicator.capture.cutter import publish_beacon
from replicator.capture.state import OK
from replicator.journal.beacons import NOTHING, look, publish
from replicator.journal.page import ARRIVED_GEN, BEACON_GEN
from tests.testing.treeharness import CHAIN, running_tree


def test_a_relay_hands_on_what_it_was_told_until_it_is_copied_to():
    tree = running_tree(*CHAIN)
    relay, top = tree.sides["b"], tree.top
    u64 = relay.page.u64
    publish(u64, ARRIVED_GEN, relay.engine.pos, 12345)
    publish_beacon(relay.engine)
    assert look(u64, BEACON_GEN) == (relay.engine.pos, 12345)
    line = tree.lines["b"]
    line.cut()
    top.engine.bitmaps.open(top.engine.pos + 1)
    relay.engine.state.unclean = True  # so that the two meet with a copy
    line.connect()
    assert relay.engine.state.copy != OK
    assert look(u64, BEACON_GEN) == look(u64, ARRIVED_GEN) == NOTHING
