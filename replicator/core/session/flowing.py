"""Handlers of a copy by difference and of flowing records, on both sides."""

from __future__ import annotations

from replicator.core.errors import ProtocolError
from replicator.core.events import Acked, DataStopped, Effect, FrameIn, Log, Reply, Send, StartShipping
from replicator.core.hello import of_shared, rewound_from, to_lists, wants_sync
from replicator.core.session.base import POLL_S, SYNC_LAG_RECORDS, Step
from replicator.core.session.greeting import Greeting
from replicator.core.transitions import State


class Flowing(Greeting):
    """Bitmaps, ATTACH, COPIED; catching up; in sync."""

    def _send_bitmaps(self, event: Reply, now: float) -> Step:
        """One frame a volume, so that no frame grows with the number of volumes."""
        bitmaps = event.result.get("volumes") or {}
        assert self.mine is not None
        frames: list[Effect] = []
        for index, *_ in self.mine.volumes:
            bits = bitmaps.get(index, bitmaps.get(str(index)))
            frames.append(Send({"t": "bitmap", "volume": index, "bits": bits, "last": False}))
        frames[-1].frame["last"] = True  # type: ignore[union-attr]  # it is a Send
        return State.AWAITING, frames

    def _collect_bitmap(self, event: FrameIn, now: float) -> Step:
        assert self.mine is not None and self.theirs is not None and self.decision is not None
        index, bits = event.frame.get("volume"), event.frame.get("bits")
        theirs = {volume[0] for volume in self.theirs.volumes}
        if not isinstance(index, int) or index not in theirs or not (bits is None or isinstance(bits, bytes)):
            raise ProtocolError(f"a bitmap of volume {index!r} that the peer does not have")
        bitmaps = {**self._bitmaps, index: bits}
        if not event.frame.get("last"):
            self._bitmaps = bitmaps
            return State.COLLECTING, []
        if set(bitmaps) != theirs:
            raise ProtocolError("the peer sent bitmaps of some volumes only")
        self._bitmaps = bitmaps
        unknown = self.decision.full or any(b is None for b in bitmaps.values())
        copy_id = f"{self._rng.getrandbits(64):016x}"
        ask = self._ask(
            "group.pin_copy" if self._relays else "group.begin_copy",
            c=None if self.decision.full else self.decision.c,
            peer_bitmaps=None if unknown else of_shared(self.mine, self.theirs, bitmaps),
            copy_id=copy_id,
        )
        self._copy = {"copy_id": copy_id}
        return State.PLANNING, [ask]

    @property
    def _relays(self) -> bool:
        """We are the source of this peer without being primary."""
        return self.mine is not None and self.mine.role != "primary"

    def _planned(self, event: Reply, now: float) -> Step:
        """Our target has the list. Below a relay it is the primary that appends the copies: it has to know it too."""
        assert self.decision is not None
        result = event.result
        self._pinned_in = int(result.get("incarnation", 0))
        self._copy = {
            "t": "attach",
            "copy_id": self._copy["copy_id"],
            "p": int(result["p"]),
            "c": self.decision.c,
            "epoch": int(result["epoch"]),
            "hist": [list(entry) for entry in result["hist"]],
            "masks": result["masks"],
            "full": bool(result["full"]),
            "synced_after": int(result["p"]),
            "synced_epoch": 0,
            "volumes": result["volumes"],
            "rewound": result.get("rewound") or [],
        }
        if not self._relays:
            return State.OFFERED, [Send(self._copy)]
        masks = None if result["full"] else result["masks"]
        return State.EXTENDING, [self._ask("pair.extend_copy", copy_id=self._copy["copy_id"], masks=masks)]

    def _extended(self, event: Reply, now: float) -> Step:
        """The primary's answer, then our target's: all copies of the extended list, and what ends it, come after
        seq."""
        if "seq" not in event.result:
            return State.OFFERED, [Send(self._copy)]
        seq = self._copy["synced_after"] = max(int(event.result["seq"]), self._copy["p"])
        epoch = self._copy["synced_epoch"] = int(event.result["epoch"])
        return State.EXTENDING, [self._ask("group.copy_until", copy_id=self._copy["copy_id"], seq=seq, epoch=epoch)]

    def _adopt(self, event: FrameIn, now: float) -> Step:
        assert self.decision is not None
        try:
            copy = {
                "p": int(event.frame["p"]),
                "c": self.decision.c,
                "epoch": int(event.frame["epoch"]),
                "hist": [[int(e), int(b)] for e, b in event.frame["hist"]],
                "masks": {int(volume): _bits(bits) for volume, bits in event.frame["masks"].items()},
                "copy_id": str(event.frame["copy_id"]),
                "full": bool(event.frame["full"]),
                "synced_after": int(event.frame["synced_after"]),
                "synced_epoch": int(event.frame["synced_epoch"]),
                "volumes": [dict(volume) for volume in event.frame["volumes"]],
                "rewound": to_lists(rewound_from(event.frame.get("rewound") or ())),
            }
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
            raise ProtocolError(f"the peer's attach is malformed: {exc}") from exc
        self._copy = copy
        theirs = self.theirs
        last_write = theirs.last_write if theirs is not None and theirs.pos == copy["p"] else None  # it goes by p then
        return State.ADOPTING, [self._ask("group.attach", last_write=last_write, **copy)]

    def _adopted(self, event: Reply, now: float) -> Step:
        offer = self._copy
        self.discard, self._ask_peer_resync = "", False
        self._next_poll = now + POLL_S
        return State.COPY_TARGET, [
            self._receive(offer["p"] + 1, offer["hist"]),
            Send({"t": "attached", "copy_id": offer["copy_id"]}),
            Log("copy-begun", {"from": self.peer, "p": offer["p"]}),
        ]

    def _start_copy(self, event: FrameIn, now: float) -> Step:
        if event.frame.get("copy_id") != self._copy["copy_id"]:
            raise ProtocolError("the peer attached to another copy")
        self.discard, self._ask_peer_resync = "", False
        self._next_poll = now + POLL_S
        return State.COPY_SOURCE, [
            self._tell("group.link", up=True),
            StartShipping(self._copy["p"] + 1, self._pinned_in),
            self._tell("group.resume_copy"),
            Log("copy-begun", {"to": self.peer, "p": self._copy["p"]}),
        ]

    def _copy_progress(self, event: Reply, now: float) -> Step:
        self.status = event.result
        if event.result.get("state") != "ok":
            return State.COPY_TARGET, []
        seq = int(event.result.get("durable", 0))
        return State.TARGET, [Send({"t": "copied", "seq": seq}), Log("copy-complete", {"seq": seq})]

    def _copy_complete(self, event: FrameIn, now: float) -> Step:
        self._next_poll = now
        return State.SOURCE, [Log("copy-complete", {"seq": event.frame.get("seq")})]

    def _acked(self, event: Acked, now: float) -> Step:
        self.acked = (event.received, event.durable, event.applied)
        if self.state is State.SOURCE and self._sync_seq and event.received >= self._sync_seq:
            self._sync_seq = 0
            return State.SYNC_SOURCE, [Log("in-sync", {"seq": event.received})]
        return self.state, []

    def _source_progress(self, event: Reply, now: float) -> Step:
        """Our target's status, or its answer to sync_on."""
        if "seq" in event.result and "role" not in event.result:
            self._sync_seq = max(1, int(event.result["seq"]))
            if self.acked[0] >= self._sync_seq:
                self._sync_seq = 0
                return State.SYNC_SOURCE, [Log("in-sync", {"seq": self.acked[0]})]
            return self.state, []
        self.status = event.result
        wants = wants_sync(event.result)
        if self.state is State.SYNC_SOURCE:
            if wants and event.result.get("sync_on"):
                return self.state, []
            return State.SOURCE, [Log("out-of-sync", {"degraded": bool(event.result.get("degraded"))})]
        if self.state is State.SOURCE and wants and not self._sync_seq:
            lag = int(event.result.get("pos", 0)) - self.acked[0]
            if lag <= SYNC_LAG_RECORDS:
                return self.state, [self._ask("group.sync_on", on=True)]
        return self.state, []

    def _target_progress(self, event: Reply, now: float) -> Step:
        self.status = event.result
        return self.state, []

    def _poll_failed(self, event: Reply, now: float) -> Step:
        """The target may be restarting; the journal carries the flow meanwhile."""
        return self.state, []

    def _data_stopped(self, event: DataStopped, now: float) -> Step:
        if event.cause == "damaged":
            told = self._tell("group.journal_damaged", off=event.off, seq=event.seq)
            state, effects = self._go_down(now, event.message, close=True, soon=False)
            return state, [told, *effects]
        state, effects = self._go_down(now, event.message, close=True, soon=event.cause == "journal")
        if event.cause == "medium":
            return State.STOPPED, [*effects, Log("stopped", {"reason": event.message})]
        return state, effects


def _bits(value: object) -> bytes:
    """A mask; of a number bytes() would make as many zeroes, however many."""
    if not isinstance(value, bytes):
        raise TypeError(f"a mask of type {type(value).__name__}")
    return value
