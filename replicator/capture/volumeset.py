"""Which volumes a group has, and their sizes: changed while hosts write and copies follow.

A change is a record in the sequence (RESIZE, VOLUME_ADD, VOLUME_REMOVE), so every node makes it between the same two
writes. The primary, with writers parked and drained:

    1  prepare   volumes grown, files of block maps made                  may be done again, and left as it is
    2  sync      everything before the record is in the pool              durable
    3  record    appended and synced                                      from here on the change comes true
    4  commit    the list in the group's state, and where it changed      durable; the list counts from here on
    5  settle    volumes cut, files of those that left removed, routes    done again at start

A crash before 3 leaves the former list; what was grown is cut at the next start to what the state says. One between 3
and 4 leaves a record that redo applies, by the same steps. A secondary makes them when it comes to the record. So the
list on stable storage is that of the position it goes with, and two nodes at one position have the same.

Redo goes over records again whose volumes may have left or become smaller since. It has to pass over everything up to
`GroupState.listed_at`: that is in the pool (2), and what those records did to the state was saved with it.

When the journal cannot be synced in 3, the record may be on a peer all the same, and the disk may have lost it. The
former list stays. Once differences are counted instead (journalloss.py), `restated` says so in the sequence: the list
is as of a later number, so whoever made the change gets the former list with the copy that follows.

While no records are made (bitmap mode) a change takes a number of the sequence all the same. Every peer is copied to
then, and an ATTACH carries the list: what the two sides do not share is copied as a whole (`shared`).

An index is never given twice in one history, so (index, epoch in which it was added) names a volume on all nodes.
A volume that leaves stays in the pool with its contents, on every node, and belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgpack

from replicator.capture.bitmaps import BlockMap, MapFile, NoMap
from replicator.capture.state import BITMAP, PRIMARY, UNTRACKED, GroupState
from replicator.core.errors import BadInput, IntegrityError, Refused
from replicator.core.records import Header, Kind

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine
    from replicator.capture.groupbase import Volume

Listed = dict[str, Any]
"""{index, name, uuid, size, born}. uuid: this node's; born: the epoch it was added in, 0 or missing: from the start."""


class VolumeHost(Protocol):
    """The pool and the files, as far as the list of a group needs them. What a method does is durable on return."""

    def provide(self, volume: Mapping[str, Any]) -> tuple[Volume, str]:
        """Return the volume {name, size} and its uuid, made where it is missing.

        Raises Refused when there is one of that name that cannot be taken, what the pool raises when it has no room.
        """

    def map_file(self, index: int, size: int) -> MapFile:
        """The file of the block map of a volume of `size` bytes, made or enlarged with zeroes."""

    def resize(self, name: str, size: int) -> None:
        """Give a volume this size, whatever it holds beyond."""

    def intend(self, volumes: Sequence[Listed]) -> None:
        """The group has, or is about to have, these."""

    def settled(self, volumes: Sequence[Listed]) -> None:
        """The group has these and no others from now on. Done again after a crash."""


class NoVolume:
    """Stands where a volume has left the group, or is not in it yet."""

    size = 0

    def _gone(self, *_args: object) -> Any:
        raise Refused("the volume is not in the group any more", "connect to it again")

    pread_into = pread_once = pwrite = zero = extents = _gone


class Prepared(NamedTuple):
    """A list that can be committed."""

    volumes: list[Listed]
    handles: dict[int, Volume]
    maps: dict[int, BlockMap]


def by_index(items: Mapping[int, Any], count: int, absent: Any) -> list[Any]:
    """A list that an index of the group can be looked up in."""
    return [items.get(index, absent) for index in range(count)]


def next_index(state: GroupState) -> int:
    """The index of the next volume."""
    return max(state.next_index, 1 + max((v["index"] for v in state.volumes), default=-1))


def reserve(engine: GroupEngine) -> int:
    """Return the index of the next volume; until it is added, what hosts send to that index is refused."""
    with engine.lock:
        index = next_index(engine.state)
        if len(engine.volumes) <= index:
            engine.bitmaps.maps.append(NoMap())
            engine.volumes.append(NoVolume())
        return index


def identity(volume: Mapping[str, Any]) -> tuple[int, int]:
    """What names a volume on all nodes of a group."""
    return int(volume["index"]), int(volume.get("born", 0))


def passes_over(state: GroupState) -> tuple[int, int]:
    """(epoch, seq) up to which records are not to be applied again."""
    return (state.listed_at[0], state.listed_at[1]) if state.listed_at else (0, 0)


# -- the steps --------------------------------------------------------------------------------------------------------


