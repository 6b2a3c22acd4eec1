"""How a pair moves its records: settings both sides hold alike, because either may be the one that ships.

The side that ships states its settings when it begins (control frame "transfer"), the other keeps them: so they stay in
force when the roles change. A change of `limit`, `schedule` or `compress` takes effect at once; one of the others
when the link starts over, which the shipping side then makes it do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from replicator.core.credits import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES
from replicator.core.errors import BadInput
from replicator.core.schedule import MAX_RATE_BYTES_S, MIN_RATE_BYTES_S, Rule, parse_schedule, rate_at

PUSH: Final = "push"
PULL: Final = "pull"
AUTO: Final = -1
"""compress: zstd 1 where a sample of a frame shows that it gains."""
MAX_COMPRESS: Final = 19
MAX_CONNECTIONS: Final = 8


@dataclass(frozen=True)
class Transfer:
    """One pair's settings. Raises BadInput when one of them cannot be right."""

    connections: int = 1
    """TCP connections that carry records, 1 to MAX_CONNECTIONS."""
    transfer: str = PUSH
    """PUSH: the sender sends as the line takes it. PULL: as much as the receiver has asked for."""
    window: int = 8 << 20
    """PULL: bytes that may be under way."""
    compress: int = 0
    """zstd level; 0: none, AUTO."""
    limit: int = 0
    """Bytes of records a second; 0: no limit."""
    schedule: str = ""
    """Limits by time of the week, see schedule.py; where no rule fits `limit` holds."""

    def __post_init__(self) -> None:
        _whole("connections", self.connections, 1, MAX_CONNECTIONS)
        _whole("window", self.window, MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)
        _whole("compress", self.compress, AUTO, MAX_COMPRESS)
        if self.limit != 0:
            _whole("limit", self.limit, MIN_RATE_BYTES_S, MAX_RATE_BYTES_S)
        if self.transfer not in (PUSH, PULL):
            raise BadInput(f"transfer must be {PUSH} or {PULL}, not {self.transfer!r}")
        if not isinstance(self.schedule, str):
            raise BadInput(f"a schedule is a text, not {self.schedule!r}")
        parse_schedule(self.schedule)

    def rules(self) -> tuple[Rule, ...]:
        """The schedule, read."""
        return parse_schedule(self.schedule)

    def rate(self, rules: tuple[Rule, ...], weekday: int, minute: int) -> int:
        """Bytes a second that may be sent at a minute of a weekday; 0: no limit. `rules`: those of the schedule."""
        return rate_at(rules, weekday, minute, self.limit)

    def needs_new_link(self, other: Transfer) -> bool:
        """Whether a link that works by `other` must start over to work by these."""
        return (self.connections, self.transfer, self.window) != (other.connections, other.transfer, other.window)

    def to_map(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)


KEYS: Final = tuple(field.name for field in fields(Transfer))


def from_map(found: dict[str, Any]) -> Transfer:
    """Build settings from a map; keys of others are left out. Raises BadInput."""
    return Transfer(**{key: found[key] for key in KEYS if key in found})


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInput(f"{name} must be a whole number from {least} to {most}, not {value!r}")
