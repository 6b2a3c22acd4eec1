"""HELLO: the facts a node states about its side of a pair, first thing on every connection.

Both sides send one, and both compute the same decision from the two (handshake.py). A HELLO is a snapshot: what it says
about positions stays true until the decision is carried out, except that a primary's position may rise.

A field that came later than VERSION has a value that says "not told"; a decision may rest on it only where both sides
tell it, so that an older node comes to the same verdict.

Frame {"t": "hello"} with the fields of `Hello`; `hist` as [[epoch, base], ...], `volumes` as [[index, size bytes,
born], ...], `journal` as [first seq, end seq] or null when the journal cannot be streamed from (bitmap mode), `rewound`
as [[epoch, base, [[epoch, base], ...], pos], ...].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from replicator.core.epochs import Rewound, check_hist, node_tag
from replicator.core.errors import ProtocolError

VERSION = 2
"""2: `upstream`, so that a secondary can be a source of others; `discard_epoch`; when volumes were added."""
NOT_YET = (1 << 64) - 1
MAX_REWOUND = MAX_DROPPED = 8
"""The lines of so many takeovers at markers are named at most, none with more epochs than that: all of it has to fit
into a group's state. Whoever holds another line is asked for it."""
ROLES = ("primary", "secondary")
STATES = ("fresh", "ok", "resync", "diverged")


class Hello(NamedTuple):
    """One side's facts."""

    version: int
    node: str  # 32 hex digits
    group: str  # uuid, 32 hex digits
    volumes: tuple[tuple[int, int, int], ...]  # (index, size bytes, epoch it was added in), by index
    role: str  # "primary" | "secondary"
    state: str  # "fresh" | "ok" | "resync" | "diverged"
    hist: tuple[tuple[int, int], ...]  # (epoch, base), oldest first
    pos: int  # last seq held without a gap (primary: written; secondary: received)
    durable: int  # last seq on stable storage
    floor: int  # up to here the contents are certain
    last_write: int  # seq of the last host write, <= pos; pos where it is not known
    journal: tuple[int, int] | None  # [first, last] seq that can be streamed from the journal, first > last when empty
    starts: tuple[int, ...]  # start seqs of the history bitmaps
    unclean: bool  # after a power loss: blocks may hold writes newer than pos
    copy_id: (
        str  # at a copy's source: the last copy whose list of blocks it still knows; at its target: the one under way
    )
    synced: int  # at a copy's source: seq of the SYNCED record of that copy, NOT_YET while blocks are left
    sync: bool  # writes are to wait for this peer (its edge, or the group, is synchronous)
    split: bool  # the operator wants the pair split
    discard: str  # node whose writes the operator allows to be thrown away, or ""
    discard_epoch: int  # that node's newest epoch when he did: the leave is for no later one. 0: it was not known
    handover: str  # node this side has handed the primary role to, or ""
    upstream: str  # of a secondary: node that feeds it, "" for none
    listed: int = 0  # the seq at which the group has these volumes (secondary: applied)
    changed: int = 0  # seq of the last change of the volumes, 0 when the history has none
    torn: int | None = (
        None  # in state "resync": only records after pos, up to this one, are missing; 0: no. None: not told
    )
    source_durable: int | None = (
        None  # of the records here the peer had so many on stable storage, as it said; None: not told
    )
    rewound: tuple[Rewound, ...] | None = None  # what takeovers at markers gave up in this history; None: not told
    stands: int | None = None  # seq of the marker at which a copy stands until it is resumed, 0: none. None: not told

    @property
    def tag(self) -> int:
        """The node's epoch tag."""
        return node_tag(self.node)


def from_status(
    node: str,
    status: dict[str, Any],
    *,
    split: bool,
    discard: str = "",
    discard_epoch: int = 0,
    handover: str = "",
    version: int = VERSION,
) -> Hello:
    """Build our Hello from the target's group.status and what the operator wants."""
    journal = status["journal"]
    streams = status.get("mode") == "journal"
    pos = int(status["pos"])
    return Hello(
        version=version,
        node=node,
        group=str(status["uuid"]),
        volumes=tuple(sorted((int(v["index"]), int(v["size"]), int(v.get("born", 0))) for v in status["volumes"])),
        role=str(status["role"]),
        state=str(status["state"]),
        hist=tuple((int(e), int(b)) for e, b in status["hist"]),
        pos=pos,
        durable=int(status["durable"]),
        floor=int(status["floor"]),
        last_write=min(pos, int(status.get("last_write", pos))),
        journal=(int(journal["first_seq"]), int(journal["head_seq"])) if streams else None,
        starts=tuple(sorted(int(s) for s in status["bitmaps"])),
        unclean=bool(status.get("unclean", False)),
        sync=wants_sync(status),
        copy_id=str(status.get("copy_id") or ""),
        synced=NOT_YET if status.get("copying") else int(status.get("synced_seq", 0)),
        split=split,
        discard=discard,
        discard_epoch=discard_epoch,
        handover=handover,
        upstream=str(status.get("upstream") or "") if status["role"] == "secondary" else "",
        listed=int(status.get("applied", pos)),
        changed=int(status.get("listed_seq", 0)),
        torn=int(status.get("torn") or 0),
        source_durable=int(status.get("source_durable") or 0),
        rewound=rewound_from(status.get("rewound") or ()),
        stands=int(status.get("limit_seq") or 0) if status["role"] == "secondary" else 0,
    )


