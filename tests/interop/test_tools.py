"""Other programs on our exports: qemu-io, nbdcopy, nbdsh, nbdinfo, fio with verification."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.testing.needs import needs
from tests.testing.targetproc import MIB, TargetProcess


def run(*argv: object, timeout_s: float = 120) -> str:
    """Run a program and return its output; AssertionError with that output when it fails."""
    env = {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"}  # nbdsh runs the python3 it finds first
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, timeout=timeout_s, check=False, env=env
    )
    assert done.returncode == 0, f"{argv[0]} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_qemu_io_writes_patterns_discards_and_maps(target: TargetProcess) -> None:
    needs("qemu-io")
    commands = [
        "write -P 0xab 0 1M", "write -P 0xcd 1M 64k", "write -z 4k 8k", "write -f -P 0x11 2M 4k", "discard 64k 64k",
        "flush", "read -P 0xab 0 4k", "read -P 0 4k 8k", "read -P 0xab 12k 52k", "read -P 0xcd 1M 64k",
        "read -P 0x11 2M 4k", "read -P 0 3M 1M",
    ]  # fmt: skip
    argv = [part for command in commands for part in ("-c", command)]
    output = run("qemu-io", "-f", "raw", *argv, target.uri("v"))
    assert "Pattern verification failed" not in output


def test_nbdcopy_there_and_back_is_the_same(target: TargetProcess, tmp_path: Path) -> None:
    needs("nbdcopy")
    image = tmp_path / "image"
    with image.open("wb") as f:
        f.truncate(64 * MIB)
        for at in (0, 5 * MIB + 4096, 33 * MIB, 64 * MIB - 512):
            f.seek(at)
            f.write(os.urandom(512 if at > 60 * MIB else MIB))
    run("nbdcopy", "--flush", image, target.uri("v"))
    back = tmp_path / "back"
    run("nbdcopy", target.uri("v"), back)
    assert back.read_bytes() == image.read_bytes()
    data = [e for e in json.loads(run("nbdinfo", "--map", "--json", target.uri("v"))) if e["type"] == 0]
    assert sum(e["length"] for e in data) < 24 * MIB  # the holes stayed holes


def test_nbdinfo_and_nbdsh_agree_with_the_control_socket(target: TargetProcess) -> None:
    needs("nbdinfo", "nbdsh")
    [export] = json.loads(run("nbdinfo", "--json", target.uri("v")))["exports"]
    [facts] = target.call("volume.list")
    assert export["export-size"] == facts["size"]
    assert export["description"] == "volume v"
    script = "h.pwrite(b'nbdsh', 100); h.flush(); print(h.pread(5, 100))"
    assert "bytearray(b'nbdsh')" in run("nbdsh", "-u", target.uri("v"), "-c", script)


@pytest.mark.parametrize("depth", [1, 32])
def test_fio_verifies_what_it_wrote(target: TargetProcess, depth: int) -> None:
    needs("fio")
    run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={target.uri('v')}", "--rw=randwrite", "--bsrange=512-256k",
        "--size=64m", "--io_size=48m", f"--iodepth={depth}", "--verify=crc32c",
        "--verify_state_save=0", "--do_verify=1", "--verify_fatal=1",
        "--bsrange=4k-256k", "--randrepeat=1",
    )  # fmt: skip


def test_qemu_img_sees_an_identical_image(target: TargetProcess, tmp_path: Path) -> None:
    needs("qemu-img")
    image = tmp_path / "image"
    image.write_bytes(os.urandom(2 * MIB) + bytes(62 * MIB))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, target.uri("v"))
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, target.uri("v"))
