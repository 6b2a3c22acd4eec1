"""Taking a secondary back to an image (of a marker, or of a set's cycle), so that it becomes primary there with the
others of that image.

The volumes get what their snapshots hold, the journal is emptied at the image's position, and the history ends
there. What was applied after it is given up as a forced takeover gives up what had not arrived; when the
former primary comes back, the blocks it holds beyond that position are copied back to it: every block that was
changed after it is marked in the bitmaps first.

In between the copy is inconsistent, durably (`copy` RESYNC with `rewind` set): nobody may use it, and the rewind is
done again from the start, which gives the same, for the snapshots stay. No SYNCED record that is in the journal, or
comes in, ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from replicator.capture import volumeset
from replicator.capture.engine import GroupEngine
from replicator.capture.follower import NEVER
from replicator.capture.state import OK, RESYNC, SECONDARY
from replicator.core.errors import Refused
from replicator.journal.beacons import publish
from replicator.journal.page import ARRIVED_GEN, INCARNATION


def rewind(
    engine: GroupEngine,
    seq: int,
    epoch: int,
    changed: Mapping[int, Sequence[tuple[int, int]]],
    restore: Callable[[], None],
) -> None:
    """Go back to position `seq` of `epoch`. Nothing is being received.

    changed: volume index -> (offset, length) ranges in which volume and image differ. restore: gives the volumes their
    images, durably. Raises Refused when this copy is not consistent; what `restore` raises leaves it inconsistent.
    Durable on return: contents and position.
    """
    with engine.apply_lock:
        state = engine.state
        with engine.checkpoint_lock, engine.lock:
            if state.role != SECONDARY:
                raise Refused(f"group {state.name} is primary here", "only a secondary goes back to a marker")
            if seq < volumeset.passes_over(state)[1]:
                raise Refused(f"the volumes of group {state.name} were changed since", "take over without the marker")
            again = state.rewind is not None and state.rewind["seq"] == seq
            if state.copy != OK and not again:
                raise Refused(f"the copy of group {state.name} is {state.copy}", "let the resync finish")
            for index, ranges in changed.items():
                for offset, length in ranges:
                    volume_map = engine.bitmaps.maps[index]
                    volume_map.mark(engine.bitmaps.live, offset, min(length, volume_map.size - offset))
            engine.sync_pool()
            back = {"seq": seq, "epoch": epoch}
            engine.commit(copy=RESYNC, copy_id="", copy_from_seq=NEVER, floor=0, rewind=back)
        if engine.preimages is not None:
            engine.preimages.rewound(seq)
        restore()
        with engine.checkpoint_lock, engine.lock:
            hist = [entry for entry in state.hist if entry[1] < seq and entry[0] <= epoch]
            for slot in [slot for slot, start in state.bitmaps.items() if start > seq + 1]:
                del state.bitmaps[slot]
            if not state.bitmaps:
                engine.bitmaps.open(seq + 1)
            engine.bitmaps.refresh()
            engine.sync_pool()
            engine.journal.reset(seq, epoch)
            engine.waiting, engine.pending_epochs = None, []
            engine.last_host_seq = min(engine.last_host_seq, seq)
            publish(engine.page.u64, ARRIVED_GEN, 0, 0)
            engine.commit(copy=OK, floor=seq, hist=hist, rewind=None)
            engine.page[INCARNATION] += 1
