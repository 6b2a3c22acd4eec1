"""What the end-to-end tests do with a file system in the guest: a fsyncing writer, its progress, the check after."""

from __future__ import annotations

import time

from tests.testing.uml import Guest, GuestError, Job, Result

WRITER = "python /run/checkout/tests/testing/fsync_writer.py"


def files_done(job: Job) -> int:
    """How many files the writer has fsynced, as it told."""
    return job.out.count("done ")


def wait_for_files(job: Job, count: int, timeout_s: float = 90.0) -> int:
    """Wait until the writer has fsynced `count` files in all; returns how many it has."""
    deadline = time.monotonic() + timeout_s
    while (done := files_done(job)) < count:
        if not job.running:
            raise GuestError(f"the writer ended after {done} files:\n{job.out[-500:]}")
        assert time.monotonic() < deadline, f"{done} files of {count} in {timeout_s} s"
        time.sleep(0.02)
    return done


def check_files(guest: Guest, device: str, count: int, timeout_s: float = 120.0) -> Result:
    """Replay the journal, fsck, mount and compare the first `count` files. GuestError when any of it fails.

    `e2fsck -p` replays the journal as the mount after a crash would; `-fn` must then find nothing at all."""
    return guest.run(
        f"""set -e
        e2fsck -p {device} || [ $? -eq 1 ]
        e2fsck -fn {device}
        mount -t ext4 {device} /mnt
        {WRITER} check /mnt {count}
        umount /mnt""",
        timeout_s,
    )
