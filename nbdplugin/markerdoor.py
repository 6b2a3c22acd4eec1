"""The export ".marker": an instruction to make a marker, given by the same path as the data.

A program that has NBD, and neither a shell on the node nor its control socket, writes one line to it:

    NAME GROUP[,GROUP@NODE…] [DEADLINE_S] [hosts] [received]

and a zero byte or a line feed after it. The write is answered when the marker is made in every group, or with an error
when it is not; what is read from the export afterwards is the outcome as JSON, padded with zeroes. The export is in no
group, so no hold parks it: an instruction can be given while writes of the groups wait (seed 001 [0084]). Hooks
cannot be given here: they are commands, and NBD has no password. With the word "hosts" the linked hosts hold their
writes (replicator.daemon.hosthold), by the commands that the operator has given. With "received" the write is answered
when every node that a primary of the groups feeds has the marker.

What a marker is, and who makes it: replicator.daemon.markers; this asks the node's replicator as the command line does.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from typing import Any

from replicator.core.errors import BadInput, to_map

NAME = ".marker"
SIZE = 4096
BY_HOSTS, RECEIVED = "hosts", "received"
MORE_S = 60.0
"""Patience with the replicator beyond the marker's own deadline."""

Ask = Callable[..., Any]


class MarkerDoor:
    """Stands where a volume's route does. `ask(op, timeout_s, **args)` asks the replicator."""

    name = NAME
    description = (
        "write 'NAME GROUP[,GROUP@NODE...] [DEADLINE_S] [hosts] [received]' and a line feed here to make a marker"
    )

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._outcome = b"{}"
        self.volume = self

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return SIZE

    def read(self, buf: memoryview, offset: int) -> None:
        """Give the last outcome: the marker, or an error map."""
        shown = self._outcome.ljust(SIZE, b"\0")
        buf[:] = shown[offset : offset + len(buf)]

    def write(self, buf: memoryview, offset: int) -> None:
        """Make the marker that the text names. Raises what the replicator answers, BadInput with EINVAL."""
        with self._lock:  # one after the other, so that an outcome is that of the last instruction
            try:
                args = parse(bytes(buf), offset)
                deadline_s = args.get("deadline_s", 0.0)
                made = self._ask("marker.create", MORE_S + deadline_s, **args)
                self._keep({"ok": True, "marker": made})
            except Exception as exc:
                self._keep({"ok": False, "error": to_map(exc)})
                raise

    write_fua = write

    def _keep(self, outcome: dict[str, Any]) -> None:
        text = json.dumps(outcome, default=str).encode()
        if len(text) > SIZE:
            text = json.dumps({"ok": outcome["ok"]}).encode()
        self._outcome = text

    def flush(self) -> None:
        """Nothing waits: a write was answered when all was done."""

    def zero(self, offset: int, length: int, punch: bool, fua: bool) -> None:
        """Zeroes are no instruction; the last outcome stays."""

    def trim(self, offset: int, length: int, fua: bool) -> None:
        """The same."""

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """All of it is data."""
        return [(length, True)]


def parse(raw: bytes, offset: int) -> dict[str, Any]:
    """Return the arguments of marker.create in what was written. Raises BadInput with errno EINVAL."""
    line = raw.split(b"\0", 1)[0].split(b"\n", 1)[0]
    words = line.decode("utf-8", "replace").split()
    received = len(words) > 2 and words[-1] == RECEIVED and bool(words.pop())
    by_hosts = len(words) > 2 and words[-1] == BY_HOSTS and bool(words.pop())
    if offset or not 2 <= len(words) <= 3:
        raise _bad(f"{line[:60]!r} at byte {offset} is no instruction for a marker")
    args: dict[str, Any] = {"name": words[0], "groups": [group for group in words[1].split(",") if group]}
    if by_hosts:
        args["hold"] = BY_HOSTS
    if received:
        args["received"] = True
    if len(words) == 3:
        try:
            args["deadline_s"] = float(words[2])
        except ValueError:
            raise _bad(f"{words[2]!r} is no number of seconds") from None
        if not 0 < args["deadline_s"] <= 3600:
            raise _bad(f"a deadline of {words[2]} s makes no sense")
    return args


def _bad(what: str) -> BadInput:
    return BadInput(what, f"write to its beginning: {MarkerDoor.description}", errno=errno.EINVAL)
