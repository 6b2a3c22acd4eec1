"""How many images refer to each area of one group: 4 bytes an area, counted from the maps at open.

Change it under the ledger's lock. Reading one count is safe at any time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from raidlib.areamap import AreaMap
from raidlib.errors import IntegrityError


class AreaRefs:
    """References by area. As a collection it is the areas that have any."""

    def __init__(self, areas: int) -> None:
        self._refs = array("I", bytes(4 * areas))
        self._all = np.frombuffer(self._refs, np.uint32)

    def grow(self, areas: int) -> None:
        """Know of so many areas from now on; nobody refers to the new ones."""
        refs = array("I", bytes(4 * areas))
        refs[: len(self._refs)] = self._refs
        self._refs, self._all = refs, np.frombuffer(refs, np.uint32)

    def __contains__(self, area: int) -> bool:
        return area < len(self._refs) and self._refs[area] > 0

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._all).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._all))

    def count(self, area: int) -> int:
        """References to an area."""
        return self._refs[area]

    def counts(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """References to every area; a copy."""
        return self._all.copy()

    def add(self, area: int) -> None:
        """One more reference."""
        self._refs[area] += 1

    def drop(self, area: int) -> bool:
        """One less; return whether it was the last. Raises IntegrityError when there was none."""
        if not self._refs[area]:
            raise IntegrityError(f"area {area} is given up and nobody has it", "farstripe pool check; report this")
        self._refs[area] -= 1
        return not self._refs[area]

    def add_all(self, areas: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """One more reference to each of these areas, which are all different."""
        self._all[areas] += 1

    def drop_all(self, areas: np.ndarray[Any, np.dtype[np.int64]]) -> list[int]:
        """One less to each of these areas, which are all different; return those that have none left.

        Raises IntegrityError when one had none.
        """
        if not self._all[areas].all():
            raise IntegrityError("areas are given up that nobody has", "farstripe pool check; report this")
        self._all[areas] -= 1
        gone: list[int] = areas[self._all[areas] == 0].tolist()
        return gone


def areas_by_group(areas: AreaMap) -> dict[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """The areas of a map by the index of their group."""
    return split_places(areas.owned())


def split_places(places: np.ndarray[Any, np.dtype[np.uint64]]) -> dict[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """The areas of these places by the index of their group."""
    groups = (places >> np.uint64(32)).astype(np.int64) - 1
    areas = (places & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return {group: areas[groups == group] for group in np.flatnonzero(np.bincount(groups)).tolist()}


def count_refs(maps: Iterable[AreaMap], group: int, areas: int) -> AreaRefs:
    """Count the references of all maps to the areas of one group."""
    refs = AreaRefs(areas)
    for one in maps:
        owned = areas_by_group(one).get(group)
        if owned is not None:
            refs.add_all(owned)
    return refs
