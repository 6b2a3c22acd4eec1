"""A takeover at a marker in the middle of a chain: those below follow by difference, nobody else's copy is touched."""

from __future__ import annotations

import random

import pytest

from replicator.capture import copier, copies, edges, follower, roles
from replicator.capture.rewind import rewind
from replicator.capture.state import OK, RESYNC, SECONDARY
from replicator.core import handshake
from replicator.core.handshake import Action
from replicator.core.hello import Hello
from tests.testing.pairharness import Side
from tests.testing.treeharness import Tree, running_tree
from tests.unit.replicator.capture.test_unreadable import renew

LONG = ("abcd", {"b": "a", "c": "b", "d": "c"})


def write_some(tree: Tree, rng: random.Random, count: int) -> None:
    for _ in range(count):
        tree.top.write(rng.randrange(32) * 4096, rng.randrange(1, 256))


def mark(tree: Tree) -> tuple[int, int, list[bytes]]:
    """An instant at which all nodes stand: its seq, its epoch, the images."""
    tree.settle()
    top = tree.top.engine
    return top.pos, top.epoch, tree.top.image()


def go_back(side: Side, seq: int, epoch: int, image: list[bytes]) -> None:
    """Bring the volumes to `image` as of record `seq`."""
    engine = side.engine
    follower.apply_all(engine)

    def restore() -> None:
        for volume, content in zip(engine.volumes, image, strict=True):
            volume.pwrite(content, 0)
        engine.sync_pool()

    rewind(engine, seq, epoch, {index: [(0, len(content))] for index, content in enumerate(image)}, restore)


def take_over_at(tree: Tree, name: str, seq: int, epoch: int, image: list[bytes]) -> Side:
    """`name` takes over at the instant; the node that fed it is dead."""
    side = tree.sides[name]
    for line in tree.lines.values():
        line._marks = None
    go_back(side, seq, epoch, image)
    roles.promote(side.engine)
    tree.top = side
    return side


def without(tree: Tree, name: str) -> None:
    """A node and its lines are gone."""
    tree.sides.pop(name).kill()
    tree.lines = {lower: line for lower, line in tree.lines.items() if name not in (lower, line.a.name)}


def test_the_nodes_below_follow_by_difference():
    rng = random.Random(1)
    tree = running_tree(*LONG)
    write_some(tree, rng, 20)
    instant = mark(tree)
    write_some(tree, rng, 20)
    tree.settle()
    without(tree, "a")
    take_over_at(tree, "b", *instant)
    assert tree.top.image() == instant[2]
    write_some(tree, rng, 3)
    tree.settle()
    assert all(side.image() == tree.top.image() for side in tree.sides.values())
    for name in "cd":
        assert tree.sides[name].engine.state.rewound == tree.top.engine.state.rewound != []


def test_one_below_that_has_only_a_part_of_what_was_given_up_follows_too():
    rng = random.Random(2)
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    write_some(tree, rng, 10)
    tree.lines["b"].connect()
    tree.lines["b"].step()
    tree.lines["c"].connect()
    tree.lines["c"].step(4)
    held = tree.sides["c"].engine.pos
    assert instant[0] < held < tree.sides["b"].engine.pos
    without(tree, "a")
    take_over_at(tree, "b", *instant)
    tree.settle()
    assert tree.sides["c"].image() == tree.top.image()


def test_one_below_that_holds_more_than_the_node_had_is_asked_for():
    """B lost its power, and with it records that C has: they were never B's to give up."""
    rng = random.Random(3)
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    write_some(tree, rng, 4)
    tree.settle()
    b, c = tree.sides["b"], tree.sides["c"]
    saved = b.save()
    write_some(tree, rng, 4)
    tree.settle()
    b.kill()
    b.restore(saved)
    b.start()
    without(tree, "a")
    take_over_at(tree, "b", *instant)
    line = tree.lines["c"]
    before = c.image()
    assert not line.connect()
    assert line.meet().label == "former-primary"
    assert c.image() == before
    assert line.meet(c.node_id).label == "diff-discard"


