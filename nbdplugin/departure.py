"""Answering a client that is gone, without taking the whole target with it.

nbdkit 1.32, which Debian 12 has, aborts the process ("connections.c: raw_send_socket: Assertion `sock >= 0' failed")
when a client goes away while several answers to it are ready: the first thread whose send fails closes the connection
for writing, and a second one, already past the check for that, trips over it. Answers become ready together when
requests have waited together: parked by a switchover or a full journal, or for the peer in a synchronous group. That is
just when clients lose patience or power. nbdkit's own memory plugin behind its delay filter shows it in half the tries.

So an answer that comes late, or is an error (at which clients like to hang up), first looks whether its client lives.
One thread of a connection that is gone goes on, so that nbdkit learns of it; the others wait until it has, and then
nbdkit drops their answers by itself. Errors moreover leave one by one, with a moment for the client to hang up.

What is left is a client that dies within the microseconds between this look and the send of two answers at once. Then
the target dies as by SIGKILL: nothing acknowledged is lost, and devices made by `farstripe attach` see a pause.

nbdkit_nanosleep() is the probe: called in a request, it fails as soon as that request's connection ends. It is not in
nbdkit's Python module, so it is called in nbdkit itself.
"""

from __future__ import annotations

import ctypes
import threading
import time
import traceback  # nbdkit's Python plugin would import it at the first error: slow, and answers would meet again
from collections.abc import Callable

LATE_S = 0.005
"""A request that took longer than this has waited for something, probably in company."""
HOLD_BACK_S = 0.05
ERROR_SPACING_S = 0.005

_ = traceback


def connection_probe() -> Callable[[], bool]:
    """Return a function that says, in a callback of nbdkit's, whether the client of that callback has gone."""
    nanosleep = ctypes.PyDLL(None).nbdkit_nanosleep  # PyDLL: it does not block, so the interpreter lock stays
    nanosleep.argtypes = (ctypes.c_uint, ctypes.c_uint)
    return lambda: bool(nanosleep(0, 0))


class Departure:
    """Of one connection: whether its client has gone, and who may still try to answer. Called by its workers."""

    __slots__ = ("_gone", "_has_gone", "_turn")

    def __init__(self, has_gone: Callable[[], bool]) -> None:
        """has_gone: see connection_probe."""
        self._has_gone = has_gone
        self._gone = False
        self._turn = threading.Lock()

    def before_late_answer(self) -> None:
        """Return when the calling worker may answer."""
        if not self._gone:
            if not self._has_gone():
                return
            with self._turn:
                first, self._gone = not self._gone, True
            if first:
                return
        time.sleep(HOLD_BACK_S)

    def before_error(self) -> None:
        """Return when the calling worker may answer with an error."""
        with self._turn:
            if not self._gone:
                time.sleep(ERROR_SPACING_S)
        self.before_late_answer()