def prepare(engine: GroupEngine, wanted: Iterable[Mapping[str, Any]]) -> Prepared:
    """Step 1: make what the list `wanted` needs. Takes no lock; nothing uses it before `install`.

    Raises what VolumeHost raises; the former list is as good as before then.
    """
    host, former = _host(engine), [dict(v) for v in engine.state.volumes]
    have = {identity(v): v for v in former}
    asked = [dict(v) for v in wanted]
    host.intend([*former, *(v for v in asked if identity(v) not in have)])
    volumes: list[Listed] = []
    handles: dict[int, Volume] = {}
    maps: dict[int, BlockMap] = {}
    taken = {v["index"] for v in former}
    for one in asked:
        index, size = int(one["index"]), int(one["size"])
        known = have.get(identity(one))
        if known is None:
            handle, uuid = host.provide(one)
            new = BlockMap(host.map_file(index, size), size)
            if index not in taken:
                new.clear_all(0xFF)  # else it lies in the map of the volume that leaves: stray bits are allowed
        else:
            handle, uuid, new = engine.volumes[index], known["uuid"], engine.bitmaps.maps[index]
            if size > handle.size:
                host.resize(known["name"], size)
            if size != known["size"]:
                before = new.blocks
                new = BlockMap(host.map_file(index, max(size, known["size"])), size)
                new.clear_blocks(0xFF, before, max(0, new.blocks - before))
        new.sync()
        handles[index], maps[index] = handle, new
        volumes.append(
            {"index": index, "name": one["name"], "uuid": uuid, "size": size, "born": int(one.get("born", 0))}
        )
    return Prepared(sorted(volumes, key=lambda v: v["index"]), handles, maps)


def changes(engine: GroupEngine, prepared: Prepared, at: tuple[int, int] | None) -> dict[str, Any]:
    """Step 4: the fields of the state to commit. at: (epoch, seq) of the change, None while there is no history."""
    known = [v["index"] + 1 for v in prepared.volumes]
    return {
        "volumes": prepared.volumes,
        "next_index": max([next_index(engine.state), *known]),
        "listed_at": list(at) if at else [],
    }


def install(engine: GroupEngine, prepared: Prepared) -> None:
    """Let the engine see the volumes. The caller holds the group lock, and nobody is inside one of them."""
    known = [v["index"] + 1 for v in prepared.volumes]
    count = max([next_index(engine.state), len(engine.volumes), *known])
    engine.volumes[:] = by_index(prepared.handles, count, NoVolume())
    engine.bitmaps.maps[:] = by_index(prepared.maps, count, NoMap())
    engine.unsettled = True


def settle(engine: GroupEngine) -> None:
    """Step 5, also when it failed before. The caller holds no lock of the group but apply_lock."""
    _cut(engine)
    _host(engine).settled(engine.state.volumes)
    engine.unsettled = False


def _cut(engine: GroupEngine) -> None:
    """Volumes have the sizes that the list says."""
    for volume in engine.state.volumes:
        if engine.volumes[volume["index"]].size > volume["size"]:
            _host(engine).resize(volume["name"], volume["size"])


def _host(engine: GroupEngine) -> VolumeHost:
    if engine.volume_host is None:
        raise Refused(f"the volumes of group {engine.state.name} cannot be changed here")
    return engine.volume_host


# -- on the primary ---------------------------------------------------------------------------------------------------


def with_added(state: GroupState, name: str, size: int, epoch: int) -> tuple[list[Listed], int]:
    """The list with one more volume, and its index. Raises BadInput for a name that is in it."""
    if any(v["name"] == name for v in state.volumes):
        raise BadInput(f"volume {name} is in group {state.name} already")
    index = next_index(state)
    born = 0 if state.mode == UNTRACKED else epoch
    return [*state.volumes, {"index": index, "name": name, "size": size, "born": born}], index


def change(engine: GroupEngine, kind: Kind, name: str, size: int = 0) -> Listed:
    """Change the list on a primary; writers are parked for "volumes" and drained, and stay so until this returns.

    kind: VOLUME_ADD of the volume `name` with `size` bytes, VOLUME_REMOVE, or RESIZE to `size`. Returns the volume's
    entry; `settle`, with writers let in again, ends the change. Raises Refused or NoRoom (nothing changed), BadInput,
    MediumError. Durable: the change.
    """
    state = engine.state
    with engine.lock:
        _require_parked(engine)
        if state.new_epoch_wanted and state.mode == BITMAP:
            engine.new_history_entry()
        elif state.new_epoch_wanted:
            engine.open_epoch()
    wanted, entry = _wanted(engine, kind, name, size)
    try:
        prepared = prepare(engine, wanted)
        with engine.checkpoint_lock, engine.lock:
            _require_parked(engine)
            engine.sync_pool()
            at = _say(engine, kind, entry)
            engine.commit(**changes(engine, prepared, at))
            install(engine, prepared)
    except BaseException:
        _cut(engine)
        raise
    try:
        _cut(engine)
    except BaseException as e:
        engine.fail(f"a volume could not be made smaller: {e}")  # hosts could write beyond; the next start does it
        raise
    return entry


