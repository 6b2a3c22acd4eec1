"""Making the members of a new pool, and a new member for an old one.

Everything is checked before the first byte is written. Superblocks come last: until then the files are nobody's, so a
crash leaves either nothing or members that the next create with force takes over.
"""

from __future__ import annotations

import errno
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raidlib.blockfile import BlockFile
from raidlib.checksums import table_bytes
from raidlib.errors import BadInput, IntegrityError, MediumError, MemberInUse, NotFound
from raidlib.geometry import Geometry
from raidlib.intents import empty_map, map_bytes, write_image
from raidlib.layout import Layout
from raidlib.metastore import MetaStore, check_fits
from raidlib.nbdfile import is_uri
from raidlib.state import GroupInfo, MemberInfo, PoolState
from raidlib.stripejournal import journal_bytes
from raidlib.superblock import Superblock, read_superblock, write_superblock

OpenFile = Callable[[str], BlockFile]
DEFAULT_CHUNK_BYTES = 64 << 10
DEFAULT_AREA_BYTES = 4 << 20
MIN_AREA_BYTES = 4 << 10
MAX_AREA_BYTES = 1 << 30
MAX_GROUPS = 64
_PAGE = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class GroupSpec:
    """What a RAID group is to be: a name unique in the pool, a level, the paths of existing files or devices."""

    name: str
    level: int
    members: Sequence[str]
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    checksums: bool = False
    """Keep a CRC32C of every block (checksums.py)."""


