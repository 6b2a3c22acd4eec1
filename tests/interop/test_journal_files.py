"""Journals of several files on real nodes: files join and leave under load, on both sides, with kills in the middle."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from replicator.core.errors import FarstripeError, Refused
from replicator.core.records import HEADER_BYTES, unpack_header
from replicator.journal.page import HEAD_OFF, Page
from replicator.journal.superblock import DATA_START
from tests.interop.test_groups import EXISTS, NOT_FOUND, PEER, REFUSED, group, refused
from tests.testing.fio import FioLoad
from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, Pair, wait_until
from tests.testing.stamped import check_nothing_lost
from tests.testing.targetproc import MIB, TargetProcess


def files(target: TargetProcess) -> list[tuple[str, int, str]]:
    """(name, size, state) of the journal's files."""
    found = target.call("group.status", group="g")["journal"]["files"]
    return [(one["path"].rpartition("/")[2], one["size"], one["state"]) for one in found]


def test_a_file_joins_a_journal_and_leaves_it_again(target: TargetProcess) -> None:
    group(target)
    handle = target.connect("v")
    handle.pwrite(b"before", 0)
    extra = target.base / "extra"
    target.call("group.add_journal", group="g", path=str(extra), size=20 * MIB)
    assert files(target) == [("journal", 32 * MIB - 8192, "in use"), ("extra", 20 * MIB - 8192, "in use")]
    assert target.call("group.status", group="g")["journal"]["capacity"] == 52 * MIB - 2 * 8192
    refused(target, EXISTS, "exists", "group.add_journal", group="g", path=str(extra), size=20 * MIB)
    refused(target, NOT_FOUND, "nope", "group.remove_journal", group="g", path="/nope")
    for i in range(24):
        handle.pwrite(bytes([i]) * MIB, i * MIB)  # wraps into the new file
    target.kill()
    target.start()
    handle = target.connect("v")
    assert all(handle.pread(MIB, i * MIB) == bytes([i]) * MIB for i in range(24))
    assert len(files(target)) == 2
    target.call("group.disarm", group="g", peer=PEER)  # nothing needs the journal: all of it is free
    target.call("group.remove_journal", group="g", path=str(extra))
    wait_until(lambda: not extra.exists(), "the file is released")
    assert files(target) == [("journal", 32 * MIB - 8192, "in use")]
    refused(target, REFUSED, "too small", "group.remove_journal", group="g", path="0")


def test_a_file_in_which_nothing_lies_is_given_up_at_once(target: TargetProcess) -> None:
    group(target)
    extra = target.base / "extra"
    target.call("group.add_journal", group="g", path=str(extra), size=20 * MIB)
    target.call("group.disarm", group="g", peer=PEER)
    target.call("group.remove_journal", group="g", path=str(extra))
    wait_until(lambda: not extra.exists(), "the file is released", 5)
    target.call("group.add_journal", group="g", path=str(extra), size=40 * MIB)
    assert target.call("group.remove_journal", group="g", path=str(extra))["state"] == "released"
    assert not extra.exists() and [one[2] for one in files(target)] == ["in use"]
    assert [e["kind"] for e in target.call("events.list")].count("group.journal-released") == 2


def test_a_full_journal_goes_on_when_a_file_is_added(target: TargetProcess) -> None:
    group(target, on_full="fail")
    handle = target.connect("v")
    wrote = 0
    with pytest.raises(Exception, match="pwrite"):
        for wrote in range(60):
            handle.pwrite(b"z" * MIB, wrote * MIB)
    target.call("group.add_journal", group="g", path=str(target.base / "extra"), size=32 * MIB)
    for i in range(20):
        handle.pwrite(b"y" * MIB, i * MIB)
    assert target.call("group.status", group="g")["mode"] == "journal"
    target.kill()
    target.start()
    assert target.connect("v").pread(MIB, 19 * MIB) == b"y" * MIB


