"""`farstripe attach` in a real kernel, against a plain nbdkit: the writer must not notice that its server died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.filesystem import WRITER, check_files, files_done, wait_for_files
from tests.testing.netns import HOST_IP, NetNS
from tests.testing.plain_nbd import PORT, PlainNBD
from tests.testing.uml import Guest

pytestmark = pytest.mark.system

ATTACH = f"python -m replicator.attach {HOST_IP} {PORT} '' --device /dev/nbd0"


@pytest.fixture
def server(net: NetNS, tmp_path: Path) -> Iterator[PlainNBD]:
    server = PlainNBD(net, tmp_path / "disk.img")
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize(("connections", "deaths"), [(1, 3), (4, 1)])
def test_writer_sees_no_error_while_the_server_dies_and_returns(
    server: PlainNBD, guest: Guest, connections: int, deaths: int
) -> None:
    """With several connections the kernel waits 30 s before it sends again what was in flight: one death will do."""
    guest.run(f"set -e; {ATTACH} --connections {connections}; mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt")
    writer = guest.popen(f"{WRITER} write /mnt")
    for _ in range(deaths):
        wait_for_files(writer, files_done(writer) + 20)
        server.kill()
        server.start()
    wait_for_files(writer, files_done(writer) + 20)
    guest.run("pkill -f fsync_writer")
    done = files_done(writer)
    writer.wait(30)
    guest.run("umount /mnt")
    check_files(guest, "/dev/nbd0", done)
    guest.run("python -m replicator.attach --detach /dev/nbd0; [ $(cat /sys/block/nbd0/size) = 0 ]")


# One request in flight and nothing cached. What a file system makes of an error is not ours; with requests already on
# the wire and no request timeout the 6.1 kernel may even wait for ever.
DIRECT_WRITER = "while dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>&1; do echo done 4k; done; exit 5"


def test_writer_gets_an_error_when_the_server_stays_away_too_long(server: PlainNBD, guest: Guest) -> None:
    guest.run(f"{ATTACH} --dead-timeout 2")
    writer = guest.popen(DIRECT_WRITER)
    wait_for_files(writer, 5)
    server.kill()
    assert writer.wait(30).rc == 5
    assert "Input/output error" in writer.out


def test_stock_nbd_client_does_not_reconnect(server: PlainNBD, guest: Guest) -> None:
    """Why farstripe has an attach of its own. When this fails, nbd-client has learned it.

    The timeout is for a request that is on the wire when the server dies: without one the kernel never ends it.
    """
    guest.run(f"nbd-client {HOST_IP} {PORT} /dev/nbd0 -b 4096 -N '' -t 5")
    writer = guest.popen(DIRECT_WRITER)
    wait_for_files(writer, 5)
    server.kill()
    server.start()
    assert writer.wait(30).rc == 5