def rewound_from(lines: Any) -> tuple[Rewound, ...]:
    """Read what to_lists() made. Raises TypeError, ValueError for what it cannot have made."""
    if len(lines) > MAX_REWOUND:
        raise ValueError(f"{len(lines)} lines that were cut are more than {MAX_REWOUND}")
    found = []
    for epoch, base, dropped, pos in lines:
        if len(dropped) > MAX_DROPPED:
            raise ValueError(f"{len(dropped)} epochs of a line that was cut are more than {MAX_DROPPED}")
        cut = Rewound(_u64(epoch), _u64(base), tuple((_u64(e), _u64(b)) for e, b in dropped), _u64(pos))
        check_hist(cut.dropped)
        found.append(cut)
    return tuple(found)


def to_lists(rewound: Iterable[Rewound]) -> list[list[Any]]:
    """Return lines that were cut as plain lists, for frames and durable state."""
    return [[cut.epoch, cut.base, [list(entry) for entry in cut.dropped], cut.pos] for cut in rewound]


def wants_sync(status: dict[str, Any]) -> bool:
    """Say whether writes are to wait for the peer that this group.status was asked about."""
    return bool((status.get("policy") or {}).get("mode") == "sync")


def of_shared(mine: Hello, theirs: Hello, bitmaps: dict[int, Any]) -> dict[int, Any]:
    """Of the peer's bitmaps those of volumes that both sides have, with the same size; None for our other volumes."""
    shared = {index for index, *_ in set(mine.volumes) & set(theirs.volumes)}
    return {index: bitmaps[index] if index in shared else None for index, *_ in mine.volumes}


def to_frame(hello: Hello) -> dict[str, Any]:
    """Return the control frame for a Hello."""
    frame: dict[str, Any] = {"t": "hello", **hello._asdict()}
    for key in ("volumes", "hist"):
        frame[key] = [list(pair) for pair in frame[key]]
    frame["starts"] = list(hello.starts)
    frame["journal"] = None if hello.journal is None else list(hello.journal)
    frame["rewound"] = None if hello.rewound is None else to_lists(hello.rewound)
    return frame


def from_frame(frame: dict[str, Any]) -> Hello:
    """Decode a peer's HELLO.

    Raises ProtocolError when a field is missing or cannot be right. A newer version may carry other fields: only the
    version is then taken from it, so that the handshake can say so.
    """
    try:
        version = int(frame["version"])
        if version != VERSION:
            return _only_version(version, frame)
        hello = Hello(
            version=version,
            node=_hex(frame["node"]),
            group=_hex(frame["group"]),
            volumes=tuple((_u64(i), _u64(s), _u64(b)) for i, s, b in frame["volumes"]),
            role=_one_of(frame["role"], ROLES),
            state=_one_of(frame["state"], STATES),
            hist=tuple((_u64(e), _u64(b)) for e, b in frame["hist"]),
            pos=_u64(frame["pos"]),
            durable=_u64(frame["durable"]),
            floor=_u64(frame["floor"]),
            last_write=_u64(frame["last_write"]),
            journal=None if frame["journal"] is None else (_u64(frame["journal"][0]), _u64(frame["journal"][1])),
            starts=tuple(_u64(s) for s in frame["starts"]),
            unclean=bool(frame["unclean"]),
            sync=bool(frame["sync"]),
            copy_id=str(frame["copy_id"])[:64],
            synced=_u64(frame["synced"]),
            split=bool(frame["split"]),
            discard=str(frame["discard"])[:32],
            discard_epoch=_u64(frame["discard_epoch"]),
            handover=str(frame["handover"])[:32],
            upstream=str(frame["upstream"])[:32],
            listed=_u64(frame["listed"]),
            changed=_u64(frame["changed"]),
            torn=None if frame.get("torn") is None else _u64(frame["torn"]),
            source_durable=None if frame.get("source_durable") is None else _u64(frame["source_durable"]),
            rewound=None if frame.get("rewound") is None else rewound_from(frame["rewound"]),
            stands=None if frame.get("stands") is None else _u64(frame["stands"]),
        )
        check_hist(hello.hist)
        if hello.hist and hello.pos < hello.hist[-1][1]:
            raise ValueError(f"position {hello.pos} lies before base {hello.hist[-1][1]}")
    except KeyError as exc:
        raise ProtocolError(
            f"the peer's hello is malformed: field {exc} is missing", "run the same version on both nodes"
        ) from exc
    except (TypeError, ValueError, IndexError, OverflowError) as exc:  # the last for numbers that are infinite
        raise ProtocolError(f"the peer's hello is malformed: {exc}") from exc
    return hello


def _only_version(version: int, frame: dict[str, Any]) -> Hello:
    node, group = _hex(frame["node"]), _hex(frame["group"])
    return Hello(
        version,
        node,
        group,
        (),
        "secondary",
        "ok",
        (),
        0,
        0,
        0,
        0,
        None,
        (),
        False,
        "",
        0,
        False,
        False,
        "",
        0,
        "",
        "",
    )


def _hex(value: Any) -> str:
    text = str(value).replace("-", "").lower()
    if len(text) != 32:
        raise ValueError(f"id {value!r} is not 32 hex digits")
    int(text, 16)
    return text


def _u64(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is not a 64-bit number")
    return value


def _one_of(value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return str(value)
