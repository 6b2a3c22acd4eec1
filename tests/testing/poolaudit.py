"""Looks at the raw bytes under an open pool: redundancy that must agree, free areas that must be blank, no area twice.

Uses raidlib's geometry to find the bytes and nothing else of it; parity is computed here, byte by byte through a table.
(tests/testing/naiveraid.py is the reader that shares nothing.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from raidlib import Pool
from raidlib.areamap import area_of, group_of
from raidlib.raidgroup import RaidGroup
from tests.testing.fakedisk import FakeDisk
from tests.testing.poolmodel import Violation

Bytes = npt.NDArray[np.uint8]
_DOUBLE = np.array([value << 1 ^ (0x11D if value & 0x80 else 0) for value in range(256)], np.uint16).astype(np.uint8)
"""Twice each byte in GF(2^8)."""


def audit(pool: Pool, disk: FakeDisk) -> None:
    """Raise Violation when an idle pool's bytes on the disk are not as they must be. Reads the page cache."""
    owners = check_space(pool)
    for group in pool._groups:
        images = [disk._find(member.path).data if member.has_row(1 << 40) else None for member in group.members]
        size = group.geometry.area_member_bytes
        blank = bytes(size)
        parts = {first + i for first, count, *_ in group.info.extensions for i in range(count)}
        if parts & {area for index, area in owners if index == group.index} or parts & group.info.dirty:
            raise Violation("an area that holds parts of the members is used, or to be zeroed")
        for area in range(group.info.areas):
            at = group.member_offset(area)
            shares = [None if image is None else bytes(image[at : at + size]) for image in images]
            if (group.index, area) in owners:
                if all(share is not None for share in shares):
                    _check_redundancy(group, area, [share for share in shares if share is not None])
            elif area not in parts | group.info.dirty and any(share not in (None, blank) for share in shares):
                raise Violation(f"free area {area} is not blank")


def check_space(pool: Pool) -> dict[tuple[int, int], str]:
    """Raise Violation when an area has two owners or none; return the volume of each (group, area)."""
    status = pool.status()
    owners: dict[tuple[int, int], str] = {}
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    areas = {group.index: group.info.areas for group in pool._groups}
    for volume in pool.volumes:
        for index, place in volume.info.areas.items():
            group, area = group_of(place), area_of(place)
            if not 0 <= area < areas.get(group, 0) or index * status["area_bytes"] >= volume.size:
                raise Violation(f"{volume.name}: logical area {index} is area {area} of {group}, which cannot be")
            sharing = volume.info.family, index  # images of one family may share an area, at the same place of each
            if seen.setdefault((group, area), sharing) != sharing:
                raise Violation(f"area {area} of {group} belongs to {owners[group, area]} and to {volume.name}")
            owners[group, area] = volume.name
    for index, report in zip(areas, status["groups"], strict=True):
        used = sum(owner_group == index for owner_group, _ in owners)
        if used + report["free_areas"] != report["areas"]:
            raise Violation(f"{report['areas']} areas, {used} allocated and {report['free_areas']} free")
    return owners


def _check_redundancy(group: RaidGroup, area: int, shares: list[bytes]) -> None:
    geometry = group.geometry
    if geometry.copies > 1:
        for column in range(geometry.data_chunks):
            if len({shares[i] for i in geometry.copies_of(column)}) > 1:
                raise Violation(f"area {area}: copies of column {column} differ")
    if not geometry.parity_chunks:
        return
    for row, columns in enumerate(_rows(group, area, shares)):
        data, parity = columns[: geometry.data_chunks], columns[geometry.data_chunks :]
        p, q = np.zeros_like(data[0]), np.zeros_like(data[0])
        for chunk in reversed(data):
            p ^= chunk
            q = _DOUBLE[q] ^ chunk
        for made, found, name in zip((p, q), parity, "PQ", strict=False):
            if not np.array_equal(made, found):
                raise Violation(f"area {area}, row {row}: {name} does not fit the data")


def _rows(group: RaidGroup, area: int, shares: list[bytes]) -> Iterator[list[Bytes]]:
    geometry = group.geometry
    arrays = [np.frombuffer(share, np.uint8).reshape(-1, geometry.chunk_bytes) for share in shares]
    for row in range(geometry.rows_per_area):
        place = area * geometry.rows_per_area + row
        yield [arrays[geometry.member_of(place, column)][row] for column in range(geometry.members)]
