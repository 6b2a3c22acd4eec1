"""Images of earlier instants: views that somebody asks for, and the one that is kept while a resync runs.

A view begins as clones of all volumes of the group, taken at one record while applying pauses for that moment, and what
was overwritten since the instant is written back into them. Then they become snapshots, or stay clones, and are served.
Until then they carry the attribute `building`, are served to nobody, and are removed when the node starts again.

Replication never waits for a view. One that is too slow for its window, or would fill the pool, fails and is removed.

Before a secondary becomes the target of a resync, its last consistent image is kept as snapshots, if there is room, and
removed when the resync is complete; or when the pool is full and the resync could not go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from nbdplugin.exports import Exports
from nbdplugin.grouphost import GroupHost
from nbdplugin.poolhost import PoolHost
from nbdplugin.retention import Policy, facts
from replicator.capture import follower
from replicator.capture.bitmaps import BLOCK_BYTES
from replicator.capture.engine import GroupEngine
from replicator.capture.preimages import instants, putback
from replicator.capture.preimages.instants import Place, format_time
from replicator.capture.preimages.window import Window
from replicator.capture.service import GroupService
from replicator.capture.state import DIVERGED, OK, RESYNC, SECONDARY
from replicator.core.errors import FarstripeError, Refused, TimedOut
from replicator.eventlog import EventLog
from replicator.journal.beacons import look
from replicator.journal.page import APPLIED_SEQ, ARRIVED_GEN

BUILDING = "building"
VIEW = "view"
KEPT = "kept"
TICK_S = 2.0
WRITERS = 8
"""Threads that put bytes back: the first write to an area copies it and waits for a sync, which they share."""
QUEUE = 64
MOST_AT_ONCE = 4
STOP_S = 10.0
LOCK_S = 30.0
LOCK_TRY_S = 0.05
CHECK_BYTES = 64 << 20
RESERVE_PART = 64
"""A view stops when less than this part of the pool is free."""


class Views:
    """The views of a node, and a thread that removes kept images."""

    def __init__(self, groups: GroupHost, pools: PoolHost, exports: Exports, events: EventLog) -> None:
        self._groups = groups
        self._pools = pools
        self._exports = exports
        self._events = events
        self._stop = threading.Event()
        self._at_work = threading.Semaphore(MOST_AT_ONCE)
        self._attaching: set[str] = set()
        """Groups that are about to be resynced."""
        self._thread = threading.Thread(target=self._loop, name="views", daemon=True)

    def start(self) -> None:
        """Remove what a crash left half built, and begin to look after kept images."""
        for name in self._named(BUILDING):
            self._remove(name)
            self._events.add("view.removed", f"{name} was not complete when the node stopped, and is removed")
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and views that are being built."""
        self._stop.set()
        self._thread.join()
        for _ in range(MOST_AT_ONCE):
            self._at_work.acquire(timeout=STOP_S)

    def _named(self, attribute: str) -> list[str]:
        pool = self._pools.pool
        return [] if pool is None else [v.name for v in pool.volumes if attribute in v.info.attributes]

    def _remove(self, name: str) -> None:
        with self._pools.changing:
            self._exports.remove(name)
            self._pools.require().delete_volume(name)

    # -- views ----------------------------------------------------------------------------------------------------

    def create(
        self, service: GroupService, key: str, value: int | str, suffix: str | None, *, writable: bool
    ) -> dict[str, Any]:
        """Make a view of a group at an instant (key, value as instants.find takes them) and serve it.

        suffix: its images are named VOLUME-suffix; at-SEQ when None. Raises Refused when the instant cannot be shown,
        AlreadyExists, OutOfSpace, IntegrityError; then nothing stays. Durable: the view.
        Returns {group, seq, epoch, time_ns, time, certain, writable, restored_bytes, images}.
        """
        if not self._at_work.acquire(blocking=False):
            raise Refused(f"{MOST_AT_ONCE} views are being built already", "ask again when they are there")
        try:
            return self._create(service.engine, key, value, suffix, writable)
        finally:
            self._at_work.release()

    def _create(
        self, engine: GroupEngine, key: str, value: int | str, suffix: str | None, writable: bool
    ) -> dict[str, Any]:
        began, window = time.monotonic(), _window(engine)
        arrived = look(engine.page.u64, ARRIVED_GEN)
        chain, applied = window.chain, engine.page[APPLIED_SEQ]
        place = instants.find(window, key, value, applied)
        names = {v["name"]: f"{v['name']}-{suffix or f'at-{place.instant.seq}'}" for v in engine.state.volumes}
        final = key != "time_ns" or instants.is_final(place, int(value), applied, arrived)
        told = _told(engine, place, certain=final)
        clones, end = self._take(engine, window, chain, place, names)
        try:
            with _pinned(window, place.begin):
                restored = self._put_back(window, place, end, clones)
            with self._pools.changing:
                pool = self._pools.require()
                for volume in pool.finish_clones(list(names.values()), {VIEW: told}, freeze=not writable):
                    self._exports.add(volume, pool.sync)
        except BaseException:
            for name in names.values():
                self._remove(name)
            raise
        self._events.add(
            "view.created",
            f"group {engine.state.name} is shown as of record {place.instant.seq}: {', '.join(names.values())}",
            took_s=round(time.monotonic() - began, 3),
            **told,
        )
        images = [{"volume": volume, "name": name} for volume, name in names.items()]
        return {**told, "writable": writable, "restored_bytes": restored, "images": images}

    def _take(
        self, engine: GroupEngine, window: Window, chain: int, place: Place, names: dict[str, str]
    ) -> tuple[dict[int, Any], int]:
        """Clone all volumes between two records. Returns the clones, by index, and where the ring ended then."""
        with self._between_records(engine):
            if _window(engine) is not window or window.chain != chain or place.begin < window.tail_off:
                raise Refused("the instant has left the window", f"the window holds {instants.window_text(window)}")
            clones = self._pools.require().clone_all(names, {BUILDING: True})
            indexes = [v["index"] for v in engine.state.volumes]
            return dict(zip(indexes, clones, strict=True)), window.end_off

    @contextmanager
    def _between_records(self, engine: GroupEngine) -> Iterator[None]:
        """Let nothing be applied, and nothing else change the pool.

        Taken as the follower takes them when it keeps an image of a marker; who has the one may be waiting for the
        other, so both are given back before they are tried again.
        """
        deadline = time.monotonic() + LOCK_S
        while True:
            with engine.apply_lock:
                if self._pools.changing.acquire(timeout=LOCK_TRY_S):
                    try:
                        yield
                    finally:
                        self._pools.changing.release()
                    return
            if time.monotonic() > deadline:
                raise TimedOut("another change of the pool does not end", "try again in a moment")
            time.sleep(LOCK_TRY_S)

    def _put_back(self, window: Window, place: Place, end: int, clones: Mapping[int, Any]) -> int:
        done = looked = 0
        under_way: set[Future[None]] = set()
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="view") as writers:
            for piece in putback.pieces(window, place, end):
                under_way.add(writers.submit(piece.put, clones))
                done += piece.length
                if len(under_way) >= QUEUE:
                    under_way = _settled(under_way, all_of_them=False)
                if self._stop.is_set():
                    raise Refused("the node is stopping", "ask again when it has started")
                if done - looked >= CHECK_BYTES or done == piece.length:
                    looked = done
                    self._check_room()
            _settled(under_way, all_of_them=True)
        return done

    def _check_room(self) -> None:
        free, size = self._pools.space()
        if free < size // RESERVE_PART:
            raise Refused(
                "the pool is nearly full, and what replication writes comes first",
                "make room: farstripe pool status, farstripe volume list",
            )

    # -- the image that is kept -----------------------------------------------------------------------------------

    @contextmanager
    def keeping_image(self, engine: GroupEngine, masks: dict[int, bytes], *, full: bool) -> Iterator[None]:
        """Keep the last consistent image of a group; inside this context its resync begins.

        Without room, or on any error, it is not kept. masks: the blocks that will be copied, packed, by volume; `full`:
        all of them. Durable: the image.
        """
        uuid = engine.state.uuid
        self._attaching.add(uuid)
        try:
            self._keep_if_wanted(engine, masks, full)
            yield
        finally:
            self._attaching.discard(uuid)

    def _keep_if_wanted(self, engine: GroupEngine, masks: dict[int, bytes], full: bool) -> None:
        try:
            if engine.state.role != SECONDARY or engine.state.copy not in (OK, DIVERGED):
                return
            if not Policy.load(self._groups.directory(engine.state.uuid)).keep_image:
                return
            follower.settle(engine)
            self._keep(engine, masks, full)
        except Exception as exc:  # outermost: a resync never fails for want of an image of before
            name = engine.state.name
            self._events.add("image.not_kept", f"the image of group {name} before the resync is not kept: {exc}")

    def _keep(self, engine: GroupEngine, masks: dict[int, bytes], full: bool) -> None:
        state = engine.state
        with self._pools.changing:
            for name in self._kept(state.uuid):
                self._remove(name)
            pool, listed = self._pools.require(), {v["index"]: v["name"] for v in state.volumes}
            wanted = sum(
                _copied_bytes(pool.volume(name), None if full else masks.get(index), pool.area_bytes)
                for index, name in listed.items()
            )
            free, size = self._pools.space()
            if free - wanted < size // RESERVE_PART:
                raise Refused(f"it would need up to {wanted} bytes, and {free} are free", "make room in the pool")
            taken = {v.name for v in pool.volumes}
            names = {v: _kept_name(v, state.uuid, index, taken) for index, v in listed.items()}
            seq, time_ns = engine.page[APPLIED_SEQ], engine.applied_time_ns
            about = {"group": state.uuid, "seq": seq, "epoch": engine.epoch, "time_ns": time_ns or None}
            for volume in pool.snapshot(names, {KEPT: about}):
                self._exports.add(volume, pool.sync)
        self._events.add(
            "image.kept",
            f"the image of group {state.name} at record {seq} is kept until its resync is complete: "
            f"{', '.join(names.values())}",
            group=state.name,
        )

    def _kept(self, uuid: str) -> list[str]:
        pool = self._pools.pool
        volumes = () if pool is None else pool.volumes
        return [v.name for v in volumes if v.info.attributes.get(KEPT, {}).get("group") == uuid]

    def told(self, status: dict[str, Any]) -> dict[str, Any]:
        """A group's status, with its window (`retention`) and the image that is kept (`kept_image`)."""
        uuid = status["uuid"]
        try:
            window = facts(self._groups.get(uuid).engine, self._groups.directory(uuid))
        except FarstripeError:
            window = None  # the group is broken, or was deleted meanwhile
        return {**status, "retention": window, "kept_image": self.kept_image(uuid)}

    def kept_image(self, uuid: str) -> dict[str, Any] | None:
        """What is kept of a group: {seq, epoch, time_ns, time, names}; None for nothing."""
        names = self._kept(uuid)
        if not names:
            return None
        about = dict(self._pools.require().volume(names[0]).info.attributes[KEPT])
        del about["group"]
        return {**about, "time": format_time(about["time_ns"]) if about["time_ns"] else None, "names": names}

    def _loop(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                for uuid in {v.info.attributes[KEPT]["group"] for v in self._volumes_with(KEPT)}:
                    self._look_at(uuid)
            except Exception as exc:  # outermost loop
                self._events.add("image.trouble", f"images that are kept could not be looked at: {exc}")
                self._stop.wait(60)

    def _volumes_with(self, attribute: str) -> Iterable[Any]:
        pool = self._pools.pool
        return () if pool is None else [v for v in pool.volumes if attribute in v.info.attributes]

    def _look_at(self, uuid: str) -> None:
        try:
            engine = self._groups.get(uuid).engine
        except FarstripeError:
            return  # deleted, or could not be opened: the image may be all there is
        if uuid in self._attaching:
            return
        if engine.state.copy != RESYNC and engine.state.attaching is None:
            self._drop(uuid, engine, "the resync is complete")
        elif engine.apply_error:
            free, size = self._pools.space()
            if free < size // RESERVE_PART:
                self._drop(uuid, engine, "the pool is full, and the resync could not go on")

    def _drop(self, uuid: str, engine: GroupEngine, why: str) -> None:
        gone = []
        with self._pools.changing:
            for name in self._kept(uuid):
                try:
                    self._remove(name)
                    gone.append(name)
                except FarstripeError:
                    continue  # somebody reads it: later
        if gone:
            self._events.add("image.dropped", f"{', '.join(gone)} of group {engine.state.name} removed: {why}")


def _window(engine: GroupEngine) -> Window:
    """The window of a group. Raises Refused when there is none."""
    state, recorder = engine.state, engine.preimages
    if state.role != SECONDARY:
        raise Refused(
            f"group {state.name} is primary here, and only a secondary keeps what it overwrites",
            "ask on the secondary; an image of now: farstripe volume snapshot",
        )
    if recorder is None or recorder.failed:
        why = f": {recorder.failed}" if recorder is not None else ""
        raise Refused(
            f"group {state.name} retains nothing here{why}", f"farstripe group retention {state.name} --bytes 2G"
        )
    if not recorder.window.active:
        raise Refused(f"the window of group {state.name} begins with the next write it receives", "try again later")
    return recorder.window


def _told(engine: GroupEngine, place: Place, certain: bool) -> dict[str, Any]:
    """What is said of a view. certain: no record of before the time that was asked for can still arrive."""
    seq, epoch, time_ns = place.instant
    return {
        "group": engine.state.name,
        "seq": seq,
        "epoch": epoch,
        "time_ns": time_ns or None,
        "time": format_time(time_ns) if time_ns else None,
        "certain": certain,
    }


@contextmanager
def _pinned(window: Window, off: int) -> Iterator[None]:
    """Age alone frees nothing from `off` on meanwhile."""
    window.pins.append(off)
    try:
        yield
    finally:
        window.pins.remove(off)


def _settled(under_way: set[Future[None]], *, all_of_them: bool) -> set[Future[None]]:
    """Wait for one of them, or for all, and return those under way still. Raises what went wrong."""
    if all_of_them:
        done, rest = under_way, set[Future[None]]()
    else:
        done, rest = wait(under_way, return_when=FIRST_COMPLETED)
    for one in done:
        one.result()
    return rest


def _copied_bytes(volume: Any, mask: bytes | None, area_bytes: int) -> int:
    """Bytes of areas that a copy of the blocks in `mask` (None: all) may overwrite, and that hold something."""
    if mask is None:
        return sum(length for length, allocated in volume.extents(0, volume.size) if allocated)
    step = max(1, area_bytes // BLOCK_BYTES // 8)
    return sum(area_bytes for at in range(0, len(mask), step) if any(mask[at : at + step]))


def _kept_name(volume: str, uuid: str, index: int, taken: set[str]) -> str:
    name = f"{volume}-before-resync"
    if len(name) <= 63 and name not in taken:
        return name
    return f"before-resync-{uuid[:8]}-{index}"
