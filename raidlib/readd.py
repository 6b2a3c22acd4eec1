"""Taking a member back that was away: only what was written meanwhile is copied.

A member that vanished (a cable, the host of an NBD member, power) or was stopped in order still holds everything that
was stable on it. What it may lack lies in regions that were marked in the intent map when it left or since: a mark is
durable on the other members before the first write, and is cleared only after a sync. While a member is away, a mark is
cleared only once its region is in the group's durable set of missed regions. So

    what differs lies in a missed or a marked region          as long as any member is away or being taken back.

Free areas are another matter, for they are punched without a mark: all of the group's free areas are cleaned again
before they are given out, and the region of an area that is given out while a member is away counts as missed, whether
it is written or not (PoolState.apply).

Not taken back so: a member that failed for errors of its own or whose sync failed (its content is not known), one that
another process has written to meanwhile, a copy made before it left, and one that was replaced. Its superblock says who
it is, its generation whether it is as it left.
"""

from __future__ import annotations

from raidlib.allocator import Allocator
from raidlib.blockfile import BlockFile
from raidlib.errors import IntegrityError, MediumError, NotFound, Refused
from raidlib.intents import CLEAR, write_image
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.metastore import Found, MetaStore
from raidlib.raidgroup import RaidGroup
from raidlib.state import Kind, MemberInfo, MemberState, Record
from raidlib.superblock import Superblock, read_superblock


def note_missed(group: RaidGroup, ledger: Ledger, regions: list[int]) -> None:
    """The marks of these regions are about to be cleared. Raises MediumError.

    Durable: that members that are away may lack them.
    """
    with ledger.lock:
        if group.info.notes_missed:
            fresh = [region for region in regions if region not in group.info.missed]
            if fresh:
                ledger.record([Record(Kind.MISSED, group.index, 0, region) for region in fresh], durable=True)


def may_differ(group: RaidGroup, area: int) -> bool:
    """Whether a member that was away may lack something of an area. Call under the IntentMap's lock."""
    region = group.region_of(area)
    return region in group.info.missed or group.intents.states[region] != CLEAR


def missed_bytes(group: RaidGroup, allocator: Allocator) -> int:
    """Bytes that would be copied to a member that comes back now. Call under the ledger's lock."""
    areas = sum(may_differ(group, area) for area in allocator.allocated)
    return areas * group.geometry.area_member_bytes


def why_not(info: MemberInfo, found: Found | None) -> str:
    """Why a member that failed and is there again cannot be taken back by difference; empty when it can."""
    if info.state is not MemberState.FAILED:
        return "it is a member in use"
    if info.away is None:
        return f"it did not merely go away: {info.reason or 'it failed'}"
    if found is None:
        return "its metadata is damaged"
    low, high = info.away
    generation = found.state.generation
    if generation < low:
        return f"it holds an older state than it left with (generation {generation}, it left at {low})"
    if generation > high:
        return f"another pool process has used it since (generation {generation}, it left at {high})"
    return ""


def identify(
    file: BlockFile, pool_uuid: str, members: list[list[Member]], pool_name: str
) -> tuple[Superblock, Member, MetaStore]:
    """Find out which member a file is. Raises NotFound (none at all), Refused with the reason (it cannot come back)."""
    try:
        superblock = read_superblock(file)
    except IntegrityError as exc:
        raise Refused(f"{file.path} cannot be taken back: {exc.message}", "pool replace takes it as a new one") from exc
    if superblock is None:
        raise NotFound(f"{file.path} is not a pool member: it has no superblock", "pool replace takes it as a new one")
    if superblock.pool_uuid != pool_uuid:
        raise Refused(
            f"{file.path} belongs to another pool ({superblock.pool_uuid}), not to {pool_name}", "correct the path"
        )
    for group in members:
        for member in group:
            if member.info.uuid == superblock.member_uuid:
                return superblock, member, MetaStore(file, member.layout)
    raise Refused(
        f"{file.path} was replaced and is no longer part of pool {pool_name}",
        "pool replace or pool spare add, with force, take it as a new one",
    )


def check(group: RaidGroup, member: Member, file: BlockFile, superblock: Superblock, store: MetaStore) -> None:
    """Raise Refused when this file cannot be taken back as this member."""
    way_out = f"farstripe pool replace {member.path} takes it, or another one, with a full rebuild"
    if member.info.state is not MemberState.FAILED:
        raise Refused(
            f"{file.path} is the same member as {member.path}, which is in use", "one is a copy: take the copy away"
        )
    try:
        reason = why_not(member.info, store.read())
    except (OSError, IntegrityError) as exc:
        reason = f"its metadata cannot be read: {exc}"
    if not reason and superblock.layout != group.layout.at_first:
        reason = "it is laid out otherwise than its group"
    if not reason and file.size < (least := max(superblock.size, group.least_bytes)):
        reason = f"it has shrunk: it has {file.size} bytes, it had {least}"
    if reason:
        raise Refused(f"{file.path} cannot be taken back by difference: {reason}", way_out)


def begin(
    group: RaidGroup, allocator: Allocator, ledger: Ledger, member: Member, file: BlockFile, store: MetaStore
) -> None:
    """Let a member that check() let pass take part again, from now on, as a rebuilding one that lacks what was missed.

    Raises MediumError when it cannot be written; then it is as before. Durable: that.
    """
    info = member.info
    before = info.path, info.reason, info.away
    try:
        with group.all_rows(), group.intents.lock:
            group.intents.wait_idle()
            write_image(file, group.layout, group.intents.image())
            if group.layout.journal_bytes:
                # What it holds of an older session must not be taken for the journal.
                file.pwrite_durable(bytes(min(4096, group.layout.journal_bytes)), group.layout.journal_offset)
            ledger.sync_members()
            with ledger.lock:
                info.path, info.reason, info.away = file.path, "", None
                info.state, info.partial, info.rebuilt_areas = MemberState.REBUILDING, True, 0
                member.rebuilt_rows = 0
                member.attach(file)
                member.store = store
                allocator.distrust_clean()
                group.begin_journal()
                ledger.on_change(group.index)
                ledger.commit()
                if info.state is not MemberState.REBUILDING:
                    raise MediumError(f"{file.path} cannot be written: {info.reason}", "check it and its connection")
    except OSError as exc:
        info.path, info.reason, info.away = before
        raise MediumError(f"{file.path} cannot be written: {exc.strerror or exc}", "check the disk") from exc
