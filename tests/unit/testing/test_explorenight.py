"""The book of the nights: it resumes, counts whole runs of the code at hand, and keeps what was wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testing import explorenight
from tests.testing.explorenight import explore_on, sum_up
from tests.testing.poolexplorer import Explorer, Run

RUNS = [Run(1, 2, "healthy", seed) for seed in range(1, 5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has ten states, and takes no time; the code is called `now`."""

    def explore(self: Explorer, run: Run) -> None:
        self.counts.states += 10
        if run.seed == 4:
            raise AssertionError("a sector is lost")

    monkeypatch.setattr(Explorer, "explore", explore)
    monkeypatch.setattr(explorenight, "code_digest", lambda: "now")


def runs(done: set[str], seed: int) -> Iterator[Run]:
    return (run for run in RUNS if run.seed >= seed and str(run) not in done)


def night(book: Path, states: int) -> explorenight.Sum:
    return explore_on(book, states, tell=lambda line: None, kinds=runs)


def test_a_second_night_goes_on_where_the_first_one_ended(tmp_path: Path) -> None:
    book = tmp_path / "book"
    assert night(book, 15).done == {"1,2,healthy,1", "1,2,healthy,2"}
    assert night(book, 15).counts.states == 20, "there are enough"
    assert night(book, 30).counts.states == 30
    assert [json.loads(line)["run"] for line in book.read_text().splitlines()] == [str(run) for run in RUNS[:3]]


def test_a_run_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    book = tmp_path / "book"
    night(book, 20)
    with open(book, "a") as file:
        file.write('{"run": "1,2,healthy,3", "code": "now", "sta')
    assert sum_up(book, "now").counts.states == 20
    assert night(book, 30).counts.states == 30
    assert all(json.loads(line) for line in book.read_text().splitlines())


def test_what_was_explored_of_other_code_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = tmp_path / "book"
    night(book, 20)
    monkeypatch.setattr(explorenight, "code_digest", lambda: "later")
    assert night(book, 10).counts.states == 10
    assert sum_up(book, "now").counts.states == 20


def test_what_is_wrong_ends_this_night_and_the_next(tmp_path: Path) -> None:
    book = tmp_path / "book"
    total = night(book, 1000)
    assert total.counts.states == 30 and "a sector is lost" in total.wrong[0]["wrong"]
    assert night(book, 1000).wrong and len(book.read_text().splitlines()) == 4


def test_the_digest_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "raidlib").mkdir()
    (tmp_path / "tests" / "testing").mkdir(parents=True)
    for name in explorenight.JUDGES:
        (tmp_path / "tests" / "testing" / f"{name}.py").touch()
    before = explorenight.code_digest(tmp_path)
    assert before == explorenight.code_digest(tmp_path)
    (tmp_path / "raidlib" / "pool.py").write_text("changed")
    assert explorenight.code_digest(tmp_path) != before