def test_a_device_joins_and_is_given_back(target: TargetProcess, loop_device: str) -> None:
    group(target)
    target.call("group.add_journal", group="g", path=loop_device, size=1)
    assert files(target)[1][1] == 32 * MIB - 8192
    target.call("group.disarm", group="g", peer=PEER)
    target.call("group.remove_journal", group="g", path=loop_device)
    wait_until(lambda: len(files(target)) == 1, "the device is released")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with NetNS() as net, Node("A", net) as a, Node("B", net, replication_port=10811) as b:
        yield Pair.create(a.init(), b.init(), {"data": 32 * MIB, "log": 16 * MIB}, ["--mode", "async"], journal="16M")


def journal(node: Node) -> dict[str, Any]:
    return dict(node.group()["journal"])


def _removed(node: Node) -> bool:
    """Ask for the first file to be taken out: refused while the load has filled more than would remain."""
    try:
        node.ask("target", "group.remove_journal", group=GROUP, path="0")
    except Refused:
        return False
    return True


def test_files_join_and_leave_on_both_sides_under_load_and_kills(pair: Pair) -> None:
    fio = FioLoad("log", pair.volumes["log"], seed=5)
    fio.aim(pair.primary.run_dir / "nbd.sock")
    load = pair.load("data", seed=5)
    fio.start(20)
    load.wait_acked(200)
    for number, node in enumerate((pair.primary, pair.secondary)):
        path = node.dir / "more"
        node.ask("target", "group.add_journal", group=GROUP, path=str(path), size=18 * MIB)
        assert journal(node)["capacity"] == 34 * MIB - 2 * 8192
        load.wait_acked(200 * (number + 2))
    node = pair.secondary
    node.kill("target")
    load.wait_acked(800)
    node.start()
    pair.wait_streaming()
    for node in (pair.primary, pair.secondary):
        wait_until(lambda node=node: _removed(node), "the first file is never spared", 30)  # type: ignore[misc]
    pair.primary.kill("target")
    pair.primary.start()
    pair.wait_streaming()
    load.wait_acked(1500)
    wait_until(
        lambda: all(len(journal(node)["files"]) == 1 for node in (pair.primary, pair.secondary)),
        lambda: [journal(node) for node in (pair.primary, pair.secondary)],
    )
    load.stop()
    fio.finish()
    pair.assert_images_equal()
    image = pair.secondary.generations("data", pair.volumes["data"] // 4096)
    check_nothing_lost(load.ledger, image)
    for node in (pair.primary, pair.secondary):
        node.kill()
        node.start()
        assert [one["index"] for one in journal(node)["files"]] == [1]
    pair.assert_images_equal()


def lose_journal(node: Node) -> None:
    """Have a sync of the journal fail; hosts have to write meanwhile."""
    needs("strace")
    [one] = journal(node)["files"]
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(node.pid("target")), "-o", "/dev/null", "-P", one["path"],
         "-e", "trace=fdatasync,pwritev,pwrite64", "-e", "inject=fdatasync:error=EIO"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: node.group()["mode"] == "bitmap", lambda: str(node.group()))
    finally:
        strace.terminate()
        strace.wait(30)


