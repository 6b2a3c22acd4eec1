"""Fixtures: a real target, with a pool and one volume."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.needs import needs
from tests.testing.targetproc import MIB, TargetProcess


@pytest.fixture
def bare() -> Iterator[TargetProcess]:
    """A running target without a pool."""
    needs("nbdkit")
    with TargetProcess() as target:
        yield target.start()


@pytest.fixture
def target(bare: TargetProcess) -> TargetProcess:
    """A running target with a RAID-0 pool of six files and a volume "v" of 64 MiB."""
    bare.make_pool()
    bare.call("volume.create", name="v", size=64 * MIB)
    return bare
