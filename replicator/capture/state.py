"""What a group must remember across crashes.

One small record, owned by the target, written in place in two slots: the change is on stable storage before anything
acts on it. Slot layout (two slots of 64 KiB, the valid one with the higher generation counts), little-endian:

    offset  size  field
         0     4  magic        "FSRG"
         4     4  length       bytes of the body
         8     8  generation
        16     4  crc          CRC32C of bytes 0..15 and the body
        20     n  body         msgpack map, the fields of GroupState
"""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import msgpack
from crc32c import crc32c

from replicator.core.errors import BadInput, IntegrityError
from replicator.journal.files import RandomFile

SLOT_BYTES = 64 << 10
STATE_FILE_BYTES = 2 * SLOT_BYTES
_HEAD = struct.Struct("<4sIQ")
_CRC = struct.Struct("<I")

PRIMARY = "primary"
SECONDARY = "secondary"

FRESH = "fresh"  # a copy that never was complete and has no history
OK = "ok"  # contents are a prefix of the history
RESYNC = "resync"  # being copied to: inconsistent until SYNCED is applied
DIVERGED = "diverged"  # a former primary that gave way to a history which lacks some of its writes

NEVER = (1 << 63) - 1  # as copy_from_seq: no SYNCED record completes the copy, it has to be begun anew

UNTRACKED = "none"  # no pair: writes go straight to the pool
JOURNAL = "journal"  # every write is a record
BITMAP = "bitmap"  # the journal overflowed: only block numbers are kept


@dataclass
class Policy:
    """How the group treats its peer. Times are seconds; 0 means no limit."""

    mode: str = "async"  # async | sync
    ack: str = "receive"  # receive | durable: what a synchronous write waits for
    on_loss: str = "degrade"  # stall | degrade: a synchronous group whose peer does not answer
    loss_timeout_s: float = 5.0
    on_full: str = "bitmap"  # stall | bitmap | fail: the journal is full
    full_timeout_s: float = 10.0
    startup_wait_s: float = 3.0
    retain: str = "durable"  # durable | applied: a record is kept until every peer has it so
    warn_percent: float = 80.0  # an event when so much of the journal is used; 0 for none

    _CHOICES: ClassVar = {
        "mode": ("async", "sync"),
        "ack": ("receive", "durable"),
        "on_loss": ("stall", "degrade"),
        "on_full": ("stall", "bitmap", "fail"),
        "retain": ("durable", "applied"),
    }

    def changed(self, changes: dict[str, Any]) -> Policy:
        """Return a copy with `changes`. Raises BadInput that names the field and its choices."""
        values = asdict(self)
        for key, value in changes.items():
            if key not in values:
                raise BadInput(f"unknown policy {key!r}", f"known: {', '.join(values)}")
            choices = self._CHOICES.get(key)
            if choices is not None and value not in choices:
                raise BadInput(f"{key} cannot be {value!r}", f"choose one of {', '.join(choices)}")
            if key == "warn_percent" and not (_is_duration(value) and value <= 100):
                raise BadInput(f"{key} cannot be {value!r}", "give a percentage from 0 (none) to 100")
            if choices is None and not _is_duration(value):
                raise BadInput(f"{key} cannot be {value!r}", "give seconds, 0 for no limit")
            values[key] = value
        return Policy(**values)


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass
class Edge:
    """The group's pair with one peer, as this node sees it. Of the edge towards the node that feeds this one only slot,
    peer and mode count."""

    slot: int  # 0..15, its place in the page; stays as long as the edge does
    peer: str  # node id; "" in a state of a version that knew one peer only: the first that asks takes it over
    mode: str = "async"  # async | sync
    sync_on: bool = False  # the peer had caught up: writes wait for it
    degraded: bool = False  # a synchronous edge without which the group goes on
    copying: bool = False  # a copy to the peer is under way
    copy_id: str = ""  # names the last copy whose blocks are known; "" once that is no longer so
    synced_after: int = 0  # only a SYNCED record with a higher seq ends that copy
    synced_epoch: int = 0  # and of this epoch; 0 for a copy from here: nobody else makes records
    synced_seq: int = 0  # seq of the SYNCED record that ended it
    dropped: bool = False  # the journal is not kept for the peer: it comes back by a copy
    unclean: bool = False  # power was lost here as primary, and the peer has not been copied to since

    def without_peer(self) -> dict[str, Any]:
        """The changes that let the group go on without the peer until it has been copied to again."""
        degraded = self.degraded or self.sync_on
        return {"dropped": True, "copying": False, "copy_id": "", "sync_on": False, "degraded": degraded}


