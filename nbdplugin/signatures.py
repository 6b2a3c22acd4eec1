"""What a disk or file holds that is to become a pool member: file system, partition table, RAID, LVM, encryption, swap.

Making a member overwrites what was there. So the target asks blkid (util-linux, libblkid), which knows the signatures
of other software, and refuses what it recognises until the operator says force. Our own superblock is raidlib's
business, and a device that is mounted or held is refused when it is opened exclusively.

Where blkid is not installed (or is busybox's, which cannot probe) nothing can be named: then the first and the last
MiB, where signatures stand, must be zeroes. A hanging disk must not hang the target: blkid gets ASK_S and is then left
alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

from raidlib.nbdfile import NbdFile, is_uri
from replicator.core.errors import MediumError, Refused

ASK_S = 10.0
EDGE_BYTES = 1 << 20
_NOTHING, _SEVERAL = 2, 8  # exit codes of blkid -p


def refuse_signatures(paths: Iterable[str]) -> None:
    """Raise Refused when one of `paths` holds something, naming it. Paths that cannot be read are not judged."""
    for path in paths:
        if found := signature_of(path):
            raise Refused(
                f"{path} holds {found}, which would be overwritten",
                f"take another one; if what it holds may go, say --force ('wipefs {path}' shows it too)",
            )


def signature_of(path: str) -> str:
    """Return in words what `path` holds as far as it can be recognised, "" for nothing. Raises MediumError."""
    if is_uri(path):
        return _export_in_use(path)
    program = shutil.which("blkid") or shutil.which("blkid", path="/usr/sbin:/sbin")
    return _edges_in_use(path) if program is None else _ask(program, path)


def _ask(program: str, path: str) -> str:
    child = subprocess.Popen(
        [program, "-p", "-o", "export", "--", path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    try:
        out, _ = child.communicate(timeout=ASK_S)
    except subprocess.TimeoutExpired:
        child.kill()  # not waited for: it may be stuck in the kernel with the disk
        raise MediumError(f"{path} did not let itself be read within {ASK_S:g} s", "check the disk") from None
    if child.returncode == _SEVERAL:
        return "signatures of more than one kind"
    if child.returncode == _NOTHING:
        return ""
    if child.returncode:
        return _edges_in_use(path)  # a blkid that does not know these options
    return _in_words(dict(line.split("=", 1) for line in out.splitlines() if "=" in line))


def _in_words(tags: dict[str, str]) -> str:
    """Tags that only say where a partition lies (PART_ENTRY_…) do not count: an empty partition is empty."""
    if kind := tags.get("TYPE"):
        label = f", label {tags['LABEL']}" if tags.get("LABEL") else ""
        what = "a file system" if tags.get("USAGE") == "filesystem" else "data"
        return f"{what} of type {kind}{label}"
    return f"a partition table ({tags['PTTYPE']})" if "PTTYPE" in tags else ""


def _export_in_use(path: str) -> str:
    """blkid reads no exports: the edges must be zeroes."""
    try:
        file = NbdFile.open(path)
    except OSError:
        return ""  # whoever opens it as a member says what is wrong with it
    try:
        for at in (0, max(0, file.size - EDGE_BYTES)):
            if file.pread(min(EDGE_BYTES, file.size), at).strip(b"\0"):
                return "data"
    except OSError as exc:
        raise MediumError(f"{path} cannot be read: {exc.strerror}", "check the server") from exc
    finally:
        file.close()
    return ""


def _edges_in_use(path: str) -> str:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            for at in (0, max(0, size - EDGE_BYTES)):
                file.seek(at)
                if file.read(EDGE_BYTES).strip(b"\0"):
                    return "data of a kind that only blkid of util-linux could name, which is not installed"
    except OSError:
        pass  # whoever opens it as a member says what is wrong with it
    return ""
