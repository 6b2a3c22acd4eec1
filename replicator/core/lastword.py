"""What the node that feeds this one said last of how far the group is, and how much of that is missing here.

Only the primary knows how far it is; everybody else knows what it said, and when. So a number of missing records is
true as of that moment, and later a limit from below: the primary may have gone on. Records that lie here and cannot be
taken in are a sign of more, whatever was said.

    BEAT          head seq, last seq sent, and bytes of journal behind what was sent
    beacon in it  "all that was written up to this time, by the primary's clock, has a seq up to this one"; passed on
                  by a node in the middle, which knows no more of the primary's head

How old the word is, the beacon tells: a BEAT may have lain in a buffer behind records for as long as they were not
taken. The clocks of two nodes are not compared. The beacon that came soonest after its time shows how they differ, by
the time it travelled at most; a later one that comes later than that has waited for so long. So an age is too small by
the shortest travel, and never by more; a beacon that a node in the middle passes on waits there for the next BEAT,
which counts as travel: a second or two. The primary's first one is new: it goes before all records. A node in the middle
may pass on what it heard long ago, a beacon or two; of it nothing is known before NEWER of them have come, each newer
than the one before.

Bytes are exact where all that was sent before the BEAT was here when it came (one connection); else some of it is on
its way, nobody has counted it, and what is known is a limit from below.

Pure: times are seconds of a monotonic clock and come in.
"""

from __future__ import annotations

from typing import Any

from replicator.core.records import HEADER_BYTES

Facts = dict[str, Any]
NEWER = 3


class LastWord:
    """What was heard over one link, and since."""

    def __init__(self, epoch: int = 0) -> None:
        """epoch: the one in which the records that are received begin."""
        self.epoch = epoch
        self._head_seq = self._sent_seq = self._unsent_bytes = 0
        self._held = 0, 0
        """What was here when the last BEAT came: seq, and offset in the journal."""
        self._beacon_ns = 0
        self._apart_s: float | None = None
        """Our clock less the primary's, and the shortest travel of a beacon."""
        self._newer = -1
        """So many beacons were newer than the one before."""

    def of(self, epoch: int) -> LastWord:
        """Begin anew for another link. While nobody else has become primary, its clock is still known."""
        fresh = LastWord(epoch)
        if epoch == self.epoch:
            fresh._apart_s, fresh._newer = self._apart_s, self._newer
        return fresh

    def heard(self, beat: tuple[int, int, int, int, int], held_seq: int, held_off: int, now: float) -> None:
        """Take in a BEAT (head seq, unsent bytes, seq and time of a beacon, last seq sent). held_seq, held_off: what is
        here without a gap, and where the journal ends."""
        self._head_seq, self._unsent_bytes, _, time_ns, self._sent_seq = beat
        self._held = held_seq, held_off
        if time_ns:
            apart_s = now - time_ns / 1e9
            self._apart_s = apart_s if self._apart_s is None else min(self._apart_s, apart_s)
            self._newer += time_ns > self._beacon_ns
            self._beacon_ns = max(self._beacon_ns, time_ns)

    @property
    def head_seq(self) -> int:
        """The last record that it has said there is, 0 when it said nothing."""
        return max(self._head_seq, self._sent_seq)

    def age_s(self, now: float) -> float | None:
        """Seconds since the primary stated what is known of it, None when nothing came."""
        if not self._beacon_ns or self._apart_s is None:
            return None
        return max(0.0, now - self._beacon_ns / 1e9 - self._apart_s)

    def facts(self, held_seq: int, held_off: int, arrived: tuple[int, int], now: float) -> Facts:
        """Say what is known to be missing at `now`: {writes, bytes, whole, more, age_s, newer}.

        arrived: the last record that is known to exist because it, or a later one, lies here and is not taken yet, and
        how many bytes do; 0, 0 for none. writes, bytes: of journal, that are missing of what is known to exist; both
        are exact if `whole`, else at least so many. more: records lie here. age_s: as age_s(); true of a node in the
        middle only if a `newer` beacon has come after the first.
        """
        arrived_seq, arrived_bytes = arrived
        taken = max(0, held_off - self._held[1])
        writes = max(0, max(self.head_seq, arrived_seq) - held_seq)
        counted = max(0, self._unsent_bytes - taken) if writes else 0
        age_s = self.age_s(now)
        return {
            "writes": writes,
            "bytes": max(counted, arrived_bytes if writes else 0, writes * HEADER_BYTES),
            "whole": not writes or (self._held[0] >= self._sent_seq and self._head_seq >= arrived_seq),
            "more": arrived_seq > held_seq,
            "age_s": None if age_s is None else round(age_s, 3),
            "newer": self._newer >= NEWER,
        }
