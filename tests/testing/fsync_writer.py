"""A program for a mounted file system: write files, fsync each, say so; later, check them. Standard library only.

    fsync_writer.py write DIR [FIRST [COUNT]]   one line "done N" per file, after its fsync and its directory's
    fsync_writer.py check DIR COUNT             "ok COUNT", or what is missing or damaged and status 1

A file's size (up to 48 KiB) and content follow from its number, so checking needs no notes: whoever saw "done N" may
demand file N. A write error ends the program with status 5: with farstripe attach in between there must be none.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def content(number: int) -> bytes:
    seed = hashlib.sha256(b"file %d" % number).digest()
    size = int.from_bytes(seed[:4], "little") % (48 << 10) + 1
    return (seed * (size // len(seed) + 1))[:size]


def write(root: Path, first: int, count: int) -> int:
    """Write files first, first+1 …; endless when count is 0."""
    number = first
    directory = os.open(root, os.O_RDONLY)
    while not count or number < first + count:
        try:
            file = os.open(root / f"f{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            data = memoryview(content(number))
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
            os.close(file)
            os.fsync(directory)
        except OSError as error:
            print(f"file {number}: {error}", flush=True)
            return 5
        print(f"done {number}", flush=True)
        number += 1
    return 0


def check(root: Path, count: int) -> int:
    bad = []
    for number in range(count):
        try:
            if (root / f"f{number}").read_bytes() != content(number):
                bad.append(f"f{number} is damaged")
        except OSError as error:
            bad.append(f"f{number}: {error.strerror}")
    print("\n".join(bad[:20]) if bad else f"ok {count}")
    return 1 if bad else 0


if __name__ == "__main__":
    verb, directory, *rest = sys.argv[1:]
    numbers = [int(word) for word in rest]
    if verb == "write":
        sys.exit(write(Path(directory), *(numbers + [0, 0][len(numbers) :])))
    sys.exit(check(Path(directory), *numbers))
