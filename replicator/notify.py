"""Telling systemd about a service's state (sd_notify(3)); without systemd, nothing happens."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send `state`, for example "READY=1\\nSTATUS=serving", to the service manager when there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            pass  # the manager is gone or restarting: a status message is not worth failing for
