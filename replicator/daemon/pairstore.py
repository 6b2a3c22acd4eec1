"""What this node keeps of a pair: STATE/pairs/<group uuid>.<peer>.json. Roles and positions are the target's, not here.

{"group": uuid, "name", "peer": node id, "split": bool, "handover": node id or "", "budget": what may be lost with the
primary (core/rpo.py) or {}, and the settings of core.transfer.Transfer}

A group may have several pairs, one with each peer: they are the edges of its tree that end here. A version that knew
one pair a group kept it in <group uuid>.json; such a file is taken over at start.
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

Key = tuple[str, str]
"""(uuid of the group, node id of the peer)."""


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

    @property
    def key(self) -> Key:
        """What names the pair on this node."""
        return self.group, self.peer


class PairStore:
    """All pairs; thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Load the pairs in `folder`, made when missing. Raises IntegrityError for a damaged file.

        Durable: that files of the former version have their present names.
        """
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pairs: dict[Key, PairConfig] = {}
        for path in sorted(folder.glob("*.json")):
            pair = _load(path)
            self._pairs.setdefault(pair.key, pair)
            if path != self._path(pair.key):
                write_json(self._path(pair.key), asdict(self._pairs[pair.key]))
                remove(path)

    def _path(self, key: Key) -> Path:
        return self._folder / f"{key[0]}.{key[1]}.json"

    def all(self) -> list[PairConfig]:
        """Every pair, by group name and peer."""
        with self._lock:
            return sorted(self._pairs.values(), key=lambda pair: (pair.name, pair.peer))

    def get(self, group: str, peer: str) -> PairConfig | None:
        """The pair of the group with this uuid and the peer, or None."""
        with self._lock:
            return self._pairs.get((group, peer))

    def of_group(self, name_or_uuid: str) -> list[PairConfig]:
        """The pairs of the group of this name or uuid, at least one. Raises NotFound."""
        found = [pair for pair in self.all() if name_or_uuid in (pair.name, pair.group)]
        if not found:
            raise NotFound(
                f"group {name_or_uuid} has no pair", "'farstripe pair list' shows the pairs; 'pair create' makes one"
            )
        return found

    def put(self, pair: PairConfig) -> None:
        """Store a pair. Durable."""
        with self._lock:
            write_json(self._path(pair.key), asdict(pair))
            self._pairs[pair.key] = pair

    def change(self, key: Key, changes: dict[str, Any]) -> None:
        """Change fields of a pair; nothing happens when it was deleted meanwhile. Durable."""
        with self._lock:
            known = self._pairs.get(key)
            if known is None:
                return
            changed = replace(known, **changes)
            write_json(self._path(key), asdict(changed))
            self._pairs[key] = changed

    def delete(self, key: Key) -> None:
        """Forget a pair. Durable."""
        with self._lock:
            remove(self._path(key))
            self._pairs.pop(key, None)


def _load(path: Path) -> PairConfig:
    raw = read_json(path)
    try:
        pair = PairConfig(**{f.name: raw[f.name] for f in fields(PairConfig) if f.name in raw})
        if not all(isinstance(v, str) for v in (pair.group, pair.name, pair.peer, pair.handover)):
            raise ValueError("its fields do not fit")
        if path.stem not in (pair.group, f"{pair.group}.{pair.peer}"):
            raise ValueError("it is of another pair than its name says")
        budget_from(pair.budget)
        _ = pair.settings
    except (TypeError, ValueError, BadInput) as exc:
        raise IntegrityError(f"{path} is damaged: {exc}", "remove it and create the pair again") from exc
    return pair
