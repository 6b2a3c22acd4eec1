"""Consistency sets on one node: their durable state, and the bounds they put on groups. The rules are in core/cuts.py.

    STATE/sets/<name>    a slot file: {name, rev, groups: [uuid], order, numbers, every_ms, keep}, and what SetState has

A definition is made on the primary and handed on by the replicators; the higher `rev` wins, and no groups means that
the set is gone. Order of a step: see what has arrived; sync the journals it lies in; make the bound durable; raise
the limits. A bound that nobody waits for and that has no new number is not written down: an idle set costs no syncs.

In a set that orders by counter this node, where it is primary, gives every record of its groups a number (numbers.py);
all groups begin at once, under all their locks. After a stop that may have lost numbers it puts a note into each group.

While an image of a cycle is due (core/cycles.py) the bound is frozen: limits stay where they are. A takeover does not
ask for that, it goes to the latest bound that there is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from replicator.capture.arrivals import JournalArrivals
from replicator.capture.engine import GroupEngine
from replicator.capture.limits import answered_beyond, pending
from replicator.capture.numbers import Numbers
from replicator.capture.parking import NoRoom
from replicator.capture.service import GroupService
from replicator.capture.state import JOURNAL, OK, PRIMARY, SECONDARY
from replicator.core.cuts import (
    NO_BOUND,
    GroupView,
    Ruling,
    SetState,
    Standing,
    decide,
    decide_back,
    raised,
    rule,
    went_back,
)
from replicator.core.cycles import NO_CYCLE, Cycle
from replicator.core.epochs import tag_of
from replicator.core.errors import AlreadyExists, BadInput, IntegrityError, MediumError, NotFound, Refused
from replicator.core.numbering import NO_CUT, Cut, advance, note_payload
from replicator.core.records import Kind
from replicator.journal.beacons import look
from replicator.journal.files import PlainFile
from replicator.journal.page import APPLIED_OFF, APPLIED_SEQ, ARRIVED_GEN, DURABLE_SEQ, EPOCH, HEAD_OFF, HEAD_SEQ
from replicator.journal.slots import SlotFile

SLOT_BYTES: Final = 16 << 10
MOST_GROUPS: Final = 256
TIME: Final = "time"
COUNTER: Final = "counter"
ORDERS: Final = (TIME, COUNTER)
"""What the copies of a set go by; see core/cuts.py and core/numbering.py."""
STOP_S: Final = 2.0
"""How long a takeover waits for a follower that is in the middle of a batch."""


@dataclass
class _Set:
    name: str
    rev: int
    groups: list[str]
    state: SetState
    file: SlotFile
    order: str = TIME
    numbers: Numbers | None = None
    """Of a set that orders by counter."""
    noted: set[str] = field(default_factory=set)
    """Groups that have a note of the numbers that are void."""
    cut: Cut = NO_CUT
    arrivals: list[JournalArrivals] = field(default_factory=list)
    """How far records have no gap, and what lies behind that; none when it is to be found anew."""
    cycle: Cycle = NO_CYCLE
    frozen: bool = False
    """An image is due: limits stand still."""
    ruling: Ruling = field(default_factory=lambda: Ruling(Standing.APART, SetState(), 0, "", "not looked at yet"))


class SetHost:
    """All sets of the node. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        find: Callable[[str], GroupService | None],
        boot: int = 0,
        page_of: Callable[[str], memoryview | None] = lambda name: None,
    ) -> None:
        """Load the sets in `folder`. find: a group's service by uuid, None when it is not here. boot: a number that
        names this boot of the machine. page_of: two u64 for the numbers of a set, see Numbers.

        Raises IntegrityError for a damaged file, MediumError.
        """
        self._folder, self._find, self._boot, self._page_of = folder, find, boot, page_of
        self._lock = threading.RLock()
        self._sets: dict[str, _Set] = {}
        self._of_group: dict[str, str] = {}
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(folder.iterdir()):
            self._load(path)
        self._index()

    def _load(self, path: Path) -> None:
        file = SlotFile(PlainFile(path), b"FSRE", SLOT_BYTES)
        value = file.load()
        if value is None:
            return  # made, and the machine went down before anything was in it
        try:
            state = SetState(
                int(value["bound_ns"]),
                bool(value["whole"]),
                int(value["decided_ns"]),
                int(value.get("decided_cycle", 0)),  # a file of an older version has neither cycles nor numbers
                int(value.get("number", 0)),
                int(value.get("domain", 0)),
            )
            one = _Set(str(value["name"]), int(value["rev"]), [str(uuid) for uuid in value["groups"]], state, file)
            one.cycle = Cycle(int(value.get("every_ms", 0)), int(value.get("keep", 0)))
            one.order = str(value.get("order", TIME))
            if value.get("numbers"):
                one.numbers = Numbers(value["numbers"], self._boot, self._page_of(one.name))
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(f"{path} is damaged: {exc}", "remove it and make the set again") from exc
        self._sets[one.name] = one
        if one.numbers is not None:
            one.numbers.note(one.state.number)
            self._save(one, one.state)  # before a number is drawn: that the last one is not known any more

    def close(self) -> None:
        """The groups have stopped. Durable: the last number of each set, so that the next one follows it."""
        with self._lock:
            for one in self._sets.values():
                if one.numbers is not None:
                    self._save(one, one.state, ended=True)

    def _index(self) -> None:
        self._of_group = {uuid: one.name for one in self._sets.values() for uuid in one.groups}

    # -- definitions ----------------------------------------------------------------------------------------------

    def put(self, name: str, rev: int, groups: list[str], cycle: Cycle = NO_CYCLE, order: str = TIME) -> bool:
        """Store a definition unless one as new is here. No groups: the set is gone. Returns whether it was stored.

        With the same groups and order as before the set goes on as it stands.

        Raises BadInput, AlreadyExists when a group is in another set. Durable on return.
        """
        if len(groups) > MOST_GROUPS:
            raise BadInput(f"{len(groups)} groups are too many for a set", f"{MOST_GROUPS} is the most")
        with self._lock:
            known = self._sets.get(name)
            if known is not None and rev <= known.rev:
                return False
            for uuid in groups:
                if self._of_group.get(uuid, name) != name:
                    other = self._of_group[uuid]
                    raise AlreadyExists(f"group {uuid} is in set {other}", f"farstripe set delete {other}")
            if known is None:
                path = self._folder / name
                file = PlainFile(path) if path.exists() else PlainFile(path, create_bytes=2 * SLOT_BYTES)
                known = _Set(name, 0, [], SetState(), SlotFile(file, b"FSRE", SLOT_BYTES))
                known.file.load()
            before, was = known.groups, (known.cycle, known.order, known.numbers)
            same = set(groups) == set(before) and order == known.order
            known.cycle, known.order = cycle, order
            if not same:
                counts = order == COUNTER and groups
                known.numbers = Numbers({}, self._boot, self._page_of(name)) if counts else None
            try:
                self._save(known, known.state if same else SetState(), rev, groups)
            except BaseException:
                known.cycle, known.order, known.numbers = was
                raise
            known.noted, known.arrivals = known.noted if same else set(), []
            known.frozen = False
            self._sets[name] = known
            self._index()
            self._number(set(before) | set(groups))
            for uuid in set(before) - set(groups):
                self._limit(uuid, 0)
            return True

    def join(self, engine: GroupEngine) -> None:
        """A group is being opened or made; nothing is written to it yet."""
        with self._lock:
            engine.numbers = self._numbers_of(engine.state.uuid)

    def _numbers_of(self, uuid: str) -> Numbers | None:
        name = self._of_group.get(uuid)
        return None if name is None else self._sets[name].numbers

    def _number(self, uuids: set[str]) -> None:
        """Let groups draw numbers from their sets, or no longer: all at once, so that none of a set is left out."""
        engines = [service.engine for uuid in sorted(uuids) if (service := self._find(uuid)) is not None]
        with contextlib.ExitStack() as held:
            for engine in engines:
                held.enter_context(engine.lock)
            for engine in engines:
                engine.numbers = self._numbers_of(engine.state.uuid)

    def wants_beacons(self, uuid: str) -> bool:
        """Whether a group's copies wait for its beacons, because others of its set do."""
        name = self._of_group.get(uuid)
        return name is not None and self._sets[name].order == TIME

    def holds(self, uuid: str) -> str:
        """The name of the set a group is in, "" when it is in none."""
        return self._of_group.get(uuid, "")

    def listing(self) -> list[dict[str, Any]]:
        """Every set, those that are gone too (without groups): {name, rev, groups, standing, …}, see `_described`."""
        with self._lock:
            return [self._described(one) for one in self._sets.values()]

    def _described(self, one: _Set) -> dict[str, Any]:
        groups: list[dict[str, Any]] = []
        for uuid in one.groups:
            service = self._find(uuid)
            if service is None:
                groups.append({"uuid": uuid, "name": None})
                continue
            view = _view(service.engine)
            groups.append({"uuid": uuid, **view._asdict()})
        idle_ns = min((g["arrived_ns"] for g in groups if g["name"]), default=0)
        whole = one.ruling.standing is Standing.WHOLE
        waits = any(self._waits(uuid) for uuid in one.groups)
        return {
            "name": one.name,
            "rev": one.rev,
            "groups": groups,
            "standing": one.ruling.standing.value,
            "why": one.ruling.why,
            "held_by": one.ruling.held_by,
            "consistent_ns": (one.state.bound_ns if waits else max(idle_ns, one.state.bound_ns)) if whole else None,
            "decided_ns": one.state.decided_ns,
            "decided_cycle": one.state.decided_cycle,
            "order": one.order,
            "number": one.numbers.last if one.numbers is not None else None,
            "every_ms": one.cycle.every_ms,
            "keep": one.cycle.keep,
        }

    def _waits(self, uuid: str) -> bool:
        service = self._find(uuid)
        return service is not None and service.engine.page[HEAD_OFF] != service.engine.page[APPLIED_OFF]

    # -- cycles ---------------------------------------------------------------------------------------------------

    def cycles(self) -> list[tuple[str, Cycle, list[str]]]:
        """(name, settings, groups) of every set, also if it is gone."""
        with self._lock:
            return [(one.name, one.cycle, list(one.groups)) for one in self._sets.values()]

    def decided_cycle(self, name: str) -> int:
        """Number of the image that a takeover of the set goes back to, 0 for none."""
        with self._lock:
            return self._sets[name].state.decided_cycle if name in self._sets else 0

    def freeze(self, name: str) -> int:
        """Let the bound of a set that is whole stand still until `thaw`; returns it, 0 when there is none to stand at.

        Whatever ends that the set is whole, and a takeover, end it too.
        """
        with self._lock:
            one = self._sets.get(name)
            if one is None or not one.groups or one.frozen:
                return 0
            self._step(one)
            if one.ruling.standing is not Standing.WHOLE or not one.state.whole or not one.state.bound_ns:
                return 0
            one.frozen = True
            return one.state.bound_ns

    def frozen(self, name: str) -> bool:
        """Whether the bound stands still."""
        one = self._sets.get(name)
        return one is not None and one.frozen

    def thaw(self, name: str) -> None:
        """Let the bound rise again."""
        with self._lock:
            if name in self._sets:
                self._sets[name].frozen = False

    # -- bounds ---------------------------------------------------------------------------------------------------

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._sets)

    def tick(self) -> None:
        """Raise the bounds as far as what has arrived allows. Raises MediumError, OSError."""
        with self._lock:
            for one in list(self._sets.values()):
                if one.groups:
                    self._step(one)
                if one.numbers is not None:
                    self._look_after(one, one.numbers)

    def _look_after(self, one: _Set, numbers: Numbers) -> None:
        """Reserve numbers ahead, and put notes into the groups that want them, once their records flow."""
        if numbers.wants_reserve:
            numbers.reserve()
            self._save(one, one.state)
        if not numbers.doubtful or one.ruling.standing is not Standing.SOURCE:
            return
        for uuid in sorted(set(one.groups) - one.noted):
            service = self._find(uuid)
            if service is not None and _note(service.engine, note_payload(one.name, numbers.last)):
                one.noted.add(uuid)
        numbers.doubtful = not one.noted >= set(one.groups)

    def hold_at_start(self, uuid: str) -> None:
        """Put the durable limit on a group that is being opened, before its follower starts."""
        with self._lock:
            name = self._of_group.get(uuid)
            if name is None:
                return
            one = self._sets[name]
            if one.state.decided_ns or one.state.whole:
                self._limit(uuid, one.state.decided_ns or one.state.bound_ns)

    def lifted(self, uuid: str) -> None:
        """A group of a set is about to go beyond the bound. Durable: that the set is no cut any more."""
        with self._lock:
            name = self._of_group.get(uuid)
            if name is not None and self._sets[name].state.whole and not self._sets[name].state.decided_ns:
                one = self._sets[name]
                self._save(one, one.state._replace(whole=False))

    def _step(self, one: _Set) -> None:
        services = [s for uuid in one.groups if (s := self._find(uuid)) is not None]
        with _stopped(services) if not one.state.whole else contextlib.nullcontext(True) as still:
            if not still:
                return
            views = [_view(service.engine) for service in services]
            if went_back(one.state, views):
                one.frozen = False
                self._save(one, one.state._replace(whole=False))
                why = "the clock of its primary is another one"
                one.ruling = Ruling(Standing.JOINING, one.state, 0, "", why)
                return  # followers have to be stopped to find another bound
            ruling = self._rule(one, services, views)
            one.frozen = one.frozen and ruling.standing is Standing.WHOLE and one.state.whole
            if one.frozen:
                one.ruling = ruling._replace(state=one.state, limit_ns=one.state.bound_ns)
                return
            if ruling.standing is Standing.WHOLE:
                moved = ruling.state != one.state
                same = ruling.state.number == one.state.number
                if moved and same and one.state.whole and not any(self._waits(uuid) for uuid in one.groups):
                    one.ruling = ruling._replace(state=one.state, limit_ns=one.state.bound_ns)
                    return
                if moved:
                    _make_durable(services, to_end=one.numbers is not None)
            if ruling.state != one.state:
                self._save(one, ruling.state)
            one.ruling = ruling
            limit = 0 if ruling.limit_ns == NO_BOUND else ruling.limit_ns
            for service in services:
                self._limit(service.engine.state.uuid, limit)

    def _rule(self, one: _Set, services: list[GroupService], views: list[GroupView]) -> Ruling:
        """See cuts.rule; in a set that orders by counter, with what its numbers add."""
        ruling = rule(one.state, views, len(one.groups))
        if one.numbers is None or ruling.standing is not Standing.WHOLE or not one.state.whole:
            one.arrivals = []
            return ruling
        if not one.arrivals or not all(arrivals.valid for arrivals in one.arrivals):
            one.arrivals = [JournalArrivals(service.engine) for service in services]
            one.cut = _cut_from(one.state, [service.engine for service in services])
        one.cut = advance(one.cut, one.arrivals, min(view.arrived_ns for view in views))
        one.numbers.note(one.cut.number)
        return raised(ruling, one.cut, waits=any(arrivals.peek() for arrivals in one.arrivals))

    def _limit(self, uuid: str, limit_ns: int) -> None:
        service = self._find(uuid)
        if service is None or service.engine.limit_time_ns == limit_ns:
            return
        if service.engine.state.role == SECONDARY or not limit_ns:
            service.engine.limit_time_ns = limit_ns
            service.wake_follower()

    def _save(
        self,
        one: _Set,
        state: SetState,
        rev: int | None = None,
        groups: list[str] | None = None,
        *,
        ended: bool = False,
    ) -> None:
        """Durable: the new state, before it is followed. ended: no number is drawn any more."""
        rev, groups = one.rev if rev is None else rev, one.groups if groups is None else groups
        settings = {**one.cycle._asdict(), "order": one.order}
        if one.numbers is not None:
            settings["numbers"] = one.numbers.stored(ended=ended)
        try:
            one.file.save({"name": one.name, "rev": rev, "groups": groups, **settings, **state._asdict()})
        except OSError as exc:
            raise MediumError(f"set {one.name} cannot be written: {exc.strerror or exc}", "check the disk") from exc
        one.state, one.rev, one.groups = state, rev, groups

    # -- takeover -------------------------------------------------------------------------------------------------

    def decide(self, name: str, keep: bool, give_up: bool = False) -> dict[str, Any]:
        """Fix the bound at which every group of the set becomes primary here. Durable: that, once and for all.

        give_up: also where synchronous groups give up writes by it whose hosts were told that they are stored.
        Returns {bound_ns, kept, cycle, groups}. Raises Refused when the copies here are no cut, or when writes of
        synchronous groups would be given up and neither `keep` nor `give_up` says what is to happen with them.
        """
        with self._lock:
            one = self._known(name)
            one.frozen = False
            self._step(one)
            services = [s for uuid in one.groups if (s := self._find(uuid)) is not None]
            bounded = one.state.whole or one.state.decided_ns
            with contextlib.nullcontext(True) if bounded else _stopped(services, STOP_S) as still:
                if not still:
                    raise Refused(f"the groups of set {name} are busy", "try again in a moment")
                state = self._decide(one, services, keep, give_up)
            return _told(state, one.groups)

    def decide_back(self, name: str, n: int, bound_ns: int) -> dict[str, Any]:
        """Fix that every group of the set becomes primary here as it was in image `n`, which was taken at `bound_ns`.

        Otherwise as `decide`.
        """
        with self._lock:
            one = self._known(name)
            one.frozen = False
            views = [_view(s.engine) for uuid in one.groups if (s := self._find(uuid)) is not None]
            state = decide_back(one.state, views, len(one.groups), n, bound_ns)
            if state != one.state:
                self._save(one, state)
            for uuid in one.groups:
                self._limit(uuid, state.decided_ns)
            return _told(state, one.groups)

    def _known(self, name: str) -> _Set:
        one = self._sets.get(name)
        if one is None or not one.groups:
            raise NotFound(f"no set {name!r} on this node", "farstripe set list shows them")
        return one

    def _decide(self, one: _Set, services: list[GroupService], keep: bool, give_up: bool) -> SetState:
        ruling = self._rule(one, services, [_view(s.engine, look_close=True) for s in services])
        state = decide(ruling, keep=keep)
        if state is None:
            if ruling.standing is Standing.SOURCE:
                raise Refused(f"this node is primary of set {one.name} already", "farstripe set list shows it")
            raise Refused(
                f"set {one.name} cannot be taken over here: it is {ruling.standing.value}; {ruling.why}",
                "take over group by group, which gives up that they belong together",
            )
        if ruling.standing is not Standing.DECIDED and not (keep or give_up):
            _refuse_to_give_up(one.name, services, state.bound_ns)
        if state != one.state:
            _make_durable(services, to_end=True)
            self._save(one, state)
        limit = 0 if state.decided_ns == NO_BOUND else state.decided_ns
        for service in services:
            self._limit(service.engine.state.uuid, limit)
        one.ruling = ruling
        return state


