"""farstripe peer: the other nodes this one trusts."""

from __future__ import annotations

import datetime
import sys
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, json_option, table, yes_option
from replicator.cli.units import SecondsType, format_duration


@click.group()
def peer() -> None:
    """Other nodes this one trusts.

    Two nodes meet once by a token; from then on each knows the other's certificate and both prove who they are (mutual
    TLS). There is no certificate authority to keep.
    """


@peer.command()
@click.option("--life", "life_s", type=SecondsType(1), default=3600.0, show_default=True, metavar="SECONDS",
              help="How long the token is good.")  # fmt: skip
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Where the new peer reaches this node, when that is not replication.address of node.json.",
)
@json_option
@pass_node
def token(here: Node, life_s: float, address: str | None, as_json: bool) -> None:
    """Make a one-time token. Give it to `farstripe peer join` on the other node.

    Who has the token can become a peer, once, until it expires: pass it on as you would a password.
    """
    extra: dict[str, Any] = {"address": address} if address else {}
    made = here.replicator("peer.token", expires_s=life_s, **extra)
    if not as_json:
        click.echo(f"good once, for {format_duration(life_s)}; on the other node: farstripe peer join TOKEN", err=True)
    emit(as_json, made, str(made["token"]))


@peer.command()
@click.argument("word", metavar="TOKEN")
@json_option
@pass_node
def join(here: Node, word: str, as_json: bool) -> None:
    """Become a peer of the node that made TOKEN, and it of this one. `-` reads the token from standard input."""
    if word == "-":
        word = sys.stdin.readline().strip()
    made = here.replicator("peer.join", token=word, wait_s=60)
    emit(as_json, made, f"{made.get('name', 'the node')} ({made.get('node_id', 'id unknown')}) is a peer now")


@peer.command("list")
@json_option
@pass_node
def list_(here: Node, as_json: bool) -> None:
    """List the peers."""
    found = here.replicator("peer.list")
    rows = [
        (
            one["name"],
            one["node_id"],
            f"{one['address']} port {one['port']}",
            _day(one.get("joined")),
            ", ".join(one.get("pairs") or ()) or "-",
        )
        for one in found
    ]
    columns = ("peer", "node id", "reached at", "joined", "pairs")
    table(as_json, found, columns, rows, "no peers; see farstripe peer token --help")


@peer.command()
@click.argument("name", shell_complete=names.peers)
@yes_option
@json_option
@pass_node
def delete(here: Node, name: str, yes: bool, as_json: bool) -> None:
    """Forget the peer NAME: its connections are refused from now on. Refused while a pair needs it."""
    confirm(f"Forget peer {name}? It needs a new token to come back.", yes, as_json)
    here.replicator("peer.delete", peer=name)
    emit(as_json, {"peer": name, "deleted": True}, f"peer {name} is forgotten; do the same on {name}")


def _day(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
