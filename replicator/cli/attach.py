"""farstripe attach and detach: a volume as /dev/nbdN on this host."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import click

from replicator.attach import device, spawn
from replicator.attach.handshake import Endpoint
from replicator.attach.records import Attachment
from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SizeType, format_size
from replicator.core.errors import BadInput, NotFound, Refused
from replicator.notify import notify

DEFAULT_PORT = 10809


@click.command()
@click.argument("volume", required=False, shell_complete=names.volumes)
@click.option(
    "--device", "wanted_device", metavar="/dev/nbdN", help="Which device; the kernel picks one when left out."
)
@click.option("--host", metavar="HOST", help="Attach from another node's target, by TCP.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT",
              help=f"Its port; {DEFAULT_PORT} when only --host is given.")  # fmt: skip
@click.option("--unix", is_flag=True, help="Use this node's Unix socket (the default without --host and --port).")
@click.option("--connections", type=click.IntRange(1, 16), default=1, show_default=True, metavar="N",
              help="More than one needs a target that promises coherence, and makes requests that were in flight when "
              "it died wait up to 30 s: the kernel has no other way to tell.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.IntRange(0), default=0, show_default=True, metavar="SECONDS",
              help="How long a request may take before the kernel gives the connection up; 0: any time. A target that "
              "waits for its peer is slow, not dead, so leave it at 0 unless you know why.")  # fmt: skip
@click.option("--dead-timeout", "dead_timeout_s", type=click.IntRange(1), default=120, show_default=True,
              metavar="SECONDS", help="How long I/O waits for a dead target to come back before it fails.")  # fmt: skip
@click.option("--block-size", type=SizeType(), default=0, help="Logical block size; 4096 where it fits when left out.")
@click.option("--read-only", is_flag=True, help="Refuse writes in this host's kernel.")
@click.option("--foreground", is_flag=True, help="Stay and look after the device here (for systemd).")
@click.option("--list", "list_them", is_flag=True, help="Show what is attached on this host instead.")
@force_option("Attach although somebody has the volume open for writing. Two writers destroy a filesystem.")
@json_option
@pass_node
def attach(
    here: Node,
    volume: str | None,
    wanted_device: str | None,
    host: str | None,
    port: int | None,
    unix: bool,
    connections: int,
    timeout_s: int,
    dead_timeout_s: int,
    block_size: int,
    read_only: bool,
    foreground: bool,
    list_them: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make VOLUME a kernel block device and keep it connected.

    A small supervisor process stays behind: when the target restarts, it connects the device again, and programs see
    a pause instead of an error. VOLUME comes from this node's target, or from another one with --host; whether somebody
    else writes to it there, cannot be seen from here.
    """
    if list_them:
        _list(here, as_json)
        return
    if not volume:
        raise click.UsageError("name the VOLUME, or say --list")
    if unix and (host or port):
        raise click.UsageError("--unix and --host/--port exclude each other")
    local = not host and not port
    endpoint = Endpoint(path=str(here.run.resolve() / "nbd.sock")) if local else _tcp(host, port)
    wanted = Attachment(
        export=volume,
        endpoint=endpoint,
        index=device.parse_index(wanted_device) if wanted_device else -1,
        connections=connections,
        timeout_s=timeout_s,
        dead_timeout_s=dead_timeout_s,
        block_size=block_size,
        read_only=read_only,
    )
    run_dir = str(here.run.resolve())
    wanted, adopt = spawn.plan(wanted, run_dir)
    if local and not adopt:
        wanted = dataclasses.replace(wanted, read_only=_check_writer(here, volume, read_only, force))
    if foreground:
        _foreground(run_dir, wanted, adopt, as_json)
        return
    at = spawn.attach(wanted, run_dir, adopt)
    document = {"device": at.device, "volume": at.export, "size": at.size, "read_only": at.read_only,
                "block_size": at.block_size, "server": str(at.endpoint)}  # fmt: skip
    remark = ", read-only" if at.read_only else ""
    emit(as_json, document, f"{volume} is {at.device} ({format_size(at.size)}{remark})")


def _tcp(host: str | None, port: int | None) -> Endpoint:
    return Endpoint(host=host or "127.0.0.1", port=port or DEFAULT_PORT)


def _check_writer(here: Node, volume: str, read_only: bool, force: bool) -> bool:
    """Refuse a second writer unless `force`; returns whether the device can only be read. Raises NotFound."""
    for one in here.target("volume.list"):
        if one["name"] != volume:
            continue
        if not one.get("writable", True):
            return True
        if one.get("writers") and not read_only and not force:
            raise Refused(
                f"volume {volume!r} is open for writing already ({one['writers']} connection(s))",
                "attach it --read-only, or detach the other; --force is for cluster filesystems",
            )
        return read_only
    raise NotFound(f"there is no volume {volume!r} on this node", "farstripe volume list shows what there is")


def _foreground(run_dir: str, wanted: Attachment, adopt: bool, as_json: bool) -> None:
    from replicator.attach import supervisor  # pyroute2 takes a while to import; only a supervisor needs it

    def log(line: str) -> None:
        click.echo(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}", err=True)

    def ready(at: Attachment) -> None:
        emit(as_json, {"device": at.device, "volume": at.export}, f"{at.export} is {at.device}")
        notify("READY=1")

    supervisor.run(wanted, run_dir, log, ready, adopt)


def _list(here: Node, as_json: bool) -> None:
    found = spawn.listing(str(here.run))
    rows = [
        (
            one["device"],
            one["volume"],
            one["server"],
            format_size(int(str(one["size"]))),
            "read-only" if one["read_only"] else "writable",
            _health(one),
            "; ".join(map(str, one["used"])) or "-" if isinstance(one["used"], list) else "-",
        )
        for one in found
    ]
    table(as_json, found, ("device", "volume", "server", "size", "mode", "state", "used"), rows, "nothing is attached")


def _health(one: dict[str, Any]) -> str:
    if not one["attached"]:
        return "gone (the record is left over)"
    return "supervised" if one["supervised"] else "NOT supervised: attach it again"


@click.command()
@click.argument("name", metavar="DEVICE|VOLUME", shell_complete=names.attached)
@force_option("Detach although it is in use, without flushing: what was not written is lost, users get I/O errors.")
@yes_option
@json_option
@pass_node
def detach(here: Node, name: str, force: bool, yes: bool, as_json: bool) -> None:
    """Flush and take away DEVICE, or the device of VOLUME. Refused while it is mounted or otherwise in use."""
    if name.isdigit():
        raise BadInput(f"{name!r} names neither a device nor a volume", f"/dev/nbd{name} does")
    if force:
        confirm(f"Take {name} away from whoever uses it?", yes, as_json)
    at = spawn.detach(name, str(here.run), force)
    emit(as_json, {"device": at.device, "volume": at.export, "detached": True}, f"{at.device} detached")
