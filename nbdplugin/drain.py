"""Ending client connections from inside nbdkit, without an error answer.

nbdkit on its way out waits for ever for clients that stay connected, and answers requests it has read but not begun
with ESHUTDOWN, which a kernel client passes on to the filesystem. It does so too for the last request of a connection
whose end another of its threads has seen already. A client that merely loses its connection can come back and repeat.
So before nbdkit is asked to end: no further request begins (it is parked), those under way are answered, and only then
every connection is cut in both directions. What was parked, or does not end in time (a write that waits for a peer), is
given up after that, so the give-up is never taken for an answer.

nbdkit tells plugins nothing of its sockets; they are found among the descriptors of this process by their own address.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path


def client_sockets(unix_path: Path, port: int | None) -> list[socket.socket]:
    """Return duplicates of the connected sockets that were accepted on the given addresses; the caller closes them."""
    found: list[socket.socket] = []
    for entry in os.listdir("/proc/self/fd"):
        if any(int(entry) == sock.fileno() for sock in found):
            continue  # a duplicate of ours has the number that the listing itself used
        try:
            if not stat.S_ISSOCK(os.stat(int(entry)).st_mode):
                continue
            copy = os.dup(int(entry))
        except OSError:
            continue  # closed meanwhile
        try:
            sock = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)  # closed and its number given to something else meanwhile
            continue
        if _is_client(sock, unix_path, port):
            found.append(sock)
        else:
            sock.close()
    return found


def _is_client(sock: socket.socket, unix_path: Path, port: int | None) -> bool:
    try:
        name = sock.getsockname()
        sock.getpeername()
    except OSError:
        return False  # a listener, or not connected any more
    if sock.family == socket.AF_UNIX:
        return bool(name == str(unix_path))
    return sock.family in (socket.AF_INET, socket.AF_INET6) and bool(name[1] == port)


def drain(
    unix_path: Path,
    port: int | None,
    open_volumes: Callable[[], int],
    park: Callable[[float], None],
    give_up: Callable[[], None],
    patience_s: float = 4.0,
    deadline_s: float = 20.0,
) -> bool:
    """End all client connections; returns whether all are gone.

    open_volumes: how many connections nbdkit has not closed; one whose client has gone may still have a request under
    way. park(seconds): lets no further request begin, and returns when those under way have been answered or so many
    seconds have passed. give_up: called once, with the sockets shut: makes parked and waiting requests fail.
    """
    started = time.monotonic()
    park(patience_s)
    gave_up = False
    while (sockets := client_sockets(unix_path, port)) or open_volumes():
        waited_s = time.monotonic() - started
        for sock in sockets:
            with sock:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it went by itself
        if not gave_up:
            give_up()
            gave_up = True
        if waited_s > deadline_s:
            return False
        time.sleep(0.01)
    return True
