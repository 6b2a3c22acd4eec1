"""The images that consistency sets take in cycles, on a node that has the copies. The rules are in core/cycles.py.

    STATE/cycles/<set>    the set's book (replicator.capture.cyclebook)

One thread. When an image is due it has the set's bound stand still (SetHost.freeze), waits until every group stands at
it, and then, with all followers kept out, enters the image as being taken, takes one snapshot of all volumes, which
the pool makes whole or not at all, and enters it as taken. A crash in between leaves an entry of which a start can
tell whether its snapshots exist. So a half-taken image is offered to nobody.

A group that makes no way towards the bound for STUCK_S ends the wait: the others go on, and the image is tried again
when the next one is due. Nothing of all this keeps records from being received, or a takeover from being decided.
A copy that can apply nothing because the pool is full gets the room of the images, at last that of the newest one; an
image that a takeover goes back to stays in any case.

What it does not do: decide how far groups may go (capture/sets.py), take over (standing.py goes back to an image).
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbdplugin.exports import Exports
from nbdplugin.markerhost import MAX_NAME
from nbdplugin.poolhost import PoolHost
from nbdplugin.standing import LOCK_S, check_volumes, stand_at
from raidlib.errors import RaidError
from replicator.capture import volumeset
from replicator.capture.cyclebook import BOOK_FILE_BYTES, TAKEN, TAKING, CycleBook, Image, Place
from replicator.capture.engine import GroupEngine
from replicator.capture.service import GroupService
from replicator.capture.sets import SetHost
from replicator.capture.state import OK, SECONDARY
from replicator.core.cycles import NO_CYCLE, Cycle, may_go, short_of_room
from replicator.core.errors import FarstripeError, NotFound, Refused
from replicator.core.records import BadRecord
from replicator.journal.files import PlainFile
from replicator.journal.page import APPLIED_OFF, APPLIED_SEQ, HEAD_OFF

TICK_S = 0.05
STUCK_S = 30.0
STOP_S = 2.0
"""How long followers that are in the middle of a batch are waited for."""
RETRY_S = 1.0
"""How often a set that is no cut, or not followed here, is looked at again."""
ROOM_S = 3.0
"""How long older images are gone before the newest follows, when a copy can still apply nothing for want of room."""
PAUSE_S = 60.0
"""How long none is taken after that."""
RETIRE_S = 5.0
"""How often images that somebody had open are looked at again."""
Note = Callable[[str, str, str], None]


@dataclass
class _Work:
    """What is under way for one set."""

    due: float = 0.0
    bound_ns: int = 0
    """Where the groups are to stand for the image that is due; 0: none is."""
    seen: dict[str, int] = field(default_factory=dict)
    since: float = 0.0
    """When a group was last seen to go on."""
    retire_at: float = 0.0
    why: str = ""
    """Why the last image that was due was not taken, "" when it was."""
    room_since: float | None = None
    """When a copy was first found that can apply nothing for want of room; None: there is none."""


class CycleHost:
    """Books, snapshots and the thread. `tick` is the thread's step, for callers that have their own time."""

    def __init__(
        self,
        folder: Path,
        pools: PoolHost,
        exports: Exports,
        sets: SetHost,
        find: Callable[[str], GroupService | None],
        note: Note,
    ) -> None:
        """Load the books in `folder`; the pool is open. find: a group's service by uuid. note(kind, text, set).

        Raises IntegrityError, MediumError.
        """
        self._folder, self._pools, self._exports, self._sets = folder, pools, exports, sets
        self._find, self._note = find, note
        self._books: dict[str, CycleBook] = {}
        self._works: dict[str, _Work] = {}
        self._lock = threading.Lock()
        """Over what changes a book together with its snapshots."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cycles", daemon=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(folder.iterdir()):
            self._books[path.name] = book = CycleBook(PlainFile(path), path.name)
            for image in book.images():
                if image.state == TAKING:
                    self._settle(book, image)

    def start(self) -> None:
        """Let cycles begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is under way."""
        self._stop.set()
        self._thread.join(timeout=30)

    def close(self) -> None:
        """Release the files."""
        for book in self._books.values():
            book.close()

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """Do what is due at `now`, in seconds of a monotonic clock."""
        for name, cycle, groups in self._sets.cycles():
            if name not in self._books and name not in self._works and (cycle == NO_CYCLE or not groups):
                continue
            work = self._works.setdefault(name, _Work())
            try:
                self._step(name, cycle if groups else NO_CYCLE, groups, work, now)
            except (FarstripeError, RaidError, OSError) as exc:
                self._give_up(name, cycle, work, now, getattr(exc, "message", str(exc)))

    def _step(self, name: str, cycle: Cycle, groups: list[str], work: _Work, now: float) -> None:
        if now >= work.retire_at:
            work.retire_at = now + RETIRE_S
            self._retire(name, cycle)
        if cycle == NO_CYCLE:
            if work.bound_ns:
                self._sets.thaw(name)  # it was ended while an image was waited for
            work.bound_ns, work.why = 0, ""
            return
        if self._wants_room(groups):
            self._make_room(name, cycle, work, now)
            return
        work.room_since = None
        if work.bound_ns:
            self._go_on(name, cycle, groups, work, now)
        elif now >= work.due:
            bound_ns = self._sets.freeze(name) if self._services(groups) is not None else 0
            if not bound_ns:
                work.due = now + RETRY_S
                return
            work.bound_ns, work.seen, work.since = bound_ns, {}, now
            self._go_on(name, cycle, groups, work, now)

    def _wants_room(self, groups: list[str]) -> bool:
        """Whether a copy of the set can apply nothing because the pool is full."""
        found = [service for uuid in groups if (service := self._find(uuid)) is not None]
        return any(s.engine.wants_room and s.engine.state.role == SECONDARY for s in found)

    def _make_room(self, name: str, cycle: Cycle, work: _Work, now: float) -> None:
        """Give images up for a copy that stands still for want of room: older ones at once, the newest if that is not
        enough. A copy that stands still makes its primary wait once the journals are full."""
        if work.room_since is None:
            work.room_since = now
            self._sets.thaw(name)
            work.bound_ns = 0
        keep = 1 if now - work.room_since < ROOM_S else 0
        if self._retire(name, Cycle(cycle.every_ms, keep)):
            what = "older images are" if keep else "its images are all"
            why = f"the pool is full: {what} given up, for what replication writes comes first"
            self._give_up(name, cycle, work, now, why)
        work.due = now + max(cycle.every_s, PAUSE_S)

    def _services(self, groups: list[str]) -> list[GroupService] | None:
        """The services of groups that all follow here, else None."""
        found = [service for uuid in groups if (service := self._find(uuid)) is not None]
        follow = [s for s in found if s.engine.state.role == SECONDARY and s.engine.state.copy == OK]
        return follow if len(follow) == len(groups) else None

    def _go_on(self, name: str, cycle: Cycle, groups: list[str], work: _Work, now: float) -> None:
        """Take the image that is due if all groups stand at its bound."""
        services = self._services(groups)
        if services is None or not self._sets.frozen(name):
            self._sets.thaw(name)
            work.bound_ns = 0  # the set was taken over, or is no cut any more
            return
        engines = [service.engine for service in services]
        behind = [engine for engine in engines if not stands_at(engine, work.bound_ns)]
        if behind:
            seen = {engine.state.name: engine.page[APPLIED_SEQ] for engine in behind}
            if seen != work.seen:
                work.seen, work.since = seen, now
            elif now - work.since >= STUCK_S:
                one = behind[0]
                why = one.apply_error or ("it stands at a marker" if one.limit_seq else "it applies nothing")
                raise Refused(f"group {one.state.name} does not come to the cut: {why}", "the next cycle tries again")
            return
        with _kept_out(engines) as still:
            if not still or not all(stands_at(engine, work.bound_ns) for engine in engines):
                return
            self._take(name, engines, work.bound_ns)
        self._sets.thaw(name)
        work.bound_ns, work.due = 0, max(now, (work.due or now) + cycle.every_s)
        if work.why:
            work.why = ""
            self._note("set.cycles-resumed", f"set {name} takes images again", name)
        self._retire(name, cycle)

    def _give_up(self, name: str, cycle: Cycle, work: _Work, now: float, why: str) -> None:
        """No image now; the next one at its time. Told once for each reason."""
        self._sets.thaw(name)
        work.bound_ns, work.due = 0, now + max(cycle.every_s, TICK_S)
        if why != work.why:
            work.why = why
            self._note("set.cycle-missed", f"set {name} takes no image now: {why}", name)

    # -- taking -------------------------------------------------------------------------------------------------------

    def _take(self, name: str, engines: list[GroupEngine], bound_ns: int) -> None:
        """Take the image of groups that stand at a cut; the caller keeps followers out. Durable on return.

        One that would hold what the newest one holds is not taken.
        """
        book = self._book(name)
        n = book.next_number
        places = {engine.state.uuid: self._place(engine, name, n) for engine in engines}
        image = Image(n, bound_ns, places)
        newest = max(self._whole(book), key=lambda one: one.n, default=None)
        if newest is not None and newest.positions() == image.positions():
            return
        free, size = self._pools.space()
        if short_of_room(free, size):
            raise Refused(
                f"the pool is nearly full ({free} bytes are free), and what replication writes comes first",
                f"make room, or keep fewer images: farstripe set cycle {name}",
            )
        with self._lock, self._pools.changing_soon(LOCK_S):
            taken = [one for one in image.snapshots if self._exists(one)]
            if taken:
                book.drop(n)
                raise Refused(f"there is a volume {taken[0]}, which is to be the name of a snapshot", "delete it")
            book.put(image)
            try:
                self._pools.snapshot({v: s for place in places.values() for v, s in place.snapshots.items()})
            except RaidError:
                book.drop(n)
                raise
            book.put(Image(n, bound_ns, places, TAKEN))

    def _place(self, engine: GroupEngine, name: str, n: int) -> Place:
        snapshots = {str(v["name"]): cycle_name(v["name"], name, n) for v in engine.state.volumes}
        return Place(engine.state.name, engine.page[APPLIED_SEQ], engine.epoch, snapshots)

    def _book(self, name: str) -> CycleBook:
        if name not in self._books:
            file = PlainFile(self._folder / name, create_bytes=BOOK_FILE_BYTES)
            self._books[name] = CycleBook(file, name)
        return self._books[name]

    def _settle(self, book: CycleBook, image: Image) -> None:
        """Find out what a crash left of an image that was being taken: the pool has all of its snapshots, or none."""
        if all(self._exists(snapshot) for snapshot in image.snapshots):
            book.put(Image(image.n, image.bound_ns, image.places, TAKEN))
        else:
            book.drop(image.n)

    def _exists(self, name: str) -> bool:
        try:
            self._exports.get(name)
        except NotFound:
            return False
        return True

    def _whole(self, book: CycleBook) -> list[Image]:
        """Images all of whose snapshots exist."""
        return [one for one in book.images() if one.state == TAKEN and all(map(self._exists, one.snapshots))]

    def _retire(self, name: str, cycle: Cycle) -> bool:
        """Delete what is no longer kept: whole images beyond the newest, and what is left of others. One that somebody
        has open stays until it is closed. Returns whether any could go."""
        if name not in self._books:
            return False
        book, before = self._books[name], len(self._books[name].images())
        with self._lock:
            decided = self._sets.decided_cycle(name)  # under the lock under which one is decided
            whole = {image.n for image in self._whole(book)}
            short = bool(whole) and short_of_room(*self._pools.space())
            gone = set(may_go(whole, cycle.keep, (decided,), short=short))
            for image in book.images():
                if image.state == TAKEN and (image.n in gone or image.n not in whole) and image.n != decided:
                    self._delete(book, image)
            return len(book.images()) < before

    def _delete(self, book: CycleBook, image: Image) -> None:
        routes = [self._exports.get(name) for name in image.snapshots if self._exists(name)]
        if any(route.readers or route.writers for route in routes):
            return
        with self._pools.changing_soon(LOCK_S):
            for route in routes:
                with contextlib.suppress(Refused):  # opened just now; what is left is not whole, and goes next time
                    self._pools.delete_volume(route)
        if not any(map(self._exists, image.snapshots)):
            book.drop(image.n)

    # -- using --------------------------------------------------------------------------------------------------------

    def listing(self, name: str) -> list[dict[str, Any]]:
        """The images of a set that can be had, newest first: {n, bound_ns, groups: [{uuid, name, seq, epoch,
        snapshots}]}."""
        book = self._books.get(name)
        found = [] if book is None else sorted(self._whole(book), key=lambda image: -image.n)
        return [
            {
                "n": image.n,
                "bound_ns": image.bound_ns,
                "groups": [{"uuid": uuid, **vars(place)} for uuid, place in image.places.items()],
            }
            for image in found
        ]

    def trouble(self, name: str) -> str:
        """Why the last image of a set was not taken, "" when it was."""
        work = self._works.get(name)
        return work.why if work else ""

    def choose(self, name: str, n: int) -> Image:
        """The image `n` of a set, 0 for the newest, if every group here can be taken back to it.

        Raises NotFound, Refused.
        """
        book = self._books.get(name)
        whole = {} if book is None else {image.n: image for image in self._whole(book)}
        n = n or max(whole, default=0)
        if n not in whole:
            which = f"image {n}" if n else "image of a cycle"
            raise NotFound(f"set {name} has no {which} here", f"farstripe set images {name} shows what there is")
        for uuid, place in whole[n].places.items():
            service = self._find(uuid)
            if service is None:
                raise Refused(f"group {place.name} is not on this node any more", "take another image")
            check_volumes(service.engine, place.snapshots, f"image {n}")
            if place.seq < volumeset.passes_over(service.engine.state)[1]:
                raise Refused(f"the volumes of group {place.name} were changed since image {n}", "take a newer one")
        return whole[n]

    def decide(self, name: str, n: int) -> dict[str, Any]:
        """Fix that every group of the set becomes primary here as it was in image `n`, 0 for the newest. Durable.

        From then on the image stays. Returns as SetHost.decide_back; raises as it and `choose`.
        """
        with self._lock:
            image = self.choose(name, n)
            return self._sets.decide_back(name, image.n, image.bound_ns)

    def stand_at(self, service: GroupService, name: str, n: int) -> None:
        """Make a secondary hold what image `n` of its set holds, and nothing after it. See standing.stand_at."""
        engine = service.engine
        book = self._books.get(name)
        if book is None:
            raise NotFound(f"set {name} has no images here", f"farstripe set images {name}")
        image = book.find(n)
        place = image.places.get(engine.state.uuid)
        if place is None or image.state != TAKEN:
            raise Refused(f"group {engine.state.name} is not part of image {n} of set {name}", "take another image")
        with engine.apply_lock:
            stand_at(self._pools, engine, place.seq, place.epoch, place.snapshots, f"image {n}")


def stands_at(engine: GroupEngine, bound_ns: int) -> bool:
    """Whether a group has applied everything up to the bound, and nothing after it. Sure only under apply_lock."""
    u64, state = engine.page.u64, engine.state
    if state.role != SECONDARY or state.copy != OK or engine.limit_time_ns != bound_ns or engine.applies_through:
        return False
    off = u64[APPLIED_OFF]
    if off >= u64[HEAD_OFF]:
        return True
    try:
        header = engine.journal.header_at(off)
    except (BadRecord, OSError):
        return False
    return header.write_time > bound_ns


def cycle_name(volume: str, name: str, n: int) -> str:
    """The name of a volume's snapshot in image `n` of a set."""
    plain = f"{volume}.{name}-{n}"
    if len(plain) <= MAX_NAME:
        return plain
    return f"{volume[:20]}.{zlib.crc32(volume.encode()):08x}.{name[:20]}-{n}"[:MAX_NAME]


@contextlib.contextmanager
def _kept_out(engines: list[GroupEngine]) -> Iterator[bool]:
    """Keep followers from applying; yields False when one is busy long."""
    with contextlib.ExitStack() as held:
        for engine in engines:
            if not engine.apply_lock.acquire(timeout=STOP_S):
                yield False
                return
            held.callback(engine.apply_lock.release)
        yield True
