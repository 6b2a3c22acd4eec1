"""What this node keeps of a pair: STATE/pairs/<group uuid>.json. Roles and positions are the target's, not here.

{"group": uuid, "name", "peer": node id, "split": bool, "handover": node id or "", "budget": what may be lost with the
primary (core/rpo.py) or {}, and the settings of core.transfer.Transfer}
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from replicator.core.errors import BadInput, IntegrityError, NotFound
from replicator.core.rpo import budget_from
from replicator.core.transfer import PUSH, Transfer, from_map
from replicator.daemon.durablefile import read_json, remove, write_json


@dataclass(frozen=True)
class PairConfig:
    """One pair of this node."""

    group: str
    name: str
    peer: str
    split: bool = False
    handover: str = ""
    connections: int = 1
    transfer: str = PUSH
    window: int = Transfer.window
    compress: int = 0
    budget: dict[str, Any] = field(default_factory=dict)
    limit: int = 0
    schedule: str = ""

    @property
    def settings(self) -> Transfer:
        """How it moves its records."""
        return from_map(asdict(self))


class PairStore:
    """All pairs; thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Load the pairs in `folder`, made when missing. Raises IntegrityError for a damaged file."""
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pairs = {pair.group: pair for pair in map(_load, sorted(folder.glob("*.json")))}

    def all(self) -> list[PairConfig]:
        """Every pair, by group name."""
        with self._lock:
            return sorted(self._pairs.values(), key=lambda pair: pair.name)

    def get(self, group: str) -> PairConfig | None:
        """The pair of the group with this uuid, or None."""
        with self._lock:
            return self._pairs.get(group)

    def find(self, name_or_uuid: str) -> PairConfig:
        """The pair of the group of this name or uuid. Raises NotFound."""
        for pair in self.all():
            if name_or_uuid in (pair.name, pair.group):
                return pair
        raise NotFound(
            f"group {name_or_uuid} has no pair", "'farstripe pair list' shows the pairs; 'pair create' makes one"
        )

    def put(self, pair: PairConfig) -> None:
        """Store a pair. Durable."""
        with self._lock:
            write_json(self._folder / f"{pair.group}.json", asdict(pair))
            self._pairs[pair.group] = pair

    def change(self, group: str, changes: dict[str, Any]) -> None:
        """Change fields of a pair; nothing happens when it was deleted meanwhile. Durable."""
        with self._lock:
            known = self._pairs.get(group)
            if known is None:
                return
            changed = replace(known, **changes)
            write_json(self._folder / f"{group}.json", asdict(changed))
            self._pairs[group] = changed

    def delete(self, group: str) -> None:
        """Forget a pair. Durable."""
        with self._lock:
            remove(self._folder / f"{group}.json")
            self._pairs.pop(group, None)


def _load(path: Path) -> PairConfig:
    raw = read_json(path)
    try:
        pair = PairConfig(**{f.name: raw[f.name] for f in fields(PairConfig) if f.name in raw})
        if pair.group != path.stem or not all(isinstance(v, str) for v in (pair.name, pair.peer, pair.handover)):
            raise ValueError("its fields do not fit")
        budget_from(pair.budget)
        _ = pair.settings
    except (TypeError, ValueError, BadInput) as exc:
        raise IntegrityError(f"{path} is damaged: {exc}", "remove it and create the pair again") from exc
    return pair
