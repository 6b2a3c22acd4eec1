"""Control operations on budgets for what may be lost, and on metrics. Used by the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replicator.core.rpo import Budget, budget_from
from replicator.daemon import pairview

if TYPE_CHECKING:
    from replicator.control import Handler
    from replicator.daemon.metrics import Metrics
    from replicator.daemon.node import Node


def handlers(node: Node, metrics: Metrics) -> dict[str, Handler]:
    """The operations, by name."""

    def budget(args: dict[str, Any]) -> dict[str, Any]:
        """Set (budget: a map), take away (budget: {}) or only show (no budget) a pair's budget. Durable: the budget."""
        pair = node.pairs.find(str(args["group"]), str(args.get("peer") or ""))
        if args.get("budget") is not None:
            wanted = {unit: limit for unit, limit in args["budget"].items() if limit is not None}
            budget_from(wanted)
            node.pairs.store.change(pair.key, {"budget": wanted})
            node.rpo_verdicts.pop(pair.key, None)
            pair = node.pairs.find(*pair.key)
        view = pairview.view(node, pair)
        limits = budget_from(pair.budget)
        shown = {unit: getattr(limits, unit) for unit in Budget._fields}
        here = bool(view["feeds_us"])
        return {"group": pair.name, "peer": view["peer_name"], "copy_here": here, "budget": shown, "rpo": view["rpo"]}

    return {"pair.budget": budget, "metrics.text": lambda args: {"text": metrics.text()}}
