"""The options that set how a group treats its peer; shared by `pair create` and `group policy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from replicator.cli.units import SecondsType
from replicator.core.errors import Refused

_OPTIONS = (
    click.option("--mode", type=click.Choice(["async", "sync"]),
                 help="sync: a write is answered once the peer has it too. async: at once, in exact order behind. "
                 "At first: async. A further pair that leaves it out has the group's, which its first pair set."),
    click.option("--ack", type=click.Choice(["receive", "durable"]),
                 help="What sync waits for: the peer holds the write in memory, or on stable storage. "
                 "At first: receive."),
    click.option("--on-loss", type=click.Choice(["stall", "degrade"]),
                 help="sync, and the peer is silent for --loss-timeout. stall: writes fail, nothing exists once only. "
                 "degrade: writes go on here alone, visibly. At first: degrade."),
    click.option("--loss-timeout", "loss_timeout_s", type=SecondsType(0), metavar="SECONDS",
                 help="How long a write waits for a silent peer; 0: for ever. At first: 5."),
    click.option("--on-full", type=click.Choice(["stall", "bitmap", "fail"]),
                 help="The journal is full. bitmap: give up order and count differences; the copy keeps its last "
                 "consistent moment until the resync. stall: writes wait, and fail after --full-timeout while a peer "
                 "that lacks the oldest records is away. fail: they fail at once. At first: bitmap."),
    click.option("--retain", type=click.Choice(["durable", "applied"]),
                 help="How long a record stays in the journal: until every peer has it on stable storage, or in its "
                 "volumes, so that a peer whose journal breaks can be sent it again. At first: durable."),
    click.option("--warn", "warn_percent", type=click.FloatRange(0, 100), metavar="PERCENT",
                 help="An event when so much of the journal is used; 0: none. At first: 80."),
    click.option("--full-timeout", "full_timeout_s", type=SecondsType(0), metavar="SECONDS",
                 help="How long a write waits for room in the journal; 0: for ever. At first: 10."),
)  # fmt: skip

KEYS = ("mode", "ack", "on_loss", "loss_timeout_s", "on_full", "full_timeout_s", "retain", "warn_percent")


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the policy options; the command gets them by the names in KEYS, None where not given."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return what the user set."""
    return {key: values[key] for key in KEYS if values.get(key) is not None}


def check_settable(status: dict[str, Any], changes: dict[str, Any], peer_id: str) -> None:
    """Raise Refused for what a copy takes from the node that feeds it, and would lose at the next contact.

    status: group.status; peer_id: of the pair that is meant, "" for none. A copy decides the mode of pairs it feeds.
    """
    upstream = status.get("upstream")
    if status.get("role") != "secondary" or not upstream:
        return
    foreign = [key for key in changes if key != "mode" or peer_id in ("", upstream)]
    if foreign:
        raise Refused(
            f"group {status['name']} is secondary here and gets {', '.join(foreign)} from the primary",
            "set it on the primary; here only --mode, of a pair that this node feeds: name that peer",
        )


def text(policy: dict[str, Any] | None) -> str:
    """Return a policy in words."""
    if not policy:
        return "unknown"
    mode = str(policy.get("mode", "unknown"))
    if mode == "sync":
        mode += f" ({policy.get('ack', 'unknown')}, {policy.get('on_loss', 'unknown')} on loss)"
    return mode
