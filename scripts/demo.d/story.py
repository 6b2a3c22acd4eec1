"""The story the demo tells, one function a chapter. Every wait has an end; every chapter leaves its checks behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import disk
import ledger
import loss
from disk import FuseDisk, KernelDisk
from node import DemoError, Node
from report import Report, amount

from replicator.control import ControlClient
from replicator.core.errors import FarstripeError

GROUP, DATA, LOG = "app", "data", "log"
DATA_BYTES, LOG_BYTES, JOURNAL_BYTES, MEMBER_BYTES = 256 << 20, 64 << 20, 64 << 20, 128 << 20
WAIT_S = 120.0


@dataclass
class Demo:
    """Everything the chapters share."""

    root: Path
    mode: str
    load_s: float
    report: Report
    kernel: bool
    a: Node = field(init=False)
    b: Node = field(init=False)
    disk: KernelDisk | FuseDisk | None = None
    dead_disk: KernelDisk | FuseDisk | None = None
    """What host A had mounted when its node was killed."""
    writer: subprocess.Popen[bytes] | None = None
    killed_at: float = 0.0
    head_at_takeover: int = 0
    lost: loss.Loss | None = None

    def __post_init__(self) -> None:
        self.a, self.b = Node("A", self.root / "A"), Node("B", self.root / "B")

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    @property
    def mountpoint(self) -> Path:
        assert self.disk is not None
        return self.disk.mountpoint

    def group(self, node: Node) -> dict[str, Any]:
        """The node's own view of the group; {} while its target is away."""
        try:
            with ControlClient(node.run / "target.sock", 10) as client:
                return dict(client.call("group.status", group=GROUP))
        except FarstripeError:
            return {}

    def attach(self, node: Node) -> KernelDisk | FuseDisk:
        self.disk = disk.new(node, DATA, self.root / f"host{node.name}", self.kernel)
        self.disk.attach()
        return self.disk

    def start_writer(self, node: Node) -> None:
        """Write files to the mounted volume from where the ledger ends, and log records to the second volume."""
        entries = ledger.read(self.ledger)
        first = entries[-1].number + 1 if entries else 0
        program = Path(__file__).with_name("writer.py")
        argv = [program, self.mountpoint, self.ledger, node.socket, LOG, first]
        self.writer = subprocess.Popen(
            [sys.executable, *map(str, argv)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def write_for(self, seconds: float) -> None:
        before, deadline = len(ledger.read(self.ledger)), time.monotonic() + seconds
        assert self.writer is not None
        while time.monotonic() < deadline or len(ledger.read(self.ledger)) < before + 20:
            if self.writer.poll() is not None:
                said = self.writer.stderr.read().decode() if self.writer.stderr else ""
                raise DemoError(f"the writing program ended by itself: {said.strip()}")
            if time.monotonic() > deadline + WAIT_S:
                raise DemoError(f"20 files were not written in {WAIT_S:g} s")
            time.sleep(0.05)

    def stop_writer(self) -> int:
        """End the writer, kindly first; returns its status."""
        writer, self.writer = self.writer, None
        if writer is None:
            return 0
        if writer.poll() is None:
            writer.send_signal(signal.SIGTERM)
        try:
            writer.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            writer.kill()
            writer.wait(10)
        return int(writer.returncode)

    def wait(self, condition: Callable[[], object], what: str) -> float:
        """Poll; returns the seconds it took. DemoError when it takes longer than WAIT_S."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() > start + WAIT_S:
                states = "\n".join(node.farstripe("status") for node in (self.a, self.b))
                raise DemoError(f"after {WAIT_S:g} s still not so: {what}\n{states}")
            time.sleep(0.02)
        return time.monotonic() - start

    def in_step(self, source: Node, copy: Node) -> bool:
        """The copy is consistent and follows; in sync mode every write waits for it."""
        ours, theirs = self.group(source), self.group(copy)
        return bool(
            ours and theirs and ours["role"] == "primary" and theirs["role"] == "secondary" and theirs["state"] == "ok"
            and ours["link_up"] and not ours["copying"] and (self.mode == "async" or ours["sync_on"])
        )  # fmt: skip

    def clean_up(self) -> None:
        """Give back what the demo took, in the opposite order; goes on past whatever fails."""
        for undo in (self.stop_writer, self._drop_disks, self.a.erase, self.b.erase, self._drop_disks):
            with contextlib.suppress(DemoError, OSError, subprocess.SubprocessError):
                undo()

    def _drop_disks(self) -> None:
        for one in (self.dead_disk, self.disk):
            if one is not None:
                one.cut_off()
        self.dead_disk = self.disk = None


def prepare(demo: Demo) -> None:
    report = demo.report
    report.step("two nodes, A and B: a RAID-6 group over six files and a RAID-0 group over two in each pool")
    for node in (demo.a, demo.b):
        node.make(MEMBER_BYTES)
    report.step(f"volume {DATA} ({amount(DATA_BYTES)}, RAID-6) and {LOG} ({amount(LOG_BYTES)}, RAID-0), group {GROUP}")
    demo.a.farstripe("volume", "create", DATA, "--size", DATA_BYTES, "--raid-group", "raid6")
    demo.a.farstripe("volume", "create", LOG, "--size", LOG_BYTES, "--raid-group", "raid0")
    demo.a.farstripe("group", "create", GROUP, DATA, LOG, "--journal", JOURNAL_BYTES)
    token = demo.b.farstripe("peer", "token").split()[-1]
    demo.a.farstripe("peer", "join", token)
    demo.a.farstripe("pair", "create", GROUP, "--peer", "B", "--mode", demo.mode)
    seconds = demo.wait(lambda: demo.in_step(demo.a, demo.b), "the first copy is complete")
    report.step(f"paired A → B, {demo.mode}; the first copy took {seconds:.1f} s")


def write_on_a(demo: Demo) -> None:
    device = demo.attach(demo.a)
    demo.report.fact("block device", device.kind)
    demo.report.step(f"{DATA} is {device.device} by {device.kind}")
    device.make_filesystem()
    device.mount()
    demo.start_writer(demo.a)
    demo.write_for(demo.load_s)
    demo.report.step(f"{len(ledger.read(demo.ledger))} files written and fsynced on A, still writing")


def crash_a(demo: Demo) -> None:
    demo.killed_at = time.monotonic()
    demo.a.kill()
    assert demo.writer is not None
    demo.writer.kill()  # the host is gone with its node; the process may hang in its I/O a while
    demo.dead_disk, demo.disk = demo.disk, None
    demo.report.step("A's target and replicator killed with SIGKILL under load")


def take_over(demo: Demo) -> None:
    report, b = demo.report, demo.b
    before = demo.group(b)
    demo.head_at_takeover = before["journal"]["head_off"]
    b.farstripe("takeover", GROUP, "--yes")
    command_s = time.monotonic() - demo.killed_at
    _first_write(b)
    write_s = time.monotonic() - demo.killed_at
    _count_loss(demo, before)

    device = demo.attach(b)
    wrong = device.replay_and_check()
    report.check(not wrong, f"e2fsck -fn on B finds nothing after the journal's replay{': ' + wrong if wrong else ''}")
    device.mount()
    report.fact(
        "RTO", f"{write_s:.2f} s from SIGKILL to the first write on B (takeover done after {command_s:.2f} s), "
        f"{time.monotonic() - demo.killed_at:.2f} s to the filesystem checked and mounted",
    )  # fmt: skip
    assert demo.dead_disk is not None
    demo.dead_disk.cut_off()
    demo.dead_disk = None
    demo.stop_writer()


def _first_write(node: Node) -> None:
    """A real write to the volume that took over, of bytes it has already."""
    import nbd

    handle = nbd.NBD()
    handle.set_export_name(DATA)
    handle.connect_unix(str(node.socket))
    handle.pwrite(bytes(handle.pread(4096, 0)), 0)


def _count_loss(demo: Demo, survivor: dict[str, Any]) -> None:
    """Compare A's journal, which nobody serves now, with what B holds."""
    lost = loss.measure(demo.a.state, demo.a.run, survivor["uuid"], survivor["pos"], survivor["applied_time_ns"])
    demo.lost = lost
    demo.report.fact(
        "RPO", f"{lost.writes} writes, {lost.size} bytes, {lost.seconds:.3f} s were in A's journal and not on B"
        + (", none of them acknowledged" if demo.mode == "sync" and lost.writes else ""),
    )  # fmt: skip


def verify_on_b(demo: Demo) -> None:
    """Every promised file must be there. Asynchronous: every one that was safe before the point B has reached."""
    report, entries, mountpoint = demo.report, ledger.read(demo.ledger), demo.mountpoint
    lost = ledger.missing(entries, mountpoint)
    assert demo.lost is not None
    complete = demo.mode == "sync" or not demo.lost.writes
    owed = [e for e in entries if complete or e.safe_ns <= demo.lost.reached_ns]
    broken = [e for e in lost if e.number <= owed[-1].number] if owed else []
    beyond = "" if complete else f"; of {len(entries) - len(owed)} later ones {len(lost)} were not replicated yet"
    report.check(
        not broken, f"all {len(owed)} files fsynced on A that B owes are there, unchanged{beyond}{_names(broken)}"
    )
    there = [e for e in entries if e not in lost]
    report.check(
        entries[: len(there)] == there, "what is lost is the newest: no file is missing before one that is there"
    )
    ledger.keep(demo.ledger, there)

    last = ledger.last_log_record(demo.b.socket, LOG)
    ordered = last < 0 or (not any(e.number <= last for e in lost) and (mountpoint / f"{last:06d}").exists())
    report.check(ordered, f"order across volumes: the log on B ends at file {last}, and every file up to it is there")


def _names(lost: list[ledger.Entry]) -> str:
    return f"; missing or damaged: {', '.join(str(e.number) for e in lost[:10])}" if lost else ""


def bring_a_back(demo: Demo) -> None:
    """A returns under load on B and gets what it missed, and only that."""
    report = demo.report
    demo.start_writer(demo.b)
    demo.write_for(min(1.0, demo.load_s))
    head = demo.group(demo.b)["journal"]["head_off"]
    demo.a.farstripe("node", "start")
    report.step("A is started again, B goes on writing")
    started, most = time.monotonic(), 0

    def in_step() -> bool:
        nonlocal most
        most = max(most, int(demo.group(demo.b).get("todo_bytes", 0)))
        return demo.in_step(demo.b, demo.a)

    def superseded() -> bool:
        return bool(demo.b.json("status")["groups"][0]["word"] == "SUPERSEDED")

    demo.wait(lambda: in_step() or superseded(), "A follows B, or says why it cannot")
    if superseded():
        report.step("A holds records that B never received, and keeps them until an operator gives them up")
        demo.b.farstripe("pair", "resync", GROUP, "--discard", "A", "--yes")
        report.step("given up: farstripe pair resync app --discard A")
        demo.wait(in_step, "A follows B again")
    seconds = time.monotonic() - started
    size, missed = DATA_BYTES + LOG_BYTES, head - demo.head_at_takeover
    how = f"{amount(most)} of blocks" if most else f"{amount(missed)} of B's journal, which reached back far enough"
    sent = most or missed
    report.fact("resync", f"{how}, of {amount(size)} ({100 * sent / size:.1f} %), in {seconds:.1f} s under load")
    report.check(sent < size, f"A came back by difference: {amount(sent)} sent, not {amount(size)}")


def switch_back(demo: Demo) -> None:
    report = demo.report
    demo.write_for(1.0)
    demo.stop_writer()
    assert demo.disk is not None
    demo.disk.detach()
    started = time.monotonic()
    demo.b.farstripe("switchover", GROUP)
    demo.wait(lambda: demo.in_step(demo.a, demo.b), "A is primary and B follows")
    report.step(f"roles switched back in {time.monotonic() - started:.2f} s")
    device = demo.attach(demo.a)
    wrong = device.replay_and_check()
    report.check(not wrong, f"e2fsck -fn on A finds nothing{': ' + wrong if wrong else ''}")
    device.mount()
    entries = ledger.read(demo.ledger)
    lost = ledger.missing(entries, demo.mountpoint)
    report.check(not lost, f"all {len(entries)} files are on A after the switch back{_names(lost)}")
    device.detach()
    demo.disk = None


CHAPTERS = (prepare, write_on_a, crash_a, take_over, verify_on_b, bring_a_back, switch_back)
