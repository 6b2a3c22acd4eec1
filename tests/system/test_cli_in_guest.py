"""`farstripe attach` and `detach` with a node in the same real kernel: names, refusals, restarts, resizing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.filesystem import WRITER, check_files, files_done, wait_for_files
from tests.testing.uml import Guest, Result

pytestmark = pytest.mark.system

NODE = """
set -e
farstripe node init solo
farstripe node start
farstripe pool create main raid1 /root/disk{0,1} --make-files 160M
farstripe volume create data --size 64M
"""
FUNCTION = """
export FARSTRIPE_STATE=/root/state FARSTRIPE_RUN=/run/farstripe FARSTRIPE_DEBUG=1
farstripe() { python -m replicator.cli.main "$@"; }
"""

Shell = Callable[..., Result]


@pytest.fixture
def sh(guest: Guest) -> Shell:
    """Run a script on a guest with one running node that has a volume `data` of 64 MiB."""

    def run(script: str, code: int = 0) -> Result:
        result = guest.run(FUNCTION + script, check=False)
        assert result.rc == code, result.out
        return result

    run(NODE)
    return run


def test_attach_names_refuses_and_detaches(sh: Shell) -> None:
    assert "data is /dev/nbd0 (64 MiB)" in sh("farstripe attach data").out
    assert sh("blockdev --getsize64 /dev/nbd0; blockdev --getss /dev/nbd0").out.split() == [str(64 << 20), "4096"]
    assert "farstripe detach data" in sh("farstripe attach data", code=6).out
    assert "no volume 'dat'" in sh("farstripe attach dat", code=5).out
    out = sh("farstripe attach --list; farstripe volume list").out
    assert "/dev/nbd0" in out and "supervised" in out

    sh("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && echo precious > /mnt/file")
    assert "mounted on /mnt" in sh("farstripe detach data", code=4).out
    sh("umount /mnt; farstripe detach data; [ $(cat /sys/block/nbd0/size) = 0 ]; ! pgrep -f supervise")
    sh("farstripe detach data", code=5)
    assert sh("farstripe attach data --read-only && mount -r /dev/nbd0 /mnt && cat /mnt/file").out.endswith(
        "precious\n"
    )


def test_a_second_writer_is_refused_unless_forced(sh: Shell) -> None:
    sh("python -m replicator.attach --run /tmp/other --unix /run/farstripe/nbd.sock data --device /dev/nbd0")
    assert "open for writing already" in sh("farstripe attach data", code=4).out
    sh("farstripe attach data --read-only --device /dev/nbd1 && farstripe detach /dev/nbd1")
    sh("farstripe attach data --force && farstripe detach data")


def test_the_device_survives_restarts_of_node_and_supervisor(guest: Guest, sh: Shell) -> None:
    sh("farstripe attach data && mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    writer = guest.popen(f"{WRITER} write /mnt")
    wait_for_files(writer, 20)
    stopped = sh("farstripe node stop && farstripe node status || [ $? = 7 ] && farstripe node start")
    assert "/dev/nbd0 is attached; its I/O waits" in stopped.out
    wait_for_files(writer, files_done(writer) + 20)

    sh("pkill -KILL -f -- --supervise; sleep 0.2; farstripe attach --list | grep 'NOT supervised'")
    sh("kill -9 $(cat /run/farstripe/target.pid); farstripe node start")
    assert "data is /dev/nbd0" in sh("farstripe attach data").out  # looks after the device that is there
    wait_for_files(writer, files_done(writer) + 20)
    sh("pkill -f fsync_writer; true")
    writer.wait(30)
    sh("umount /mnt")
    check_files(guest, "/dev/nbd0", files_done(writer))
    sh("farstripe detach data")


def test_a_grown_volume_is_seen_at_once(sh: Shell) -> None:
    sh("farstripe attach data && mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    assert "/dev/nbd0 follows" in sh("farstripe volume resize data --size 96M").out
    sh("for n in $(seq 50); do [ $(blockdev --getsize64 /dev/nbd0) = $((96<<20)) ] && break; sleep 0.1; done")
    sh("resize2fs /dev/nbd0 2>&1 && [ $(($(stat -f -c '%b*%S' /mnt))) -gt $((80<<20)) ] && umount /mnt")
    sh("e2fsck -fn /dev/nbd0 && farstripe detach data")


def test_a_node_that_is_gone_for_good_gives_errors_after_the_deadline(sh: Shell) -> None:
    sh("farstripe attach data --dead-timeout 3; farstripe node stop")
    sh("dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct", code=1)
    sh("farstripe node start; farstripe detach data --force --yes; [ $(cat /sys/block/nbd0/size) = 0 ]")
