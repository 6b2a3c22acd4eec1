"""Compression of runs for the wire: zstd where it gains, and what it gained.

With AUTO a sample of each run, SAMPLE_PIECES pieces spread over it, is compressed first; a run whose sample does not
shrink by an eighth goes out as it is: for random data a twentieth of the time that compressing it in vain takes.
A run that does not shrink is sent as it is in any case, so the peer never gets more bytes than the journal holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import zstandard

from replicator.core.transfer import AUTO

MIN_BYTES = 512
AUTO_LEVEL = 1
SAMPLE_PIECES = 4
SAMPLE_BYTES = 1 << 10  # each
SAMPLED_FROM_BYTES = 16 << 10


@dataclass
class Gain:
    """What a link sent, in bytes of DATA bodies, and what compressing them took."""

    plain_bytes: int = 0
    """Of records, before."""
    wire_bytes: int = 0
    """After; what was not compressed counts in both."""
    skipped_bytes: int = 0
    """Of runs that the sample or the attempt showed to be incompressible."""
    cpu_s: float = 0.0
    """Processor time of compression, attempts in vain included."""


class Packer:
    """Compresses the runs of one link."""

    def __init__(self, level: int, gain: Gain) -> None:
        """level: of zstd, 0 for none, or AUTO. gain: counted into."""
        self._auto = level == AUTO
        level = AUTO_LEVEL if self._auto else level
        self._zstd = zstandard.ZstdCompressor(level=level) if level else None
        self.gain = gain

    def pack(self, run: memoryview) -> bytes | None:
        """Return the run as one zstd frame that states its size, or None when it is to be sent as it is."""
        size = len(run)
        gain = self.gain
        gain.plain_bytes += size
        packed = None
        if self._zstd is not None and size >= MIN_BYTES:
            begin = time.thread_time()
            if not self._auto or size < SAMPLED_FROM_BYTES or self._promises(run):
                packed = self._zstd.compress(run)
            if packed is None or len(packed) >= size:
                packed = None
                gain.skipped_bytes += size
            gain.cpu_s += time.thread_time() - begin
        gain.wire_bytes += size if packed is None else len(packed)
        return packed

    def _promises(self, run: memoryview) -> bool:
        assert self._zstd is not None
        step = (len(run) - SAMPLE_BYTES) // (SAMPLE_PIECES - 1)
        sample = b"".join(run[at : at + SAMPLE_BYTES] for at in range(0, step * SAMPLE_PIECES, step))
        return len(self._zstd.compress(sample)) * 8 <= len(sample) * 7