@dataclass
class GroupState:
    """The durable state of one group on one node."""

    uuid: str
    name: str
    node_tag: int  # 24 bits, this node's part of an epoch number
    volumes: list[dict[str, Any]] = field(default_factory=list)  # {index, name, uuid, size, born}, see volumeset.py
    role: str = PRIMARY
    copy: str = OK
    mode: str = UNTRACKED
    hist: list[list[int]] = field(default_factory=list)  # [epoch, base], oldest first
    epoch_counter: int = 0  # highest epoch counter ever used or seen; outlives the history, so no epoch is made twice
    floor: int = 0  # position up to which contents are certain, while copy is not OK
    bitmaps: dict[int, int] = field(default_factory=dict)  # slot -> start seq
    link_gen: int = 0
    policy: Policy = field(default_factory=Policy)
    edges: list[Edge] = field(default_factory=list)
    upstream: str = ""  # on a secondary: node id of the peer that feeds it, "" while that is not known
    synced_seq: int = 0  # seq of the last SYNCED record made or applied here
    extended: dict[str, int] = field(default_factory=dict)  # copies below other nodes whose blocks are on our copy list
    copy_id: str = ""  # on the copy: names the copy under way, "" when it cannot be completed
    copy_from_seq: int = 0  # on the copy: only a SYNCED record with a higher seq completes it
    copy_epoch: int = 0  # and of this epoch; 0 for a copy from the primary itself, whose records begin beyond it
    torn_to: int = (
        0  # on a copy that lost its journal: records after its position, up to this one, may be in the pool in
    )
    # part. It is inconsistent until all of them were applied again; 0 for none
    unclean: bool = False  # power was lost as primary: blocks may hold writes whose records are gone
    attaching: dict[str, Any] | None = None  # an attach between its two steps: {p, epoch, hist, copy_id}
    seq_limit: int = 0  # in bitmap mode: no seq at or above it has been given out
    new_epoch_wanted: bool = False  # open an epoch before the next record
    rewind: dict[str, Any] | None = None  # going back to a marker's image: {seq, epoch, dropped, pos}; inconsistent
    # until done. dropped, pos: the line that is left, see epochs.Rewound; an older version had them not
    rewound: list[list[Any]] = field(
        default_factory=list
    )  # [epoch, base, dropped, pos]: what takeovers at markers gave
    # up in this history, see epochs.Rewound. epoch 0: this node has gone back and is not primary yet
    source_durable: list[Any] = field(
        default_factory=list
    )  # [peer, seq]: the peer that feeds this node had every record of
    # this history up to there on stable storage; empty while nothing is known. It may lag
    last_time_ns: int = 0  # no record before the last save has a later write time
    journal_error: str = ""  # the journal's medium failed: it is not opened again, see journalloss.py
    damaged: int = 0  # so many of the journal's records were found damaged, see damage.py
    sealed: bool = False  # it failed in its last life: what was written then may be in no file
    clean: bool = True  # stopped in order
    boot: int = 0  # boot in which it last ran
    next_index: int = 0  # the next volume gets this index or a higher one; 0: the one after those listed
    listed_at: list[int] = field(default_factory=list)  # [epoch, seq] of the last change of `volumes`; all before it is
    # in the pool. Empty when the history has none

    @property
    def downstream(self) -> list[Edge]:
        """The edges whose peers this node feeds, or may have to feed."""
        return [e for e in self.edges if not e.peer or e.peer != self.upstream]

    @property
    def sync_on(self) -> bool:
        """Writes wait for at least one peer."""
        return any(e.sync_on for e in self.edges)

    @property
    def degraded(self) -> bool:
        """The group goes on without a peer that it should wait for."""
        return any(e.degraded for e in self.edges)

    @property
    def copying(self) -> bool:
        """A copy is under way that this node or one above it feeds."""
        return bool(self.extended) or any(e.copying for e in self.edges)

    def edge_of(self, peer: str) -> Edge | None:
        """The edge with node `peer`, None when there is none."""
        return next((e for e in self.edges if e.peer == peer), None)

    def policy_of(self, edge: Edge | None) -> dict[str, Any]:
        """The group's policy, with the mode of `edge` if one is given."""
        policy = dict(vars(self.policy))
        return policy if edge is None else policy | {"mode": edge.mode}

    def with_edges(self, changes: dict[int, dict[str, Any]]) -> list[Edge]:
        """Copies of the edges, with `changes` by slot."""
        return [replace(e, **changes.get(e.slot, {})) for e in self.edges]


