"""Consistency sets on one node: their durable state, and the bounds they put on groups. The rules are in core/cuts.py.

    STATE/sets/<name>    a slot file: {name, rev, groups: [uuid], bound_ns, whole, decided_ns}

A definition is made on the primary and handed on by the replicators; the higher `rev` wins, and no groups means that
the set is gone. Order of a step: see what has arrived; sync the journals it lies in; make the bound durable; raise
the limits. A bound that nobody waits for is not written down: an idle set costs no syncs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from replicator.capture.engine import GroupEngine
from replicator.capture.limits import answered_beyond, pending
from replicator.capture.service import GroupService
from replicator.capture.state import OK, SECONDARY
from replicator.core.cuts import NO_BOUND, GroupView, Ruling, SetState, Standing, decide, rule, went_back
from replicator.core.epochs import tag_of
from replicator.core.errors import AlreadyExists, BadInput, IntegrityError, MediumError, NotFound, Refused
from replicator.journal.beacons import look
from replicator.journal.files import PlainFile
from replicator.journal.page import APPLIED_OFF, ARRIVED_GEN, DURABLE_SEQ, EPOCH, HEAD_OFF
from replicator.journal.slots import SlotFile

SLOT_BYTES: Final = 16 << 10
MOST_GROUPS: Final = 256
STOP_S: Final = 2.0
"""How long a takeover waits for a follower that is in the middle of a batch."""


@dataclass
class _Set:
    name: str
    rev: int
    groups: list[str]
    state: SetState
    file: SlotFile
    ruling: Ruling = field(default_factory=lambda: Ruling(Standing.APART, SetState(), 0, "", "not looked at yet"))


class SetHost:
    """All sets of the node. Thread-safe."""

    def __init__(self, folder: Path, find: Callable[[str], GroupService | None]) -> None:
        """Load the sets in `folder`. find: a group's service by uuid, None when it is not here.

        Raises IntegrityError for a damaged file.
        """
        self._folder, self._find = folder, find
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
            state = SetState(int(value["bound_ns"]), bool(value["whole"]), int(value["decided_ns"]))
            one = _Set(str(value["name"]), int(value["rev"]), [str(uuid) for uuid in value["groups"]], state, file)
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(f"{path} is damaged: {exc}", "remove it and make the set again") from exc
        self._sets[one.name] = one

    def _index(self) -> None:
        self._of_group = {uuid: one.name for one in self._sets.values() for uuid in one.groups}

    # -- definitions ----------------------------------------------------------------------------------------------

    def put(self, name: str, rev: int, groups: list[str]) -> bool:
        """Store a definition unless one as new is here. No groups: the set is gone. Returns whether it was stored.

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
            before = known.groups
            self._save(known, SetState(), rev, groups)
            self._sets[name] = known
            self._index()
            for uuid in set(before) - set(groups):
                self._limit(uuid, 0)
            return True

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
        }

    def _waits(self, uuid: str) -> bool:
        service = self._find(uuid)
        return service is not None and service.engine.page[HEAD_OFF] != service.engine.page[APPLIED_OFF]

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
                self._save(one, one.state._replace(whole=False))
                why = "the clock of its primary is another one, and behind"
                one.ruling = Ruling(Standing.JOINING, one.state, 0, "", why)
                return  # followers have to be stopped to find another bound
            ruling = rule(one.state, views, len(one.groups))
            if ruling.standing is Standing.WHOLE:
                moved = ruling.state != one.state
                if moved and one.state.whole and not any(self._waits(uuid) for uuid in one.groups):
                    one.ruling = ruling._replace(state=one.state, limit_ns=one.state.bound_ns)
                    return
                if moved:
                    _make_durable(services, ruling.state.bound_ns)
            if ruling.state != one.state:
                self._save(one, ruling.state)
            one.ruling = ruling
            limit = 0 if ruling.limit_ns == NO_BOUND else ruling.limit_ns
            for service in services:
                self._limit(service.engine.state.uuid, limit)

    def _limit(self, uuid: str, limit_ns: int) -> None:
        service = self._find(uuid)
        if service is None or service.engine.limit_time_ns == limit_ns:
            return
        if service.engine.state.role == SECONDARY or not limit_ns:
            service.engine.limit_time_ns = limit_ns
            service.wake_follower()

    def _save(self, one: _Set, state: SetState, rev: int | None = None, groups: list[str] | None = None) -> None:
        """Durable: the new state, before it is followed."""
        rev, groups = one.rev if rev is None else rev, one.groups if groups is None else groups
        try:
            one.file.save({"name": one.name, "rev": rev, "groups": groups, **state._asdict()})
        except OSError as exc:
            raise MediumError(f"set {one.name} cannot be written: {exc.strerror or exc}", "check the disk") from exc
        one.state, one.rev, one.groups = state, rev, groups

    # -- takeover -------------------------------------------------------------------------------------------------

    def decide(self, name: str, keep: bool, give_up: bool = False) -> dict[str, Any]:
        """Fix the bound at which every group of the set becomes primary here. Durable: that, once and for all.

        give_up: also where synchronous groups give up writes by it whose hosts were told that they are stored.
        Returns {bound_ns, kept, groups}. Raises Refused when the copies here are no cut, or when writes of synchronous
        groups would be given up and neither `keep` nor `give_up` says what is to happen with them.
        """
        with self._lock:
            one = self._sets.get(name)
            if one is None or not one.groups:
                raise NotFound(f"no set {name!r} on this node", "farstripe set list shows them")
            self._step(one)
            services = [s for uuid in one.groups if (s := self._find(uuid)) is not None]
            bounded = one.state.whole or one.state.decided_ns
            with contextlib.nullcontext(True) if bounded else _stopped(services, STOP_S) as still:
                if not still:
                    raise Refused(f"the groups of set {name} are busy", "try again in a moment")
                state = self._decide(one, services, keep, give_up)
            return {"bound_ns": state.bound_ns, "kept": state.decided_ns == NO_BOUND, "groups": list(one.groups)}

    def _decide(self, one: _Set, services: list[GroupService], keep: bool, give_up: bool) -> SetState:
        ruling = rule(one.state, [_view(s.engine, look_close=True) for s in services], len(one.groups))
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
            _make_durable(services, state.bound_ns)
            self._save(one, state)
        limit = 0 if state.decided_ns == NO_BOUND else state.decided_ns
        for service in services:
            self._limit(service.engine.state.uuid, limit)
        one.ruling = ruling
        return state


