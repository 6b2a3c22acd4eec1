"""Taking a secondary back to an image (of a marker, or of a set's cycle), so that it becomes primary there with the
others of that image.

The volumes get what their snapshots hold, the journal is emptied at the image's position, and the history ends
there. What was applied after it is given up as a forced takeover gives up what had not arrived; when the
former primary comes back, the blocks it holds beyond that position are copied back to it: every block that was
changed after it is marked in the bitmaps first.

What was given up is named in the history (`rewound`, see epochs.Rewound), from the epoch on that begins there: nodes
that hold it too, because they got it through this one, then follow without being asked for it. No other node's copy is
concerned: what this one never held nobody has given up.

In between the copy is inconsistent, durably (`copy` RESYNC with `rewind` set): nobody may use it, and the rewind is
done again from the start, which gives the same, for the snapshots stay. No SYNCED record that is in the journal, or
comes in, ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from replicator.capture import volumeset
from replicator.capture.engine import GroupEngine
from replicator.capture.limits import pending
from replicator.capture.state import NEVER, OK, RESYNC, SECONDARY
from replicator.core.errors import IntegrityError, Refused
from replicator.core.hello import MAX_DROPPED, MAX_REWOUND
from replicator.journal.beacons import look, publish
from replicator.journal.page import ARRIVED_GEN, BEACON_GEN, INCARNATION


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
            again = state.rewind if state.rewind is not None and state.rewind["seq"] == seq else None
            if state.copy != OK and again is None:
                raise Refused(f"the copy of group {state.name} is {state.copy}", "let the resync finish")
            step = again or {"seq": seq, "epoch": epoch, **_left_behind(engine, seq, epoch)}
            for index, ranges in changed.items():
                for offset, length in ranges:
                    volume_map = engine.bitmaps.maps[index]
                    volume_map.mark(engine.bitmaps.live, offset, min(length, volume_map.size - offset))
            engine.sync_pool()
            # NEVER: no SYNCED that a start finds in the journal again, over the images, may call this consistent
            engine.commit(copy=RESYNC, copy_id="", copy_from_seq=NEVER, floor=0, rewind=step)
        if engine.preimages is not None:
            engine.preimages.rewound(seq)
        restore()
        with engine.checkpoint_lock, engine.lock:
            hist = _kept(state.hist, seq, epoch)
            for slot in [slot for slot, start in state.bitmaps.items() if start > seq + 1]:
                del state.bitmaps[slot]
            if not state.bitmaps:
                engine.bitmaps.open(seq + 1)
            engine.bitmaps.refresh()
            engine.sync_pool()
            engine.journal.reset(seq, epoch)
            engine.waiting, engine.pending_epochs = None, []
            engine.last_host_seq = min(engine.last_host_seq, seq)
            engine.applied_in_part = 0  # the volumes hold the image
            engine.clock.note(look(engine.page.u64, ARRIVED_GEN).time_ns)  # what comes next is later than all of that
            publish(engine.page.u64, ARRIVED_GEN, 0, 0)
            publish(engine.page.u64, BEACON_GEN, 0, 0)
            rewound = _with(state.rewound, hist, step)
            engine.commit(copy=OK, floor=seq, hist=hist, rewind=None, rewound=rewound, source_durable=[])
            engine.page[INCARNATION] += 1


def _kept(hist: Sequence[Sequence[int]], seq: int, epoch: int) -> list[list[int]]:
    """The part of a history in which the records up to `seq` of `epoch` are."""
    return [list(entry) for entry in hist if entry[1] < seq and entry[0] <= epoch]


def _left_behind(engine: GroupEngine, seq: int, epoch: int) -> dict[str, Any]:
    """What this node holds after the marker: the rest of its line, with epochs of records that a limit held back.

    A new epoch will be newer than those, too: see limits.cut.
    """
    held_back: list[list[int]] = []
    with suppress(IntegrityError):  # what is given up may be damaged
        held_back = [[int(number), int(base)] for number, base in pending(engine).epochs]
    for number, _ in held_back:
        engine.note_epoch(number)
    known = {entry[0] for entry in engine.state.hist}
    hist = [*engine.state.hist, *(entry for entry in held_back if entry[0] not in known)]
    return {"dropped": [list(entry) for entry in hist[len(_kept(hist, seq, epoch)) :]], "pos": engine.pos}


def _with(rewound: Sequence[list[Any]], hist: Sequence[Sequence[int]], step: Mapping[str, Any]) -> list[list[Any]]:
    """The lines that were given up, with the one of this step; those that began after the marker are part of it."""
    left = next((line for line in rewound if line[0] == 0 and line[1] == step["seq"]), None)
    if left is not None and step.get("pos") == step["seq"] and not step.get("dropped"):
        return [list(line) for line in rewound]  # it stood there already: nothing more was given up
    kept = {entry[0] for entry in hist}
    earlier = [line for line in rewound if line[0] in kept]
    line = [0, step["seq"], step.get("dropped"), step.get("pos")]
    known = line[2] is not None and len(line[2]) <= MAX_DROPPED
    return [*earlier, *([line] if known else [])][-MAX_REWOUND:]
