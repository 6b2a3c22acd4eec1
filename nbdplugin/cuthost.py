"""What the groups of a node have in common: the clock of their write times, consistency sets with the images of their
cycles, markers, and the thread that sends beacons.

    STATE/clock    the clock's reserve (replicator.capture.clock)
    RUN/clock      its last time, on tmpfs
    RUN/set-<name>.numbers   the last number of a set that orders by counter
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nbdplugin.cyclehost import CycleHost
from nbdplugin.exports import Exports
from nbdplugin.markerhost import MarkerHost
from nbdplugin.poolhost import PoolHost
from replicator.capture.clock import RESERVE_FILE_BYTES, WriteClock, map_clock_page
from replicator.capture.cutter import Cutter
from replicator.capture.engine import GroupEngine
from replicator.capture.service import GroupService
from replicator.capture.sets import SetHost
from replicator.eventlog import EventLog
from replicator.journal.files import PlainFile


class CutHost:
    """Clock, sets, markers and beacons of one node."""

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        boot: int,
        pools: PoolHost,
        exports: Exports,
        events: EventLog,
        find: Callable[[str], GroupService | None],
        groups: Callable[[], Iterable[GroupService]],
    ) -> None:
        """find: a group's service by uuid. groups: all services. Raises OSError, IntegrityError."""
        path = state_dir / "clock"
        reserve = PlainFile(path) if path.exists() else PlainFile(path, create_bytes=RESERVE_FILE_BYTES)
        self.clock = WriteClock(time.time_ns, boot, map_clock_page(run_dir / "clock"), reserve)
        self.markers = MarkerHost(pools, exports, events)
        self.sets = SetHost(
            state_dir / "sets", find, boot, lambda name: map_clock_page(run_dir / f"set-{name}.numbers")
        )
        self.cycles = CycleHost(
            state_dir / "cycles",
            pools,
            exports,
            self.sets,
            find,
            lambda kind, text, name: events.add(kind, text, set=name),
        )
        self._cutter = Cutter(self.clock, self.sets, groups, lambda kind, text: events.add(kind, text))

    def start(self) -> None:
        """Let beacons go out, bounds rise and images be taken."""
        self._cutter.start()
        self.cycles.start()

    def stop(self) -> None:
        """End that."""
        self.cycles.stop()
        self._cutter.stop()

    def close(self) -> None:
        """After the groups. Durable: the last time."""
        self.cycles.close()
        self.sets.close()
        self.clock.close()

    def join(self, service: GroupService, directory: Path) -> None:
        """A group is being opened or made, its follower does not run yet. `directory`: of its files."""
        engine = service.engine

        def lifted() -> None:
            self.sets.lifted(engine.state.uuid)
            self.markers.lifted(engine)

        engine.on_lift = lifted
        self.sets.join(engine)
        self.markers.join(service, directory)

    def hold_at_start(self, engine: GroupEngine) -> None:
        """Put the set's durable bound on a group before its follower starts."""
        self.sets.hold_at_start(engine.state.uuid)

    def leave(self, uuid: str) -> None:
        """A group is gone."""
        self.markers.leave(uuid)
