"""The oracles must bite: each kind of broken promise is found, and what is allowed is not."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import nbd
import pytest

from tests.testing.needs import needs
from tests.testing.stamped import (
    BLOCK,
    Ledger,
    OracleError,
    StampedLoad,
    Write,
    check_nothing_lost,
    check_prefix,
    read_generations,
    stamp,
)  # fmt: skip


def ledger() -> Ledger:
    """Block 0: generation 1 acknowledged, then 3 acknowledged. Block 1: 2 acknowledged, 4 issued and never answered."""
    return Ledger({0: [Write(1, 1, 2), Write(3, 5, 6)], 1: [Write(2, 3, 4), Write(4, 7)]}, clock=7, acked_count=3)


@pytest.mark.parametrize("image", [[3, 2], [3, 4]])
def test_nothing_is_lost_when_all_acknowledged_writes_show(image: list[int]) -> None:
    check_nothing_lost(ledger(), image)


@pytest.mark.parametrize("image", [[1, 2], [0, 4], [3, 0]])
def test_a_lost_acknowledged_write_is_found(image: list[int]) -> None:
    with pytest.raises(OracleError, match="was acknowledged"):
        check_nothing_lost(ledger(), image)


@pytest.mark.parametrize(("image", "lost"), [([0, 0], 3), ([1, 0], 2), ([1, 2], 1), ([3, 2], 0), ([3, 4], 0)])
def test_every_prefix_is_accepted_and_its_loss_counted(image: list[int], lost: int) -> None:
    assert check_prefix(ledger(), image) == lost


@pytest.mark.parametrize("image", [[0, 2], [3, 0], [1, 4]])
def test_a_hole_before_a_later_write_is_found(image: list[int]) -> None:
    with pytest.raises(OracleError, match="before the cut"):
        check_prefix(ledger(), image)


def test_a_generation_never_written_is_found() -> None:
    with pytest.raises(OracleError, match="never written"):
        check_nothing_lost(ledger(), [5, 4])


def test_after_a_takeover_the_image_is_the_new_truth() -> None:
    book = ledger()
    book.restart_from([1, 0])
    check_nothing_lost(book, [1, 0])
    with pytest.raises(OracleError):
        check_nothing_lost(book, [0, 0])


def serve(image: Path, socket: Path) -> subprocess.Popen[bytes]:
    socket.unlink(missing_ok=True)
    server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "file", str(image)])
    while not socket.exists():
        assert server.poll() is None
        time.sleep(0.01)
    return server


def test_load_outlives_its_server_and_the_image_holds_its_promises(tmp_path: Path) -> None:
    needs("nbdkit")
    image, socket, blocks = tmp_path / "img", tmp_path / "s", 64
    image.write_bytes(bytes(blocks * BLOCK))

    def connect() -> nbd.NBD:
        handle = nbd.NBD()
        handle.connect_unix(str(socket))
        return handle

    server = serve(image, socket)
    try:
        load = StampedLoad(connect, blocks, seed=1).start()
        for _ in range(3):
            load.wait_acked(40)
            server.kill()
            server.wait()
            server = serve(image, socket)
        load.wait_acked(40)
        load.stop()
        assert load.reconnects == 4
        check_nothing_lost(load.ledger, read_generations(connect(), blocks))
        handle = connect()
        handle.pwrite(stamp(1, 1)[:2048], 7 * BLOCK)
        with pytest.raises(OracleError, match="torn"):
            read_generations(handle, blocks)
    finally:
        server.kill()
        server.wait()
