"""python -m benchmarks: run rows of the table and print them as text or JSON. scripts/bench starts it.

Exit status: 0 when every row was measured (whatever its ratio), 1 when one could not be, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks.measure import Result
from benchmarks.settings import Settings
from benchmarks.table import ROWS, Row
from benchmarks.workspace import BenchmarkError


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return value


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 and a message when it is wrong."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compare farstripe with established tools doing the same work.",
        epilog="rows: " + ", ".join(ROWS),
    )
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--rows", metavar="NAME,…", help="only these rows, or those that begin so")
    parser.add_argument("--list", action="store_true", help="say what each row compares, and end")
    parser.add_argument("--seconds", type=_positive, default=default.seconds, help="of one measurement (%(default)g)")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="measurements of each side (%(default)d)")
    parser.add_argument("--size-mb", type=int, default=default.size_bytes >> 20, help="MiB under load (%(default)d)")
    parser.add_argument(
        "--resync-mb", type=int, default=default.resync_bytes >> 20, help="MiB of the resynced volume (%(default)d)"
    )
    parser.add_argument("--dir", type=Path, default=default.directory, help="where all files lie (%(default)s)")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.size_mb < 8 or options.resync_mb < 8:
        parser.error("--rounds is at least 1, --size-mb and --resync-mb at least 8")
    options.chosen = choose(options.rows, parser)
    return options


def choose(names: str | None, parser: argparse.ArgumentParser) -> list[Row]:
    """The rows that `names` (comma-separated names or their beginnings) means; all of them for None."""
    if not names:
        return list(ROWS.values())
    chosen = []
    for name in names.split(","):
        found = [ROWS[name]] if name in ROWS else [row for row in ROWS.values() if row.name.startswith(name)]
        if not found or not name:
            parser.error(f"there is no row {name!r}; the rows are {', '.join(ROWS)}")
        chosen += [row for row in found if row not in chosen]
    return chosen


def line(result: Result, bar: float) -> str:
    """One row as text."""
    spread = f"{min(result.ratios):.2f}-{max(result.ratios):.2f}" if result.ratios else ""
    verdict = "" if result.ratio >= bar else f"below the bar {bar:g}"
    remark = ", ".join(part for part in (result.note, verdict) if part)
    return (
        f"{result.name:34} {result.ours:>10.4g} {result.peer:>10.4g} {result.unit:5} "
        f"{result.ratio:>6.2f} {spread:>11}  {result.peer_name}{'; ' + remark if remark else ''}"
    )


def main(argv: list[str]) -> int:
    """Run the chosen rows; see the module's text."""
    options = parse(argv)
    if options.list:
        for row in options.chosen:
            print(f"{row.name:34} bar {row.bar:<5g} aim {row.aim:<4g} {row.what}")
        return 0
    settings = Settings(
        options.seconds, options.rounds, options.size_mb << 20, options.resync_mb << 20, options.dir.resolve()
    )
    # Leaving by a signal must run the `with` blocks too, which end the servers.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    results: list[Result] = []
    failures: dict[str, str] = {}
    if not options.json:
        print(f"{'row':34} {'ours':>10} {'peer':>10} {'unit':5} {'ratio':>6} {'rounds':>11}  peer")
    for row in options.chosen:
        try:
            result = row.run(settings)
        except (BenchmarkError, OSError) as e:
            failures[row.name] = str(e)
            print(f"bench: {row.name} was not measured: {e}", file=sys.stderr, flush=True)
            continue
        results.append(result)
        if not options.json:
            print(line(result, row.bar), flush=True)
    if options.json:
        document: dict[str, object] = {"results": [r.as_json() for r in results]}
        if failures:
            document["failures"] = failures
        print(json.dumps(document, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
