"""The block device as the rest of the system sees it: who uses it, its request timer, flushing it.

Reads /sys and /proc only; knows nothing of sockets or netlink. `sys` and `proc` are parameters so that tests can show
a made-up tree.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from replicator.core.errors import BadInput, MediumError

_DEVICE = re.compile(r"(?:/dev/)?nbd(\d+)")

# With one connection and no request timeout, the kernel's request timer only asks "was the connection replaced since
# this request was sent? then send it again" and otherwise does nothing (but log a line). The default of 30 s is
# therefore the time a write hangs after a reconnect; one second costs nothing.
REQUEST_TIMER_MS = 1000


def parse_index(text: str) -> int:
    """Return the index in `/dev/nbd3`, `nbd3` or `3`. Raises BadInput."""
    match = _DEVICE.fullmatch(text) or re.fullmatch(r"(\d+)", text)
    if match is None:
        raise BadInput(f"{text!r} is not an nbd device", "name it like /dev/nbd0")
    return int(match.group(1))


def path_of(index: int) -> str:
    return f"/dev/nbd{index}"


def is_attached(index: int, sys: str = "/sys") -> bool:
    """Whether the kernel has the device configured (it shows the `pid` of whoever did it then)."""
    return Path(sys, "block", f"nbd{index}", "pid").exists()


def size_bytes(index: int, sys: str = "/sys") -> int:
    """Return the size the kernel shows; 0 for a device that is not attached or does not exist."""
    try:
        return int(Path(sys, "block", f"nbd{index}", "size").read_text()) * 512
    except (OSError, ValueError):
        return 0


def in_flight(index: int, sys: str = "/sys") -> int:
    """Return how many requests the device has under way; 0 when it does not exist."""
    try:
        return sum(map(int, Path(sys, "block", f"nbd{index}", "inflight").read_text().split()))
    except (OSError, ValueError):
        return 0


def backend(index: int, sys: str = "/sys") -> str:
    """Return the identifier given at connect, or "" (kernels before 5.14 keep none)."""
    try:
        return Path(sys, "block", f"nbd{index}", "backend").read_text().strip()
    except OSError:
        return ""


def set_request_timer(index: int, milliseconds: int = REQUEST_TIMER_MS, sys: str = "/sys") -> bool:
    """Set the block layer's request timer; False when the kernel does not let us (then its 30 s stay)."""
    try:
        Path(sys, "block", f"nbd{index}", "queue", "io_timeout").write_text(f"{milliseconds}\n")
    except OSError:
        return False
    return True


def users(index: int, sys: str = "/sys", proc: str = "/proc") -> list[str]:
    """Return who visibly uses the device or one of its partitions, in words: mounts, swap, devices on top."""
    block = Path(sys, "block", f"nbd{index}")
    names = {f"nbd{index}", *(p.name for p in block.glob(f"nbd{index}p*"))}
    found = []
    numbers = {}
    for name in names:
        directory = block if name == block.name else block / name
        try:
            numbers[(directory / "dev").read_text().strip()] = name
        except OSError:
            continue
        found += [f"/dev/{holder.name} is built on it" for holder in (directory / "holders").glob("*")]
    for line in _lines(Path(proc, "self", "mountinfo")):
        fields = line.split(" ")
        if len(fields) > 4 and fields[2] in numbers:
            found.append(f"mounted on {_unescape(fields[4])}")
    for line in _lines(Path(proc, "swaps"))[1:]:
        if line.split()[0].removeprefix("/dev/") in names:
            found.append("in use as swap")
    return found


def claimed(index: int) -> bool:
    """Whether somebody holds the device exclusively (a mount, also in another mount namespace, swap, dm, md)."""
    try:
        fd = os.open(path_of(index), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as exc:
        return exc.errno == errno.EBUSY
    os.close(fd)
    return False


def flush(index: int) -> None:
    """Write the device's cached pages and flush the volume. Raises MediumError.

    Durable: everything written through the block device before the call.
    """
    try:
        fd = os.open(path_of(index), os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.EROFS, errno.EACCES):
            return  # a read-only device has nothing to write
        raise MediumError(f"cannot open {path_of(index)}: {exc.strerror}") from exc
    try:
        os.fsync(fd)
    except OSError as exc:
        raise MediumError(
            f"{path_of(index)} could not be flushed: {exc.strerror}; writes through it may be lost",
            "detach --force gives them up",
        ) from exc
    finally:
        os.close(fd)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
