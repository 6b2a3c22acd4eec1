"""The guest kernel itself, against a plain nbdkit: what the other end-to-end tests stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testing.netns import HOST_IP, NetNS
from tests.testing.plain_nbd import PORT, PlainNBD
from tests.testing.uml import Guest, GuestError, GuestTimeout

pytestmark = pytest.mark.system

CONNECT = f"nbd-client {HOST_IP} {PORT} /dev/nbd0 -b 4096 -N '' >/dev/null\n"


@pytest.fixture
def server(net: NetNS, tmp_path: Path) -> Iterator[PlainNBD]:
    server = PlainNBD(net, tmp_path / "disk.img")
    server.start()
    yield server
    server.kill()


def test_ext4_over_nbd_client_with_four_connections(server: PlainNBD, guest: Guest) -> None:
    guest.run(
        f"""set -e
        nbd-client {HOST_IP} {PORT} /dev/nbd0 -b 4096 -connections 4 -N ''
        mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt
        dd if=/dev/urandom of=/mnt/file bs=64k count=64 conv=fsync
        md5sum /mnt/file >/tmp/sum; umount /mnt; echo 3 >/proc/sys/vm/drop_caches
        mount /dev/nbd0 /mnt; md5sum -c /tmp/sum; fstrim /mnt; umount /mnt
        e2fsck -fn /dev/nbd0; nbd-client -d /dev/nbd0""",
    )


def test_several_scripts_run_at_once_and_report_their_status(net: NetNS, guest: Guest) -> None:
    slow = guest.popen("sleep 1; echo slow; exit 3")
    assert guest.run("echo quick").out == "quick\n"
    assert slow.running
    result = slow.wait(30)
    assert (result.rc, result.out) == (3, "slow\n")
    with pytest.raises(GuestTimeout):
        guest.popen("sleep 60").wait(0.2)
    with pytest.raises(GuestError, match="status 1"):
        guest.run("false")


def test_power_cut_keeps_what_was_written_with_o_sync(server: PlainNBD, boot: Callable[[], Guest]) -> None:
    first = boot()
    first.run(f"set -e; {CONNECT} mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt")
    first.run("for i in $(seq 50); do echo $i | dd of=/mnt/$i bs=4k oflag=sync 2>/dev/null || exit; done; sync -f /mnt")
    first.popen("dd if=/dev/zero of=/mnt/junk bs=64k")
    first.kill()
    second = boot()
    out = second.run(f"{CONNECT} e2fsck -fp /dev/nbd0 >/dev/null; mount /dev/nbd0 /mnt; cat /mnt/[0-9]* | wc -l").out
    assert out == "50\n"
