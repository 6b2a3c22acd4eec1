"""Stored pairs: one file a pair, and files of the version that knew one pair a group."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replicator.core.errors import IntegrityError, NotFound
from replicator.daemon.pairstore import PairConfig, PairStore

GROUP, B, C = "12" * 16, "bb" * 16, "cc" * 16


def test_a_group_has_a_pair_with_each_of_several_peers(tmp_path: Path) -> None:
    store = PairStore(tmp_path)
    for peer in (B, C):
        store.put(PairConfig(GROUP, "app", peer))
    store.change((GROUP, C), {"split": True})
    again = PairStore(tmp_path)
    assert [(pair.peer, pair.split) for pair in again.of_group("app")] == [(B, False), (C, True)]
    again.delete((GROUP, B))
    assert [pair.peer for pair in PairStore(tmp_path).all()] == [C]
    with pytest.raises(NotFound):
        again.of_group("other")


def test_a_file_of_the_former_version_is_taken_over(tmp_path: Path) -> None:
    former = {"group": GROUP, "name": "app", "peer": B, "split": True, "handover": B, "compress": 3}
    (tmp_path / f"{GROUP}.json").write_text(json.dumps(former))
    store = PairStore(tmp_path)
    [pair] = store.all()
    assert (pair.key, pair.split, pair.handover) == ((GROUP, B), True, B)
    assert [path.name for path in tmp_path.iterdir()] == [f"{GROUP}.{B}.json"]
    assert PairStore(tmp_path).all() == [pair]


def test_a_take_over_that_was_cut_short_keeps_the_newer_file(tmp_path: Path) -> None:
    former = {"group": GROUP, "name": "app", "peer": B}
    store = PairStore(tmp_path)
    store.put(PairConfig(GROUP, "app", B, split=True))
    (tmp_path / f"{GROUP}.json").write_text(json.dumps(former))
    [pair] = PairStore(tmp_path).all()
    assert pair.split
    assert [path.name for path in tmp_path.iterdir()] == [f"{GROUP}.{B}.json"]


@pytest.mark.parametrize("name", [f"{GROUP}.{C}.json", "other.json"])
def test_a_file_of_another_pair_than_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"group": GROUP, "name": "app", "peer": B}))
    with pytest.raises(IntegrityError):
        PairStore(tmp_path)
