"""farstripe pair budget, farstripe metrics: how much may be lost with the primary, and all numbers for monitoring."""

from __future__ import annotations

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, json_option
from replicator.cli.status import lost_text
from replicator.cli.units import SecondsType, SizeType, format_duration, format_size
from replicator.core.errors import BadInput


@click.command()
@click.argument("group", shell_complete=names.pairs)
@click.argument("peer", required=False, shell_complete=names.peers)
@click.option("--seconds", type=SecondsType(0), metavar="SECONDS", help="Writes of so many seconds.")
@click.option("--bytes", "size", type=SizeType(), metavar="SIZE", help="So much of the journal.")
@click.option("--writes", type=click.IntRange(0), metavar="N", help="So many writes.")
@click.option("--off", is_flag=True, help="Have no budget any more.")
@json_option
@pass_node
def budget(
    here: Node,
    group: str,
    peer: str | None,
    seconds: float | None,
    size: int | None,
    writes: int | None,
    off: bool,
    as_json: bool,
) -> None:
    """Show or set how much may be lost with the primary of GROUP (its RPO), where PEER has the copy, before it is a
    warning.

    With options the budget is what they say and nothing else. When more would be lost, or nobody has known for half a
    minute how much, the event rpo.exceeded is noted, `farstripe status` says so, and the metric
    farstripe_rpo_budget_exceeded is 1, until it is 80 % of the budget or less. Each node watches its own budget: set it
    on the primary, and also on the secondary, which outlives the primary. Writers are never slowed by it.
    """
    wanted = {"seconds": seconds, "bytes": size, "writes": writes}
    given = any(limit is not None for limit in wanted.values())
    if off and given:
        raise BadInput("--off goes with no limit", "give limits, or --off")
    change: dict[str, float | int | None] | None = {} if off else wanted if given else None
    found = here.replicator("pair.budget", group=group, peer=peer, budget=change)
    where = f"copy here, fed by {found['peer']}" if found.get("copy_here") else f"copy on {found['peer']}"
    emit(as_json, found, f"group {found['group']}, {where}: would be lost: {lost_text(found['rpo'])}; "
         f"budget: {budget_text(found['budget'])}")  # fmt: skip


def budget_text(limits: dict[str, float | int | None]) -> str:
    """Return a budget in words."""
    parts = []
    if limits.get("writes") is not None:
        parts.append(f"{limits['writes']} writes")
    if limits.get("bytes") is not None:
        parts.append(format_size(int(limits["bytes"] or 0)))
    if limits.get("seconds") is not None:
        parts.append(format_duration(limits["seconds"]))
    return ", ".join(parts) or "none"


@click.command()
@json_option
@pass_node
def metrics(here: Node, as_json: bool) -> None:
    """Print this node's metrics as Prometheus text: pool, groups, journals, pairs and what would be lost.

    For node_exporter write it to a file of its textfile collector, now and then; or let the replicator serve it by
    HTTP: farstripe node init --metrics-port.
    """
    text = here.replicator("metrics.text", wait_s=30)["text"]
    if not as_json:
        click.echo(text, nl=False)
        return
    from prometheus_client.parser import text_string_to_metric_families  # slow, and hardly ever asked for

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    emit(True, [{"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in samples])
