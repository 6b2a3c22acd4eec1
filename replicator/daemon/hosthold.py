"""Hosts that hold their own writes for a marker, instead of having them held at storage (seed 001 [0089]).

The operator links a host by a command, which the coordinator runs by its shell, for all hosts at once. What is said:

    the command    held          it has stopped the host's writes, and those under way are done
    coordinator    release       the marker is in every group, or was given up
    the command    released      writes go on, and they were held from `held` to `release` without interruption
                                 it ends with status 0

one word a line, over its standard output and input. It has FARSTRIPE_MARKER and FARSTRIPE_HOLD_S in its environment;
after so many seconds it lets writes go on by itself, and then it does not say `released`. It does so at once when its
input ends: the coordinator died, or the line to the host is cut. scripts/farstripe-freeze is such a command for
filesystems, and runs on hosts that have nothing else of ours: `ssh web1 farstripe-freeze /srv`.

A marker is made only when every host has said `held`, and stays made only when every host has said `released`. Every
host is told to release, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from replicator.core.errors import Refused

FIRST_S: Final = 30.0
"""So long nobody may be ready to hold: filesystems are flushed before."""
RELEASE_S: Final = 10.0
"""So long a command may take to end once it was told to."""
KILL_S: Final = 2.0
_TOLD_CHARS: Final = 300


class _Command:
    """One host's command while it runs."""

    def __init__(self, host: str, command: str, marker: str, hold_s: float, changed: threading.Condition) -> None:
        self.host, self._changed = host, changed
        self.held_at = 0.0
        self.over = False
        self._told = self._released = False
        self._why: str | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in end()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": os.environ.get("HOME", "/root"),
                "FARSTRIPE_MARKER": marker,
                "FARSTRIPE_HOLD_S": f"{hold_s:g}",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="host-hold", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                if line.strip() == b"held" and not self.held_at:
                    self.held_at = time.monotonic()
                elif line.strip() == b"released":
                    self._released = self._told
                self._changed.notify_all()
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def tell_release(self) -> None:
        """Say that writes may go on; its input ends, so that one that does not read goes on too."""
        assert self._process.stdin is not None
        with self._changed:
            self._told = True
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was told already
            self._process.stdin.write(b"release\n")
            self._process.stdin.flush()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self, until: float) -> str:
        """Wait for its end, or bring it about. Returns why its hold does not count, "" when it does."""
        if self._why is None:
            self._why = self._ended(until)
        return self._why

    def _ended(self, until: float) -> str:
        why = ""
        try:
            status = self._process.wait(max(0.0, until - time.monotonic()))
            if status:
                why = f"its command ended with {status}"
        except subprocess.TimeoutExpired:
            why = f"its command did not end within {RELEASE_S:g} s"
        self._end_group()
        self._reader.join(timeout=KILL_S)
        if not why and not (self.held_at and self._released):
            why = "it did not hold all the time" if self.held_at else "it did not hold"
        said = self._said()
        return f"{why}: {said}" if why and said else why

    def _end_group(self) -> None:
        """End what is left of the command, which is no longer waited for."""
        for what in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, what)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_S)

    def _said(self) -> str:
        with self._errors as errors:
            errors.seek(0)
            return errors.read().decode("utf-8", "replace").strip()[-_TOLD_CHARS:]


class HostHolds:
    """The holds of all hosts of one marker: `hold` once, then `release`, whatever `hold` did."""

    def __init__(self, hosts: Mapping[str, str], marker: str, hold_s: float) -> None:
        """hosts: name -> command. hold_s: how long each may be held."""
        self._hosts, self._marker, self._hold_s = hosts, marker, hold_s
        self._changed = threading.Condition()
        self._commands: list[_Command] = []

    def hold(self) -> float:
        """Have all hosts hold; returns until when all of them do, by the monotonic clock.

        Raises Refused, which names the host, when one does not within hold_s after the first one.
        """
        began = time.monotonic()
        for host, command in self._hosts.items():
            try:
                self._commands.append(_Command(host, command, self._marker, self._hold_s, self._changed))
            except OSError as exc:
                raise Refused(f"the command of host {host} cannot be run: {exc}", "see what is short") from exc
        while True:
            with self._changed:
                missing = [one for one in self._commands if not one.held_at]
                ended = next((one for one in self._commands if one.over), None)
                first = min((one.held_at for one in self._commands if one.held_at), default=0.0)
                until = first + self._hold_s if first else began + FIRST_S
                left_s = until - time.monotonic()
                if ended is None and missing and left_s > 0:
                    self._changed.wait(left_s)
                    continue
            if ended is not None:
                ended.tell_release()
                why = ended.end(time.monotonic() + KILL_S) or "its command has ended"
                raise Refused(f"host {ended.host} does not hold: {why}", _way_out(ended.host))
            if missing:
                slow = ", ".join(one.host for one in missing)
                raise Refused(f"no word in time that these hosts hold: {slow}", _way_out(missing[0].host))
            return until

    def release(self) -> str:
        """Let all hosts go on. Returns why the holds do not count, "" when each host has held all the time."""
        for one in self._commands:
            one.tell_release()
        until = time.monotonic() + RELEASE_S
        told = [(one.host, one.end(until)) for one in self._commands]
        return "; ".join(f"host {host}: {why}" for host, why in told if why)


def _way_out(host: str) -> str:
    return f"try its command by itself: farstripe marker host test {host}"


def linked(hosts: Mapping[str, Mapping[str, Any]], groups: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return {host: command} of the hosts that are to hold for a marker over `groups` ({name, uuid} each).

    hosts: as MarkerStore.hosts. Raises Refused when nobody is known to write to one of the groups: then nobody would be
    asked to hold (H1-25).
    """
    asked: dict[str, str] = {}
    for group in groups:
        its = {
            name: str(one["command"])
            for name, one in hosts.items()
            if not one["uuids"] or group["uuid"] in one["uuids"]
        }
        if not its:
            raise Refused(
                f"no host is linked that writes to group {group['name']}",
                "farstripe marker host add, or hold at storage",
            )
        asked |= its
    return asked
