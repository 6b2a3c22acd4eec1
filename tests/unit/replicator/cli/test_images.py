"""volume snapshot, clone, rollback, diff, map, extend, move; pool check: what is asked of the target, and what is shown."""

from __future__ import annotations

import json

import pytest

from replicator.cli.snapshot import parse_names
from replicator.cli.where import parse_place
from replicator.core.errors import BadInput
from tests.unit.replicator.cli.conftest import FakeNode


def test_snapshots_of_several_volumes_are_one_request(node: FakeNode) -> None:
    node.target.answer("volume.snapshot", {"snapshots": []})
