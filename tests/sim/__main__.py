"""Run simulated histories: `python -m tests.sim --seed S --runs N`, or `make sim SEED=S RUNS=N`.

Each seed makes a history of a pair and one of a tree of three to five nodes; --kind (KIND=) chooses one of them.

Prints one line for each failure with the command that repeats it; exit status 1 when there was one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.testing.sim.world import Report, World

KINDS = ("pair", "tree")


def command(seed: int, kind: str = "pair") -> str:
    """The command that repeats one run."""
    return f"make sim SEED={seed} RUNS=1 KIND={kind}"


def run_one(seed: int, kind: str = "pair") -> tuple[int, Report | None, str]:
    """Run one seed; returns (seed, report or None, what failed)."""
    world = World(seed, kind=kind)
    try:
        return seed, world.run(), ""
    except Exception as exc:  # outermost: any failure of a run is a finding
        return seed, None, f"{type(exc).__name__}: {exc}"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--runs", type=int, default=100, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both", help="pairs, trees, or one of each a seed")
    parser.add_argument("--log", action="store_true", help="print the whole trace (one run)")
    args = parser.parse_args()
    kinds = KINDS if args.kind == "both" else (args.kind,)
    if args.log or args.runs == 1:
        return max(_one_aloud(args.seed, kind, args.log) for kind in kinds)
    began, failures, labels, events = time.monotonic(), 0, Counter[str](), 0
    seeds = range(args.seed, args.seed + args.runs)
    with ProcessPoolExecutor(args.jobs) as pool:
        for kind in kinds:
            for seed, report, failure in pool.map(run_one, seeds, [kind] * args.runs, chunksize=4):
                if report is None:
                    failures += 1
                    print(f"seed {seed}: {failure}\n    repeat with: {command(seed, kind)}", flush=True)
                else:
                    events += report.events
                    labels.update(report.labels)
    runs, took = args.runs * len(kinds), time.monotonic() - began
    print(f"{runs} runs from seed {args.seed}, {failures} failed; {events} events, {runs / took:.1f} runs/s")
    print("handshakes: " + ", ".join(f"{label} {count}" for label, count in labels.most_common()))
    return 1 if failures else 0


def _one_aloud(seed: int, kind: str, verbose: bool) -> int:
    world = World(seed, kind=kind, verbose=verbose)
    try:
        report = world.run()
    except Exception as exc:  # outermost: show what led there
        if not verbose:
            print("\n".join(world.clock.lines))
        print(
            f"seed {seed}: {type(exc).__name__}: {exc}\n"
            f"    repeat with: {command(seed, kind)} (--log for the whole trace)"
        )
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