def _require_parked(engine: GroupEngine) -> None:
    state = engine.state
    if state.role != PRIMARY or engine.failed or engine.journal_lost:
        raise Refused(f"the volumes of group {state.name} can only be changed on its primary", "see 'farstripe status'")
    if engine.parked_for != "volumes" or engine.in_flight():
        raise Refused(f"group {state.name} is held just now", "try again in a moment")


def _wanted(engine: GroupEngine, kind: Kind, name: str, size: int) -> tuple[list[Listed], Listed]:
    state = engine.state
    if kind == Kind.VOLUME_ADD:
        wanted, _ = with_added(state, name, size, engine.epoch)
        return wanted, wanted[-1]
    entry = next((dict(v) for v in state.volumes if v["name"] == name), None)
    if entry is None:
        raise BadInput(f"volume {name} is not in group {state.name}")
    rest = [v for v in state.volumes if v["name"] != name]
    if kind == Kind.VOLUME_REMOVE:
        if not rest:
            raise Refused(f"{name} is the only volume of group {state.name}", "delete the group instead")
        return rest, entry
    entry["size"] = size
    return [*rest, entry], entry


def _say(engine: GroupEngine, kind: Kind, entry: Listed) -> tuple[int, int] | None:
    """Step 3. Returns where in the history the change is. The caller holds the group lock."""
    state, index = engine.state, entry["index"]
    if state.mode == UNTRACKED:
        return None
    if state.mode == BITMAP:
        return engine.epoch, engine.take_number()
    payload = None
    if kind == Kind.VOLUME_ADD:
        payload = msgpack.packb({"name": entry["name"], "size": entry["size"]})
    length = entry["size"] if kind == Kind.RESIZE else 0
    seq = engine.append_control(kind, volume=index, length=length, payload=payload)
    try:
        engine.journal.sync()
    except OSError as e:
        engine.list_in_doubt = max(next_index(state), index + 1)
        raise engine.lose_journal(f"its journal cannot be synced: {e}") from e
    return engine.epoch, seq


def restated(engine: GroupEngine, at: int) -> dict[str, Any]:
    """The fields of the state that make the list that of number `at`, which is given to nothing else, after a change
    that was said and did not come about. Its index is given to no other volume."""
    return {"listed_at": [engine.epoch, at], "next_index": engine.list_in_doubt}


# -- in redo, and on a secondary ---------------------------------------------------------------------------------------


def apply(engine: GroupEngine, header: Header, payload: memoryview) -> None:
    """Do what a record says. Everything before it has been applied; the caller holds apply_lock.

    Durable: the list, and everything before it. Raises Refused (also when the pool cannot give what is needed; the
    record is tried again then), IntegrityError for a record that cannot be.
    """
    state = engine.state
    wanted = _listed_after(state, header, payload)
    engine.sync_pool()
    prepared = prepare(engine, wanted)
    if engine.preimages is not None and not engine.recovering:
        engine.preimages.begin_behind(engine, header)
    with engine.lock:
        engine.commit(**changes(engine, prepared, (header.epoch, header.seq)))
        install(engine, prepared)
    settle(engine)


def _listed_after(state: GroupState, header: Header, payload: memoryview) -> list[Listed]:
    listed = {v["index"]: dict(v) for v in state.volumes}
    try:
        if header.kind == Kind.VOLUME_ADD:
            if header.volume in listed:
                raise ValueError(f"it adds volume {header.volume}, which is there")
            added = msgpack.unpackb(payload)
            name, size = str(added["name"]), int(added["size"])
            if size <= 0 or size % 4096:
                raise ValueError(f"it adds a volume of {size} bytes")
            listed[header.volume] = {"index": header.volume, "name": name, "size": size, "born": header.epoch}
        elif header.volume not in listed:
            raise ValueError(f"it changes volume {header.volume}, which is not there")
        elif header.kind == Kind.VOLUME_REMOVE:
            del listed[header.volume]
        elif header.length <= 0 or header.length % 4096:
            raise ValueError(f"it gives volume {header.volume} {header.length} bytes")
        else:
            listed[header.volume]["size"] = header.length
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as e:
        raise IntegrityError(f"record {header.seq} of group {state.name} cannot be: {e}", "resync the pair") from e
    return list(listed.values())


# -- of two sides that meet --------------------------------------------------------------------------------------------


def offered(engine: GroupEngine) -> list[Listed]:
    """The list as an ATTACH carries it."""
    return [{key: v.get(key, 0) for key in ("name", "index", "size", "born")} for v in engine.state.volumes]


def check_offer(volumes: Any) -> list[Listed]:
    """The list of an ATTACH. Raises BadInput when it cannot be."""
    try:
        listed: list[Listed] = [
            {"name": str(v["name"]), **{key: int(v[key]) for key in ("index", "size", "born")}} for v in volumes
        ]
        if not listed or len({v["index"] for v in listed}) != len(listed) or any(int(v["size"]) <= 0 for v in listed):
            raise ValueError("volumes without a size, or two with one index")
    except (KeyError, TypeError, ValueError) as e:
        raise BadInput(f"the list of volumes cannot be: {e}") from e
    return listed