def _refuse_to_give_up(name: str, services: list[GroupService], bound_ns: int) -> None:
    """Raise Refused when a takeover at the bound gives up writes that hosts of synchronous groups were told are here."""
    beyond = {s.engine.state.name: n for s in services if (n := answered_beyond(s.engine, bound_ns))}
    if beyond:
        what = ", ".join(f"{n} of group {group}" for group, n in beyond.items())
        raise Refused(
            f"at the common instant of set {name} writes would be given up whose hosts were told that they are stored: "
            f"{what}",
            f"farstripe set takeover {name} --keep: every group keeps all it has received, and they fit together "
            f"unless one had degraded; farstripe set takeover {name} --give-up: the common instant, without those writes",
        )


def _view(engine: GroupEngine, look_close: bool = False) -> GroupView:
    """How a group stands. look_close: read its journal too, should nobody have told what has arrived."""
    state = engine.state
    arrived = look(engine.page.u64, ARRIVED_GEN).time_ns
    if look_close and not arrived and state.role == SECONDARY:
        arrived = max(pending(engine).last_time_ns, engine.applied_time_ns)
    upstream = state.upstream if state.role == SECONDARY else ""
    applied, domain = engine.applied_time_ns or engine.opened_at_ns, tag_of(engine.page[EPOCH])
    return GroupView(state.name, state.role, upstream, state.copy == OK, arrived, applied, domain)


def _make_durable(services: list[GroupService], bound_ns: int) -> None:
    """Durable: in each journal, every record up to the bound."""
    for service in services:
        engine = service.engine
        if engine.page[DURABLE_SEQ] < look(engine.page.u64, ARRIVED_GEN).seq:
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