def check_name(what: str, name: str) -> None:
    """Raise BadInput unless the name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is not a name for a {what}",
            "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )


def open_member(path: str, open_file: OpenFile) -> BlockFile:
    """Open a member. Raises NotFound, MemberInUse, BadInput or MediumError that name it."""
    try:
        return open_file(path)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise NotFound(f"{path} does not exist", "create the file, or correct the path") from exc
        if exc.errno == errno.EBUSY:
            raise MemberInUse(
                f"{path} is in use", "a pool or another process has it open, or it is given twice"
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BadInput(f"{path} cannot be written: {exc.strerror}", "run as root, or change its owner") from exc
        if exc.errno in (errno.EISDIR, errno.EINVAL):
            raise BadInput(f"{path} is neither a file nor a block device", "name a file or a block device") from exc
        way_out = "check the server and the URI" if is_uri(path) else "check the disk"
        raise MediumError(f"{path} cannot be opened: {exc.strerror}", way_out) from exc


def check_unused(file: BlockFile) -> None:
    """Raise MemberInUse when the file is a member of a pool, saying of which."""
    way_out = "take another one; to give up what it holds, zero its first MiB (dd if=/dev/zero bs=1M count=1)"
    try:
        superblock = read_superblock(file)
    except IntegrityError as exc:
        raise MemberInUse(f"{file.path} looks like a pool member: {exc.message}", way_out) from exc
    if superblock is None:
        return
    name = ""
    try:
        found = MetaStore(file, superblock.layout).read()
        if found is not None:
            name = f" {found.state.name}"
    except (OSError, IntegrityError):
        pass  # its name is only for the message
    raise MemberInUse(f"{file.path} is a member of pool{name} ({superblock.pool_uuid})", way_out)


def plan_layouts(
    specs: Sequence[GroupSpec],
    sizes: Sequence[Sequence[int]],
    area_bytes: int,
    least_checkpoint_bytes: int = 0,
    least_log_bytes: int = 0,
) -> list[tuple[Geometry, Layout, int]]:
    """Return geometry, layout and number of areas of each group. Raises BadInput when something cannot be.

    The metadata slots of all groups are alike in size, for each holds the state of the whole pool; they are at least as
    large as the caller says.
    """
    if area_bytes & (area_bytes - 1) or not MIN_AREA_BYTES <= area_bytes <= MAX_AREA_BYTES:
        raise BadInput(
            f"area size {area_bytes} is not a power of two from {MIN_AREA_BYTES} to {MAX_AREA_BYTES} bytes",
            "4194304 suits most uses",
        )
    geometries = [Geometry(s.level, len(s.members), s.chunk_bytes, area_bytes) for s in specs]
    smallest = min(min(group) for group in sizes)
    most_areas = sum(min(group) // g.area_member_bytes for g, group in zip(geometries, sizes, strict=True))
    members = sum(len(s.members) for s in specs)
    spare = min(max(smallest // 64, 16 << 10), 1 << 20)
    checkpoint_bytes = _page_up(8192 + 512 * members + 32 * most_areas + spare)
    checkpoint_bytes = max(checkpoint_bytes, least_checkpoint_bytes)
    log_bytes = max(_page_up(min(max(64 * most_areas, 4096), 1 << 20)), least_log_bytes)
    plans = []
    for spec, geometry, group in zip(specs, geometries, sizes, strict=True):
        usable = min(group)
        intent_offset = 16 << 10
        intent_bytes = _page_up(map_bytes(usable // geometry.area_member_bytes + 1))
        slot_offset = intent_offset + intent_bytes
        journal_offset = slot_offset + 2 * (checkpoint_bytes + log_bytes)
        room = journal_bytes(geometry, usable)
        align = 1 << 20 if usable >= 64 << 20 else _PAGE
        table_offset = _page_up(journal_offset + room)
        table = _page_up(table_bytes(usable)) if spec.checksums else 0
        data_offset = -(-(table_offset + table) // align) * align
        areas = (usable - data_offset) // geometry.area_member_bytes
        if areas < 1:
            least = data_offset + geometry.area_member_bytes
            path = spec.members[group.index(usable)]
            raise BadInput(
                f"{path} is too small for group {spec.name}: {usable} bytes",
                f"members need at least {least} bytes; take larger ones, or smaller areas",
            )
        layout = Layout(
            intent_offset,
            intent_bytes,
            slot_offset,
            checkpoint_bytes,
            log_bytes,
            journal_offset,
            room,
            data_offset,
            table_offset if table else 0,
            table,
        )
        plans.append((geometry, layout, areas))
    return plans


def create_members(name: str, specs: Sequence[GroupSpec], area_bytes: int, open_file: OpenFile, force: bool) -> None:
    """Turn files into the members of a new, empty pool. Raises BadInput, NotFound, MemberInUse, MediumError.

    Durable: the pool.
    """
    check_name("pool", name)
    check_specs(specs)
    files: list[list[BlockFile]] = []
    try:
        for spec in specs:
            files.append([])
            for path in spec.members:
                file = open_member(path, open_file)
                files[-1].append(file)
                if not force:
                    check_unused(file)
        plans = plan_layouts(specs, [[file.size for file in group] for group in files], area_bytes)
        state = PoolState(uuid.uuid4().hex, name, area_bytes, generation=1, committed=1)
        for spec, group, (geometry, _, areas) in zip(specs, files, plans, strict=True):
            members = [MemberInfo(uuid.uuid4().hex, file.path) for file in group]
            info = GroupInfo(
                spec.name, uuid.uuid4().hex, spec.level, spec.chunk_bytes, areas, region_areas(areas), members
            )
            if not all(file.zeroes_fast() for file in group):
                info.dirty = set(range(areas))
            state.groups.append(info)
            assert geometry.members == len(members)
        try:
            _write_all(state, files, [layout for _, layout, _ in plans])
        except OSError as exc:
            raise MediumError(f"a member cannot be written: {exc}", "check the disks; nothing is lost") from exc
    finally:
        for group in files:
            for file in group:
                file.close()


def format_member(file: BlockFile, superblock: Superblock, areas: int, geometry: Geometry, intent_map: bytes) -> None:
    """Write everything of a member but metadata slots and superblock, and zero its data where that is fast.

    Raises OSError. Durable: that.
    """
    layout = superblock.layout
    blank = bytes(64 << 10)
    at, end = layout.intent_offset, layout.table_offset or layout.data_offset
    while at < end:
        n = min(len(blank), end - at)
        file.pwrite(blank[:n], at)
        at += n
    file.zero(layout.table_offset, layout.table_bytes)
    if file.zeroes_fast():
        file.punch(layout.data_offset, areas * geometry.area_member_bytes)
    for extension in layout.extensions:
        file.zero(extension.start, extension.end - extension.start)
    write_image(file, layout, intent_map)
    file.fdatasync()


def _write_all(state: PoolState, files: list[list[BlockFile]], layouts: list[Layout]) -> None:
    payload = state.encode()
    blocks: list[tuple[BlockFile, Superblock]] = []
    for info, group, layout in zip(state.groups, files, layouts, strict=True):
        check_fits(payload, layout)
        geometry = Geometry(info.level, len(group), info.chunk_bytes, state.area_bytes)
        for member, file in zip(info.members, group, strict=True):
            superblock = Superblock(state.uuid, member.uuid, file.size, layout)
            blocks.append((file, superblock))
            format_member(file, superblock, info.areas, geometry, empty_map(-(-info.areas // info.region_areas)))
            MetaStore(file, layout).write_checkpoint(state.generation, payload)
    for file, superblock in blocks:
        write_superblock(file, superblock)


def check_specs(specs: Sequence[GroupSpec]) -> None:
    if not 1 <= len(specs) <= MAX_GROUPS:
        raise BadInput(f"a pool has 1 to {MAX_GROUPS} groups, {len(specs)} given", "name its groups")
    names: set[str] = set()
    paths: set[str] = set()
    for spec in specs:
        check_name("group", spec.name)
        if spec.name in names:
            raise BadInput(f"two groups are called {spec.name}", "give each its own name")
        names.add(spec.name)
        for path in spec.members:
            if path in paths:
                raise BadInput(f"{path} is given twice", "a member belongs to one group, once")
            paths.add(path)


def region_areas(areas: int) -> int:
    """Areas per write-intent region: up to 16, but at least 256 regions where there are as many areas."""
    size = 1
    while size < 16 and areas // (size * 2) >= 256:
        size *= 2
    return size


def _page_up(n: int) -> int:
    return -(-n // _PAGE) * _PAGE
