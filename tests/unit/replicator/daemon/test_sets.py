"""A takeover of a set that was decided is finished, group by group, as far as it can be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from replicator.core.errors import Refused
from replicator.daemon import ops_role
from replicator.daemon.sets import Sets


class Bench:
    """A node whose target holds groups a, b and c; a takeover of one in `refuses` is refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.roles = dict.fromkeys("abc", "secondary")
        self.refuses: set[str] = set()
        self.asked: list[tuple[str, Any]] = []
        node: Any = SimpleNamespace(target=self._target)
        self.sets = Sets(node)
        monkeypatch.setattr(ops_role, "takeover", self._takeover)
        self.one = {"name": "shop", "groups": [{"uuid": uuid} for uuid in "abc"]}

    def _target(self, op: str, timeout_s: float, group: str) -> dict[str, str]:
        assert op == "group.status"
        return {"role": self.roles[group]}

    def _takeover(self, node: Any, args: dict[str, Any]) -> None:
        self.asked.append((args["group"], args.get("cycle")))
        if args["group"] in self.refuses:
            raise Refused(f"group {args['group']} cannot be taken just now")
        self.roles[args["group"]] = "primary"


def test_a_group_that_cannot_be_taken_just_now_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.refuses = {"a"}
    with pytest.raises(Refused, match="group a"):
        bench.sets._finish(bench.one, 0)
    assert bench.roles == {"a": "secondary", "b": "primary", "c": "primary"}
    bench.refuses.clear()
    bench.sets._finish(bench.one, 0)
    assert bench.asked == [("a", None), ("b", None), ("c", None), ("a", None)]


def test_what_is_finished_goes_back_to_the_image_that_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.roles["b"] = "primary"
    bench.sets._finish(bench.one, 7)
    assert bench.asked == [(uuid, {"set": "shop", "n": 7}) for uuid in "ac"]
