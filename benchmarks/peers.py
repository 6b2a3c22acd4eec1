"""The established tools that the rows compare with: nbdkit's file plugin, and QEMU's mirror job.

QEMU's mirror is driven as its documentation describes (docs/interop/live-block-operations.rst, the QMP reference of
qemu-storage-daemon): the daemon opens the source file and the target's NBD export as block nodes, exports the source
over NBD, and a `blockdev-mirror` job copies from one to the other. With `copy-mode=write-blocking` a guest write is
answered when both sides have it; with `background` it is answered at once and copied from a bitmap later. The
measurement starts only once the job has said BLOCK_JOB_READY. `sync=none` skips the first full copy: source and
target start out equal.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from benchmarks.workspace import BenchmarkError, Workspace, copy_file, make_file


def unix_uri(sock: Path, export: str = "") -> str:
    """The NBD URI of `export` on the unix socket `sock`."""
    return f"nbd+unix:///{export}?socket={sock}"


class FilePlugin:
    """nbdkit's file plugin over one preallocated file."""

    def __init__(self, space: Workspace, name: str, size_bytes: int) -> None:
        """Make the file `name` of `size_bytes` in the workspace and serve it."""
        self.file = space.path / f"{name}.img"
        make_file(self.file, size_bytes)
        self.sock = space.sockets / f"{name}.sock"
        self.uri = unix_uri(self.sock)
        space.spawn_server(["nbdkit", "-f", "-U", str(self.sock), "file", str(self.file)], self.sock)


class Qmp:
    """A QMP connection: one command at a time, events kept until asked for."""

    def __init__(self, sock: Path, timeout_s: float = 60) -> None:
        """Connect and negotiate. Raises OSError when nothing listens."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(sock))
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._events: list[dict[str, Any]] = []
        self._next()  # the greeting
        self.run("qmp_capabilities")

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise BenchmarkError("qemu-storage-daemon closed its QMP connection")
        message: dict[str, Any] = json.loads(line)
        return message

    def run(self, command: str, **arguments: object) -> object:
        """Execute one command and return its result. Raises BenchmarkError with QEMU's description."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            message = self._next()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise BenchmarkError(f"qemu {command}: {message['error'].get('desc')}")
            else:
                return message.get("return")

    def wait_event(self, name: str) -> None:
        """Return when the event `name` has arrived."""
        while True:
            for i, event in enumerate(self._events):
                if event["event"] == name:
                    del self._events[: i + 1]
                    return
            self._events.append(self._next())


class QemuMirror:
    """A file exported by qemu-storage-daemon and mirrored by it to an NBD export of nbdkit's file plugin."""

    def __init__(self, space: Workspace, name: str, size_bytes: int, copy_mode: str, granularity: int) -> None:
        """Start source, target and the mirror job, and wait until it is ready.

        `copy_mode` is QEMU's: "write-blocking" or "background"; `granularity` the bytes a bit of its bitmap stands for.
        """
        self.target = FilePlugin(space, f"{name}-target", size_bytes)
        self.file = space.path / f"{name}-source.img"
        copy_file(self.target.file, self.file)
        qmp_sock, self.sock = space.sockets / f"{name}.qmp", space.sockets / f"{name}.sock"
        self.process = space.spawn_server(
            [
                "qemu-storage-daemon",
                "--chardev", f"socket,id=qmp,path={qmp_sock},server=on,wait=off",
                "--monitor", "chardev=qmp",
                "--nbd-server", f"addr.type=unix,addr.path={self.sock}",
            ],
            self.sock,
        )  # fmt: skip
        self.qmp = qmp = Qmp(qmp_sock)
        file_options: dict[str, object] = {"driver": "file", "filename": str(self.file), "aio": "threads"}
        qmp.run("blockdev-add", **{"driver": "raw", "node-name": "source", "file": file_options})
        qmp.run(
            "blockdev-add",
            **{"driver": "nbd", "node-name": "target", "server": {"type": "unix", "path": str(self.target.sock)}},
        )
        qmp.run("block-export-add", id="export", type="nbd", name="disk", **{"node-name": "source", "writable": True})
        qmp.run(
            "blockdev-mirror",
            **{
                "job-id": "mirror",
                "device": "source",
                "target": "target",
                "sync": "none",
                "copy-mode": copy_mode,
                "granularity": granularity,
            },
        )
        qmp.wait_event("BLOCK_JOB_READY")
        self.uri = unix_uri(self.sock, "disk")

    def progress(self) -> tuple[int, int]:
        """Bytes copied and bytes to be copied so far, as the job reports them (it notices new ones with a delay)."""
        jobs = self.qmp.run("query-jobs")
        assert isinstance(jobs, list)
        for job in jobs:
            if job["id"] == "mirror":
                return int(job["current-progress"]), int(job["total-progress"])
        raise BenchmarkError("QEMU's mirror job ended by itself")

    def drain(self, timeout_s: float = 60) -> None:
        """Wait until the mirror has caught up and stayed so for 0.3 s: the next run shall not inherit a backlog."""
        end = time.monotonic() + timeout_s
        last, since = self.progress(), time.monotonic()
        while last[0] != last[1] or time.monotonic() - since < 0.3:
            if time.monotonic() > end:
                raise BenchmarkError(f"QEMU's mirror did not catch up within {timeout_s:g} s")
            time.sleep(0.05)
            now = self.progress()
            if now != last:
                last, since = now, time.monotonic()
