"""What NBD clients see of a volume, by libnbd."""

from __future__ import annotations

import errno
import os
import socket
import threading

import nbd
import pytest

from tests.testing.targetproc import MIB, TargetProcess


def _errno_of(caught: pytest.ExceptionInfo[nbd.Error]) -> int:
    return int(caught.value.errnum)


def test_exports_are_listed_with_size_and_description(target: TargetProcess) -> None:
    target.call("volume.create", name="w", size=8 * MIB)
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(str(target.run / "nbd.sock"))
    seen: list[tuple[str, str]] = []
    handle.opt_list(lambda name, description: seen.append((name, description)) or 0)
    handle.opt_abort()
    assert seen == [("v", "volume v"), ("w", "volume w")]
    assert target.connect("v").get_size() == 64 * MIB
    assert target.connect("w").get_size() == 8 * MIB


def test_capabilities_are_all_there(target: TargetProcess) -> None:
    handle = target.connect("v")
    assert not handle.is_read_only()
    assert handle.can_flush() and handle.can_fua() and handle.can_multi_conn()
    assert handle.can_trim() and handle.can_zero() and handle.can_fast_zero() and handle.can_cache()
    assert handle.can_meta_context("base:allocation")
    assert not handle.is_rotational()
    assert handle.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert handle.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB


def test_an_unknown_export_is_refused_and_the_server_goes_on(target: TargetProcess) -> None:
    with pytest.raises(nbd.Error) as caught:
        target.connect("nope")
    assert _errno_of(caught) == errno.ENOENT
    assert "no volume 'nope' on this node" in target.log()
    assert target.connect("v").get_size() == 64 * MIB


def test_the_only_volume_is_the_default_export(target: TargetProcess) -> None:
    assert target.connect("").get_size() == 64 * MIB
    target.call("volume.create", name="w", size=8 * MIB)
    with pytest.raises(nbd.Error):
        target.connect("")


def test_written_bytes_come_back_and_volumes_do_not_mix(target: TargetProcess) -> None:
    target.call("volume.create", name="w", size=64 * MIB)
    v, w = target.connect("v"), target.connect("w")
    a, b = os.urandom(3 * MIB + 4096), os.urandom(3 * MIB + 4096)
    v.pwrite(a, 61440)
    w.pwrite(b, 61440)
    assert v.pread(len(a), 61440) == a
    assert w.pread(len(b), 61440) == b


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (511, 2), (65535, 2), (65536 * 6 - 1, 70000), (12345, 200001)])
def test_unaligned_requests_change_exactly_their_bytes(target: TargetProcess, offset: int, length: int) -> None:
    handle = target.connect("v")
    before = os.urandom(MIB)
    handle.pwrite(before, 0)
    data = os.urandom(length)
    handle.pwrite(data, offset)
    assert handle.pread(MIB, 0) == before[:offset] + data + before[offset + length :]


def test_the_largest_request_is_served(target: TargetProcess) -> None:
    handle = target.connect("v")
    data = os.urandom(MIB) * 32
    handle.pwrite(data, MIB)
    assert handle.pread(32 * MIB, MIB) == data


def test_requests_beyond_the_end_fail_without_harm(target: TargetProcess) -> None:
    handle = target.connect("v")
    handle.set_strict_mode(handle.get_strict_mode() & ~nbd.STRICT_BOUNDS)
    for request in (
        lambda: handle.pread(4096, 64 * MIB),
        lambda: handle.pwrite(bytes(8192), 64 * MIB - 4096),
        lambda: handle.zero(8192, 64 * MIB - 4096),
    ):
        with pytest.raises(nbd.Error) as caught:
            request()
        assert _errno_of(caught) in (errno.EINVAL, errno.ENOSPC)
    handle.pwrite(b"still here", 0)
    assert handle.pread(10, 0) == b"still here"


@pytest.mark.parametrize("flags", [0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA])
def test_zeroes_read_as_zeroes_and_spare_their_neighbours(target: TargetProcess, flags: int) -> None:
    handle = target.connect("v")
    handle.pwrite(b"\xaa" * (4 * MIB), 0)
    handle.zero(2 * MIB + 4096, 70000, flags)
    want = bytearray(b"\xaa" * (4 * MIB))
    want[70000 : 70000 + 2 * MIB + 4096] = bytes(2 * MIB + 4096)
    assert handle.pread(4 * MIB, 0) == bytes(want)


