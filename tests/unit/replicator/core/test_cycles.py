"""Settings of a set's cycles, and which images are kept."""

from __future__ import annotations

import pytest

from replicator.core.cycles import NO_CYCLE, Cycle, checked, may_go
from replicator.core.errors import BadInput


def test_the_newest_images_stay_and_one_that_a_takeover_goes_back_to() -> None:
    assert may_go([5, 3, 4, 9], 2) == [3, 4]
    assert may_go([5, 3, 4, 9], 2, (3,)) == [4]
    assert may_go([5], 2) == [] and may_go([], 2) == []
    assert may_go([4, 5], 3) == [] and may_go([2, 3, 4, 5], 7) == []


def test_the_newest_stays_also_when_the_pool_is_nearly_full() -> None:
    assert may_go([3, 4, 5], 3, short=True) == [3, 4]


def test_all_go_when_there_are_to_be_none() -> None:
    assert may_go([3, 4, 5], 0) == [3, 4, 5] == may_go([3, 4, 5], 0, short=True)


def test_settings_are_checked() -> None:
    assert checked(1.5, 2) == Cycle(1500, 2) and checked(0, 3) == NO_CYCLE
    for every_s, keep in ((0.1, 2), (1e9, 2), (5, 0), (5, 33)):
        with pytest.raises(BadInput):
            checked(every_s, keep)
