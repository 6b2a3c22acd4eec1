"""What goes up a group's tree: a node in the middle asks whoever feeds it, until a primary answers.

Only the primary makes records. So a copy that a secondary feeds to a peer of its own needs the primary to append the
blocks, in their place in the write order; all copies on the way pass them on, and each takes what it lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replicator.control import ControlClient
from replicator.core.errors import PeerError, Refused
from replicator.daemon import rpc
from replicator.daemon.peers import PeerStore
from replicator.daemon.tls import Contexts

TARGET_S = 60.0
ABOVE_S = 90.0
MAX_HOPS = 16
"""A tree is not deeper than a group has nodes; a question that has gone so far goes round in a circle."""


def extend_copy(
    run_dir: Path, contexts: Contexts, peers: PeerStore, group: str, args: dict[str, Any]
) -> dict[str, Any]:
    """Add the blocks of a copy to the primary's list. args: copy_id, masks (None: every block), hops.

    Returns {seq, epoch}: their copies, and the SYNCED that ends them, come after it in this epoch. Durable on return:
    the primary's list. Raises what the primary or a node on the way answers, PeerError when one cannot be reached.
    """
    hops = int(args.get("hops", 0))
    wanted = {"copy_id": str(args["copy_id"]), "masks": args["masks"]}
    with ControlClient(run_dir / "target.sock", TARGET_S) as target:
        status = target.call("group.status", group=group)
        if status["role"] == "primary":
            found: dict[str, Any] = target.call("group.extend_copy", group=group, **wanted)
            target.call("group.resume_copy", group=group)
            return found
    if hops >= MAX_HOPS:
        raise Refused("the question went through more nodes than a group can have", "see 'farstripe pair list' there")
    above = peers.get(str(status.get("upstream") or ""))
    if above is None:
        raise PeerError("no node feeds this one just now, so the primary cannot be asked", "it asks again by itself")
    return dict(rpc.call(contexts, above, "pair.extend_copy", {"group": group, **wanted, "hops": hops + 1}, ABOVE_S))
