"""The heartbeat that the quiet links to one peer share.

Every pair has a connection of its own, and a heartbeat on each of a hundred connections over which nothing else goes
costs more than it tells: they end in the same two processes. So of the quiet links to a process one, the carrier, beats
for all; the others rest and beat rarely, for the sake of whatever lies between the nodes and forgets silent
connections. A link that is not quiet any more stops resting at once, and beats and is judged by itself.

What is heard over one link counts for another only if both end in the same process: each process has a number, which
its heartbeats tell, so a peer that has restarted does not keep connections of its former life alive here. Each side
has a carrier of its own, and they need not be the same link. When the peer's process falls silent, or the carrier's
link ends, the links that rest are stirred: they look how long ago the process was heard, and ask it, or one of them
carries on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable


class Pulse:
    """What the links to one peer know of each other. Thread-safe; `who` names a link's thread."""

    def __init__(self, instance: str) -> None:
        """instance: names this process, told to the peer."""
        self.instance = instance
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        self._carriers: dict[str, Hashable] = {}
        self._members: dict[Hashable, tuple[str, Callable[[], None]]] = {}

    def beat(self, instance: str, now: float) -> None:
        """The peer's process `instance` was heard at `now`, in seconds of a monotonic clock."""
        with self._lock:
            self._heard[instance] = now

    def heard(self, instance: str) -> float:
        """When it was heard last, 0.0 for never."""
        return self._heard.get(instance, 0.0)

    def rests(self, who: Hashable, instance: str, stir: Callable[[], None]) -> bool:
        """Whether another link to `instance` beats for `who`, which is quiet; if there is none, `who` does from now on.

        stir: called, from any thread, when that other link has ended, or hears nothing any more.
        """
        with self._lock:
            self._members[who] = instance, stir
            return self._carriers.setdefault(instance, who) is not who

    def fails(self, who: Hashable) -> None:
        """`who`, which carries the heartbeat, hears nothing of the peer's process any more."""
        with self._lock:
            instance, _ = self._members.get(who, ("", None))
            if self._carriers.get(instance) is not who:
                return
            rest = [stir for other, (its, stir) in self._members.items() if its == instance and other is not who]
        for stir in rest:
            stir()

    def leave(self, who: Hashable) -> None:
        """The link of `who` has ended."""
        with self._lock:
            instance, _ = self._members.pop(who, ("", None))
            if not instance:
                return
            left = [stir for its, stir in self._members.values() if its == instance]
            carried = self._carriers.get(instance) is who
            if carried:
                del self._carriers[instance]
            if not left:
                self._heard.pop(instance, None)
        if carried:
            for stir in left:
                stir()
