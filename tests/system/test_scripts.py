"""scripts/setup says clearly what it cannot do, and nothing when there is nothing to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.needs import needs

pytestmark = pytest.mark.system

SETUP = Path(__file__).resolve().parent.parent.parent / "scripts" / "setup"
TOOLS = ("bash", "dirname", "id", "sed", "mktemp", "grep", "sha256sum", "cat", "tail", "rm")


def setup(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SETUP), *args], env={**os.environ, **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with the ordinary tools and no package manager."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def program(directory: Path, name: str, body: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{body}\n")
    (directory / name).chmod(0o755)


def test_an_unknown_option_is_refused() -> None:
    done = setup("--runtme")
    assert done.returncode != 0
    assert "--runtme" in done.stderr
    assert "--help" in done.stderr


def test_help_names_the_options() -> None:
    assert "--runtime" in setup("--help").stdout


def test_without_apt_it_names_what_is_needed(bare: Path) -> None:
    done = setup(PATH=str(bare))
    assert done.returncode != 0
    assert "Debian or Ubuntu" in done.stderr
    assert "nbdkit-plugin-python" in done.stderr


def test_without_root_it_names_the_missing_packages(bare: Path) -> None:
    (bare / "id").unlink()
    program(bare, "id", "echo 1000")
    program(bare, "apt-get", "exit 1")
    program(bare, "dpkg-query", 'for last; do :; done; [ "$last" = nbdkit ] || echo installed')
    done = setup(PATH=str(bare))
    assert done.returncode != 0
    assert "root" in done.stderr
    assert done.stderr.strip().endswith(": nbdkit")


def test_a_failed_installation_shows_why(bare: Path) -> None:
    needs(root=True)
    program(bare, "apt-get", "echo E: mirror is on fire; exit 100")
    program(bare, "dpkg-query", "exit 1")
    done = setup(PATH=str(bare))
    assert done.returncode != 0
    assert "mirror is on fire" in done.stderr
    assert "apt-get could not install" in done.stderr


def test_a_directory_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    needs("nbdkit", "fio", "kmod")
    (tmp_path / "precious").touch()
    done = setup("--runtime", FARSTRIPE_VENV=str(tmp_path))
    assert done.returncode != 0
    assert "not a virtual environment" in done.stderr
    assert (tmp_path / "precious").exists()


def test_it_is_quiet_when_nothing_is_to_do() -> None:
    if not Path(sys.prefix, ".farstripe").exists():
        pytest.skip("these tests do not run in an environment that scripts/setup made")
    done = setup(FARSTRIPE_VENV=sys.prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
