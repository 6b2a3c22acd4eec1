"""The kernel's NBD driver over generic netlink: connect, reconfigure, disconnect, status, and its link-dead events.

Why netlink and not the older ioctls: only netlink connects without a process that stays inside the driver, takes a
timeout for dead connections (the writer waits instead of failing), and lets fresh sockets take the place of dead ones.

Facts of the driver this relies on (drivers/block/nbd.c; seen with 6.1):
* RECONFIGURE puts each given socket in the place of one dead connection and ignores those left over. It is therefore
  safe to offer as many sockets as there are connections whenever in doubt.
* A size in RECONFIGURE resizes the device while it is open.
* Requests in flight on a connection that died are sent again only when the block layer's request timer fires, see
  `device.set_request_timer`.
* STATUS tells whether a device is configured, not whether its connections live.

Source: <linux/nbd-netlink.h>.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink import generic as _generic
from pyroute2.netlink.exceptions import NetlinkError

from replicator.core.errors import AlreadyExists, FarstripeError, MediumError, NotFound, Refused

FAMILY = "nbd"
MULTICAST_GROUP = "nbd_mc_group"
GENL_VERSION = 1

CMD_CONNECT = 1
CMD_DISCONNECT = 2
CMD_RECONFIGURE = 3
CMD_LINK_DEAD = 4
CMD_STATUS = 5

_NETLINK_GENERIC = 16  # the socket module has the family but not these
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1

WAY_OUT_NO_NBD = (
    "load the module (modprobe nbd), or attach without the kernel driver: "
    "nbdfuse MOUNTPOINT 'nbd://HOST:PORT/VOLUME' (package libnbd-bin), then use or losetup the file it shows"
)


class nbdmsg(genlmsg):
    """A message of the nbd family."""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "device_list"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):
        nla_flags = 1 << 15  # NLA_F_NESTED
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "sock_item"))

        class sock_item(nla):
            nla_flags = 1 << 15
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))

    class device_list(nla):
        nla_map = (("NBD_DEVICE_ITEM_UNSPEC", "none"), ("NBD_DEVICE_ITEM", "device_item"))

        class device_item(nla):
            nla_map = (
                ("NBD_DEVICE_UNSPEC", "none"),
                ("NBD_DEVICE_INDEX", "uint32"),
                ("NBD_DEVICE_CONNECTED", "uint8"),
            )


class NoNbdDriver(Refused):
    """The running kernel has no nbd family on generic netlink."""

    def __init__(self) -> None:
        super().__init__("this kernel has no NBD driver (no generic netlink family 'nbd')", WAY_OUT_NO_NBD)


class NbdKernel:
    """One generic netlink socket bound to the nbd family.

    Raises NoNbdDriver when the kernel has none, even after `modprobe nbd`.
    """

    def __init__(self) -> None:
        # The library logs a missing family as an error before raising; the caller prints the reason, once.
        for cls in (_generic.GenericNetlinkSocket, getattr(_generic, "AsyncGenericNetlinkSocket", None)):
            if cls is not None:
                cls.module_err_level = "debug"
        self._nl = self._bind() or self._bind(load_module=True)
        if self._nl is None:
            raise NoNbdDriver

    @staticmethod
    def _bind(load_module: bool = False) -> Any:
        if load_module:
            try:
                subprocess.run(["modprobe", "nbd"], capture_output=True, timeout=20, check=False)
            except (OSError, subprocess.TimeoutExpired):
                return None
        nl = _generic.GenericNetlinkSocket()
        try:
            nl.bind(FAMILY, nbdmsg)
        except NetlinkError as exc:
            nl.close()
            if exc.code in (errno.ENOENT, errno.ENOTSUP, errno.EOPNOTSUPP):
                return None
            raise Refused(f"generic netlink: {os.strerror(exc.code)}", "run as root") from exc
        return nl

    def close(self) -> None:
        self._nl.close()

    def __enter__(self) -> NbdKernel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def connect(
        self,
        sockets: Sequence[socket.socket],
        *,
        index: int | None,
        size: int,
        block_size: int,
        server_flags: int,
        timeout_s: int,
        dead_timeout_s: int,
        identifier: str,
    ) -> int:
        """Make /dev/nbd<index> from negotiated sockets and return the index (the kernel picks one when None).

        `timeout_s` 0: a request may take for ever. `dead_timeout_s`: how long requests wait for a new connection when
        all are dead, before they fail. `identifier` is shown in /sys/block/nbdN/backend and must be given again to
        reconfigure. The kernel keeps its own reference to the sockets: the caller closes them.
        """
        attrs: list[tuple[str, Any]] = [] if index is None else [("NBD_ATTR_INDEX", index)]
        attrs += [
            ("NBD_ATTR_SIZE_BYTES", size),
            ("NBD_ATTR_BLOCK_SIZE_BYTES", block_size),
            ("NBD_ATTR_SERVER_FLAGS", server_flags),
            ("NBD_ATTR_CLIENT_FLAGS", 0),
            ("NBD_ATTR_TIMEOUT", timeout_s),
            ("NBD_ATTR_DEAD_CONN_TIMEOUT", dead_timeout_s),
            ("NBD_ATTR_BACKEND_IDENTIFIER", identifier),
            ("NBD_ATTR_SOCKETS", _socket_list(sockets)),
        ]
        for reply in self._request(CMD_CONNECT, attrs, "connect", index):
            got = reply.get_attr("NBD_ATTR_INDEX")
            if got is not None:
                return int(got)
        if index is None:
            raise MediumError("the kernel connected a device but did not say which", "see /sys/block/nbd*/pid")
        return index

    def reconfigure(
        self, index: int, sockets: Sequence[socket.socket], *, size: int, identifier: str, timeout_s: int
    ) -> None:
        """Offer fresh sockets in the place of dead ones, and tell the kernel the size (it resizes if that changed).

        The request timeout is in force before the sockets are.
        """
        attrs: list[tuple[str, Any]] = [
            ("NBD_ATTR_INDEX", index),
            ("NBD_ATTR_SIZE_BYTES", size),
            ("NBD_ATTR_TIMEOUT", timeout_s),
            ("NBD_ATTR_BACKEND_IDENTIFIER", identifier),
        ]
        if sockets:
            attrs.append(("NBD_ATTR_SOCKETS", _socket_list(sockets)))
        self._request(CMD_RECONFIGURE, attrs, "reconfigure", index)

    def disconnect(self, index: int) -> None:
        """Disconnect the device at once, whoever uses it."""
        self._request(CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)], "disconnect", index)

    def connected(self) -> dict[int, bool]:
        """Return, for each nbd device of this host, whether it is configured."""
        found = {}
        for reply in self._request(CMD_STATUS, [], "status", None):
            for _, item in (reply.get_attr("NBD_ATTR_DEVICE_LIST") or {}).get("attrs", ()):
                found[int(item.get_attr("NBD_DEVICE_INDEX"))] = bool(item.get_attr("NBD_DEVICE_CONNECTED"))
        return found

    def link_dead_events(self) -> LinkDeadEvents:
        """Subscribe to the driver's link-dead multicast. Do so before CONNECT, or an early death is missed."""
        return LinkDeadEvents(self._nl.prid, self._nl.mcast_groups[MULTICAST_GROUP])

    def _request(self, command: int, attrs: list[tuple[str, Any]], what: str, index: int | None) -> list[Any]:
        message = nbdmsg()
        message["cmd"] = command
        message["version"] = GENL_VERSION
        message["attrs"] = [list(attr) for attr in attrs]
        try:
            return list(self._nl.nlm_request(message, msg_type=self._nl.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK))
        except NetlinkError as exc:
            raise _explain(exc.code, what, index) from exc


