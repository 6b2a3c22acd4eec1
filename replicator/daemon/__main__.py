"""Start the replicator of a node: python -m replicator.daemon --state DIR --run DIR

Runs in the foreground, logs to standard error, tells systemd when it is ready, and stops in order on SIGTERM or SIGINT.
It may be killed at any time: what it needs is on disk or is asked of the target and the peers again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from replicator.core.errors import FarstripeError
from replicator.daemon.service import Replicator
from replicator.notify import notify

SWITCH_INTERVAL_S = 0.0005
"""How long one thread may keep the interpreter while another waits; synchronous writes would feel the default 5 ms."""


def main(argv: list[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="farstripe-replicator", description="The replicator process of a node.")
    parser.add_argument("--state", type=Path, default=os.environ.get("FARSTRIPE_STATE", "/var/lib/farstripe"))
    parser.add_argument("--run", type=Path, default=os.environ.get("FARSTRIPE_RUN", "/run/farstripe"))
    parser.add_argument("--verbose", action="store_true", help="log every change of a session's state")
    options = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    try:
        replicator = Replicator(options.state, options.run)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: replicator.stop_wanted.set())
        replicator.start()
    except FarstripeError as exc:
        print(f"farstripe-replicator: {exc}", file=sys.stderr)
        return exc.exit_code
    except OSError as exc:
        print(f"farstripe-replicator: {exc}", file=sys.stderr)
        return 9
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()  # what start-up made lives on; collections need not look at it
    notify("READY=1\nSTATUS=serving")
    while not replicator.stop_wanted.wait(3600):
        pass
    notify("STOPPING=1")
    replicator.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
