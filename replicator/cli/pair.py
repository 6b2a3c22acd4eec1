"""farstripe pair: a group here and its copy on a peer."""

from __future__ import annotations

import time
from typing import Any

import click

from replicator.cli import budget, names, policy, progress, status, transfer
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, json_option, table, yes_option
from replicator.cli.units import SecondsType, SizeType, format_size
from replicator.core import rpo
from replicator.core.epochs import epoch_text
from replicator.core.errors import Refused, TimedOut
from replicator.core.status import TABLE

SLICE_S = 0.3
SETTLE_S = 1.0
"""So long a state must last before it is believed: after a command the two sides need a moment to agree."""
DEFAULT_WAIT_S = 3600.0


PEER_ARGUMENT = click.argument("peer", required=False, shell_complete=names.peers)
"""Which pair of the group; left out while it has one."""


@click.group()
def pair() -> None:
    """A group here and its copy on a peer, kept alike over the network.

    A group may have several pairs, one with each peer: copies of the primary, and copies of copies. Together they form
    a tree. Where a group has several pairs here, commands want PEER as well.
    """


pair.add_command(budget.budget)


@pair.command()
@click.argument("group", shell_complete=names.groups)
@click.option(
    "--peer",
    required=True,
    metavar="NODE",
    shell_complete=names.peers,
    help="The node that gets the copy: a name of `farstripe peer list`.",
)
@policy.policy_options
@transfer.transfer_options
@click.option(
    "--journal", "journal_bytes", type=SizeType(4096), help="Journal size on the peer; as here when left out."
)
@click.option(
    "--overwrite", is_flag=True, help="Let the copy replace volumes of these names that hold data on the peer."
)
@json_option
@pass_node
def create(
    here: Node,
    group: str,
    peer: str,
    journal_bytes: int | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Pair GROUP with a peer, which gets a copy of what this node has.

    This node is the primary, or a secondary whose own copy is complete: then the peer is fed from here, and the primary
    sends everything once (a cascade). A peer that holds the group already is refused. --mode is that of this pair, all
    else is the group's. Volumes of the same names and sizes are made on the peer. The first copy runs while hosts go on
    writing; wait for it with `farstripe pair wait GROUP PEER --progress`.
    """
    extra: dict[str, Any] = {"journal_bytes": journal_bytes} if journal_bytes else {}
    made = here.replicator(
        "pair.create", group=group, peer=peer, overwrite=overwrite, wait_s=330,
        **policy.given(options), **transfer.given(options), **extra,
    )  # fmt: skip
    mode = (made.get("policy") or {}).get("mode")
    emit(
        as_json,
        made,
        f"group {group} is paired with {peer}{f' ({mode})' if mode else ''}; wait for the first copy: "
        f"farstripe pair wait {group} {peer} --progress",
    )


@pair.command("set")
@click.argument("group", shell_complete=names.pairs)
@PEER_ARGUMENT
@transfer.transfer_options
@json_option
@pass_node
def set_(here: Node, group: str, peer: str | None, as_json: bool, **options: Any) -> None:
    """Change how the pair of GROUP (with PEER) moves its records; on the node that feeds the other.

    --limit, --schedule and --compress take effect at once. For the others the link starts over, which takes a moment
    and copies nothing again. The peer keeps the settings too, for when the roles change. `farstripe pair show` says
    what is in force.
    """
    found = here.replicator("pair.set", **_pair(group, peer), **transfer.given(options))
    emit(as_json, found, f"group {group}: set; see: farstripe pair show {_words(group, peer)}")


@pair.command("list")
@json_option
@pass_node
def list_(here: Node, as_json: bool) -> None:
    """List the pairs."""
    found = here.replicator("pair.list")
    rows = [
        (
            one["name"],
            one["role"],
            one["word"],
            one["peer_name"],
            "fed by it" if one["feeds_us"] else "feeds it",
            one["connected"],
            one["lag"],
            policy.text(one["policy"]),
        )
        for one in found
    ]
    columns = ("group", "role", "state", "peer", "this node", "connected", "records behind", "mode")
    table(as_json, found, columns, rows, "no pairs; make one: farstripe pair create")


@pair.command()
@click.argument("group", shell_complete=names.pairs)
@PEER_ARGUMENT
@json_option
@pass_node
def show(here: Node, group: str, peer: str | None, as_json: bool) -> None:
    """Show everything about the pair of GROUP (with PEER): positions, histories, what the two sides agreed on."""
    found = here.replicator("pair.show", **_pair(group, peer))
    if as_json:
        emit(True, found)
        return
    known, facts = found.get("status") or {}, found.get("facts") or {}
    decision = facts.get("decision") or {}
    seen = rpo.rpo(known, found) if known else None
    feeds, peer = not found["feeds_us"], found["peer_name"]
    rows = [
        ("state", f"{found['word']}: {found['why']}"),
        ("role here", found["role"]),
        ("copy here", found["state"]),
        ("mode", policy.text(found["policy"])),
        ("tracking", found["mode"]),
        ("peer", f"{peer} ({found['peer']}), which {'is fed by this node' if feeds else 'feeds this node'}"),
        ("connected", found["connected"] or f"no: {facts.get('link_reason', 'the reason is unknown')}"),
        ("would be lost", status.lost_text(seen)),
        ("position here", known.get("pos")),
        ("durable here", known.get("durable")),
        ("applied here", known.get("applied")),
        *((f"{peer} {what}", _acked(facts, what)) for what in ("received", "durable", "applied") if feeds),
        ("history here", _history(known.get("hist"))),
        ("last handshake", f"{decision['label']}: {decision['cause']}" if decision else None),
        ("left to copy", format_size(found["todo_bytes"]) if found["todo_bytes"] is not None else None),
        *transfer.rows(found, feeds),
    ]
    click.echo(f"pair of group {found['name']}")
    table(False, None, ("", ""), rows, "")
    click.echo("\n".join(status.loss_lines(found.get("losses") or [])))


def _pair(group: str, peer: str | None) -> dict[str, Any]:
    """The arguments that name a pair."""
    return {"group": group, "peer": peer} if peer else {"group": group}


def _words(group: str, peer: str | None) -> str:
    """The words that name a pair in a command."""
    return f"{group} {peer}" if peer else group


def _acked(facts: dict[str, Any], what: str) -> int | None:
    return (
        (facts.get("acked") or {}).get(what)
        if facts.get("session") in ("source", "sync-source", "copy-source")
        else None
    )


def _history(hist: list[list[int]] | None) -> str | None:
    """Epochs with the record each began at."""
    if not hist:
        return None if hist is None else "empty"
    return ", ".join(f"epoch {epoch_text(epoch)} from {base}" for epoch, base in hist[-4:])


@pair.command()
@click.argument("group", shell_complete=names.pairs)
@PEER_ARGUMENT
@json_option
@pass_node
def split(here: Node, group: str, peer: str | None, as_json: bool) -> None:
    """Split the pair of GROUP (with PEER): the copy stays as it is, the primary goes on and tracks what changes.

    Take it back with `farstripe pair resync`, which then copies the difference only.
    """
    here.replicator("pair.split", **_pair(group, peer), wait_s=120)
    emit(
        as_json,
        {"group": group, "split": True},
        f"group {group} is split; follow again: farstripe pair resync {_words(group, peer)}",
    )


@pair.command()
@click.argument("group", shell_complete=names.pairs)
@PEER_ARGUMENT
@click.option("--discard", metavar="NODE", help="Give up the writes that only NODE has; its copy becomes the other's.")
@yes_option
@json_option
@pass_node
def resync(here: Node, group: str, peer: str | None, discard: str | None, yes: bool, as_json: bool) -> None:
    """Bring the copy of GROUP (with PEER) up again, by difference: after a split, a refusal, or to try at once.

    When a former primary holds writes that its successor never got, or both sides were written to (split brain),
    you name the side whose own writes are given up with --discard; without, or with the wrong name, the command is
    refused and says what to name. The leave lapses after ten minutes.
    """
    if discard:
        confirm(f"Give up all writes of group {group} that only node {discard} has?", yes, as_json)
    here.replicator("pair.resync", **_pair(group, peer), wait_s=120, **({"discard": discard} if discard else {}))
    emit(
        as_json,
        {"group": group, "discard": discard},
        f"group {group}: resync asked; watch it: farstripe pair wait {_words(group, peer)} --progress",
    )


@pair.command()
@click.argument("group", shell_complete=names.pairs)
@PEER_ARGUMENT
@click.option("--local-only", is_flag=True, help="Do not ask the peer; for a peer that is gone for good.")
@yes_option
@json_option
@pass_node
def delete(here: Node, group: str, peer: str | None, local_only: bool, yes: bool, as_json: bool) -> None:
    """End the pair of GROUP (with PEER) on both nodes; its other pairs stay, and so do volumes and what is in them."""
    with_peer = f" with {peer}" if peer else ""
    confirm(f"End the pair of group {group}{with_peer}? A new pair begins with a full copy.", yes, as_json)
    extra = {"local_only": True} if local_only else {}
    done = here.replicator("pair.delete", **_pair(group, peer), wait_s=120, **extra)
    note = f"; note: {done['peer_note']}" if done.get("peer_note") else ""
    emit(as_json, {"group": group, "deleted": True, **done}, f"group {group} is not paired{with_peer} any more{note}")


@pair.command()
@click.argument("group", shell_complete=names.pairs)
@PEER_ARGUMENT
@click.option(
    "--state",
    default="ok",
    show_default=True,
    metavar="STATE",
    help="ok: records flow and the copy is consistent. sync: every write waits for the peer. equal: everything written "
    "is applied there. Also connected, disconnected, primary, secondary, or a word of `farstripe status`.",
)
@click.option("--timeout", "timeout_s", type=SecondsType(0), default=DEFAULT_WAIT_S, show_default=True,
              metavar="SECONDS", help="Give up waiting after this.")  # fmt: skip
@click.option("--progress", "show_progress", is_flag=True, help="Show how the copy goes.")
@json_option
@pass_node
def wait(
    here: Node, group: str, peer: str | None, state: str, timeout_s: float, show_progress: bool, as_json: bool
) -> None:
    """Wait until the pair of GROUP (with PEER) is in a state.

    Exit code 11 when it is not in time; 4, at once and with what to do, in a state that only an operator can end.
    """
    latest: dict[str, Any] = {}
    patience = _Patience(state)
    which = _pair(group, peer)
    first = here.replicator("pair.show", **which)
    total = first.get("todo_bytes") or None

    def look() -> progress.Look:
        nonlocal latest
        try:
            latest = here.replicator("pair.wait", **which, state=state, timeout_s=SLICE_S)
            return progress.Look(True, 0, total, latest["word"])
        except TimedOut:
            latest = here.replicator("pair.show", **which)
            patience.check(latest)
            if state.lower() == "equal":
                patience.check_stands(latest)
            left = latest.get("todo_bytes") if latest["word"] in ("COPY", "RECOVERING") else None
            return progress.Look(False, left, None, latest["word"])

    progress.wait(look, f"group {group}", timeout_s, show_progress and not as_json, pause_s=0)
    emit(as_json, latest, f"group {group} is {latest['word']}")


class _Patience:
    """Ends the wait for `state` in a state that does not pass by itself, or for a copy that stands.

    Not where connections or roles are waited for, which an operator on the other node may be about to change, nor where
    the wanted state is such a one itself.
    """

    def __init__(self, state: str) -> None:
        word = state.upper()
        in_vain = {row.word for row in TABLE if row.operator}
        self._endless = word not in in_vain | {"DISCONNECTED", "PRIMARY", "SECONDARY"}
        self._seen, self._since, self._stands_since = "", 0.0, 0.0

    def check(self, pair: dict[str, Any]) -> None:
        """Raise Refused, with what `farstripe explain` says, when nothing but an operator can end the state."""
        word = pair["word"] if pair.get("operator") else ""
        if word != self._seen:
            self._seen, self._since = word, time.monotonic()
        if word and self._endless and time.monotonic() - self._since >= SETTLE_S:
            commands = "".join(f"; {command}" for command in pair["commands"])
            raise Refused(
                f"group {pair['name']} is {word}, which only an operator can end: {pair['why']}; {pair['means']}",
                f"{pair['then']}{commands}",
            )

    def check_stands(self, pair: dict[str, Any]) -> None:
        """Raise Refused when the copy stands at a marker and has not everything: it follows when it is resumed."""
        stands = pair["lag_applied"] and pair.get("stands_at")
        if not stands or pair["word"] not in ("PAIR", "SYNC"):
            self._stands_since = 0.0
            return
        self._stands_since = self._stands_since or time.monotonic()
        if time.monotonic() - self._stands_since >= SETTLE_S:
            here = pair["feeds_us"]
            where = "the copy here" if here else f"the copy on {pair['peer_name']}"
            raise Refused(
                f"{where} stands at a marker (record {stands}), {pair['lag_applied']} records behind, and follows only "
                "when it is resumed",
                f"farstripe marker resume --groups {pair['name']}" + ("" if here else f"  (on {pair['peer_name']})"),
            )
