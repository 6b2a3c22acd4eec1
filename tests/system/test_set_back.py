"""A primary that is restored from an old backup, its records pushed or pulled: both sides stay as they are until
somebody says which one goes on, and what was given out a second time is never taken for what the copy lacks."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.core.errors import Refused
from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, PROCESSES, CommandFailed, Node, Pair, wait_until
from tests.testing.stamped import BLOCK, check_nothing_lost
from tests.testing.targetproc import MIB

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BLOCKS = 2 * MIB // BLOCK


@pytest.fixture
def pair() -> Iterator[Pair]:
    needs("nbdkit")
    with NetNS() as net, Node("A", net) as a, Node("B", net, replication_port=10811) as b:
        yield Pair.create(a.init(), b.init(), {"data": 2 * MIB}, ["--mode", "async"])


def copy_of(node: Node, to: Path) -> None:
    """Copy all that a node has on its disks. It is stopped, or paused."""
    to.mkdir()
    there = [node.state, *node.dir.glob("disk*")]
    subprocess.run(["cp", "-a", "--sparse=always", *map(str, there), str(to)], check=True, timeout=60)


def put_back(node: Node, backup: Path, *, boots: bool) -> None:
    """Let a killed node be what the backup holds. boots: and its machine be another one, or have booted since."""
    for one in (node.state, *node.dir.glob("disk*")):
        shutil.rmtree(one) if one.is_dir() else one.unlink()
    subprocess.run(["cp", "-a", "--sparse=always", f"{backup}/.", str(node.dir)], check=True, timeout=60)
    if boots:
        for page in (*node.run_dir.glob("*.page"), node.run_dir / "clock"):
            page.unlink()


def word(node: Node) -> str:
    return str(node.json("pair", "list")[0]["word"])


def refused(node: Node) -> str:
    """What `pair resync` says to a pair that is refused. One that just compares again takes it for leave to do so."""
    said: list[str] = []

    def asks() -> bool:
        with contextlib.suppress(CommandFailed):
            said.append(node.farstripe("pair", "resync", GROUP, expect=Refused.exit_code))
        return bool(said)

    wait_until(asks, node.logs)
    return said[0]


@pytest.mark.parametrize(
    ("transfer", "boots", "live"),
    [("push", True, False), ("pull", True, False), ("push", False, False), ("pull", True, True)],
)
def test_a_primary_restored_from_a_backup_neither_overwrites_nor_is_overwritten(
    pair: Pair, tmp_path: Path, transfer: str, boots: bool, live: bool
) -> None:
    """live: the backup is an image of the disks of a running node, which looks like one that lost power."""
    a, b = pair.primary, pair.secondary
    a.farstripe("pair", "set", GROUP, "--transfer", transfer, "--window", "64K")
    load = pair.load("data", seed=1)
    load.wait_acked(200)
    load.stop()
    pair.wait_in_sync()
    if live:
        for process in PROCESSES:
            a.pause(process)
    else:
        a.stop()
    copy_of(a, tmp_path / "backup")
    if live:
        for process in PROCESSES:
            a.resume(process)
    else:
        a.start()
    pair.wait_streaming()
    older = a.generations("data", BLOCKS)
    load = pair.load("data", seed=2, ledger=load.ledger)
    load.wait_acked(300)
    load.stop()
    pair.wait_in_sync()
    wait_until(lambda: b.group()["source_durable"] >= a.group()["pos"] - 1, pair.situation)
    newest, held = b.generations("data", BLOCKS), b.group()
    check_nothing_lost(load.ledger, newest)
    a.kill()
    put_back(a, tmp_path / "backup", boots=boots)
    a.start()

    def untouched(ours: list[int]) -> None:
        for node in (a, b):
            wait_until(lambda node=node: word(node) == "SET-BACK", lambda: f"{word(a)} {word(b)}\n{pair.situation()}")  # type: ignore[misc]
        assert a.generations("data", BLOCKS) == ours and b.generations("data", BLOCKS) == newest
        now = b.group()
        assert (now["pos"], now["hist"], now["state"]) == (held["pos"], held["hist"], "ok")
        assert a.group()["journal"]["first_seq"] <= a.group()["pos"] + 1

    untouched(older)
    assert "older state" in a.farstripe("explain", GROUP) and "older state" in b.farstripe("explain", GROUP)
    assert "set-back" in json.dumps(b.json("events"))
    said = refused(a)
    assert "--discard B" in said and "takeover" in said
    handle = a.writer("data")  # hosts go on there, up to seqs that B has for other writes, and beyond
    for n in range(500):
        handle.pwrite(bytes(BLOCK), n % 8 * BLOCK)
    ours = [0] * 8 + older[8:]
    assert a.group()["pos"] > b.group()["pos"]
    a.kill("replicator")
    a.start()
    untouched(ours)
    if transfer == "push":
        b.farstripe("takeover", GROUP, "--force", "--yes")
        pair.swapped()
        wait_until(lambda: word(b) == "SPLIT-BRAIN", pair.situation)
        assert a.generations("data", BLOCKS) == ours and b.generations("data", BLOCKS) == newest
        b.farstripe("pair", "resync", GROUP, "--discard", "A", "--yes")
        pair.assert_images_equal()
        check_nothing_lost(load.ledger, a.generations("data", BLOCKS))
    else:
        a.farstripe("pair", "resync", GROUP, "--discard", "B", "--yes")
        pair.assert_images_equal()
        assert b.generations("data", BLOCKS) == ours
