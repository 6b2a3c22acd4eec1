"""The map of one image (volume, snapshot or clone): logical area -> place, compact in memory and on members.

A *place* names an area of a RAID group in one integer: group + 1 in the upper, area in the lower 32 bits; 0 is "not
mapped". A map is pages of 1024 places, 8 bytes each. A copy shares all pages with its original, and whoever changes a
page first takes its own: so a snapshot costs a list of references, memory follows what differs, and telling two maps
apart looks only into pages that are not the same object.

On a member a map is runs, 16 bytes each, little-endian: u32 first logical area, u32 count, u32 group, u32 area of the
first; areas rise with the logical areas. Group 0xFFFFFFFF: these are not mapped (in a map stored as difference).

Not thread-safe: whoever changes a map holds the ledger's lock. Reading one entry is safe at any time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

PAGE_AREAS = 1024
_SHIFT = 10
_MASK = PAGE_AREAS - 1
_UNMAPPED_GROUP = 0xFFFFFFFF
_RUN = np.dtype([("first", "<u4"), ("count", "<u4"), ("group", "<u4"), ("area", "<u4")])
UNMAPPED: Final = 0


def place_of(group: int, area: int) -> int:
    """Return the place of an area of a group."""
    return group + 1 << 32 | area


def group_of(place: int) -> int:
    """The group's index."""
    return (place >> 32) - 1


def area_of(place: int) -> int:
    """The area within its group."""
    return place & 0xFFFFFFFF


