"""fio and nbdcopy as load generators over NBD.

fio's `nbd` engine is libnbd in process: one connection, `depth` requests in flight, no kernel in between. What is
measured is the server. Each run is bounded by time, ignores its first 0.3 seconds, and fails on any I/O error.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass

from benchmarks.workspace import FILL_BYTES, BenchmarkError

RAMP_S = 0.3


@dataclass(frozen=True)
class Load:
    """What fio does: `rw` as in fio (randwrite, randread, write, read), bytes a request, requests in flight."""

    rw: str
    block_bytes: int
    depth: int

    @property
    def direction(self) -> str:
        """The key of fio's report that counts this load."""
        return "read" if self.rw.endswith("read") else "write"


@dataclass(frozen=True)
class Measured:
    """Rates of one run: requests and bytes a second, and completion latency in microseconds."""

    iops: float
    bytes_per_s: float
    median_us: float
    p99_us: float


def command(where: list[str], load: Load, seconds: float, size_bytes: int, seed: int = 1) -> list[str]:
    """fio's command line for `load` on what the options `where` name."""
    return [
        "fio", "--name=bench", *where, f"--rw={load.rw}", f"--bs={load.block_bytes}",
        f"--iodepth={load.depth}", f"--size={size_bytes}", "--time_based", f"--runtime={int(seconds * 1000)}ms",
        f"--ramp_time={int(RAMP_S * 1000)}ms", f"--randseed={seed}", "--norandommap", "--randrepeat=0",
        "--output-format=json",
    ]  # fmt: skip


def fio(uri: str, load: Load, seconds: float, size_bytes: int, seed: int = 1, *, rate_iops: int = 0) -> Measured:
    """Run `load` against the NBD `uri` for `seconds` over its first `size_bytes`; raises BenchmarkError on any error.

    rate_iops: requests a second it does not exceed, 0 for as many as it can.
    Buffers are refilled with random data for each request, so compression or zero detection cannot flatter anyone.
    """
    rate = [f"--rate_iops={rate_iops}"] if rate_iops else []
    argv = command(["--ioengine=nbd", f"--uri={uri}", *rate], load, seconds, size_bytes, seed)
    try:
        done = subprocess.run(argv, capture_output=True, timeout=seconds + 60)
    except FileNotFoundError as e:
        raise BenchmarkError("fio: not installed; scripts/setup installs it") from e
    except subprocess.TimeoutExpired as e:
        raise BenchmarkError(f"fio did not end within {seconds + 60:g} s: the server hangs") from e
    return measured(load, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def measured(load: Load, status: int, text: str, errors: str) -> Measured:
    """Read fio's report `text`. Raises BenchmarkError when it tells of an error."""
    try:
        job = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["jobs"][0]
    except (ValueError, KeyError, IndexError) as e:
        raise BenchmarkError(f"fio: {errors[-300:]}{text[-300:]}") from e
    side = job[load.direction]
    if status or job["error"] or not side["total_ios"]:
        raise BenchmarkError(f"fio: error {job['error']}: {errors[-300:]}{text[:300]}")
    percentile = side["clat_ns"].get("percentile", {})
    return Measured(
        side["iops"], side["bw_bytes"], percentile.get("50.000000", 0) / 1000, percentile.get("99.000000", 0) / 1000
    )


def nbdcopy(source: str, target: str, request_bytes: int = FILL_BYTES) -> float:
    """Copy `source` to `target` (NBD URIs or files) with nbdcopy; returns the seconds it took, start-up included."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            ["nbdcopy", "--allocated", "--flush", f"--request-size={request_bytes}", source, target],
            capture_output=True,
            timeout=600,
        )
    except FileNotFoundError as e:
        raise BenchmarkError("nbdcopy: not installed; scripts/setup installs it") from e
    if done.returncode:
        raise BenchmarkError(f"nbdcopy: {done.stderr.decode(errors='replace')[-300:]}")
    return time.monotonic() - begin
