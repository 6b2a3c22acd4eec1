"""farstripe node: make, start, stop and look at the node of this host."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import socket
from collections.abc import Callable
from typing import Any

import click

from replicator.attach import records
from replicator.cli import processes
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, force_option, json_option, table
from replicator.cli.units import SecondsType
from replicator.core.errors import EXIT_DAEMON, AlreadyExists, BadInput, FarstripeError

DEFAULT_REPLICATION_PORT = 10810
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@click.group()
def node() -> None:
    """Make, start, stop and look at this host's node.

    A node is two processes over one state directory: the target serves volumes by NBD and owns the pool; the
    replicator talks to other nodes. Either can be restarted without the other.
    """


def _port(_ctx: click.Context, _param: click.Parameter, value: int | None) -> int | None:
    return value or None  # 0 says "no port"


def _address(_ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        try:
            socket.getaddrinfo(value, None)
        except OSError as exc:
            raise click.BadParameter(f"{value!r} is neither an address nor a name this host can resolve") from exc
    return value


@node.command()
@click.argument("name")
@click.option(
    "--nbd-port",
    type=click.IntRange(0, 65535),
    callback=_port,
    metavar="PORT",
    help="TCP port for NBD clients; none: Unix socket only.",
)
@click.option("--nbd-address", default="127.0.0.1", show_default=True, callback=_address, metavar="ADDRESS",
              help="Address at which NBD clients reach this node, when there is a port for them.")  # fmt: skip
@click.option("--replication-address", default="127.0.0.1", show_default=True, callback=_address, metavar="ADDRESS",
              help="Address at which other nodes reach this one.")  # fmt: skip
@click.option("--replication-port", type=click.IntRange(1, 65535), default=DEFAULT_REPLICATION_PORT, show_default=True,
              metavar="PORT", help="The port there.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(1, 65535), metavar="PORT",
              help="Serve metrics for Prometheus by HTTP at this port of 127.0.0.1; none when left out.")  # fmt: skip
@click.option("--threads", type=click.IntRange(2, 256), metavar="N",
              help="Requests in service at a time for one connection; 32 when left out.")  # fmt: skip
@json_option
@pass_node
def init(
    here: Node,
    name: str,
    nbd_port: int | None,
    nbd_address: str,
    replication_address: str,
    replication_port: int,
    metrics_port: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make the node NAME in the state directory. Its name and id stay with it for life.

    Nothing listens beyond loopback unless an address says so. NBD has no password: let only trusted hosts reach
    --nbd-address. The replication port is protected by mutual TLS.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} is not a node name", "letters, digits, '.', '_' and '-', at most 63, no leading dot")
    if nbd_port == replication_port and nbd_address == replication_address:
        raise BadInput(f"port {nbd_port} cannot serve NBD and replication both", "choose another --nbd-port")
    config: dict[str, Any] = {
        "node_id": secrets.token_hex(16),
        "name": name,
        "nbd": {"port": nbd_port, "address": nbd_address},
        "replication": {"address": replication_address, "port": replication_port},
    }
    if metrics_port:
        if metrics_port in (replication_port, nbd_port):
            raise BadInput(f"port {metrics_port} cannot serve metrics and something else", "choose another one")
        config["metrics"] = {"address": "127.0.0.1", "port": metrics_port}
    if threads:
        config["threads"] = threads
    _write_once(here, config)
    emit(as_json, config, f"node {name} made in {here.state}; start it: farstripe node start")


def _write_once(here: Node, config: dict[str, Any]) -> None:
    """Write node.json unless one exists. Durable: the file and its name."""
    try:
        here.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = here.config_path.with_suffix(f".{os.getpid()}")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, here.config_path)  # link, not rename: it fails when the name is taken
        finally:
            temporary.unlink()
        directory = os.open(here.state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        if not here.config_path.exists():
            raise BadInput(f"{here.state} is not a directory", "choose another --state") from None
        raise AlreadyExists(
            f"{here.state} holds a node already", "start it, or choose another state directory with --state"
        ) from None
    except OSError as exc:
        raise BadInput(f"cannot write {here.config_path}: {exc.strerror or exc}", "choose another --state") from exc


@node.command()
@force_option("Open the pool although it has lost too many members or its stripes may be torn. Check the data then.")
@json_option
@pass_node
def start(here: Node, force: bool, as_json: bool) -> None:
    """Start target and replicator in the background and wait until both answer.

    What runs already is left alone. Logs are target.log and replicator.log in the run directory. On a host with
    systemd, rather: systemctl start farstripe-target farstripe-replicator.
    """
    here.config()
    _each(lambda process: processes.start(process, here, force), as_json)


@node.command()
@click.option("--timeout", "timeout_s", type=SecondsType(0.1), default=30.0, show_default=True, metavar="SECONDS",
              help="How long each process may take to end.")  # fmt: skip
@force_option("Kill what has not ended in time, as a crash would.")
@json_option
@pass_node
def stop(here: Node, timeout_s: float, force: bool, as_json: bool) -> None:
    """Stop the node: the target first, so that its last writes still find the replicator, then the replicator.

    Clients lose their connection. A device that `farstripe attach` made waits for the node to come back.
    """
    here.config()
    for at in records.load_all(here.run):
        if at.supervised and not as_json:
            click.echo(f"note: {at.device} is attached; its I/O waits {at.dead_timeout_s} s for the node", err=True)
    _each(lambda process: processes.stop(process, here, timeout_s, force), as_json)


def _each(act: Callable[[str], str], as_json: bool) -> None:
    """Do something to both processes, also when it fails for the first; then raise the first error."""
    done: dict[str, str] = {}
    failures: list[FarstripeError] = []
    for process in processes.PROCESSES:
        try:
            done[process] = act(process)
        except FarstripeError as exc:
            done[process] = f"failed: {exc.message}"
            failures.append(exc)
    if not (as_json and failures):
        emit(as_json, done, "\n".join(f"{process}: {word}" for process, word in done.items()))
    if failures:
        raise failures[0]


@node.command()
@click.argument("process", type=click.Choice(processes.PROCESSES))
@pass_node
def run(here: Node, process: str) -> None:
    """Become one of the node's processes, in the foreground: what the systemd units call."""
    here.config()
    processes.become(process, here)


@node.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show whether target and replicator run. Exit code 7 when one does not."""
    here: Node = ctx.ensure_object(Node)
    config = here.config()
    state = {process: processes.state_of(process, here) for process in processes.PROCESSES}
    document = {**config, "state_dir": str(here.state), "run_dir": str(here.run), **state}
    rows = [(process, _word(one), one["pid"] or "-", one["problem"]) for process, one in state.items()]
    if not as_json:
        click.echo(f"node {config.get('name')} ({config.get('node_id')}), state {here.state}, run {here.run}")
    table(as_json, document, ("process", "state", "pid", "remark"), rows, "")
    if not all(one["answers"] for one in state.values()):
        ctx.exit(EXIT_DAEMON)


def _word(state: dict[str, Any]) -> str:
    if state["answers"]:
        return "running"
    return "not answering" if state["running"] else "stopped"
