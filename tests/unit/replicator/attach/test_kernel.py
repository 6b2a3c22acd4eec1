from __future__ import annotations

import errno
import socket
import struct

import pytest
from pyroute2.netlink import generic
from pyroute2.netlink.exceptions import NetlinkError

from replicator.attach import kernel
from replicator.attach.kernel import CMD_CONNECT, CMD_LINK_DEAD, NbdKernel, NoNbdDriver, nbdmsg
from replicator.core.errors import AlreadyExists, MediumError, NotFound, Refused


def attributes(data: bytes) -> dict[int, bytes]:
    """Split netlink attributes the way the kernel does; nested ones keep their flag out of the type."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("<HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


class FakeNetlink:
    """Stands in for the library's socket: keeps the request as bytes, answers or fails as told."""

    prid = 33

    def __init__(self, replies: list[nbdmsg] | None = None, fails: int = 0) -> None:
        self.replies, self.fails = replies or [], fails
        self.command = 0
        self.attrs: dict[int, bytes] = {}

    def nlm_request(self, message: nbdmsg, msg_type: int, msg_flags: int) -> list[nbdmsg]:
        message["header"]["type"], message["header"]["flags"] = msg_type, msg_flags
        message.encode()
        data = bytes(message.data)
        self.command = data[16]
        self.attrs = attributes(data[20:])
        if self.fails:
            raise NetlinkError(self.fails)
        return self.replies


@pytest.fixture
def nbd(monkeypatch: pytest.MonkeyPatch) -> NbdKernel:
    monkeypatch.setattr(NbdKernel, "_bind", staticmethod(lambda load_module=False: FakeNetlink()))
    return NbdKernel()


def answer(**values: object) -> nbdmsg:
    """A message as it looks after a trip through the wire."""
    message = nbdmsg()
    message["attrs"] = [[f"NBD_ATTR_{key}", value] for key, value in values.items()]
    message.encode()
    decoded = nbdmsg(message.data)
    decoded.decode()
    return decoded


def test_connect_carries_what_the_header_file_says(nbd: NbdKernel) -> None:
    fake = FakeNetlink([answer(INDEX=7)])
    nbd._nl = fake
    with socket.socket() as one, socket.socket() as two:
        index = nbd.connect(
            [one, two], index=None, size=1 << 33, block_size=4096, server_flags=0x10D, timeout_s=0,
            dead_timeout_s=60, identifier="farstripe:data",
        )  # fmt: skip
        items = fake.attrs[7]
        numbers = []
        while items:
            length, kind = struct.unpack_from("<HH", items)
            assert kind & 0x3FFF == 1
            numbers.append(struct.unpack("<I", attributes(items[4:length])[1])[0])
            items = items[(length + 3) & ~3 :]
        assert numbers == [one.fileno(), two.fileno()]
    assert index == 7
    assert fake.command == CMD_CONNECT
    assert 1 not in fake.attrs  # no index: the kernel picks the device
    assert struct.unpack("<Q", fake.attrs[2])[0] == 1 << 33
    assert struct.unpack("<Q", fake.attrs[3])[0] == 4096
    assert struct.unpack("<Q", fake.attrs[4])[0] == 0
    assert struct.unpack("<Q", fake.attrs[5])[0] == 0x10D
    assert struct.unpack("<Q", fake.attrs[8])[0] == 60
    assert fake.attrs[10] == b"farstripe:data\0"


def test_the_wished_device_is_asked_for(nbd: NbdKernel) -> None:
    fake = FakeNetlink([answer(INDEX=3)])
    nbd._nl = fake
    options = {"size": 4096, "block_size": 512, "server_flags": 1, "timeout_s": 0, "dead_timeout_s": 1}
    assert nbd.connect([], index=3, identifier="x", **options) == 3  # type: ignore[arg-type]
    assert struct.unpack("<I", fake.attrs[1])[0] == 3


def test_status_lists_devices(nbd: NbdKernel) -> None:
    items = [
        ["NBD_DEVICE_ITEM", {"attrs": [["NBD_DEVICE_INDEX", i], ["NBD_DEVICE_CONNECTED", i % 2]]}] for i in range(3)
    ]
    nbd._nl = FakeNetlink([answer(DEVICE_LIST={"attrs": items})])
    assert nbd.connected() == {0: False, 1: True, 2: False}


@pytest.mark.parametrize(
    ("code", "what", "error"),
    [
        (errno.EPERM, "disconnect", Refused),
        (errno.EBUSY, "connect", AlreadyExists),
        (errno.EINVAL, "disconnect", NotFound),
        (errno.EINVAL, "connect", Refused),
        (errno.ENODEV, "connect", NotFound),
        (errno.ENOMEM, "connect", MediumError),
    ],
)
def test_errors_of_the_kernel_become_ours(nbd: NbdKernel, code: int, what: str, error: type[Exception]) -> None:
    nbd._nl = FakeNetlink(fails=code)
    with pytest.raises(error) as caught:
        if what == "connect":
            nbd.connect(
                [], index=0, size=4096, block_size=512, server_flags=0, timeout_s=0, dead_timeout_s=0, identifier="x"
            )
        else:
            nbd.disconnect(0)
    assert "/dev/nbd0" in str(caught.value)


def test_a_kernel_without_nbd_names_nbdfuse_as_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kw: object) -> None:
        raise NetlinkError(errno.ENOENT)

    monkeypatch.setattr(generic.GenericNetlinkSocket, "bind", refuse)
    monkeypatch.setattr(kernel.subprocess, "run", lambda *a, **k: None)
    with pytest.raises(NoNbdDriver, match="no NBD driver") as caught:
        NbdKernel()
    assert "nbdfuse" in caught.value.way_out
    assert caught.value.exit_code == 4


def link_dead(index: int, family: int = 33) -> bytes:
    message = nbdmsg()
    message["cmd"], message["version"] = CMD_LINK_DEAD, 1
    message["attrs"] = [["NBD_ATTR_INDEX", index]]
    message["header"]["type"] = family
    message.encode()
    return bytes(message.data)


def events_over(family: int, sock: socket.socket) -> kernel.LinkDeadEvents:
    events = kernel.LinkDeadEvents.__new__(kernel.LinkDeadEvents)
    events._family, events._sock = family, sock
    sock.setblocking(False)
    return events


def test_link_dead_events_name_their_device() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        events = events_over(33, ours)
        for data in (link_dead(2), link_dead(5, family=34), link_dead(0)):
            theirs.send(data)
        assert list(events.pending(0)) == [2, 0]


def test_lost_events_count_as_a_death() -> None:
    class Overrun:
        def __init__(self) -> None:
            self.left = [OSError(errno.ENOBUFS, "lost"), BlockingIOError()]

        def setblocking(self, _on: bool) -> None: ...

        def recv(self, _size: int) -> bytes:
            raise self.left.pop(0)

    events = events_over(33, Overrun())  # type: ignore[arg-type]
    assert list(events.pending(4)) == [4]
