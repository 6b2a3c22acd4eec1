"""The entry point: global options, the list of commands, and what an error looks like from outside.

Exit codes (stable): 0 done; 1 a defect of ours; 2 wrong usage; 3 bad input; 4 refused in this state; 5 not found;
6 exists already; 7 daemon not running; 8 peer; 9 medium; 10 integrity; 11 not in time. 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from replicator.cli import output
from replicator.cli.access import DEFAULT_RUN, DEFAULT_STATE, Node
from replicator.core.errors import EXIT_INTERNAL, EXIT_USAGE, BadInput, FarstripeError, InternalError, Refused

EXIT_INTERRUPTED = 130

# Command -> (module below replicator.cli, attribute, help). Loaded when used: a command pays only for what it needs.
COMMANDS = {
    "node": ("node", "node", "Make, start, stop and look at this host's node."),
    "pool": ("pool", "pool", "The RAID-striped pool that volumes lie on."),
    "volume": ("volume", "volume", "Block devices in the pool."),
    "group": ("group", "group", "Volumes that share one write order."),
    "snapshot": ("asof", "snapshot", "Show a group as it was at an earlier instant."),
    "peer": ("peer", "peer", "Other nodes this one trusts."),
    "pair": ("pair", "pair", "A group here and its copy on a peer."),
    "set": ("cutset", "cutset", "Groups whose copies are consistent with each other."),
    "marker": ("marker", "marker", "One named instant over groups of several nodes."),
    "attach": ("attach", "attach", "Make a volume a kernel block device, /dev/nbdN."),
    "detach": ("attach", "detach", "Take an attached device away."),
    "switchover": ("roles", "switchover", "Swap roles as planned; nothing is lost."),
    "takeover": ("roles", "takeover", "Make this side primary because the other is gone."),
    "status": ("status", "status", "Groups and pairs: role, state, how far behind."),
    "metrics": ("budget", "metrics", "All numbers for monitoring, as Prometheus text."),
    "events": ("events", "events", "What happened on this node."),
    "explain": ("explain", "explain", "Why a state is what it is, and what to do next."),
    "plan": ("plan", "plan", "What something would take, before it is needed."),
    "completion": ("completion", "completion", "Print the shell's completion script."),
}


class Commands(click.Group):
    """The top level; imports a command's module when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found = getattr(importlib.import_module(f"replicator.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def version() -> str:
    """Return the installed version, or that of the checkout's metadata-less source."""
    from importlib import metadata  # slow, and hardly ever asked for

    try:
        return metadata.version("farstripe")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"farstripe, version {version()}")
        ctx.exit()


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state", envvar="FARSTRIPE_STATE", default=DEFAULT_STATE, show_default=True, show_envvar=True,
    type=click.Path(path_type=Path), help="The node's durable directory.",
)  # fmt: skip
@click.option(
    "--run", envvar="FARSTRIPE_RUN", default=DEFAULT_RUN, show_default=True, show_envvar=True,
    type=click.Path(path_type=Path), help="The node's directory for sockets, pids and logs.",
)  # fmt: skip
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, state: Path, run: Path) -> None:
    """Replicated block volumes in userland.

    Several nodes can live on one host: give each its own --state and --run.

    \b
    A first pair, on two nodes A and B:
      farstripe node init A && farstripe node start
      farstripe pool create main raid6 /disks/{0..5}
      farstripe volume create data --size 10G
      farstripe group create app data
      farstripe peer join TOKEN          (on B: farstripe peer token)
      farstripe pair create app --peer B
    """
    ctx.obj = Node(state=state, run=run)


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code. Errors go to stderr, as JSON when --json is among them."""
    as_json = "--json" in argv
    try:
        code = cli.main(args=argv, prog_name="farstripe", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except FarstripeError as exc:
        output.complain(exc, as_json)
        return exc.exit_code
    except click.UsageError as exc:
        _complain_usage(exc, as_json)
        return EXIT_USAGE
    except click.ClickException as exc:
        output.complain(BadInput(exc.format_message()), as_json)
        return BadInput.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("farstripe: stopped; what was asked of the node goes on there", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; that is no error
        return 0
    except PermissionError as exc:
        output.complain(Refused(f"{exc.filename or 'something'} may not be used by you", "run as root"), as_json)
        return Refused.exit_code
    except Exception as exc:  # outermost: an unforeseen error is a defect of ours and says where
        if os.environ.get("FARSTRIPE_DEBUG"):
            traceback.print_exc()
        where = traceback.extract_tb(exc.__traceback__)[-1]
        message = f"{type(exc).__name__}: {exc} (at {Path(where.filename).name}:{where.lineno})"
        output.complain(InternalError(message, "please report it; FARSTRIPE_DEBUG=1 shows the traceback"), as_json)
        return EXIT_INTERNAL


def _complain_usage(exc: click.UsageError, as_json: bool) -> None:
    hint = f"{exc.ctx.command_path} --help" if exc.ctx else "farstripe --help"
    error = BadInput(exc.format_message(), hint, exit_code=EXIT_USAGE)
    error.name = "UsageError"
    output.complain(error, as_json)


def main(argv: list[str] | None = None) -> Any:
    """Entry point of the `farstripe` command."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
