"""Explores crashed pools night after night, and keeps book of it.

The book is a file of JSON lines, one for each run (poolexplorer.Run) that was gone through to its end, with what it
counted, the seconds of processor time it took, and a digest of the code that was explored: raidlib, and the test code
that judges it. Only lines of the code as it is now are summed up, and only whole runs are in the book, so a night that
is cut short loses its last run and nothing else. States are counted as the explorer does: within a run each is counted
once; runs of different seeds may share some.

A run that shows something wrong gets a line, too, and ends the night. It stays in the sum's way until the code changes.

    python -m tests.testing.explorenight --states 3000000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.testing.poolexplorer import RUN_KINDS, Counts, Explorer, Run, use_small_steps

ROOT = Path(__file__).resolve().parents[2]
JUDGES = ("crashimages", "fakedisk", "poolaudit", "poolcrash", "poolexplorer", "poolmembers", "poolmodel", "poolworld")
"""Modules of tests.testing that decide what is explored and what is wrong."""


@dataclass
class Sum:
    """What the book says of one state of the code."""

    counts: Counts = field(default_factory=Counts)
    processor_s: float = 0.0
    done: set[str] = field(default_factory=set)
    """Names of the runs."""
    wrong: list[dict[str, Any]] = field(default_factory=list)
    """Lines of runs that showed something wrong."""

    def __str__(self) -> str:
        return f"{len(self.done)} runs, {self.counts}, {self.processor_s / 3600:.1f} hours of processor time"


def code_digest(root: Path = ROOT) -> str:
    """Return 16 hex digits that change with the code that is explored, or that judges."""
    digest = hashlib.sha256()
    judges = [root / "tests" / "testing" / f"{name}.py" for name in JUDGES]
    for path in sorted([*(root / "raidlib").glob("*.py"), *judges]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def sum_up(book: Path, code: str) -> Sum:
    """Sum up the lines of the book that are about this code. A last line that was not finished does not count."""
    total = Sum()
    text = book.read_text(encoding="utf-8") if book.exists() else ""
    for line in text.split("\n")[:-1]:
        entry = json.loads(line)
        if entry["code"] != code:
            continue
        if "wrong" in entry:
            total.wrong.append(entry)
        elif entry["run"] not in total.done:
            total.done.add(entry["run"])
            total.processor_s += entry["processor_s"]
            for one in fields(Counts):
                setattr(total.counts, one.name, getattr(total.counts, one.name) + entry[one.name])
    return total


def runs_to_do(done: set[str], seed: int) -> Iterator[Run]:
    """All kinds of runs of a seed, then of the next one, without those that are done."""
    while True:
        for kind in RUN_KINDS:
            run = kind._replace(seed=seed)
            if str(run) not in done:
                yield run
        seed += 1


def explore_on(
    book: Path,
    states: int,
    seed: int = 1,
    hours: float = 1e9,
    tell: Callable[[str], None] = print,
    kinds: Callable[[set[str], int], Iterator[Run]] = runs_to_do,
) -> Sum:
    """Explore until the book has so many states of this code, a run shows something wrong, or the time is over.

    Durable: each finished run's line.
    """
    code, ends = code_digest(), time.monotonic() + hours * 3600
    total = sum_up(book, code)
    tell(f"so far, of code {code}: {total}")
    for run in kinds(total.done, seed):
        if total.wrong or total.counts.states >= states or time.monotonic() >= ends:
            break
        explorer, began = Explorer(), time.process_time()
        entry: dict[str, Any] = {"run": str(run), "code": code}
        try:
            explorer.explore(run)
        except Exception as exc:  # whatever it is, the book must have it
            entry["wrong"] = "".join(traceback.format_exception(exc))
        entry |= asdict(explorer.counts) | {"processor_s": round(time.process_time() - began, 1)}
        _write_line(book, entry)
        total = sum_up(book, code)
        tell(f"{run}: {explorer.counts.states} states; in all {total}")
    for entry in total.wrong:
        tell(f"WRONG in run {entry['run']}:\n{entry['wrong']}")
    return total


def _write_line(book: Path, entry: dict[str, Any]) -> None:
    """Append a line, after the end of the last whole one. Durable: it."""
    book.parent.mkdir(parents=True, exist_ok=True)
    with open(book, "a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top of the file. Returns 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.testing.explorenight", description=__doc__)
    parser.add_argument("--states", type=int, default=3_000_000, help="in all, in the book (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=1e9, help="end after so long (default: never)")
    parser.add_argument("--book", type=Path, default=ROOT / ".explored.jsonl", help="default: %(default)s")
    given = parser.parse_args(arguments)
    use_small_steps()
    total = explore_on(given.book, given.states, given.seed, given.hours, lambda line: print(line, flush=True))
    return 1 if total.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
