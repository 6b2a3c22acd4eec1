"""`python -m replicator.attach HOST PORT EXPORT`: attach and detach without the rest of farstripe.

Needs Python and pyroute2 only, so it runs in a rescue system or a bare virtual machine. `farstripe attach` is the
same with names looked up on the node. The hidden --supervise is how both start the supervisor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from typing import Any

from replicator.attach import device, spawn
from replicator.attach.handshake import Endpoint
from replicator.attach.records import Attachment
from replicator.core.errors import FarstripeError, to_map


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m replicator.attach", description="Attach an NBD export.")
    parser.add_argument("where", nargs="*", metavar="HOST PORT EXPORT", help="or --unix PATH EXPORT")
    parser.add_argument("--unix", metavar="PATH", default="", help="connect to a Unix socket")
    parser.add_argument("--device", default="", help="/dev/nbdN; the kernel picks one when left out")
    parser.add_argument("--connections", type=int, default=1, metavar="N")
    parser.add_argument("--timeout", type=int, default=0, metavar="S", help="seconds a request may take (0: any time)")
    parser.add_argument(
        "--dead-timeout", type=int, default=120, metavar="S", help="seconds I/O waits for a dead server"
    )
    parser.add_argument("--block-size", type=int, default=0, metavar="BYTES")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--foreground", action="store_true", help="stay and supervise instead of going to background")
    parser.add_argument("--run", default=os.environ.get("FARSTRIPE_RUN", "/run/farstripe"), metavar="DIR")
    parser.add_argument("--detach", metavar="DEVICE", help="detach a device or export instead")
    parser.add_argument("--force", action="store_true", help="detach even while in use, without flushing")
    parser.add_argument("--list", action="store_true", help="show what is attached, as JSON")
    parser.add_argument("--supervise", help=argparse.SUPPRESS)
    parser.add_argument("--adopt", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def log(line: str) -> None:
    """Write one line with the time to stderr (the supervisor's log file, or the journal)."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), line, file=sys.stderr, flush=True)


def _run(*args: Any) -> None:
    from replicator.attach import supervisor  # pyroute2 takes a while to import; only a supervisor needs it

    supervisor.run(*args)


def _wanted(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Attachment:
    if options.unix and len(options.where) == 1:
        endpoint, export = Endpoint(path=options.unix), options.where[0]
    elif not options.unix and len(options.where) == 3 and options.where[1].isdigit():
        endpoint, export = Endpoint(host=options.where[0], port=int(options.where[1])), options.where[2]
    else:
        parser.error("give HOST PORT EXPORT, or --unix PATH EXPORT")
    return Attachment(
        export=export,
        endpoint=endpoint,
        index=device.parse_index(options.device) if options.device else -1,
        connections=max(1, options.connections),
        timeout_s=max(0, options.timeout),
        dead_timeout_s=max(0, options.dead_timeout),
        block_size=options.block_size,
        read_only=options.read_only,
    )


def _supervise(options: argparse.Namespace) -> int:
    def tell(message: dict[str, object]) -> None:
        with open(options.ready_fd, "w") as pipe:
            pipe.write(json.dumps(message) + "\n")

    told = False

    def ready(at: Attachment) -> None:
        nonlocal told
        told = True
        tell({"attachment": at.to_json()})

    try:
        _run(Attachment.from_json(options.supervise), options.run, log, ready, options.adopt)
    except Exception as exc:  # outermost: whoever waits for `ready` must hear of everything
        log(str(exc) if isinstance(exc, FarstripeError) else traceback.format_exc())
        if not told:
            tell({"error": to_map(exc)})
        return int(to_map(exc)["exit_code"])
    return 0


def main(argv: list[str] | None = None) -> int:
    """Return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.supervise:
        return _supervise(options)
    try:
        if options.list:
            print(json.dumps(spawn.listing(options.run), indent=1))
        elif options.detach:
            print(f"{spawn.detach(options.detach, options.run, options.force).device} detached")
        elif options.foreground:
            wanted, adopt = spawn.plan(_wanted(options, parser), options.run)
            _run(wanted, options.run, log, lambda at: print(at.device, flush=True), adopt)
        else:
            wanted, adopt = spawn.plan(_wanted(options, parser), options.run)
            print(spawn.attach(wanted, options.run, adopt).device)
    except FarstripeError as exc:
        print(f"farstripe: {exc.message}", file=sys.stderr)
        if exc.way_out:
            print(f"way out: {exc.way_out}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
