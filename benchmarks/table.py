"""The rows: what is compared with what, and the bar each is held to.

Both sides of a row work on files in the same directory, of the same size, filled with the same bytes before the
measurement, over one NBD connection each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import disks, pools, replicated, trees
from benchmarks.load import Load, fio, nbdcopy
from benchmarks.measure import Result, compare
from benchmarks.nodes import Node
from benchmarks.peers import FilePlugin
from benchmarks.settings import Settings
from benchmarks.workspace import Workspace, settle

FILE_PLUGIN = "nbdkit file plugin"


@dataclass(frozen=True)
class Row:
    """One row. `bar` and `aim`: the ratio that must be reached, and the one that is wanted."""

    name: str
    what: str
    bar: float
    aim: float
    run: Callable[[Settings], Result]


def _unreplicated(
    name: str, level: str, members: int, data_members: int, load: Load, unit: str
) -> Callable[[Settings], Result]:
    def run(settings: Settings) -> Result:
        size = settings.size_bytes
        with Workspace(settings.directory) as space:
            peer = FilePlugin(space, "peer", size)
            node = Node(space, "a")
            node.make_pool(level, members, size // data_members + (64 << 20))
            node.make_volume("vol", size)
            nbdcopy(str(peer.file), node.uri("vol"))
            return compare(
                name,
                FILE_PLUGIN,
                unit,
                lambda: _rate(node.uri("vol"), load, unit, settings, space.path),
                lambda: _rate(peer.uri, load, unit, settings, space.path),
                settings.rounds,
            )

    return run


def _rate(uri: str, load: Load, unit: str, settings: Settings, files: Path) -> float:
    settle(files)
    found = fio(uri, load, settings.seconds, settings.size_bytes)
    return found.iops if unit == "IOPS" else found.bytes_per_s / 1e6


def _on_disks(level: str, members: int, data_members: int) -> list[Row]:
    pool = f"a RAID-{level.removeprefix('raid')} of {members} disks of 32 MiB/s each"
    return [
        Row(
            f"rebuild-disks-{level}",
            f"a lost disk of {pool} rebuilt, without limit and hosts",
            0.7, 0.85,
            disks.rebuild(level, members, data_members),
        ),
        Row(
            f"scrub-disks-{level}",
            f"{pool} scrubbed, without limit and hosts",
            0.7, 0.85,
            disks.scrub(level, members, data_members),
        ),
    ]  # fmt: skip


RAND_4K = Load("randwrite", 4096, 32)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "raid0-randwrite-4k",
            "4 KiB random writes, 32 in flight, on a RAID-0 of four files without replication",
            0.5, 0.8,
            _unreplicated("raid0-randwrite-4k", "raid0", 4, 4, RAND_4K, "IOPS"),
        ),
        Row(
            "raid0-randread-4k",
            "4 KiB random reads, 32 in flight, of a RAID-0 of four files without replication",
            0.5, 0.8,
            _unreplicated("raid0-randread-4k", "raid0", 4, 4, Load("randread", 4096, 32), "IOPS"),
        ),
        Row(
            "raid6-seqwrite-256k",
            "256 KiB sequential writes, 32 in flight, on a RAID-6 of six files (4+2) without replication",
            0.35, 0.6,
            _unreplicated("raid6-seqwrite-256k", "raid6", 6, 4, Load("write", 256 << 10, 32), "MB/s"),
        ),
        Row(
            "raid0-randwrite-4k-vs-md",
            "share of a plain file's speed that 4 KiB random writes keep on a RAID-0 of four files, against Linux md",
            0.5, 1.0,
            pools.against_md("raid0-randwrite-4k-vs-md", 0, 4, 4, RAND_4K),
        ),
        Row(
            "raid6-seqwrite-256k-vs-md",
            "the same for 256 KiB sequential writes on a RAID-6 of six files",
            0.5, 1.0,
            pools.against_md("raid6-seqwrite-256k-vs-md", 6, 6, 4, Load("write", 256 << 10, 32)),
        ),
        Row(
            "degraded-read-64k",
            "64 KiB random reads, 32 in flight, of a RAID-6 of six files one of which is lost",
            0.5, 0.8,
            pools.degraded_read("degraded-read-64k", 1),
        ),
        Row(
            "degraded-read-64k-two",
            "the same with two files lost",
            0.5, 0.7,
            pools.degraded_read("degraded-read-64k-two", 2),
        ),
        Row(
            "rebuild-raid6",
            "a lost file of a RAID-6 of six rebuilt, without limit and hosts",
            0.7, 0.9,
            pools.rebuild,
        ),
        Row(
            "scrub-raid6",
            "a RAID-6 of six files scrubbed, without limit and hosts",
            0.7, 0.9,
            pools.scrub("raid6", 6, 4),
        ),
        Row(
            "scrub-raid1",
            "a RAID-1 of two files scrubbed, without limit and hosts",
            0.7, 0.9,
            pools.scrub("raid1", 2, 1),
        ),
        *_on_disks("raid1", 2, 1),
        *_on_disks("raid10", 4, 2),
        *_on_disks("raid5", 4, 3),
        *_on_disks("raid6", 6, 4),
        Row(
            "checksums-randread-4k",
            "4 KiB random reads, 32 in flight, of a RAID-6 of six files with checksums; for information",
            0.0, 0.5,
            pools.checksummed("checksums-randread-4k", Load("randread", 4096, 32)),
        ),
        Row(
            "checksums-seqwrite-256k",
            "256 KiB sequential writes, 32 in flight, to the same; for information",
            0.0, 0.5,
            pools.checksummed("checksums-seqwrite-256k", Load("write", 256 << 10, 32)),
        ),
        Row(
            "snapshot-1tib",
            "a snapshot of a thin volume of as many areas as 1 TiB has, written in random order",
            1.0, 2.0,
            pools.snapshot,
        ),
        Row(
            "memory-per-tib",
            "memory of the target for each TiB mapped in areas of 4 MiB, all just written and read",
            1.0, 1.5,
            pools.memory,
        ),
        Row(
            "async-randwrite-4k",
            "4 KiB random writes, 32 in flight, on a volume replicated asynchronously; the peer replicates nothing",
            0.35, 0.6,
            replicated.async_against_file,
        ),
        Row(
            "async-randwrite-4k-vs-qemu-mirror",
            "the same against QEMU's background mirror to an NBD export",
            1.0, 1.5,
            replicated.async_against_mirror,
        ),
        Row(
            "sync-randwrite-4k-qd1",
            "4 KiB random writes, one in flight, each answered when both nodes have it",
            0.5, 1.0,
            replicated.sync_against_mirror(1),
        ),
        Row(
            "sync-randwrite-4k-qd32",
            "4 KiB random writes, 32 in flight, each answered when both nodes have it",
            0.7, 1.5,
            replicated.sync_against_mirror(32),
        ),
        Row(
            "resync-1g",
            "a volume of 1 GiB, changed everywhere while the pair was split, made equal again by difference",
            0.5, 0.9,
            replicated.resync,
        ),
        Row(
            "ship-64k",
            "the backlog of a peer that was away, 64 KiB records, per second of the busier replicator's processor time",
            1.0, 2.0,
            replicated.shipping(0),
        ),
        Row(
            "ship-64k-zstd",
            "the same with zstd on the wire",
            1.0, 2.0,
            replicated.shipping(1),
        ),
        Row(
            "takeover-first-write",
            "primary killed under load: from the takeover command to the first write answered on the other node",
            1.0, 4.0,
            replicated.takeover,
        ),
        Row(
            "replicator-memory",
            "the most memory a replicator had resident while it worked off a backlog and a resync",
            1.0, 2.0,
            replicated.memory,
        ),
        Row(
            "three-peers-cost",
            "processor time of the target for a 4 KiB write with three peers, against one peer",
            1 / trees.PEERS_COST_LIMIT, 1.0,
            trees.peers_cost,
        ),
        Row(
            "idle-groups",
            "a hundred idle groups with a peer: processor time of the primary's node",
            1.0, 2.0,
            trees.idle_groups,
        ),
        Row(
            "busy-groups",
            "4 KiB random writes to sixteen groups at once, against one group",
            0.9, 1.0,
            trees.busy_groups,
        ),
    )
}  # fmt: skip