def test_trimmed_ranges_read_as_zeroes(target: TargetProcess) -> None:
    handle = target.connect("v")
    handle.pwrite(b"\xaa" * (4 * MIB), 0)
    handle.trim(2 * MIB, MIB, nbd.CMD_FLAG_FUA)
    assert handle.pread(4 * MIB, 0) == b"\xaa" * MIB + bytes(2 * MIB) + b"\xaa" * MIB


def test_fast_zero_is_fast_or_refused_at_once(target: TargetProcess) -> None:
    handle = target.connect("v")
    handle.pwrite(b"\xaa" * MIB, 0)
    handle.zero(MIB, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(MIB, 0) == bytes(MIB)
    with pytest.raises(nbd.Error) as caught:
        handle.zero(MIB, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert _errno_of(caught) == errno.ENOTSUP


def _map(handle: nbd.NBD, length: int, offset: int, flags: int = 0) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def extent(_context: str, _offset: int, entries: list[int], _error: object) -> int:
        found.extend(zip(entries[::2], entries[1::2], strict=True))
        return 0

    handle.block_status(length, offset, extent, flags)
    return found


def test_block_status_tells_holes_from_data(target: TargetProcess) -> None:
    handle = target.connect("v")
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert _map(handle, 64 * MIB, 0) == [(64 * MIB, hole)]
    handle.pwrite(b"x", 10 * MIB)
    kinds = _map(handle, 64 * MIB, 0)
    assert sum(length for length, _ in kinds) == 64 * MIB
    data = [length for length, kind in kinds if kind == 0]
    assert len(data) == 1 and data[0] <= 4 * MIB
    assert kinds[0][1] == hole and kinds[0][0] <= 10 * MIB < kinds[0][0] + data[0]
    assert len(_map(handle, 64 * MIB, 0, nbd.CMD_FLAG_REQ_ONE)) == 1


def test_cache_requests_are_harmless(target: TargetProcess) -> None:
    handle = target.connect("v")
    handle.pwrite(b"abc", MIB)
    handle.cache(2 * MIB, 0)
    assert handle.pread(3, MIB) == b"abc"


def test_many_connections_see_each_other_and_are_counted(target: TargetProcess) -> None:
    handles = [target.connect("v") for _ in range(4)]
    [facts] = target.call("volume.list")
    assert (facts["writers"], facts["readers"]) == (4, 0)
    handles[0].pwrite(b"from the first", 4096)
    handles[1].flush()
    assert handles[3].pread(14, 4096) == b"from the first"
    for handle in handles:
        handle.shutdown()
    while target.call("volume.list")[0]["writers"]:
        pass


def test_connections_may_come_and_go_for_long(target: TargetProcess) -> None:
    def resident_kib() -> int:
        with open(f"/proc/{target.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))

    def visit() -> None:
        handle = target.connect("v")
        pending = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), i * 4096) for i in range(16)]
        while not all(handle.aio_command_completed(cookie) for cookie in pending if cookie):
            handle.poll(-1)
            pending = [c for c in pending if not _retired(handle, c)]
            if not pending:
                break
        handle.shutdown()

    for _ in range(20):
        visit()
    before = resident_kib()
    for _ in range(150):
        visit()
    assert resident_kib() - before < 8 << 10


def _retired(handle: nbd.NBD, cookie: int) -> bool:
    try:
        return bool(handle.aio_command_completed(cookie))
    except nbd.Error:
        return True  # retired by an earlier question


def test_parallel_writers_on_one_volume_keep_every_block(target: TargetProcess) -> None:
    def write(part: int) -> None:
        handle = target.connect("v")
        for i in range(64):
            handle.pwrite(bytes([part]) * 4096, (i * 4 + part) * 4096)
        handle.shutdown()

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    data = target.connect("v").pread(4096 * 256, 0)
    assert all(data[block * 4096 : (block + 1) * 4096] == bytes([block % 4]) * 4096 for block in range(256))


def test_one_process_serves_the_unix_socket_and_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with TargetProcess(nbd_port=port) as target:
        target.start()
        target.make_pool()
        target.call("volume.create", name="v", size=8 * MIB)
        by_tcp = nbd.NBD()
        by_tcp.connect_uri(f"nbd://127.0.0.1:{port}/v")
        by_tcp.pwrite(b"over tcp", 0)
        assert target.connect("v").pread(8, 0) == b"over tcp"
        assert target.call("node.info")["nbd"]["port"] == port


def test_garbage_on_the_nbd_socket_ends_that_connection_only(target: TargetProcess) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(target.run / "nbd.sock"))
        sock.sendall(os.urandom(4096))
        sock.settimeout(10)
        try:
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass  # reset, as good as closed
    assert target.connect("v").get_size() == 64 * MIB