def _refuse_to_give_up(name: str, services: list[GroupService], bound_ns: int) -> None:
    """Raise Refused when a takeover at the bound gives up writes that synchronous groups' hosts were told are here."""
    beyond = {s.engine.state.name: n for s in services if (n := answered_beyond(s.engine, bound_ns))}
    if beyond:
        what = ", ".join(f"{n} of group {group}" for group, n in beyond.items())
        raise Refused(
            f"at the common instant of set {name} writes would be given up whose hosts were told that they are stored: "
            f"{what}",
            f"farstripe set takeover {name} --keep: every group keeps all it has received, and they fit together "
            f"unless one had degraded; farstripe set takeover {name} --give-up: the common instant, without those "
            "writes",
        )


def _cut_from(state: SetState, engines: list[GroupEngine]) -> Cut:
    """Where reading ahead begins: at the durable bound, with the last number before it that is known."""
    if state.domain:
        return Cut(state.bound_ns, state.number, state.domain, state.bound_ns)
    applied = [one for engine in engines if (one := engine.last_numbered) is not None and one.time_ns <= state.bound_ns]
    last = max(applied, key=lambda one: one.time_ns, default=None)
    return Cut(state.bound_ns) if last is None else Cut(state.bound_ns, last.number, last.domain, last.time_ns)


