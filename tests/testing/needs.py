"""What a test needs from the machine, and what happens when it is not there.

On a developer's machine a missing tool or missing root skips the test with the reason. In continuous integration
(`CI` set) it fails instead: there scripts/setup has promised all of it, and a suite that skips is a suite that lies.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def needs(*tools: str, root: bool = False, files: tuple[str, ...] = ()) -> None:
    """Skip (or, under CI, fail) the calling test unless the programs, the files and, if asked for, root are there."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    missing += [name for name in files if not Path(name).exists()]
    if root and os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    reason = f"needs {', '.join(missing)} (scripts/setup installs the packages)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
