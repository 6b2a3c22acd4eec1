"""Finding a pool's members and deciding which of them to believe.

Paths are hints; superblocks decide. The newest metadata (generation, then log length) among the members found is the
pool's. Two rules keep a stale member from passing for the pool:

* A member is used only when its generation is not behind the newest one that is known to have reached everybody. Under
  a newer one that did not (the crash came before), nothing was ever done. So a disk that failed, was swapped back in
  or restored from a backup is left out.
* More than half of the members that the metadata calls in sync must be there. Any change of members is durable on all
  that stay before it takes effect, so a set of members that missed such a change is never more than half of what it
  believes to be the pool. Force overrides it.

A member that is left out is recorded as failed at the next generation, which opening writes; one that is merely
missing also as away, so that it can be taken back by difference (readd.py). One that is being replaced in place goes on
with its successor, or the successor takes its place as far as it got, when the old one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raidlib.blockfile import BlockFile
from raidlib.create import OpenFile, open_member
from raidlib.errors import BadInput, IntegrityError, MediumError, MemberInUse, NotFound, RaidError, Refused
from raidlib.extending import placed
from raidlib.geometry import Geometry
from raidlib.layout import Layout
from raidlib.member import Member
from raidlib.metastore import Found, MetaStore, Raw
from raidlib.readd import why_not
from raidlib.state import MemberInfo, MemberState, PoolState
from raidlib.superblock import Superblock, read_superblock


@dataclass
class Assembly:
    """What open() works on."""

    state: PoolState
    members: list[list[Member]]
    geometries: list[Geometry]
    layouts: list[Layout]
    remarks: list[str]
    """One line for each thing an operator should know: who is missing, stale, foreign, and why."""
    successors: dict[str, BlockFile] = field(default_factory=dict)
    """Files of members that are being filled in the place of others, by uuid."""
    spares: dict[str, BlockFile] = field(default_factory=dict)
    """Files of spares, by uuid."""


@dataclass
class _Candidate:
    file: BlockFile
    superblock: Superblock
    store: MetaStore
    found: Found | None


@dataclass
class _Search:
    """The members found so far."""

    open_file: OpenFile
    pool_uuid: str = ""
    pool_path: str = ""
    candidates: dict[str, _Candidate] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)
    _decoded: dict[Raw, Found] = field(default_factory=dict)
    """Members mostly hold the same, which is decoded once: of a large pool that is a large part of opening it."""

    def try_path(self, path: str, given: bool) -> None:
        """Look at one path; `given` by the caller, or else known from metadata."""
        if path in self.tried:
            return
        self.tried.add(path)
        try:
            file = open_member(path, self.open_file)
        except MemberInUse:
            raise
        except RaidError as exc:
            self.remarks.append(exc.message)
            return
        if not self._take(path, file, given):
            file.close()

    def _take(self, path: str, file: BlockFile, given: bool) -> bool:
        try:
            superblock = read_superblock(file)
        except IntegrityError as exc:
            self.remarks.append(exc.message)
            return False
        if superblock is None:
            self.remarks.append(f"{path} has no superblock: it is not a pool member")
            return False
        if self.pool_uuid and superblock.pool_uuid != self.pool_uuid:
            message = f"{path} belongs to pool {superblock.pool_uuid}, not to {self.pool_uuid}"
            if given:
                file.close()
                raise BadInput(f"{message} as {self.pool_path} does", "open one pool at a time; correct the paths")
            self.remarks.append(message)
            return False
        other = self.candidates.get(superblock.member_uuid)
        if other is not None:
            file.close()
            raise BadInput(
                f"{path} and {other.file.path} both claim to be member {superblock.member_uuid}",
                "one is a copy of the other: take the copy away",
            )
        if superblock.size > file.size:
            self.remarks.append(f"{path} has shrunk from {superblock.size} to {file.size} bytes")
            return False
        store = MetaStore(file, superblock.layout)
        found: Found | None = None
        try:
            raw = store.read_raw()
            if raw is not None:
                found = self._decoded.get(raw) or self._decoded.setdefault(raw, raw.decode())
        except OSError as exc:
            self.remarks.append(f"{path}: metadata cannot be read: {exc.strerror}")
        self.pool_uuid, self.pool_path = superblock.pool_uuid, self.pool_path or path
        self.candidates[superblock.member_uuid] = _Candidate(file, superblock, store, found)
        return True

    def best(self) -> Found:
        """The newest metadata. Raises NotFound, IntegrityError."""
        if not self.candidates:
            raise NotFound("no pool member was found: " + "; ".join(self.remarks), "give the paths of its members")
        found = [candidate.found for candidate in self.candidates.values() if candidate.found is not None]
        if not found:
            raise IntegrityError(f"no member of pool {self.pool_uuid} has valid metadata", "restore from a replica")
        newest = max(found, key=lambda one: one.rank)
        newest.state.committed = max(one.state.committed for one in found)
        return newest

    def close(self) -> None:
        """Let go of every file."""
        for candidate in self.candidates.values():
            candidate.file.close()


def assemble(paths: Sequence[str], open_file: OpenFile, force: bool) -> Assembly:
    """Find the members, the newest state, and who takes part. Changes nothing on any member.

    Raises NotFound, MemberInUse, BadInput (two pools, two copies of a member), IntegrityError, Refused (fewer than
    half of the members, yields to force), MediumError (a group has lost too many members, yields to force: then members
    that failed before are taken back as they are, and what cannot be read stays unreadable).
    """
    search = _Search(open_file)
    try:
        for path in paths:
            search.try_path(path, True)
        while True:
            best = search.best()
            known = set(known_paths(best.state))
            if known <= search.tried:
                break
            for path in sorted(known - search.tried):
                search.try_path(path, False)
        return _decide(search, best, force)
    except BaseException:
        search.close()
        raise


def known_paths(state: PoolState) -> list[str]:
    """Where the members, their successors and the spares were last."""
    members = [member for group in state.groups for member in group.members]
    successors = [member.successor for member in members if member.successor is not None]
    return [one.path for one in [*members, *successors]] + [spare.path for spare in state.spares]


def _decide(search: _Search, best: Found, force: bool) -> Assembly:
    state = best.state
    layout_of: list[Layout] = []
    members: list[list[Member]] = []
    geometries = [
        # A removed group only keeps its place.
        Geometry(0, 1, g.chunk_bytes, state.area_bytes)
        if g.removed
        else Geometry(g.level, len(g.members), g.chunk_bytes, state.area_bytes)
        for g in state.groups
    ]
    any_layout = next(iter(search.candidates.values())).superblock.layout
    believed = present = 0
    used: set[str] = set()
    successors: dict[str, BlockFile] = {}
    for group_index, group in enumerate(state.groups):
        if group.removed:
            layout_of.append(any_layout)
            members.append([])
            continue
        layout = next(
            (search.candidates[m.uuid].superblock.layout for m in group.members if m.uuid in search.candidates), None
        )
        if layout is None:
            raise MediumError(
                f"pool {state.name}: no member of group {group.name} was found: {'; '.join(search.remarks)}",
                "attach its disks",
            )
        geometry = geometries[group_index]
        layout = layout.extended(placed(layout, geometry, group.extensions))
        least = layout.data_offset + group.areas * geometry.area_member_bytes
        layout_of.append(layout)
        members.append([])
        for index, info in enumerate(group.members):
            candidate = search.candidates.get(info.uuid)
            trouble = _trouble(candidate, best, least)
            in_sync = info.state is MemberState.IN_SYNC
            believed += in_sync
            file = store = None
            if candidate is not None and info.state is not MemberState.FAILED and not trouble:
                file, store = candidate.file, candidate.store
                info.path = file.path
                used.add(info.uuid)
                present += in_sync
            elif info.state is not MemberState.FAILED:
                search.remarks.append(f"{info.path}: {trouble}")
                if candidate is None and (in_sync or info.partial):
                    info.away = state.committed, state.generation
                info.state, info.reason, info.rebuilt_areas, info.partial = MemberState.FAILED, trouble, 0, False
            elif candidate is not None:
                search.remarks.append(_returned(candidate, info))
            member = Member(group_index, index, info, layout, file, store)
            member.rebuilt_rows = info.rebuilt_areas * geometries[group_index].rows_per_area
            member.counts_before = group.errors.get(info.uuid, member.counts_before)
            members[-1].append(member)
    if present * 2 <= believed and not force:
        raise Refused(
            f"pool {state.name}: only {present} of {believed} members that were in sync are there"
            f" ({'; '.join(search.remarks)})",
            "attach the others; or node start --force, when they are lost for good and these are the newest",
        )
    for group_index, its_members in enumerate(members):
        for member in its_members:
            if member.info.successor is not None:
                _join_successor(search, best, group_index, its_members, member, geometries[group_index], successors)
    used.update(successors)
    used.update(member.info.uuid for group in members for member in group if member.file is not None)
    spares: dict[str, BlockFile] = {}
    for spare in state.spares:
        found_spare = search.candidates.get(spare.uuid)
        if found_spare is None:
            search.remarks.append(f"spare {spare.path}: missing")
        else:
            spare.path, spares[spare.uuid] = found_spare.file.path, found_spare.file
    used.update(spares)
    for group, geometry, its_members in zip(state.groups, geometries, members, strict=True):
        lost = {m.index for m in its_members if m.info.state is not MemberState.IN_SYNC}
        if geometry.survives(lost):
            continue
        if not force:
            why = f" ({'; '.join(search.remarks)})" if search.remarks else ""
            raise MediumError(
                f"pool {state.name}: group {group.name} (RAID {group.level}) has lost {len(lost)} of"
                f" {len(its_members)} members: {'; '.join(its_members[i].path for i in sorted(lost))}"
                f"{why}",
                "attach them; or take over on the replica; or node start --force takes failed members back as they are",
            )
        for member in its_members:
            candidate = search.candidates.get(member.info.uuid)
            if member.file is None and candidate is not None:
                search.remarks.append(f"{member.path}: taken back by force, its data may be old")
                used.add(member.info.uuid)
                its_members[member.index] = back = Member(
                    member.group, member.index, member.info, member.layout, candidate.file, candidate.store
                )
                back.info.path = candidate.file.path
                back.info.state, back.info.reason, back.info.away = MemberState.IN_SYNC, "", None
    for uuid, candidate in search.candidates.items():
        if uuid not in used:
            if candidate.superblock.is_spare:
                search.remarks.append(f"{candidate.file.path} is no spare of pool {state.name} any more")
            elif not any(uuid == m.uuid for g in state.groups for m in g.members):
                search.remarks.append(f"{candidate.file.path} was replaced and is no longer part of pool {state.name}")
            candidate.file.close()
    return Assembly(state, members, geometries, layout_of, search.remarks, successors, spares)


def _join_successor(
    search: _Search,
    best: Found,
    group: int,
    its_members: list[Member],
    member: Member,
    geometry: Geometry,
    successors: dict[str, BlockFile],
) -> None:
    """Decide what becomes of a replacement in place."""
    old, new = member.info, member.info.successor
    assert new is not None
    least = member.layout.data_offset + best.state.groups[group].areas * geometry.area_member_bytes
    candidate = search.candidates.get(new.uuid)
    trouble = _trouble(candidate, best, least)
    lost = {m.index for m in its_members if m.info.state is not MemberState.IN_SYNC}
    if candidate is None or trouble:
        search.remarks.append(f"{new.path}, which was to replace {old.path}: {trouble}; replace it again")
        old.successor = None
    elif old.state is MemberState.IN_SYNC:
        new.path = candidate.file.path
        successors[new.uuid] = candidate.file
    elif geometry.survives(lost):
        new.path, new.reason = candidate.file.path, f"took over from {old.path}: {old.reason}"
        best.state.groups[group].members[member.index] = new
        its_members[member.index] = Member(group, member.index, new, member.layout, candidate.file, candidate.store)
        its_members[member.index].rebuilt_rows = new.rebuilt_areas * geometry.rows_per_area


def _returned(candidate: _Candidate, info: MemberInfo) -> str:
    """What to say about a member that failed and is there again."""
    path = candidate.file.path
    if reason := why_not(info, candidate.found):
        return f"{path} is there but stays out: {reason}; farstripe pool replace {info.path}"
    return f"{path} was away and is back: farstripe pool readd {path} copies only what was written meanwhile"


def _trouble(candidate: _Candidate | None, best: Found, least: int) -> str:
    """Why a member cannot be used; empty when it can."""
    if candidate is None:
        return "missing"
    if candidate.found is None:
        return "its metadata is damaged"
    if candidate.file.size < least:
        return f"it has shrunk: it has {candidate.file.size} bytes, and its group uses {least}"
    generation = candidate.found.state.generation
    if generation >= best.state.committed:
        return ""
    return f"stale: it is at generation {generation}, the pool is at {best.state.generation}"
