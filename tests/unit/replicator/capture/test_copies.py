"""Copies that run at the same time, and copies through a secondary: one list, one SYNCED."""

from __future__ import annotations

import pytest

from replicator.capture import copier, copies, edges, follower, roles
from replicator.capture.bitmaps import TODO
from replicator.capture.state import OK, RESYNC
from replicator.core.errors import BadInput, Refused
from replicator.journal.page import INCARNATION
from tests.testing.treeharness import CHAIN, FAN, Line, Tree, running_tree


@pytest.fixture
def fan() -> Tree:
    return running_tree(*FAN)


@pytest.fixture
def chain() -> Tree:
    return running_tree(*CHAIN)


def drop(tree: Tree, lower: str) -> None:
    """Give up the journal for a node, which so has to be copied to."""
    line = tree.lines[lower]
    line.cut()
    edges.drop(line.a.engine, [line.a.edge(line.b)])


def forget_old_bitmaps(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copy marked every block; from here on few are."""
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 1)
    for _ in range(2):
        copier.rotate_bitmaps(tree.top.engine)
        tree.settle()
    assert len(tree.top.engine.state.bitmaps) == 1


def test_a_second_copy_joins_the_first_and_nobody_notices(fan: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_old_bitmaps(fan, monkeypatch)
    a, b, c = fan.sides.values()
    drop(fan, "b")
    drop(fan, "c")
    a.write(70 << 10, 1)
    assert fan.lines["b"].connect()
    before, incarnation = a.engine.bitmaps.todo_blocks(), a.page[INCARNATION]
    a.write(140 << 10, 2)
    assert fan.lines["c"].connect()
    assert a.engine.bitmaps.todo_blocks() > before and a.page[INCARNATION] == incarnation
    assert fan.lines["b"].up and a.edge(b).copying and a.edge(c).copying
    fan.settle()
    assert a.edge(b).synced_seq == a.edge(c).synced_seq == a.engine.state.synced_seq > 0


def test_a_copy_begun_anew_alone_gives_up_its_former_list_before_it_changes(fan: Tree) -> None:
    a, b, _c = fan.sides.values()
    drop(fan, "b")
    a.write(70 << 10, 1)
    fan.lines["b"].connect()
    old = a.edge(b).copy_id
    seen: list[str] = []
    real = a.engine.bitmaps.maps[0].clear_all
    a.engine.bitmaps.maps[0].clear_all = lambda bits: (seen.append(a.edge(b).copy_id), real(bits))  # type: ignore[method-assign]
    copies.begin_copy(a.engine, a.edge(b), None, None, "new")
    assert old and seen == [""]


def test_a_copy_begun_anew_beside_another_keeps_the_others_blocks(fan: Tree) -> None:
    a, b, _c = fan.sides.values()
    for name, offset in (("b", 70 << 10), ("c", 140 << 10)):
        drop(fan, name)
        a.write(offset, 1)
    fan.lines["b"].connect()
    fan.lines["c"].connect()
    wanted = a.engine.bitmaps.maps[0].packed(TODO)
    position = fan.sides["b"].engine.pos
    bitmaps = {i: bytes((m.blocks + 7) // 8) for i, m in enumerate(a.engine.bitmaps.maps)}
    copies.begin_copy(a.engine, a.edge(b), position, bitmaps, "again")
    left = a.engine.bitmaps.maps[0].packed(TODO)
    assert all(x & y == x for x, y in zip(wanted, left, strict=True))
    fan.settle()


def test_a_peer_that_streams_sees_nothing_of_a_copy_to_another(fan: Tree) -> None:
    a, b, _c = fan.sides.values()
    drop(fan, "c")
    a.write(70 << 10, 1)
    fan.lines["b"].step()
    fan.lines["c"].connect()
    while a.engine.state.copying:
        copier.copy_some(a.engine)
        fan.lines["b"].step()
        follower.checkpoint(a.engine)
    assert fan.lines["b"].up and b.engine.state.copy == OK and b.image() == a.image()
    fan.settle()


def test_a_peer_that_is_away_does_not_hold_up_a_copy_to_another(fan: Tree) -> None:
    a, _c = fan.top, fan.sides["c"]
    drop(fan, "c")
    fan.lines["b"].cut()
    while a.engine.journal.room_for(a.engine.journal.capacity * 5 // 12):
        a.write(0, 1, length=64 << 10)
    assert fan.lines["c"].connect()
    assert copier.may_copy(a.engine)
    a.write(0, 2)
    assert copier.may_copy(a.engine), "b is away: the journal fills up for it as it does by writes"


# -- through a secondary --------------------------------------------------------------------------------------------


def test_a_node_below_a_secondary_is_copied_to_through_the_primarys_list(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    drop(chain, "c")
    a.write(70 << 10, 7)
    chain.lines["b"].step()
    assert chain.lines["c"].connect()
    assert c.engine.state.copy == RESYNC and b.edge(c).copying and a.engine.state.extended
    assert a.engine.bitmaps.maps[0].bytes[1] & TODO
    chain.settle()
    assert not b.edge(c).copying and not a.engine.state.extended
    assert b.engine.state.copy == OK, "the node between never lost its consistent image"


def test_a_synced_record_from_before_the_blocks_were_listed_ends_nothing(chain: Tree) -> None:
    """The middle node's journal may hold the SYNCED of an earlier copy when it pins its head."""
    a, b, c = chain.sides.values()
    drop(chain, "c")
    edge = b.edge(c)
    offer = copies.pin_copy(b.engine, edge, None, None, "x")
    copies.begin_copy(a.engine, a.edge(b), None, None, "other")
    while a.engine.state.copying:  # ends before the blocks of x are on the list
        copier.copy_some(a.engine)
        follower.checkpoint(a.engine)
        chain.lines["b"].step()
    assert edge.copying
    until = copies.extend_copy(a.engine, "x", None)
    assert copies.copy_until(b.engine, edge, "x", until["seq"], until["epoch"]) == {"copying": True}
    roles.attach(
        c.engine, c.edge(b), offer["p"], None, offer["epoch"], offer["hist"], {}, "x", True,
        until["seq"], until["epoch"],
    )  # fmt: skip
    edges.set_link(b.engine, edge, True)
    chain.lines["c"]._marks = chain.lines["c"]._now()
    chain.lines["c"].step()
    assert c.engine.state.copy == RESYNC, "it has applied a SYNCED, but not the one it waits for"
    chain.settle()


def test_a_copy_that_ended_before_the_node_between_was_told_counts_as_ended(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    drop(chain, "c")
    edge = b.edge(c)
    copies.pin_copy(b.engine, edge, None, None, "x")
    until = copies.extend_copy(a.engine, "x", None)
    while a.engine.state.copying:
        copier.copy_some(a.engine)
        follower.checkpoint(a.engine)
        chain.lines["b"].step()
    assert edge.copying, "which SYNCED it was, it does not know yet"
    assert copies.copy_until(b.engine, edge, "x", until["seq"], until["epoch"]) == {"copying": False}
    assert edge.synced_seq > until["seq"]


def test_a_new_epoch_makes_a_copy_void_that_the_primary_no_longer_knows(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    drop(chain, "c")
    a.write(70 << 10, 7)
    chain.lines["b"].step()
    chain.lines["c"].connect()
    first = c.engine.state.copy_id
    roles.demote(a.engine, False, a.engine.pos)
    assert not a.engine.state.extended
    follower.apply_all(b.engine)
    roles.promote(a.engine)
    chain.lines["b"].connect()
    chain.lines["b"].step()
    assert not b.edge(c).copying and b.edge(c).copy_id == ""
    chain.lines["c"].connect()
    assert c.engine.state.copy_id not in ("", first)
    chain.settle()
    assert c.image() == a.image()


def test_a_copy_at_its_target_is_void_once_an_epoch_comes_behind_its_list(chain: Tree) -> None:
    """Its line may carry records on while the node between does not look: it must not take a foreign SYNCED for its
    own."""
    a, b, c = chain.sides.values()
    drop(chain, "c")
    a.write(70 << 10, 7)
    chain.lines["b"].step()
    chain.lines["c"].connect()
    a.engine.state.extended.clear()  # power loss, or another primary
    a.engine.state.new_epoch_wanted = True
    a.write(0, 1)
    a.engine.append_control(10)  # SYNCED
    chain.lines["b"].step()
    chain.lines["b"].ship(b, c)
    incarnation = c.page[INCARNATION]
    follower.apply_all(c.engine)
    assert c.engine.state.copy == RESYNC and c.engine.state.copy_id == ""
    assert c.page[INCARNATION] > incarnation, "the link is made anew"


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_list_of_others_outlives_a_kill(chain: Tree, victim: str) -> None:
    a, b, c = chain.sides.values()
    drop(chain, "c")
    a.write(70 << 10, 7)
    chain.lines["b"].step()
    chain.lines["c"].connect()
    copy = c.engine.state.copy_id
    chain.sides[victim].kill()
    chain.sides[victim].start()
    assert a.engine.state.extended and b.edge(c).copying
    chain.lines["b"].connect()
    chain.lines["c"].connect()
    assert c.engine.state.copy_id == copy, "it goes on where it was"
    chain.settle()


def test_what_cannot_be_copied_through_is_refused(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    with pytest.raises(Refused, match="primary"):
        copies.pin_copy(a.engine, a.edge(b), None, None, "x")
    with pytest.raises(Refused, match="secondary"):
        copies.extend_copy(b.engine, "x", None)
    with pytest.raises(BadInput, match="bitmap"):
        copies.extend_copy(a.engine, "x", {0: b""})
    with pytest.raises(Refused, match="not under way"):
        copies.copy_until(b.engine, b.edge(c), "nobody's", 5, 1)
    roles.overflow(a.engine)
    with pytest.raises(Refused, match="journal"):
        copies.extend_copy(a.engine, "x", None)


def test_copies_that_never_end_do_not_outgrow_the_state(chain: Tree) -> None:
    a = chain.top.engine
    for n in range(copies.MAX_EXTENDED + 5):
        copies.extend_copy(a, f"copy{n}", None)
    assert len(a.state.extended) == copies.MAX_EXTENDED and f"copy{n}" in a.state.extended
    with pytest.raises(BadInput, match="name"):
        copies.extend_copy(a, "x" * 65, None)
    chain.settle()
    assert not a.state.extended


def test_power_loss_makes_every_peer_a_target_of_a_copy(fan: Tree) -> None:
    a, _b, c = fan.sides.values()
    a.write(0, 1)
    a.power_cut("drop")
    a.start()
    assert [e.unclean for e in a.engine.state.edges] == [True, True]
    fan.lines["b"].connect()
    assert [e.unclean for e in a.engine.state.edges] == [False, True] and a.engine.state.unclean
    fan.lines["c"].connect()
    assert c.engine.state.copy == RESYNC, "that b is copied to says nothing of c"
    assert not a.engine.state.unclean
    fan.settle()


def test_a_copy_is_not_ended_by_a_primary_that_never_got_to_the_place_where_its_blocks_were_listed() -> None:
    """The former primary listed the blocks at a position its copies had not reached; one of them took over before it.
    The new epoch begins before that place, and so may the SYNCED of any other copy come behind it."""
    tree = running_tree("abcd", {"b": "a", "c": "b", "d": "b"})
    a, b, c, d = tree.sides.values()
    drop(tree, "c")
    edge = b.edge(c)
    a.write(70 << 10, 7)
    tree.lines["b"].step()
    tree.lines["d"].step()
    offer = copies.pin_copy(b.engine, edge, None, None, "x")
    for n in range(4):
        a.write(n << 12, 1)  # which reach nobody
    until = copies.extend_copy(a.engine, "x", None)
    copies.copy_until(b.engine, edge, "x", until["seq"], until["epoch"])
    roles.attach(
        c.engine, c.edge(b), offer["p"], None, offer["epoch"], offer["hist"], {}, "x", True,
        until["seq"], until["epoch"],
    )  # fmt: skip
    roles.promote(d.engine)
    line = Line(tree, d, b)
    assert line.connect()
    for n in range(5):
        d.write(n << 12, 2)
    d.engine.append_control(10)  # SYNCED of another copy
    assert d.engine.pos > until["seq"]
    edges.set_link(b.engine, edge, True)
    line.step()
    tree.lines["c"].ship(b, c)
    follower.apply_all(c.engine)
    assert c.engine.state.copy == RESYNC and c.engine.state.copy_id == ""
    assert not edge.copying and edge.copy_id == "", "it is begun anew"


def test_a_primary_of_another_history_is_found_out_when_its_answer_comes_late(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    drop(chain, "c")
    edge = b.edge(c)
    copies.pin_copy(b.engine, edge, None, None, "x")
    a.engine.new_history_entry()
    b.engine.state.hist.append(
        [(a.engine.epoch >> 24) << 24 | 1, b.engine.pos]
    )  # a takeover somewhere else, and it follows
    a.write(0, 1)
    until = copies.extend_copy(a.engine, "x", None)
    with pytest.raises(Refused, match="list"):
        copies.copy_until(b.engine, edge, "x", until["seq"], until["epoch"])
    assert not edge.copying and edge.copy_id == ""
