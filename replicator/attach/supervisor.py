"""Connect a device and keep its connections alive.

The kernel's driver does not reconnect. It tells on a multicast group that a connection died, holds requests back for
`dead_timeout_s`, and takes fresh sockets. This process supplies them: it dials until the server answers, so that a
restart of the target costs the writer a pause, not an error.

Invariants
* It subscribes to the events before it connects, so no death is missed; when the kernel says that events were
  dropped, it heals as if one had come.
* It never gives the kernel a connection that turned read-only (a secondary) under a writer. It waits instead, until
  the kernel's own deadline.
* It ends when the device is disconnected, by whomever; ended by a signal it leaves the device as it is.

It does not judge health by the time a request takes: see handshake.py on TCP keepalive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from replicator.attach import device, records
from replicator.attach.handshake import FLAG_READ_ONLY, Endpoint, Export, hang_up, negotiate
from replicator.attach.kernel import LinkDeadEvents, NbdKernel
from replicator.attach.records import Attachment
from replicator.core.errors import BadInput, FarstripeError, Refused

BACK_OFF_S = (0.05, 0.1, 0.2, 0.3, 0.5)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
POLL_S = 1.0
IDLE_WAIT_S = 5.0

Log = Callable[[str], None]
Dial = Callable[[Endpoint, str], tuple[socket.socket, Export]]


class Kernel(Protocol):
    """The part of kernel.NbdKernel used here; tests give a fake."""

    def connect(
        self,
        sockets: list[socket.socket],
        *,
        index: int | None,
        size: int,
        block_size: int,
        server_flags: int,
        timeout_s: int,
        dead_timeout_s: int,
        identifier: str,
    ) -> int: ...

    def reconfigure(
        self, index: int, sockets: list[socket.socket], *, size: int, identifier: str, timeout_s: int
    ) -> None: ...


def choose_block_size(export: Export, wanted: int) -> int:
    """Return the logical block size for the device: `wanted`, or 4096 where the size allows, else 512.

    Raises BadInput for a wish the server or the kernel cannot fulfil.
    """
    size = wanted or (4096 if export.size % 4096 == 0 else 512)
    if size & (size - 1) or not 512 <= size <= PAGE_BYTES:
        raise BadInput(f"block size {size}", f"a power of two from 512 to {PAGE_BYTES}")
    if size < export.min_block:
        if wanted:
            raise BadInput(f"the server takes no requests below {export.min_block} bytes", "leave --block-size out")
        size = export.min_block
        if size > PAGE_BYTES:
            raise Refused(f"the server's smallest block, {size} bytes, is larger than a page: the kernel cannot use it")
    if export.size % size:
        raise BadInput(
            f"the volume's {export.size} bytes are not a multiple of {size}", "choose a smaller --block-size"
        )
    return size


class Supervisor:
    """The life of one attached device. `log` gets one line per thing worth knowing."""

    def __init__(self, kernel: Kernel, wanted: Attachment, log: Log, dial: Dial = negotiate) -> None:
        self.kernel = kernel
        self.at = wanted
        self._log = log
        self._dial = dial
        self._said = ""
        self._line: socket.socket | None = None
        """Our own reference to the only connection, to be able to end it; None when there are several."""

    # -- connecting ---------------------------------------------------------------------------------------------

    def connect(self) -> Attachment:
        """Negotiate all connections and make the device. Returns the attachment with what is now known of it.

        Raises what `negotiate` and `NbdKernel.connect` raise; Refused when several connections are asked for and the
        server does not promise that they see each other's flushes. Nothing is left behind then.
        """
        at = self.at
        sockets: list[socket.socket] = []
        try:
            sock, export = self._dial(at.endpoint, at.export)
            sockets.append(sock)
            if export.size == 0:
                raise Refused(f"volume {at.export!r} has no bytes")
            if at.connections > 1 and not export.multi_conn:
                raise Refused(
                    f"the server does not promise coherence over several connections to {at.export!r}",
                    "attach with --connections 1",
                )
            block_size = choose_block_size(export, at.block_size)
            while len(sockets) < at.connections:
                sockets.append(self._dial(at.endpoint, at.export)[0])
            flags = export.flags | (FLAG_READ_ONLY if at.read_only else 0)
            index = self.kernel.connect(
                sockets,
                index=at.index if at.index >= 0 else None,
                size=export.size,
                block_size=block_size,
                server_flags=flags,
                timeout_s=at.timeout_s,
                dead_timeout_s=at.dead_timeout_s,
                identifier=at.identifier,
            )
        except BaseException:
            for sock in sockets:
                hang_up(sock)
            raise
        self._keep_line(sockets)
        self.at = dataclasses.replace(
            at,
            index=index,
            block_size=block_size,
            size=export.size,
            read_only=at.read_only or export.read_only,
        )
        self._tune()
        return self.at

    def _keep_line(self, sockets: list[socket.socket]) -> None:
        """Let go of sockets that the kernel has taken; keep the only one."""
        if self._line is not None:
            self._line.close()
        self._line = sockets.pop() if len(sockets) == 1 else None
        for sock in sockets:
            sock.close()

    @property
    def _own_timer(self) -> bool:
        """Whether the request timer is ours to set.

        Several connections: the kernel takes a timer that fires for a dead connection, however slow the server is, so
        the timer must stay long. A timeout of the user's is left as it is.
        """
        return self.at.connections == 1 and self.at.timeout_s == 0

    def _tune(self) -> None:
        if self._own_timer:
            device.set_request_timer(self.at.index)

    def _reconfigure(self, sockets: list[socket.socket], size: int, timeout_s: int) -> None:
        at = self.at
        self.kernel.reconfigure(at.index, sockets, size=size, identifier=at.identifier, timeout_s=timeout_s)

    def _release_in_flight(self) -> None:
        """Let requests that were sent on the dead connection wait like new ones, for a new connection or the deadline.

        Without a request timeout the kernel holds them for ever. With one, short while nothing is connected, it takes
        them back within a second; the next connection sets it to "any time" again.
        """
        if self._own_timer:
            try:
                self._reconfigure([], self.at.size, timeout_s=1)
            except FarstripeError as exc:
                self._say(f"{self.at.device}: {exc}")

    # -- keeping ------------------------------------------------------------------------------------------------

    def heal(self, alive: Callable[[], bool], pause: Callable[[float], None] = time.sleep) -> bool:
        """Dial until every dead connection has a successor. False when the device went away meanwhile."""
        tries = 0
        began = time.monotonic()
        while alive():
            if self._offer():
                self._tune()
                waited = time.monotonic() - began
                self._say(f"{self.at.device}: connected again to {self.at.endpoint} after {waited:.1f} s")
                self._said = ""
                if waited > self.at.dead_timeout_s:
                    self._say(
                        f"{self.at.device}: that was longer than its dead timeout of {self.at.dead_timeout_s} s, "
                        "so requests have failed; if I/O still fails, detach it and attach it again"
                    )
                return True
            if tries == 0:
                self._release_in_flight()
            pause(BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)])
            tries += 1
        return False

    def _offer(self) -> bool:
        sockets: list[socket.socket] = []
        try:
            for _ in range(self.at.connections):
                sock, export = self._dial(self.at.endpoint, self.at.export)
                sockets.append(sock)
                if not self._acceptable(export):
                    return False
            self._reconfigure(sockets, export.size, self.at.timeout_s)
            self._keep_line(sockets)
        except FarstripeError as exc:
            self._say(f"{self.at.device}: {exc}")
            return False
        finally:
            for sock in sockets:
                sock.close()
        self._resized(export)
        return True

    def _acceptable(self, export: Export) -> bool:
        if export.read_only and not self.at.read_only:
            self._say(f"{self.at.device}: {self.at.export!r} is read-only there now (a secondary?); waiting")
            return False
        return True

    def refresh(self, pause: Callable[[float], None] = time.sleep) -> None:
        """See whether the volume has another size now, and if so, end the connection: the next one has the new size.

        A connection keeps the size it was opened with, on the server too, so there is no other way. It is ended at a
        moment without requests in flight where there is one, so that hardly any has to be sent again.
        """
        try:
            sock, export = self._dial(self.at.endpoint, self.at.export)
        except FarstripeError as exc:
            self._say(f"{self.at.device}: size not refreshed: {exc}")
            return
        hang_up(sock)
        if export.size == self.at.size:
            return
        if self._line is None:
            self._say(f"{self.at.device}: the volume has {export.size} bytes now; detach and attach again to see them")
            return
        until = time.monotonic() + IDLE_WAIT_S
        while device.in_flight(self.at.index) and time.monotonic() < until:
            pause(0.002)
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    def _resized(self, export: Export) -> None:
        if export.size != self.at.size:
            self._say(f"{self.at.device}: size changed from {self.at.size} to {export.size} bytes")
            self.at = dataclasses.replace(self.at, size=export.size)

    def _say(self, line: str) -> None:
        if line != self._said:  # a server that is away for an hour is one line, not thousands
            self._said = line
            self._log(line)


def run(wanted: Attachment, run_dir: str, log: Log, ready: Callable[[Attachment], None], adopt: bool = False) -> None:
    """Attach (or, with `adopt`, look after a device that is attached already) and return when it is detached.

    `ready` is called once the device is usable. SIGHUP refreshes the size; SIGTERM and SIGINT end the process and
    leave the device as it is. Raises FarstripeError when the device cannot be made.
    """
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with NbdKernel() as kernel:
        events = kernel.link_dead_events()
        supervisor = Supervisor(kernel, wanted, log)
        stopping = False

        def alive() -> bool:
            return not stopping and device.is_attached(supervisor.at.index)

        def signals() -> set[int]:
            nonlocal stopping
            got: set[int] = set()
            with contextlib.suppress(BlockingIOError):
                got = set(os.read(wake_read, 256))
            stopping = stopping or bool(got & {signal.SIGTERM, signal.SIGINT})
            return got

        def pause(seconds: float) -> None:
            select.select([wake_read], [], [], seconds)
            signals()

        if not adopt:
            supervisor.connect()
        _protect()
        started = records.process_started(os.getpid())
        supervisor.at = dataclasses.replace(supervisor.at, pid=os.getpid(), pid_started=started)
        records.save(run_dir, supervisor.at)
        ready(supervisor.at)
        if adopt:
            supervisor.heal(alive, pause)
        _keep(supervisor, events, wake_read, signals, alive, pause, run_dir)
        if not device.is_attached(supervisor.at.index):
            log(f"{supervisor.at.device}: detached")
            records.remove(run_dir, supervisor.at.index)
        events.close()


def _keep(
    supervisor: Supervisor,
    events: LinkDeadEvents,
    wake_read: int,
    signals: Callable[[], set[int]],
    alive: Callable[[], bool],
    pause: Callable[[float], None],
    run_dir: str,
) -> None:
    while alive():
        readable = select.select([events.fileno(), wake_read], [], [], POLL_S)[0]
        size = supervisor.at.size
        if wake_read in readable and signal.SIGHUP in signals():
            supervisor.refresh()
        if events.fileno() in readable and supervisor.at.index in set(events.pending(supervisor.at.index)):
            supervisor.heal(alive, pause)
        if supervisor.at.size != size:
            records.save(run_dir, supervisor.at)


def _protect() -> None:
    """Ask the kernel to spare this process when memory runs out: I/O waits for it. Best effort."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-900")
