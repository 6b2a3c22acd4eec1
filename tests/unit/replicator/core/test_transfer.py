"""Transfer settings: read back as written, refused when they cannot be right."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.core.errors import BadInput
from replicator.core.transfer import AUTO, PULL, Transfer, from_map


def test_settings_survive_the_trip_through_a_map() -> None:
    settings = Transfer(4, PULL, 1 << 20, AUTO, 5 << 20, "mon 1M; else unlimited")
    assert from_map(settings.to_map() | {"of a newer version": 1}) == settings
    assert from_map({}) == Transfer()


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections": 0}, {"connections": 9}, {"connections": True}, {"connections": "2"}, {"transfer": "shove"},
        {"transfer": ["push"]}, {"window": 1000}, {"window": 1 << 40}, {"compress": 20}, {"compress": -2},
        {"compress": 1.5}, {"limit": 5}, {"limit": -1}, {"limit": None}, {"schedule": "soon"}, {"schedule": 7},
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        from_map(wrong)


def test_only_some_changes_need_a_new_link() -> None:
    old = Transfer()
    assert not Transfer(compress=3, limit=1 << 20, schedule="mon 1M").needs_new_link(old)
    for changed in (Transfer(connections=2), Transfer(transfer=PULL), Transfer(window=1 << 20)):
        assert changed.needs_new_link(old)


def test_the_rate_is_that_of_the_schedule_or_else_the_limit() -> None:
    settings = Transfer(limit=1 << 20, schedule="mon 08:00-09:00 2M")
    rules = settings.rules()
    assert settings.rate(rules, 0, 8 * 60) == 2 << 20
    assert settings.rate(rules, 0, 9 * 60) == 1 << 20
