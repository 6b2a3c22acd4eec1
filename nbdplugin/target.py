"""The target process: puts pool, volumes, groups and the control socket together, and takes them apart in order.

Order of a start: configuration, events, pool, volumes, groups, maintenance, control socket, READY. Order of a stop:
connections end (nbdplugin.drain), nbdkit leaves its loop, then the control socket, maintenance, groups (checkpoint),
pool (marked clean). A kill at any point of either is an unclean stop, which the next start recovers from.

What this does not do: requests (routes), decisions (engine), RAID (raidlib).
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbdplugin import (
    exports,
    launch,
    markerdoor,
    nodeconfig,
    ops_balance,
    ops_cut,
    ops_group,
    ops_member,
    ops_move,
    ops_node,
    ops_pool,
    ops_scrub,
    ops_snapshot,
    ops_view,
)
from nbdplugin.drain import drain
from nbdplugin.exports import Exports
from nbdplugin.grouphost import GroupHost
from nbdplugin.maintenance import Maintenance
from nbdplugin.markerdoor import MarkerDoor
from nbdplugin.membertimer import MemberTimer
from nbdplugin.poolhost import PoolHost
from nbdplugin.routes import VolumeRoute
from nbdplugin.sampling import Sampling
from nbdplugin.scrubber import Scrubber
from nbdplugin.together import Together
from nbdplugin.views import Views
from replicator.control import ControlClient, ControlServer
from replicator.core.errors import Refused
from replicator.eventlog import EventLog
from replicator.notify import notify

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Target:
    """Everything one target process owns."""

    def __init__(self, state_dir: str, run_dir: str, shutdown: Callable[[], None], force: bool = False) -> None:
        """shutdown: asks nbdkit to end. force: open a pool that PoolHost.open refuses without."""
        self._force = force
        self.state_dir = Path(state_dir)
        self.run_dir = Path(run_dir)
        self._shutdown = shutdown
        self._stopping = threading.Event()
        self._closed = False

    def start(self) -> None:
        """Open everything and serve. A failure is recorded for whoever started us, then raised."""
        try:
            self._open()
        except BaseException as exc:  # whoever waits for the start learns why, whatever it was
            launch.record_failure(self.run_dir, exc)
            raise
        gc.freeze()  # what the start made lives on: collections need not look at it
        self._catch_signals()
        (self.run_dir / "target.pid").write_text(f"{os.getpid()}\n", encoding="ascii")
        self.events.add("node.started", f"target of node {self.config.name} started", pid=os.getpid())
        notify(f"READY=1\nSTATUS=serving {len(self.exports.routes())} volumes")
        self._tell_starter()

    def _open(self) -> None:
        self.started_at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.config = nodeconfig.load(self.state_dir)
        self.events = EventLog(self.state_dir / "events.jsonl")
        self.exports = Exports()
        self.pools = PoolHost(self.state_dir, self.exports, self.events)
        self.pools.open(self._force)
        self.groups = GroupHost(self.state_dir, self.run_dir, self.config, self.pools, self.exports, self.events)
        self.groups.open()
        self.views = Views(self.groups, self.pools, self.exports, self.events)
        self.views.start()
        self.maintenance = Maintenance(self.pools, self.events, self.groups.sync_tracking)
        self.maintenance.start()
        self.scrubber = Scrubber(self.pools, self.events)
        self.scrubber.start()
        self.sampling = Sampling(self.state_dir, self.pools, self.exports, self.events)
        self.sampling.start()
        self.marker_door = MarkerDoor(self._ask_replicator)
        self._member_timer = MemberTimer(self.pools, self.events)
        self._member_timer.start()
        self.together = Together()
        self.together.start()
        self.control = ControlServer(
            self.run_dir / "target.sock",
            {
                **ops_node.handlers(self),
                **ops_pool.pool_handlers(self),
                **ops_member.handlers(self),
                **ops_pool.volume_handlers(self),
                **ops_snapshot.handlers(self),
                **ops_move.handlers(self),
                **ops_scrub.handlers(self),
                **ops_balance.handlers(self),
                **ops_group.handlers(self),
                **ops_cut.handlers(self),
                **ops_view.handlers(self),
            },
        )
        self.control.start()

    def _ask_replicator(self, op: str, timeout_s: float, **args: Any) -> Any:
        with ControlClient(self.run_dir / "replicator.sock", timeout_s) as client:
            return client.call(op, **args)

    def _tell_starter(self) -> None:
        """End the wait of launch.start_in_background.

        nbdkit with passed sockets asks the kernel for SIGTERM when its parent dies (as --exit-with-parent does). Our
        parent is that starter, which ends now as it should, or a shell that may.
        """
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        if number := os.environ.pop("FARSTRIPE_READY_FD", ""):
            os.write(int(number), b"ready")
            os.close(int(number))

    # -- exports --------------------------------------------------------------------------------------------------

    def list_exports(self) -> list[tuple[str, str]]:
        """(name, description) of every volume."""
        return [(route.name, exports.describe(route)) for route in self.exports.routes()]

    def admit_client(self) -> None:
        """Raise Refused when no new connection may begin, because the target stops."""
        if self._stopping.is_set():
            raise Refused("the target is stopping", "connect again when it has restarted", errno=errno.ESHUTDOWN)

    def open_volume(self, name: str, readonly: bool) -> tuple[VolumeRoute | MarkerDoor, bool]:
        """See Exports.open; the marker's export is always there and never listed."""
        if name == markerdoor.NAME:
            return self.marker_door, readonly
        return self.exports.open(name, readonly)

    def close_volume(self, route: VolumeRoute | MarkerDoor, readonly: bool) -> None:
        """See Exports.close."""
        if not isinstance(route, MarkerDoor):
            self.exports.close(route, readonly)

    # -- stop -----------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """Turn the signals that end nbdkit into request_stop, in a thread.

        nbdkit's own handler would drain connections without telling us, and wait for ever for a write that waits for
        a peer. Python runs signal handlers only between bytecodes of the main thread, which sleeps in nbdkit: the
        wake-up descriptor is written by the C handler itself.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

        def wait_for_signals() -> None:
            while number := reader.recv(1):
                self.request_stop(f"signal {signal.Signals(number[0]).name}")

        faulthandler.register(signal.SIGUSR2, all_threads=True)  # where every thread is, into the log
        self._wakeup = writer  # open as long as the process: the C handler writes to its number
        threading.Thread(target=wait_for_signals, name="signals", daemon=True).start()

    def request_stop(self, why: str) -> None:
        """Begin an orderly stop; returns at once. Later calls change nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        notify("STOPPING=1")
        self.events.add("node.stopping", f"target of node {self.config.name} stops: {why}")
        threading.Thread(target=self._end_connections, name="drain", daemon=True).start()

    def _end_connections(self) -> None:
        self.sampling.stop()  # it puts functions into the routes

        def give_up() -> None:
            for route in self.exports.routes():
                route.refuse_parked()
            self.groups.release_waiters()

        socket_path, port = self.run_dir / "nbd.sock", self.config.nbd_port
        gone = drain(socket_path, port, self.exports.open_count, self.exports.park, give_up)
        if not gone:
            self.events.add("node.stop_slow", "NBD requests are still under way; waiting for them")
        self._shutdown()

    def close(self) -> None:
        """Close everything, after the last connection ended.

        Durable: pool and groups are marked clean, so the next start recovers nothing; but for groups that have failed.
        """
        if self._closed:
            return
        self._closed = True
        self.control.stop()
        self.sampling.stop()
        self.views.stop()
        self._member_timer.stop()
        self.maintenance.stop()
        self.scrubber.stop()
        self.together.stop()
        kept = self.groups.close()
        self.pools.close(kept)
        self.events.add("node.stopped", f"target of node {self.config.name} stopped")
        self.events.close()
        with contextlib.suppress(FileNotFoundError):
            (self.run_dir / "target.pid").unlink()
        left = f", but for {', '.join(sorted(kept))}" if kept else ""
        print(f"farstripe-target: stopped, everything marked clean{left}", file=sys.stderr, flush=True)
