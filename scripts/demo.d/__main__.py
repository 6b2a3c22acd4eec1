"""scripts/demo: the main job from start to end on this machine. See story.py for what happens, --help for options.

Exit status: 0 when every check passed, 1 when one failed or a step did not work, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import disk
import story
from node import DemoError
from report import Report


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Two nodes, a crash, a takeover, and the way back."
    )
    parser.add_argument(
        "--mode", choices=("async", "sync"), default="sync", help="how A's writes reach B (default: sync)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long A writes before it is killed")
    parser.add_argument(
        "--keep", action="store_true", help="leave both nodes running at the end, and say how to look at them"
    )
    return parser.parse_args(argv)


def _tell_where(demo: story.Demo) -> None:
    print(f"\nBoth nodes run on in {demo.root}. Look at them with, for example:")
    for node in (demo.a, demo.b):
        words = " ".join(f"{name}={value}" for name, value in node.environment.items())
        print(f"  {words} {Path(sys.executable).with_name('farstripe')} status")
    print("When you are done: the same with 'node stop' on both, then remove the directory.")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    options = _options(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    report = Report()
    root = Path(tempfile.mkdtemp(prefix="fsdemo-"))
    demo = story.Demo(root, options.mode, options.seconds, report, disk.kernel_has_nbd())
    finished = False
    try:
        for chapter in story.CHAPTERS:
            chapter(demo)
        finished = True
        report.print()
        if options.keep:
            _tell_where(demo)
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ndemo: stopped, cleaning up", file=sys.stderr)
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # cleaning up is bounded, and half of it is worse than none
        if not (finished and options.keep):
            demo.clean_up()
            shutil.rmtree(root, ignore_errors=True)
    return 0 if finished and report.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