class AreaMap:
    """Logical area -> place."""

    __slots__ = ("_own", "_pages", "mapped", "version")

    def __init__(self, entries: Iterable[tuple[int, int]] = ()) -> None:
        self._pages: list[array[int] | None] = []
        self._own = bytearray()
        """1 for pages that no other map shares."""
        self.mapped = 0
        """Logical areas that are mapped."""
        self.version = 0
        """Rises with every change."""
        for index, place in entries:
            self[index] = place

    def __getitem__(self, index: int) -> int:
        number = index >> _SHIFT
        if number >= len(self._pages):
            return UNMAPPED
        page = self._pages[number]
        return UNMAPPED if page is None else page[index & _MASK]

    def __setitem__(self, index: int, place: int) -> None:
        page = self._writable(index >> _SHIFT)
        at = index & _MASK
        self.mapped += (place != UNMAPPED) - (page[at] != UNMAPPED)
        page[at] = place
        self.version += 1

    def __delitem__(self, index: int) -> None:
        if self[index] == UNMAPPED:
            raise KeyError(index)
        self[index] = UNMAPPED

    def __contains__(self, index: int) -> bool:
        return self[index] != UNMAPPED

    def __len__(self) -> int:
        return self.mapped

    def __iter__(self) -> Iterator[int]:
        """The logical areas that are mapped, rising."""
        return iter(self.indexes().tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AreaMap) and self.mapped == other.mapped and not len(self.differences(other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"AreaMap({list(self.items())})"

    def items(self) -> Iterator[tuple[int, int]]:
        """(logical area, place), rising."""
        places = self.places()
        indexes = np.flatnonzero(places)
        return zip(indexes.tolist(), places[indexes].tolist(), strict=True)

    def copy(self) -> AreaMap:
        """Return a map of the same entries that shares every page."""
        other = AreaMap()
        other._pages = self._pages.copy()
        self._own = bytearray(len(self._pages))
        other._own = bytearray(len(self._pages))
        other.mapped = self.mapped
        return other

    def places(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """All places from logical area 0 on, in a new array; its length is a multiple of the page's."""
        result = np.zeros(len(self._pages) * PAGE_AREAS, np.uint64)
        for number, page in enumerate(self._pages):
            if page is not None:
                result[number * PAGE_AREAS : (number + 1) * PAGE_AREAS] = page
        return result

    def indexes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The logical areas that are mapped, rising."""
        return np.flatnonzero(self.places())

    def owned(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The places that are mapped, in order of their logical areas."""
        places = self.places()
        return places[np.flatnonzero(places)]

    def differences(self, other: AreaMap) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The logical areas whose places differ between the two, rising."""
        found: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        longest = max(len(self._pages), len(other._pages))
        mine = self._pages + [None] * (longest - len(self._pages))
        its = other._pages + [None] * (longest - len(other._pages))
        for number, (a, b) in enumerate(zip(mine, its, strict=True)):
            if a is not b:
                left = np.zeros(PAGE_AREAS, np.uint64) if a is None else np.frombuffer(a, np.uint64)
                right = np.zeros(PAGE_AREAS, np.uint64) if b is None else np.frombuffer(b, np.uint64)
                found.append(np.flatnonzero(left != right) + number * PAGE_AREAS)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def put(self, indexes: np.ndarray[Any, np.dtype[np.int64]], places: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        """Set many entries at once; `indexes` rise."""
        if not len(indexes):
            return
        cuts = np.flatnonzero(np.diff(indexes >> _SHIFT)) + 1
        for some, values in zip(np.split(indexes, cuts), np.split(places, cuts), strict=True):
            page = np.frombuffer(self._writable(int(some[0]) >> _SHIFT), np.uint64)
            before = np.count_nonzero(page)
            page[some & _MASK] = values
            self.mapped += int(np.count_nonzero(page) - before)
        self.version += 1

    def encode(self, base: AreaMap | None) -> bytes:
        """Return the map as runs: all of it, or with a base only what differs from that."""
        if base is None:
            places = self.places()
            indexes = np.flatnonzero(places)
            return _encode(indexes, places[indexes])
        indexes = self.differences(base)
        return _encode(indexes, np.fromiter((self[index] for index in indexes.tolist()), np.uint64, len(indexes)))

    @classmethod
    def decode(cls, packed: bytes, base: AreaMap | None) -> AreaMap:
        """Return the map that encode() was given. Raises ValueError."""
        if not packed:
            return cls() if base is None else base.copy()
        runs = np.frombuffer(packed, _RUN)
        counts = runs["count"].astype(np.int64)
        if counts.sum() > 1 << 32:
            raise ValueError("a map of more than 2^32 areas")
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        indexes = np.repeat(runs["first"].astype(np.int64), counts) + steps
        groups = np.repeat(runs["group"].astype(np.uint64), counts)
        places = (groups + np.uint64(1) << np.uint64(32)) + np.repeat(runs["area"].astype(np.uint64), counts)
        places = np.where(groups == _UNMAPPED_GROUP, np.uint64(0), places + steps.astype(np.uint64))
        result = cls() if base is None else base.copy()
        result.put(indexes, places)
        return result

    def _writable(self, number: int) -> array[int]:
        pages = self._pages
        if number >= len(pages):
            self._own.extend(bytes(number + 1 - len(pages)))
            pages.extend([None] * (number + 1 - len(pages)))
        page = pages[number]
        if page is None:
            pages[number] = page = array("Q", bytes(8 * PAGE_AREAS))
        elif not self._own[number]:
            pages[number] = page = array("Q", page)
        self._own[number] = 1
        return page


def _encode(indexes: np.ndarray[Any, np.dtype[np.int64]], places: np.ndarray[Any, np.dtype[np.uint64]]) -> bytes:
    if not len(indexes):
        return b""
    before, after = places[:-1], places[1:]
    goes_on = (np.diff(indexes) == 1) & np.where(before == 0, after == 0, after == before + np.uint64(1))
    starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(~goes_on) + 1))
    runs = np.empty(len(starts), _RUN)
    first = places[starts]
    runs["first"] = indexes[starts]
    runs["count"] = np.diff(np.append(starts, len(indexes)))
    runs["group"] = (first >> np.uint64(32)) - np.uint64(1) & np.uint64(0xFFFFFFFF)
    runs["area"] = first & np.uint64(0xFFFFFFFF)
    return runs.tobytes()
