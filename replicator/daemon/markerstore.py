"""What a coordinator keeps of its markers: STATE/markers.

counter.json        {"counter": n}  the last number used; raised durably before a number is sent anywhere
made/<name>.json    {name, n, created, state, image, suspend, schedule, groups: [{group, uuid, node, at, via, seq}]}
                    node, at: id and name of the primary; via: id of the node that passes on what it is asked, "" for
                    nobody. Older versions have stored no `at` and `via`
schedules.json      {name: {groups, interval_s, keep, image, deadline_s, before, after, hold}}
hosts.json          {name: {command, groups, uuids}}  hosts that hold their own writes; no groups: all (hosthold.py)

state  making    an attempt is under way; after a restart it is dead
       made      every group has the record
       dead      given up; copies that stand at it are to go on, and images of it are to go, as for deleted; called
                 NAME#NUMBER once another attempt has taken its name
       deleted   its images are to go; kept until every node that has some was reached
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from replicator.core.errors import AlreadyExists, IntegrityError, NotFound
from replicator.core.markers import counter_above, make_number
from replicator.daemon.durablefile import read_json, remove, write_json

MAKING, MADE, DEAD, DELETED = "making", "made", "dead", "deleted"
Record = dict[str, Any]


class MarkerStore:
    """The markers of one coordinator; thread-safe. Changes are durable on return."""

    def __init__(self, folder: Path, tag: int) -> None:
        """Load. tag: of this node, part of every number. Raises IntegrityError for a damaged file."""
        self._folder, self._tag = folder, tag
        self._lock = threading.Lock()
        (folder / "made").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._counter = int(_read(folder / "counter.json").get("counter", 0))
        self._records = {path.stem: _read(path) for path in sorted((folder / "made").glob("*.json"))}
        self._schedules: dict[str, Record] = _read(folder / "schedules.json")
        self._hosts: dict[str, Record] = _read(folder / "hosts.json")

    def next_number(self, seen: Iterable[int]) -> int:
        """Return a number never used before, above all `seen`."""
        with self._lock:
            counter = counter_above(self._counter, seen)
            write_json(self._folder / "counter.json", {"counter": counter})
            self._counter = counter
            return make_number(counter, self._tag)

    def all(self) -> list[Record]:
        """Every record, oldest first."""
        with self._lock:
            return sorted((dict(one) for one in self._records.values()), key=lambda one: int(one["n"]))

    def find(self, name: str) -> Record:
        """The record of a marker. Raises NotFound."""
        with self._lock:
            if name not in self._records:
                raise NotFound(
                    f"no marker {name!r} was made by this node",
                    "ask on the node that made it; what copies here have: farstripe marker list",
                )
            return dict(self._records[name])

    def begin(self, name: str, n: int, **more: Any) -> Record:
        """Enter an attempt. A dead marker of that name gives way: it is kept as NAME#NUMBER until it is settled.

        Raises AlreadyExists.
        """
        record = {"name": name, "n": n, "state": MAKING, "created": time.time(), **more}
        with self._lock:
            known = self._records.get(name)
            if known is not None and known["state"] != DEAD:
                raise AlreadyExists(f"there is a marker {name} already ({known['state']})", "choose another name")
            if known is not None:
                self._put({**known, "name": f"{name}#{known['n']}"})
            self._put(record)
        return record

    def change(self, name: str, n: int, **changes: Any) -> None:
        """Change fields of a record; nothing happens when another attempt has taken its name."""
        with self._lock:
            known = self._records.get(name)
            if known is not None and known["n"] == n:
                self._put({**known, **changes})

    def drop(self, name: str) -> None:
        """Forget a record."""
        with self._lock:
            remove(self._folder / "made" / f"{name}.json")
            self._records.pop(name, None)

    def _put(self, record: Record) -> None:
        write_json(self._folder / "made" / f"{record['name']}.json", record)
        self._records[record["name"]] = record

    # -- schedules ------------------------------------------------------------------------------------------------

    def schedules(self) -> dict[str, Record]:
        """Every schedule, by name."""
        with self._lock:
            return {name: dict(one) for name, one in self._schedules.items()}

    def schedule(self, name: str, what: Record | None) -> None:
        """Store a schedule, or end it with None. Raises NotFound when there is none to end, AlreadyExists when there is
        another one of that name: somebody may rely on it."""
        with self._lock:
            if what is not None and self._schedules.get(name, what) != what:
                groups = ",".join(map(str, self._schedules[name].get("groups", ())))
                raise AlreadyExists(
                    f"there is a schedule {name} already, of {groups}",
                    f"choose another name, or end that one first: farstripe marker unschedule {name}",
                )
            if what is None and name not in self._schedules:
                raise NotFound(f"no schedule {name!r}", "farstripe marker list")
            changed = {key: one for key, one in self._schedules.items() if key != name}
            if what is not None:
                changed[name] = what
            write_json(self._folder / "schedules.json", changed)
            self._schedules = changed

    # -- hosts ----------------------------------------------------------------------------------------------------

    def hosts(self) -> dict[str, Record]:
        """Every host that holds its own writes, by name."""
        with self._lock:
            return {name: dict(one) for name, one in self._hosts.items()}

    def host(self, name: str, what: Record | None) -> None:
        """Link a host, or no longer with None. Raises AlreadyExists, NotFound."""
        with self._lock:
            if what is None and name not in self._hosts:
                raise NotFound(f"no host {name!r} is linked", "farstripe marker host list")
            if what is not None and name in self._hosts:
                raise AlreadyExists(f"a host {name} is linked already", f"farstripe marker host remove {name}")
            changed = {key: one for key, one in self._hosts.items() if key != name}
            if what is not None:
                changed[name] = what
            write_json(self._folder / "hosts.json", changed)
            self._hosts = changed


def _read(path: Path) -> Record:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise IntegrityError(f"{path} cannot be read: {exc.strerror}", "repair its disk") from exc
