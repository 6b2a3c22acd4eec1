"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Sizes and times of a run.

    seconds: of one measurement; rounds: measurements of each side a row; size_bytes: of the volumes and files under
    random load; resync_bytes: of the volume that is resynced and copied; directory: where all files lie.
    """

    seconds: float = 2.0
    rounds: int = 5
    size_bytes: int = 512 << 20
    resync_bytes: int = 1 << 30
    directory: Path = Path("/var/tmp")
