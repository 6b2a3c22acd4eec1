"""How other threads talk to a pair's thread: a box they put things in, an eventfd that wakes it, futures for answers.

Events of the session go through as they are; the other items are between threads only.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from replicator.core.errors import FarstripeError, InternalError, PeerError, TimedOut, from_map
from replicator.core.events import Answer, Command, Event
from replicator.daemon.link.connection import Connection


@dataclass
class Incoming:
    """A connection that another thread has made and authenticated: a new link, or `more` for the one that stands."""

    conn: Connection
    more: bool = False


class Knock:
    """The peer asks to be called."""


class Retune:
    """The pair's transfer settings were changed."""


class LookAgain:
    """What a waiting pair waits for may have come: compare again."""


class Stir:
    """The link that carries the heartbeat of this one has ended, or hears nothing."""


class Evicted:
    """Another pair of the group claims its journal."""


@dataclass
class Query:
    """A question about the session, answered in its thread."""

    future: Future[dict[str, Any]] = field(default_factory=Future)


Item = Event | Incoming | Knock | LookAgain | Stir | Evicted | Retune | Query


class Mailbox:
    """The box of one pair's thread. `take`, `answer` and `close` are that thread's; the rest is anybody's."""

    def __init__(self, name: str) -> None:
        """name: of the pair, for errors."""
        self._name = name
        self._items: deque[Item] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False
        self._why: FarstripeError | None = None
        self._commands: dict[int, Future[dict[str, Any]]] = {}
        self._last_command = 0

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._fd

    # -- anybody ------------------------------------------------------------------------------------------------------

    def put(self, item: Item) -> None:
        """Leave `item` for the thread. Once it has ended, connections are closed and the rest is dropped."""
        with self._lock:
            if not self._closed:
                self._items.append(item)
                self._wake()
                return
        _refuse(item, self._gone())

    def wake(self) -> None:
        """Make the thread look around."""
        with self._lock:
            if not self._closed:
                self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)

    def command(self, op: str, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Leave a command and wait for its answer.

        Raises what the session answers, TimedOut when it does not in `timeout_s` seconds (it may still happen),
        PeerError when the pair is stopped.
        """
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._closed:
                raise self._gone()
            self._last_command += 1
            self._commands[self._last_command] = future
            self._items.append(Command(self._last_command, op, args))
            self._wake()
        return self._result(future, op, timeout_s)

    def query(self, timeout_s: float) -> dict[str, Any]:
        """Ask for the session's facts. Raises TimedOut, PeerError when the pair is stopped."""
        query = Query()
        self.put(query)
        return self._result(query.future, "a look at it", timeout_s)

    def _result(self, future: Future[dict[str, Any]], what: str, timeout_s: float) -> dict[str, Any]:
        try:
            return future.result(timeout_s)
        except TimeoutError as exc:
            raise TimedOut(f"pair {self._name}: no outcome of {what} after {timeout_s:g} s") from exc

    def _gone(self) -> FarstripeError:
        return self._why or PeerError(f"pair {self._name} was stopped", "look at it again")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def take(self) -> Iterator[Item]:
        """Yield what is in the box, also what is put in meanwhile."""
        while self._items:
            yield self._items.popleft()

    def clear_wake(self) -> None:
        """Take the wake-ups so far back; look into the box AFTER this."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def answer(self, answer: Answer) -> None:
        """Give a command its answer."""
        with self._lock:
            future = self._commands.pop(answer.id, None)
        if future is None:
            return
        if answer.error is None:
            future.set_result(answer.result)
        else:
            future.set_exception(_as_error(answer.error))

    def close(self, why: FarstripeError | None = None) -> None:
        """The thread ends: fail what is open, refuse what comes; with the error that ended it, if there was one."""
        with self._lock:
            self._closed, self._why = True, why
            items, self._items = self._items, deque()
            futures, self._commands = list(self._commands.values()), {}
            os.close(self._fd)
        for future in futures:
            future.set_exception(self._gone())
        for item in items:
            _refuse(item, self._gone())


def _refuse(item: Item, error: FarstripeError) -> None:
    if isinstance(item, Query):
        item.future.set_exception(error)
    elif isinstance(item, Incoming):
        item.conn.close(gently=False)


def _as_error(error: dict[str, Any]) -> FarstripeError:
    try:
        return from_map(error)
    except (TypeError, ValueError):
        return InternalError(str(error))
