"""The directory and the processes of a row: gone when it ends, however it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.workspace import Workspace


def test_a_signal_while_it_cleans_up_does_not_leave_half_of_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    ended: list[str] = []
    try:
        with pytest.raises(SystemExit), Workspace(tmp_path) as space:
            space.on_close(lambda: ended.append("first node"))
            space.on_close(lambda: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == ["first node"]
    assert not list(tmp_path.iterdir())
