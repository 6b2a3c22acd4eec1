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
from dataclasses import asdict, dataclass, field, fields
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

    _CHOICES: ClassVar = {
        "mode": ("async", "sync"),
        "ack": ("receive", "durable"),
        "on_loss": ("stall", "degrade"),
        "on_full": ("stall", "bitmap", "fail"),
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
            if choices is None and not _is_duration(value):
                raise BadInput(f"{key} cannot be {value!r}", "give seconds, 0 for no limit")
            values[key] = value
        return Policy(**values)


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass
class GroupState:
    """The durable state of one group on one node."""

    uuid: str
    name: str
    node_tag: int  # 24 bits, this node's part of an epoch number
    volumes: list[dict[str, Any]] = field(default_factory=list)  # {index, name, uuid, size}
    role: str = PRIMARY
    copy: str = OK
    mode: str = UNTRACKED
    hist: list[list[int]] = field(default_factory=list)  # [epoch, base], oldest first
    epoch_counter: int = 0  # highest epoch counter ever used or seen; outlives the history, so no epoch is made twice
    floor: int = 0  # position up to which contents are certain, while copy is not OK
    bitmaps: dict[int, int] = field(default_factory=dict)  # slot -> start seq
    link_gen: int = 0
    policy: Policy = field(default_factory=Policy)
    degraded: bool = False  # a synchronous group that goes on without its peer
    sync_on: bool = False  # the peer had caught up: writes wait for it
    copying: bool = False  # on the source: blocks of the copy list are still to be copied
    copy_id: str = ""  # names the copy under way; "" on a source that no longer knows what is left to copy
    copy_from_seq: int = 0  # on the copy: position at which the copy under way began
    synced_seq: int = 0  # on the source: seq of the last SYNCED record
    unclean: bool = False  # power was lost as primary: blocks may hold writes whose records are gone
    attaching: dict[str, Any] | None = None  # an attach between its two steps: {p, epoch, hist, copy_id}
    seq_limit: int = 0  # in bitmap mode: no seq at or above it has been given out
    new_epoch_wanted: bool = False  # open an epoch before the next record
    rewind: dict[str, Any] | None = None  # going back to a marker's image: {seq, epoch}; inconsistent until done
    last_time_ns: int = 0  # no record before the last save has a later write time
    sealed: bool = False  # it failed in its last life: what was written then may be in no file
    clean: bool = True  # stopped in order
    boot: int = 0  # boot in which it last ran


class StateFile:
    """Reads and writes a GroupState in its two slots."""

    def __init__(self, file: RandomFile) -> None:
        self._file = file
        self._generation = 0
        self._loaded = b""

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
        known = {f.name for f in fields(GroupState)}
        if unknown := set(values) - known:
            raise IntegrityError(
                f"the group's state was written by a newer farstripe ({', '.join(sorted(unknown))})",
                "upgrade this node",
            )
        values["policy"] = Policy(**values["policy"])
        return GroupState(**values)
