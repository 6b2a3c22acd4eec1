"""Names for shell completion, asked of the node; a node that does not answer at once completes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from replicator.cli.access import Node
from replicator.core.errors import FarstripeError

TIMEOUT_S = 1.0
Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _completer(find: Callable[[Node], Iterable[str]]) -> Completer:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        given = ctx.find_root().params
        node = Node(state=given["state"], run=given["run"], timeout_s=TIMEOUT_S)
        try:
            return sorted(name for name in set(find(node)) if name.startswith(incomplete))
        except FarstripeError:
            return []

    return complete


def _attached(node: Node) -> list[str]:
    from replicator.attach import spawn  # only completion needs it, every command loads this module

    return [str(one[key]) for one in spawn.listing(str(node.run)) for key in ("device", "volume")]


def _members(node: Node) -> list[str]:
    groups: list[dict[str, Any]] = node.target("pool.status")["groups"]
    return [str(member["path"]) for group in groups for member in group["members"]]


def _explained(node: Node) -> list[str]:
    """Groups, and what there is of the pool if there is one."""
    found = [str(one["name"]) for one in node.target("group.list")]
    try:
        return found + [str(one["name"]) for one in node.target("pool.status")["groups"]] + _members(node)
    except FarstripeError:
        return found


volumes = _completer(lambda node: [str(one["name"]) for one in node.target("volume.list")])
groups = _completer(lambda node: [str(one["name"]) for one in node.target("group.list")])
pairs = _completer(lambda node: [str(one["name"]) for one in node.replicator("pair.list")])
peers = _completer(lambda node: [str(one["name"]) for one in node.replicator("peer.list")])
members = _completer(_members)
raid_groups = _completer(lambda node: [str(one["name"]) for one in node.target("pool.status")["groups"]])
attached = _completer(_attached)
explained = _completer(_explained)
