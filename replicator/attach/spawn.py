"""Start a supervisor in the background, and end an attachment: what `farstripe attach` and `detach` call.

The supervisor is a process of its own (own session, log in RUN/attach), not a fork of the caller: the caller may be
any program. It reports over a pipe once the device is usable, or why it is not.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import replicator
from replicator.attach import device, records
from replicator.attach.handshake import Endpoint
from replicator.attach.records import Attachment
from replicator.core.errors import AlreadyExists, InternalError, NotFound, Refused, TimedOut, from_map

READY_TIMEOUT_S = 60.0


def package_env() -> dict[str, str]:
    """Return our environment with this very package first on PYTHONPATH, so that a checkout runs its own code."""
    root = str(Path(replicator.__file__).resolve().parent.parent)
    rest = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root + (os.pathsep + rest if rest else "")}


def plan(wanted: Attachment, run_dir: str) -> tuple[Attachment, bool]:
    """Return what to supervise, and whether it is attached already and only lost its supervisor (`adopt`).

    Raises AlreadyExists when the volume is attached on this host and looked after.
    """
    for known in records.load_all(run_dir):
        if known.export != wanted.export or known.endpoint != wanted.endpoint or not device.is_attached(known.index):
            continue
        if wanted.index >= 0 and known.index != wanted.index:
            continue
        if known.supervised:
            raise AlreadyExists(
                f"volume {known.export!r} is attached as {known.device}", f"farstripe detach {known.export}"
            )
        return known, True
    return wanted, False


def attach(wanted: Attachment, run_dir: str, adopt: bool) -> Attachment:
    """Attach (or adopt, see `plan`) in a process of its own; returns the attachment once it is usable."""
    records.directory(run_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    log_path = records.directory(run_dir) / "supervisor.log"
    argv = [sys.executable, "-m", "replicator.attach", "--run", str(run_dir), "--supervise", wanted.to_json()]
    argv += ["--ready-fd", str(write_end), *(["--adopt"] if adopt else [])]
    with open(log_path, "ab") as log:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=package_env(),
            pass_fds=[write_end],
            start_new_session=True,
        )
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        line = _read_line(pipe.fileno(), READY_TIMEOUT_S)
    if line is None:
        child.kill()
        raise TimedOut(f"the supervisor did not attach {wanted.export!r} in {READY_TIMEOUT_S:g} s", f"see {log_path}")
    if not line:
        raise InternalError(f"the supervisor ended with code {child.wait()} without a word", f"see {log_path}")
    answer = json.loads(line)
    if "error" in answer:
        child.wait()
        raise from_map(answer["error"])
    child.returncode = 0  # it lives on; this object must not complain about that
    return Attachment.from_json(answer["attachment"])


def _read_line(fd: int, timeout_s: float) -> bytes | None:
    until = time.monotonic() + timeout_s
    data = b""
    while not data.endswith(b"\n"):
        if not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        part = os.read(fd, 65536)
        if not part:
            break
        data += part
    return data


def find(name: str, run_dir: str) -> Attachment:
    """Return the attachment of a device (`/dev/nbd0`) or volume name. Raises NotFound."""
    known = records.load_all(run_dir)
    for one in known:
        if name in (one.device, one.device.removeprefix("/dev/")):
            return one
    named = [one for one in known if one.export == name]
    if len(named) > 1:
        devices = " and ".join(one.device for one in named)
        raise Refused(f"volume {name!r} is attached as {devices}", "name the device")
    if named:
        return named[0]
    if name.startswith("/dev/nbd") and device.is_attached(device.parse_index(name)):
        index = device.parse_index(name)
        return Attachment(export=device.backend(index).removeprefix("farstripe:"), endpoint=Endpoint(), index=index)
    raise NotFound(f"{name!r} is not attached on this host", "farstripe attach --list shows what is")


def detach(name: str, run_dir: str, force: bool = False) -> Attachment:
    """Flush and disconnect a device and end its supervisor; returns what was attached.

    Refused while it is mounted or otherwise claimed, unless `force`, which also skips the flush: then I/O fails from
    now on, and the kernel frees the device when its last user is gone, for example at the unmount.
    Durable: what was written through the device, unless `force`.
    """
    at = find(name, run_dir)
    attached = device.is_attached(at.index)
    if attached and not force:
        users = device.users(at.index)
        if users or device.claimed(at.index):
            reason = "; ".join(users) or "something holds it open exclusively"
            raise Refused(f"{at.device} is in use: {reason}", "unmount it first (or --force, which fails its I/O)")
        device.flush(at.index)
    if attached:
        _disconnect(at.index)
    until = time.monotonic() + 10
    while device.is_attached(at.index) and not (force and device.users(at.index)):
        if time.monotonic() > until:
            raise TimedOut(f"the kernel has not let go of {at.device} after 10 s", "dmesg may say why")
        time.sleep(0.02)
    if at.supervised:
        os.kill(at.pid, signal.SIGTERM)
        while at.supervised and time.monotonic() < until:
            time.sleep(0.02)
    records.remove(run_dir, at.index)
    return at


def _disconnect(index: int) -> None:
    from replicator.attach.kernel import NbdKernel  # pyroute2 takes a while to import, and listing needs none of it

    with NbdKernel() as kernel:
        kernel.disconnect(index)


def refresh(volume: str, run_dir: str) -> list[str]:
    """Let the supervisors of a volume's devices on this host see its new size; returns those devices that will.

    A device with several connections is not among them: it has to be attached again.
    """
    told = []
    for at in records.load_all(run_dir):
        if at.export == volume and at.supervised and at.connections == 1:
            os.kill(at.pid, signal.SIGHUP)
            told.append(at.device)
    return told


def listing(run_dir: str) -> list[dict[str, object]]:
    """Return what is attached on this host, for people and JSON."""
    return [
        {
            "device": at.device,
            "volume": at.export,
            "server": str(at.endpoint),
            "size": device.size_bytes(at.index),
            "connections": at.connections,
            "read_only": at.read_only,
            "dead_timeout_s": at.dead_timeout_s,
            "attached": device.is_attached(at.index),
            "supervised": at.supervised,
            "used": device.users(at.index),
        }
        for at in records.load_all(run_dir)
    ]
