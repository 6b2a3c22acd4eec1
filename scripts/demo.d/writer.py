"""The application of the demo, a program of its own: writes files with fsync, and says which are safe.

    writer.py MOUNTPOINT LEDGER LOG_SOCKET LOG_EXPORT FIRST

For each file: write, fsync, fsync the directory; then write a log record with the file's number to the second volume
(raw, over NBD); then append "number sha256 bytes nanoseconds" to LEDGER, which lies outside the replicated volumes.
`nanoseconds` is the clock after the fsync. A file in the ledger was promised to be safe by its filesystem; a log record
may exist only after its file, which is an order across two volumes that a copy has to keep.

Ends at SIGTERM, or with status 5 when its disk fails, as it does when its node is killed.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path
from types import FrameType

import nbd

LOG_RECORD = struct.Struct("<8sQ")
LOG_MAGIC = b"FSDEMO\0\1"
LOG_BYTES = 4096

_stop = False


def _on_term(signum: int, frame: FrameType | None) -> None:
    global _stop
    _stop = True


def write_file(root: Path, number: int) -> tuple[str, int, int]:
    """Write and fsync one file of 4 to 64 KiB; returns its SHA-256, size and when it was safe."""
    data = random.randbytes(random.randrange(4 << 10, 64 << 10))
    file = os.open(root / f"{number:06d}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)
    directory = os.open(root, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return hashlib.sha256(data).hexdigest(), len(data), time.time_ns()


def log_offset(number: int, log_size: int) -> int:
    return number * LOG_BYTES % log_size


def main(mountpoint: str, ledger_path: str, socket: str, export: str, first: str) -> int:
    signal.signal(signal.SIGTERM, _on_term)
    log = nbd.NBD()
    log.set_export_name(export)
    log.connect_unix(socket)
    size = log.get_size()
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    number = int(first)
    try:
        while not _stop:
            digest, length, safe_ns = write_file(Path(mountpoint), number)
            log.pwrite(LOG_RECORD.pack(LOG_MAGIC, number).ljust(LOG_BYTES, b"\0"), log_offset(number, size))
            os.write(ledger, b"%d %s %d %d\n" % (number, digest.encode(), length, safe_ns))
            number += 1
    except (OSError, nbd.Error) as error:
        print(f"file {number}: {error}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
