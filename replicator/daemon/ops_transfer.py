"""Control operation on how a pair moves its records.

    pair.set {group, peer?, connections?, transfer?, window?, compress?, limit?, schedule?}  -> pair

What is left out stays. See replicator.core.transfer for the settings and when they take effect, pairview.py for what is
shown of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from replicator.control import Handler
from replicator.core.errors import BadInput, Refused
from replicator.core.schedule import rate_text
from replicator.core.transfer import AUTO, KEYS, Transfer
from replicator.daemon import pairview
from replicator.daemon.node import Node

_COMPRESS = {"auto": AUTO, True: 1, False: 0}


def handlers(node: Node) -> dict[str, Handler]:
    """The operations, by name."""
    return {"pair.set": lambda args: change(node, args)}


def settings_from(args: dict[str, Any], base: Transfer) -> Transfer:
    """Return `base` with what `args` names changed. Raises BadInput."""
    given = {key: args[key] for key in KEYS if args.get(key) is not None}
    compress = given.get("compress")
    if isinstance(compress, str | bool):
        if compress not in _COMPRESS:
            raise BadInput(f"compress must be a zstd level or auto, not {compress!r}")
        given["compress"] = _COMPRESS[compress]
    return replace(base, **given)


def change(node: Node, args: dict[str, Any]) -> dict[str, Any]:
    """Change the settings of a pair on the side that ships. Durable here; the peer has them once there is a link.

    Raises Refused on the other side, whose settings are those that the shipping side states.
    """
    pair = node.pairs.find(str(args["group"]), str(args.get("peer") or ""))
    settings = settings_from(args, pair.settings)
    if settings == pair.settings and not any(args.get(key) is not None for key in KEYS):
        raise BadInput("nothing to set", f"name one of {', '.join(KEYS)}")
    if pairview.view(node, pair)["feeds_us"]:
        peer = node.pairs.name_of(pair.peer)
        raise Refused(
            f"{peer} feeds this node, and its settings hold for the pair of group {pair.name}",
            f"set it there: farstripe pair set {pair.name} {node.config.name}",
        )
    node.pairs.store.change(pair.key, settings.to_map())
    node.pairs.retune(pair)
    peer = node.pairs.name_of(pair.peer)
    node.events.add("pair.set", f"group {pair.name} to {peer}: {text(settings)}", group=pair.name)
    return pairview.view(node, node.pairs.store.get(*pair.key) or pair)


def text(settings: Transfer) -> str:
    """Settings in words."""
    compress = {0: "not compressed", AUTO: "compressed where it gains"}.get(
        settings.compress, f"compressed by zstd {settings.compress}"
    )
    several = f"{settings.connections} connections" if settings.connections > 1 else "one connection"
    limit = f"limit {rate_text(settings.limit)}" + (f", schedule {settings.schedule}" if settings.schedule else "")
    return f"{settings.transfer} over {several}, {compress}, {limit}"
