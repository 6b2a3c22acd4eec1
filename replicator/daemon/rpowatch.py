"""Watches the pairs that have a budget for what may be lost, and notes when it is exceeded and when it is met again.

One thread for all pairs; it asks as `farstripe status` does, every LOOK_S and only while a pair has a budget. What it
found last is part of the pair's view, so status, JSON, metrics and events say the same.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from replicator.core.rpo import Verdict, Watch, budget_from
from replicator.daemon import pairview

if TYPE_CHECKING:
    from replicator.daemon.node import Node

LOOK_S = 1.0


class RpoWatch:
    """The budgets of one node's pairs."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._watches: dict[tuple[str, str], Watch] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rpo-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Compare every pair that has a budget with it, and note what changed."""
        budgets = {(p.group, p.peer): budget_from(p.budget) for p in self._node.pairs.store.all() if p.budget}
        for gone in set(self._watches) - set(budgets):
            del self._watches[gone]
            self._node.rpo_verdicts.pop(gone, None)
        if not budgets:
            return
        for view in pairview.view_all(self._node):
            key = (view["group"], view["peer"])
            if key not in budgets:
                continue
            watch = self._watches.setdefault(key, Watch())
            verdict = self._node.rpo_verdicts[key] = watch.look(budgets[key], view["rpo"], now)
            if verdict.news:
                self._note(view, verdict)

    def _note(self, view: dict[str, Any], verdict: Verdict) -> None:
        on = self._node.config.name if view["feeds_us"] else view["peer_name"]
        where = f"{view['name']}: the copy on {on}"
        if verdict.exceeded:
            kind, text = "rpo.exceeded", f"{where} is beyond its budget: {'; '.join(verdict.reasons)}"
        else:
            kind, text = "rpo.met", f"{where} is within its budget again"
        rpo = view["rpo"]
        self._node.events.add(
            kind, text, group=view["name"], peer=view["peer_name"],
            writes=rpo["writes"], bytes=rpo["bytes"], seconds=rpo["seconds"], bound=rpo["bound"],
        )  # fmt: skip