def _note(engine: GroupEngine, payload: bytes) -> bool:
    """Put a note into a group's sequence; False when it has to wait: for its journal, for room, or for the peer, which
    may have taken over meanwhile."""
    with engine.lock:
        if engine.failed or engine.state.role != PRIMARY or engine.state.mode != JOURNAL or not engine.linked:
            return False
        if engine.journal_lost or engine.parked_for:
            return False
        try:
            engine.append_control(Kind.MARKER, payload=payload)
        except NoRoom:
            return False
    engine.wake_replicator()
    return True


def _told(state: SetState, groups: list[str]) -> dict[str, Any]:
    """What a decision is."""
    bound_ns = state.decided_ns if state.decided_cycle else state.bound_ns
    kept = state.decided_ns == NO_BOUND
    return {"bound_ns": bound_ns, "kept": kept, "cycle": state.decided_cycle, "groups": list(groups)}


def _view(engine: GroupEngine, look_close: bool = False) -> GroupView:
    """How a group stands. look_close: read its journal too, should nobody have told what has arrived."""
    state = engine.state
    arrived = look(engine.page.u64, ARRIVED_GEN).time_ns
    if look_close and not arrived and state.role == SECONDARY:
        arrived = max(pending(engine).last_time_ns, engine.applied_time_ns)
    upstream = state.upstream if state.role == SECONDARY else ""
    applied, domain = engine.applied_time_ns or engine.opened_at_ns, tag_of(engine.page[EPOCH])
    upto = min(engine.applied_in_part, engine.limit_seq or engine.applied_in_part)  # nothing beyond a suspension
    # A position that a killed replicator stated ahead of its records comes by none of them.
    more = engine.page[APPLIED_OFF] < engine.page[HEAD_OFF]
    in_part = state.role == SECONDARY and more and engine.page[APPLIED_SEQ] < upto
    return GroupView(state.name, state.role, upstream, state.copy == OK, arrived, applied, domain, in_part)


def _make_durable(services: list[GroupService], *, to_end: bool) -> None:
    """Durable: in each journal, every record up to the bound. to_end: it was found by reading the journals, whose ends
    are ahead of what is known to have arrived."""
    for service in services:
        engine = service.engine
        upto = engine.page[HEAD_SEQ] if to_end else look(engine.page.u64, ARRIVED_GEN).seq
        if engine.page[DURABLE_SEQ] < upto:
            engine.sync_journal()


@contextlib.contextmanager
def _stopped(services: list[GroupService], timeout_s: float = 0.05) -> Iterator[bool]:
    """Keep followers from applying while limits are found for the first time; yields False when one is busy long."""
    taken = []
    try:
        for service in services:
            if not service.engine.apply_lock.acquire(timeout=timeout_s):
                yield False
                return
            taken.append(service.engine.apply_lock)
        yield True
    finally:
        for lock in taken:
            lock.release()