def test_the_former_primary_is_asked_for_although_others_gave_its_writes_up():
    rng = random.Random(4)
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    write_some(tree, rng, 4)
    tree.settle()
    take_over_at(tree, "b", *instant)
    line = tree.lines["b"]
    assert line.meet().label == "former-primary"
    assert tree.sides["a"].engine.state.role == SECONDARY


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_between_going_back_and_taking_over_forgets_nothing(when: str):
    rng = random.Random(5)
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    write_some(tree, rng, 6)
    tree.settle()
    without(tree, "a")
    b = tree.sides["b"]
    for line in tree.lines.values():
        line._marks = None
    go_back(b, *instant)
    if when == "before":
        b.power_cut()
        b.start()
    roles.promote(b.engine)
    tree.top = b
    if when == "after":
        b.kill()
        b.start()
    edges.set_link(b.engine, b.edge(tree.sides["c"]), False)
    tree.settle()
    assert tree.sides["c"].image() == b.image() == instant[2]


def test_a_start_in_the_middle_of_going_back_calls_nothing_consistent():
    """The journal still holds the end of somebody's copy, which is passed again over the images of the marker."""
    rng = random.Random(7)
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    b = tree.sides["b"]
    tree.lines["b"].connect()
    copies.extend_copy(tree.top.engine, "another", None)
    while tree.top.engine.state.copying:
        copier.copy_some(tree.top.engine, 1 << 20)
    write_some(tree, rng, 6)
    tree.lines["b"].step()
    b.engine.journal.reset = _dies  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk is gone"):
        go_back(b, *instant)
    b.power_cut("keep")
    b.start()
    follower.apply_all(b.engine)
    assert b.engine.state.copy == RESYNC
    go_back(b, *instant)
    assert b.engine.state.copy == OK and b.image() == instant[2]


def _dies(seq: int, epoch: int) -> None:
    raise OSError("the disk is gone")


def test_a_node_that_went_back_and_follows_again_has_given_nothing_up():
    rng = random.Random(6)
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    write_some(tree, rng, 6)
    tree.settle()
    b = tree.sides["b"]
    go_back(b, *instant)
    tree.settle()  # A is there after all, and sends again what B gave up
    assert b.image() == tree.top.image()
    without(tree, "a")
    for line in tree.lines.values():
        line._marks = None
    roles.promote(b.engine)
    tree.top = b
    assert b.engine.state.rewound == []
    tree.settle()
    assert tree.sides["c"].image() == b.image()


def test_the_oracle_of_this_file_bites(monkeypatch: pytest.MonkeyPatch):
    """Without the look at positions, records that only C has would be overwritten unasked."""
    assert handshake._rewound

    def careless(lead: Hello, follow: Hello) -> bool:
        return bool(lead.rewound)

    monkeypatch.setattr(handshake, "_rewound", careless)
    with pytest.raises(AssertionError):
        test_one_below_that_holds_more_than_the_node_had_is_asked_for()


def test_any_number_of_steps_between_marker_and_takeover():
    for seed in range(12):
        rng = random.Random(seed)
        tree = running_tree(*LONG)
        write_some(tree, rng, rng.randrange(8))
        instant = mark(tree)
        write_some(tree, rng, rng.randrange(1, 30))
        for _ in range(rng.randrange(4)):
            tree.round(rng.randrange(1, 9))
        without(tree, "a")
        name = rng.choice("bc")
        if name == "c":
            without(tree, "b")
        take_over_at(tree, name, *instant)
        for line in tree.paired():
            assert line.meet().action in (Action.STREAM, Action.COPY, Action.WAIT)
            line.cut()
        write_some(tree, rng, rng.randrange(4))
        tree.settle()
        below = [line.b for line in tree.paired()]
        assert all(side.engine.state.copy == OK and side.image() == tree.top.image() for side in below), seed


def test_what_a_former_life_had_applied_in_part_is_nothing_once_the_image_is_back() -> None:
    tree = running_tree("ab", {"b": "a"})
    instant = mark(tree)
    write_some(tree, random.Random(3), 20)
    tree.settle()
    without(tree, "a")
    b = tree.sides["b"]
    b.kill()
    b.start()
    go_back(b, *instant)
    with b.engine.lock:
        b.engine.lose_journal("its disk is gone")
    renew(b)
    assert b.engine.state.copy == OK
    roles.promote(b.engine)
    assert b.image() == instant[2]