class LinkDeadEvents:
    """The multicast of indices of devices that lost a connection; pollable."""

    def __init__(self, family: int, group: int) -> None:
        self._family = family
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._sock.bind((0, 0))
        self._sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def wait(self, index: int, timeout_s: float) -> bool:
        """Return True as soon as `index` lost a connection (or events were lost), False after `timeout_s`."""
        until = time.monotonic() + timeout_s
        while True:
            left = until - time.monotonic()
            if not select.select([self._sock], [], [], max(0.0, left))[0]:
                return False
            if index in self.pending(index):
                return True

    def pending(self, index: int) -> Iterator[int]:
        """Yield the indices announced so far; `index` itself when the kernel says that events were dropped."""
        while True:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno == errno.ENOBUFS:
                    yield index
                    continue
                raise
            message = nbdmsg(data)
            message.decode()
            if message["header"]["type"] == self._family and message["cmd"] == CMD_LINK_DEAD:
                yield int(message.get_attr("NBD_ATTR_INDEX"))


def _socket_list(sockets: Sequence[socket.socket]) -> dict[str, Any]:
    items = [["NBD_SOCK_ITEM", {"attrs": [["NBD_SOCK_FD", sock.fileno()]]}] for sock in sockets]
    return {"attrs": items}


def _explain(code: int, what: str, index: int | None) -> FarstripeError:
    device = "the nbd device" if index is None else f"/dev/nbd{index}"
    reason = os.strerror(code)
    if code in (errno.EPERM, errno.EACCES):
        return Refused(f"the kernel does not let us {what} {device}: {reason}", "run as root")
    if code == errno.EBUSY:
        return AlreadyExists(f"{device} is in use", f"choose another device, or: farstripe detach {device}")
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return NotFound(f"{device} does not exist", "leave --device out and the kernel picks a free one")
    if code == errno.EINVAL and what in ("reconfigure", "disconnect"):
        return NotFound(f"{device} is not attached, or not to this volume", "farstripe attach --list shows what is")
    if code == errno.EINVAL:
        return Refused(f"the kernel rejects the settings for {device}: {reason}", "dmesg says which")
    return MediumError(f"cannot {what} {device}: {reason}", "dmesg may say why")
