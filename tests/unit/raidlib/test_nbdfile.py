"""Members over NBD: what a server that lives, errs, hangs, dies and comes back means to a pool."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidlib import GroupSpec, Pool, nbdfile
from raidlib.errors import NotFound, Refused
from raidlib.nbdfile import NbdFile, open_exclusive
from tests.testing.pools import AREA, CHUNK, pattern, states

pytest.importorskip("nbd")
SIZE = 4 << 20


class Server:
    """nbdkit's file plugin on a unix socket; killed and started at will."""

    def __init__(self, directory: Path, name: str, *filters: str, size: int = SIZE) -> None:
        self.backing, self.socket = directory / name, directory / f"{name}.sock"
        self.backing.write_bytes(b"")
        os.truncate(self.backing, size)
        self.filters = filters
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.socket.unlink(missing_ok=True)
        head = ["nbdkit", "-f", "--exit-with-parent", "-U", str(self.socket)]
        plain = [word for word in self.filters if "=" not in word]
        options = [word for word in self.filters if "=" in word]
        self.process = subprocess.Popen(
            [*head, *(f"--filter={name}" for name in plain), "file", str(self.backing), *options]
        )
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            assert time.monotonic() < deadline, "nbdkit did not start"
            time.sleep(0.01)

    def kill(self) -> None:
        """It dies at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    made = [Server(tmp_path, f"m{i}") for i in range(3)]
    yield made
    for server in made:
        server.kill()


def test_bytes_come_back_as_written(servers: list[Server]) -> None:
    file = NbdFile.open(servers[0].uri)
    assert file.size == SIZE and file.zeroes_fast() in (True, False)
    data = pattern(3 << 20)
    file.pwrite(data, 5)
    assert file.pread(len(data), 5) == data
    file.pwritev([b"ab", b"cd"], 100)
    buffers = [bytearray(2), bytearray(3)]
    assert file.raw_preadv(buffers, 100) == 5 and buffers[0] == b"ab" and buffers[1][:2] == b"cd"
    assert file.raw_pwrite(b"xyz", 7) == 3
    file.pwrite_durable(b"durable", 0)
    file.fdatasync()
    file.punch(4096, 8192)
    file.zero(1 << 20, 10)
    assert file.pread(8192, 4096) == bytes(8192) and file.pread(10, 1 << 20) == bytes(10)
    file.close()
    assert servers[0].backing.read_bytes()[:7] == b"durable"


def test_beyond_the_end_is_an_error_like_a_files(servers: list[Server]) -> None:
    file = NbdFile.open(servers[0].uri)
    with pytest.raises(OSError, match="ends at byte"):
        file.pread(10, SIZE - 5)
    with pytest.raises(OSError, match="ends at byte"):
        file.pwrite(b"0123456789", SIZE - 5)
    assert not file.gone
    file.close()


def test_a_server_that_dies_is_gone_for_good(servers: list[Server]) -> None:
    file = NbdFile.open(servers[0].uri)
    servers[0].kill()
    for call in (lambda: file.pread(1, 0), lambda: file.pwrite(b"x", 0), file.fdatasync, lambda: file.punch(0, 1)):
        with pytest.raises(OSError):
            call()
    assert file.gone
    servers[0].start()
    with pytest.raises(OSError):
        file.pread(1, 0)
    file.close()


def test_a_server_that_hangs_becomes_an_error_in_time(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdfile, "TIMEOUT_S", 0.3)
    file = NbdFile.open(servers[0].uri)
    process = servers[0].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(OSError, match=r"no answer within 0\.3 s"):
            file.pread(1, 0)
        with pytest.raises(OSError, match=r"no answer within 0\.3 s"):
            file.fdatasync()
        assert time.monotonic() - began < 5 and file.gone
    finally:
        process.send_signal(signal.SIGCONT)
    file.close()


def test_an_error_of_the_servers_disk_is_not_a_dead_server(tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    server = Server(tmp_path, "bad", "error", "error=EIO", "error-rate=100%", f"error-file={trigger}")
    try:
        file = NbdFile.open(server.uri)
        trigger.touch()
        with pytest.raises(OSError) as caught:
            file.pwrite(b"x", 0)
        assert caught.value.errno == 5 and not file.gone
        with pytest.raises(OSError):
            file.pwrite_durable(b"x", 0)
        trigger.unlink()
        file.pwrite(b"x", 0)
        assert not file.gone
        server.kill()
        with pytest.raises(OSError):
            file.pwrite(b"x", 0)
        assert not file.gone, "a sync failed before: what it holds is not known"
        file.close()
    finally:
        server.kill()


def test_no_server_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"socket=.*/none does not exist"):
        Pool.open([f"nbd+unix:///?socket={tmp_path}/none"])
    with pytest.raises(NotFound, match="cannot be opened"):
        Pool.open(["nbd://127.0.0.1:1/none"])


def test_a_server_that_was_killed_and_returns_gets_only_what_it_missed(servers: list[Server]) -> None:
    uris = [server.uri for server in servers]
    pool = Pool.create("tank", [GroupSpec("g", 5, uris, CHUNK)], 16 * AREA, open_exclusive)
    size = 20 * 16 * AREA
    volume = pool.create_volume("v", size)
    volume.pwrite(pattern(size), 0)
    pool.sync()
    while pool.clear_intents() or pool.status()["groups"][0]["marked_regions"]:
        pass
    servers[1].kill()
    volume.pwrite(pattern(1000, 2), 5000)
    member = pool.status()["groups"][0]["members"][1]
    assert member["state"] == "failed" and member["away"]
    for _ in range(3):
        pool.clear_intents()
    servers[1].start()
    assert pool.readd_member(servers[1].uri) == 16 * AREA // 2
    while pool.rebuild_step():
        pass
    assert states(pool) == ["in_sync"] * 3
    pool.fail_member(uris[0])
    expected = bytearray(pattern(size))
    expected[5000:6000] = pattern(1000, 2)
    assert volume.pread(size, 0) == expected
    with pytest.raises(Refused, match="is a member in use"):
        pool.readd_member(servers[1].uri)
    pool.close()
    pool = Pool.open([uris[1]])
    assert pool.volume("v").pread(size, 0) == expected
    pool.close()


def test_an_export_that_was_enlarged_is_reached_to_its_new_end(servers: list[Server]) -> None:
    file = NbdFile.open(servers[0].uri)
    file.pwrite(b"before", 0)
    assert file.remeasure() == file.size == SIZE
    os.truncate(servers[0].backing, 2 * SIZE)
    assert file.size == SIZE, "the server has not been asked yet"
    assert file.remeasure() == file.size == 2 * SIZE
    file.pwrite(b"behind", 2 * SIZE - 6)
    file.fdatasync()
    assert file.pread(6, 2 * SIZE - 6) == b"behind" and file.pread(6, 0) == b"before"
    file.close()


def test_a_server_that_was_restarted_with_a_larger_export_is_gone_and_not_taken_for_the_same(
    servers: list[Server],
) -> None:
    file = NbdFile.open(servers[0].uri)
    servers[0].kill()
    os.truncate(servers[0].backing, 2 * SIZE)
    servers[0].start()
    with pytest.raises(OSError):
        file.remeasure()
    assert file.gone and file.size == SIZE


def test_a_larger_export_without_multi_conn_is_seen_at_the_next_open(tmp_path: Path) -> None:
    server = Server(tmp_path, "one", "multi-conn", "multi-conn-mode=disable")
    try:
        file = NbdFile.open(server.uri)
        os.truncate(server.backing, 2 * SIZE)
        with pytest.raises(OSError, match="when the node is restarted"):
            file.remeasure()
        file.pwrite(b"still there", 0)
        file.close()
        assert NbdFile.open(server.uri).size == 2 * SIZE
    finally:
        server.kill()