def test_a_journal_whose_disk_fails_does_not_stop_hosts_and_can_be_replaced(pair: Pair) -> None:
    node = pair.primary
    load = pair.load("data", seed=7)
    load.wait_acked(100)
    [one] = journal(node)["files"]
    lose_journal(node)
    load.wait_acked(300)
    assert "cannot be synced" in journal(node)["error"] and not node.group()["failed"]
    assert one["path"] in journal(node)["error"]
    assert [one["state"] for one in journal(node)["files"]] == ["failed: Input/output error"]
    assert "NO-JOURNAL" in node.farstripe("status")
    node.kill()
    node.start()
    load.wait_acked(500)
    assert node.group()["mode"] == "bitmap"
    assert [one["state"] for one in journal(node)["files"]] == ["not used"]
    node.farstripe("group", "journal", "replace", GROUP, "--size", "16M", "--yes")
    pair.wait_streaming()
    load.wait_acked(700)
    assert "16.0 MiB" in node.farstripe("group", "journal", "show", GROUP)
    assert node.json("plan", "journal", GROUP, "--outage", "4h", "--rate", "20M")["need"] == 4 * 3600 * 25 * MIB
    load.stop()
    pair.assert_images_equal()
    check_nothing_lost(load.ledger, pair.secondary.generations("data", pair.volumes["data"] // 4096))


def test_a_primary_without_a_journal_that_comes_back_after_a_takeover_takes_no_write(pair: Pair) -> None:
    former, other = pair.primary, pair.secondary
    former.ask("target", "group.policy", group=GROUP, startup_wait_s=60)  # a busy machine takes long to ask
    load = pair.load("data", seed=12)
    load.wait_acked(100)
    lose_journal(former)
    load.stop()
    former.kill()
    other.farstripe("takeover", GROUP, "--force", "--yes")
    other.writer("data").pwrite(b"B" * 4096, 0)
    former.start()
    with pytest.raises((OSError, nbd.Error)):
        former.writer("data").pwrite(b"A" * 4096, 0)
    wait_until(lambda: former.group().get("role") == "secondary", pair.situation)
    assert "hold-released" not in former.farstripe("events").rpartition("node.started")[2]
    former.farstripe("group", "journal", "replace", GROUP, "--size", "16M", "--yes")
    wait_until(lambda: former.json("pair", "list")[0]["word"] == "SUPERSEDED", pair.situation)
    former.farstripe("pair", "resync", GROUP, "--discard", "A", "--yes")
    pair.primary, pair.secondary = other, former
    pair.wait_streaming()
    pair.assert_images_equal()


def test_a_damaged_journal_of_the_secondary_is_repaired_by_retransmission(pair: Pair) -> None:
    node = pair.secondary
    load = pair.load("data", seed=8)
    load.wait_acked(100)
    [one] = journal(node)["files"]
    node.kill()
    with open(one["path"], "r+b") as damaged:
        damaged.write(bytes(16 * MIB))
    node.start()
    wait_until(lambda: journal(node)["error"], pair.situation)
    node.ask("target", "group.replace_journal", group=GROUP, size=16 * MIB, timeout_s=60)
    pair.wait_streaming()
    load.stop()
    pair.assert_images_equal()


def test_a_primary_whose_journal_is_gone_at_start_says_so_and_gets_a_new_one(pair: Pair) -> None:
    node, copy = pair.primary, pair.secondary
    load = pair.load("data", seed=10)
    load.wait_acked(100)
    [one] = journal(node)["files"]
    node.kill()
    load.stop()
    with open(one["path"], "r+b") as damaged:
        damaged.write(bytes(16 * MIB))
    node.start()
    assert node.json("pair", "list")[0]["word"] == "UNREADABLE"
    said = node.farstripe("pair", "wait", GROUP, "--state", "equal", expect=Refused.exit_code)
    assert "they hold every write that was answered" in said and f"farstripe group journal replace {GROUP}" in said
    assert "they hold every write that was answered" in node.farstripe("explain", GROUP)
    assert node.connect("data").is_read_only()
    plan = copy.json("takeover", GROUP, "--plan")
    assert plan["allowed"], "a primary that serves nobody is in the way of a takeover"
    node.farstripe("group", "journal", "replace", GROUP, "--size", "16M", "--yes")
    again = pair.load("data", seed=11, ledger=load.ledger)
    again.wait_acked(50)
    pair.wait_streaming()
    again.stop()
    pair.assert_images_equal()
    check_nothing_lost(again.ledger, node.generations("data", pair.volumes["data"] // 4096))


def test_kills_in_the_middle_of_changes(pair: Pair) -> None:
    rng = random.Random(11)
    load = pair.load("data", seed=9)
    load.wait_acked(100)
    for round_ in range(6):
        node = (pair.primary, pair.secondary)[round_ % 2]
        path = node.dir / f"more{round_}"

        def change(node: Node = node, path: Path = path) -> None:
            with contextlib.suppress(FarstripeError):
                node.ask("target", "group.add_journal", group=GROUP, path=str(path), size=16 * MIB)
                node.ask("target", "group.remove_journal", group=GROUP, path="0")

        thread = threading.Thread(target=change)
        thread.start()
        time.sleep(rng.random() * 0.3)
        node.kill("target")
        thread.join(30)
        node.start()
        pair.wait_streaming()
        load.wait_acked(50)
        assert not journal(node)["error"]
    load.stop()
    pair.assert_images_equal()
    check_nothing_lost(load.ledger, pair.secondary.generations("data", pair.volumes["data"] // 4096))


def flip(node: Node, seq: int) -> None:
    """Flip a byte of what record `seq` holds, on the medium of the node's journal, which has one file."""
    path = Path(journal(node)["files"][0]["path"])
    status = node.group()
    tail, head = status["journal"]["tail_off"], status["journal"]["head_off"]
    size = path.stat().st_size - DATA_START
    with path.open("r+b") as file:
        off = tail
        while off < head:
            file.seek(DATA_START + off % size)
            header = unpack_header(file.read(HEADER_BYTES))
            if header.seq == seq:
                at = DATA_START + (off + HEADER_BYTES + header.payload_len // 2) % size
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
                return
            off += header.total_bytes
    raise AssertionError(f"record {seq} is not in the journal of {node.name}")


def flip_last(node: Node) -> None:
    """Flip a byte of the newest records that the page of a node that does not run says it has published."""
    uuid = next((node.state / "groups").iterdir()).name
    page = Page.map(node.run_dir / f"{uuid}.page")
    path = node.state / "groups" / uuid / "journal"
    at = DATA_START + (page[HEAD_OFF] - 20_000) % (path.stat().st_size - DATA_START)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def events_of(node: Node, kind: str) -> list[dict[str, Any]]:
    return [one for one in node.json("events", "--last", "1000") if one["kind"] == kind]


def test_a_damaged_record_of_a_primary_costs_a_copy_by_difference_and_nothing_else(pair: Pair) -> None:
    node = pair.primary
    load = pair.load("data", seed=12)
    load.wait_acked(50)
    node.farstripe("pair", "set", GROUP, "--limit", "20K")
    before = node.group()["pos"]
    wait_until(lambda: node.group()["pos"] > before + 400, pair.situation)
    status = node.group()
    flip(node, max(status["peer"]["received"], before) + 300)
    load.wait_acked(50)
    node.farstripe("pair", "set", GROUP, "--limit", "unlimited")
    wait_until(lambda: events_of(node, "group.journal-damaged"), pair.situation)
    pair.wait_streaming()
    load.wait_acked(50)
    assert journal(node)["damaged"] == 1 and not journal(node)["error"]
    assert "damaged" in node.farstripe("group", "journal", "show", GROUP)
    load.stop()
    pair.assert_images_equal()
    check_nothing_lost(load.ledger, pair.secondary.generations("data", pair.volumes["data"] // 4096))


def test_a_killed_primary_with_a_damaged_record_serves_at_once(pair: Pair) -> None:
    node = pair.primary
    load = pair.load("data", seed=14)
    load.wait_acked(50)
    node.farstripe("pair", "set", GROUP, "--limit", "20K")
    before = node.group()["pos"]
    wait_until(lambda: node.group()["pos"] > before + 300, pair.situation)
    node.kill()
    load.stop()
    flip_last(node)
    node.start()
    again = pair.load("data", seed=15, ledger=load.ledger)
    again.wait_acked(50)
    node.farstripe("pair", "set", GROUP, "--limit", "unlimited")
    pair.wait_streaming()
    again.wait_acked(50)
    assert events_of(node, "group.journal-damaged") and not journal(node)["error"]
    again.stop()
    pair.assert_images_equal()
    check_nothing_lost(again.ledger, pair.secondary.generations("data", pair.volumes["data"] // 4096))


def test_a_damaged_record_of_a_copy_is_sent_again(pair: Pair) -> None:
    node = pair.secondary
    load = pair.load("data", seed=13)
    load.wait_acked(50)
    pair.primary.farstripe("marker", "create", "stand", "--groups", GROUP, "--suspend")
    wait_until(lambda: node.group()["limit_seq"] and node.group()["pos"] > node.group()["limit_seq"] + 50,
               pair.situation)  # fmt: skip
    load.stop()
    flip(node, node.group()["limit_seq"] + 20)
    pair.primary.farstripe("marker", "resume", "stand")
    wait_until(lambda: events_of(node, "group.received-again"), pair.situation)
    pair.wait_streaming()
    pair.assert_images_equal()
    assert not node.group()["failed"] and not node.group()["damaged_at"]
    check_nothing_lost(load.ledger, node.generations("data", pair.volumes["data"] // 4096))