class StateFile:
    """Reads and writes a GroupState in its two slots."""

    def __init__(self, file: RandomFile) -> None:
        self._file = file
        self._generation = 0
        self._loaded = b""

    @property
    def generation(self) -> int:
        """Of the state that was loaded or saved last: rises by one with each save."""
        return self._generation

    def keep(self) -> None:
        """Make what was loaded durable, before the first save. Raises OSError.

        If its sync failed in a former life, the system holds it and believes it to be on stable storage; the save would
        then overwrite the only slot that is.
        """
        self._file.pwrite_durable(self._loaded, (self._generation % 2) * SLOT_BYTES)

    def save(self, state: GroupState) -> None:
        """Write `state`. Durable: all of it on return; after a crash before that, the former state, whole."""
        body = msgpack.packb(asdict(state))
        if len(body) > SLOT_BYTES - 64:
            raise BadInput("the group's state is too large", "use fewer volumes in one group")
        generation = self._generation + 1
        head = _HEAD.pack(b"FSRG", len(body), generation)
        crc = _CRC.pack(crc32c(body, crc32c(head)))
        self._file.pwrite(head + crc + body, (generation % 2) * SLOT_BYTES)
        self._file.fdatasync()
        self._generation = generation

    def load(self) -> GroupState:
        """Return the newest whole state. Raises IntegrityError when there is none. Changes nothing."""
        best: tuple[int, bytes, bytes] | None = None
        for slot in (0, 1):
            raw = self._file.pread(SLOT_BYTES, slot * SLOT_BYTES)
            if len(raw) < 20:
                continue
            magic, length, generation = _HEAD.unpack_from(raw)
            body = raw[20 : 20 + length]
            if magic != b"FSRG" or len(body) != length:
                continue
            if _CRC.unpack_from(raw, 16)[0] != crc32c(body, crc32c(raw[:16])):
                continue
            if best is None or generation > best[0]:
                best = (generation, body, raw[: 20 + length])
        if best is None:
            raise IntegrityError("the group's state file holds no valid state", "delete the group and pair it again")
        self._generation = best[0]
        self._loaded = best[2]
        values = msgpack.unpackb(best[1], strict_map_key=False)
        if "edges" not in values:
            values = _of_one_peer(values)
        unknown = set(values) - {f.name for f in fields(GroupState)}
        for edge in values["edges"]:
            unknown |= set(edge) - {f.name for f in fields(Edge)}
        if unknown:
            raise IntegrityError(
                f"the group's state was written by a newer farstripe ({', '.join(sorted(unknown))})",
                "upgrade this node",
            )
        values["policy"] = Policy(**values["policy"])
        values["edges"] = [Edge(**e) for e in values["edges"]]
        return GroupState(**values)


_ONE_PEER = ("sync_on", "degraded", "copying")


def _of_one_peer(values: dict[str, Any]) -> dict[str, Any]:
    """Read a state of a version whose groups had one peer, which it did not name."""
    old = {name: values.pop(name) for name in _ONE_PEER if name in values}
    edges = []
    if values["mode"] != UNTRACKED:
        edge = Edge(0, "", mode=values["policy"]["mode"], synced_seq=values.get("synced_seq", 0), **old)
        if values["role"] == PRIMARY:
            edge.copy_id, values["copy_id"] = values.get("copy_id", ""), ""
            edge.dropped, edge.unclean = values["mode"] == BITMAP, values.get("unclean", False)
        edges.append(asdict(edge))
    return {**values, "edges": edges}
