"""A thread that asks the target: control calls may take seconds (a promotion applies what was received), and the link
thread must not wait for them. Questions of one pair are answered in order. Those that begin with "pair." go up the
tree.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replicator.control import ControlClient
from replicator.core.errors import DaemonNotRunning, FarstripeError
from replicator.core.events import AskTarget, Reply

CALL_TIMEOUT_S = 120.0
CLAIM_S = 5.0
"""For a pair of the same group that still receives to let go of the journal, before this node is made primary."""


class Asker:
    """Carries out AskTarget effects for one group."""

    def __init__(
        self,
        target_socket: Path,
        group: str,
        peer: str,
        answer: Callable[[Reply], None],
        ask_above: Callable[[str, dict[str, Any]], Any],
        claim: Callable[[float], bool],
    ) -> None:
        """peer: node id; says which edge of the group is meant. answer: called from this thread with each Reply that
        somebody waits for (token other than 0).

        ask_above(op, args): asks the node that feeds this one; raises a FarstripeError. claim(timeout_s): sees to it
        that no other pair of the group appends to the journal.
        """
        self._ask_above, self._claim = ask_above, claim
        self._client = ControlClient(target_socket, CALL_TIMEOUT_S)
        self._group, self._peer = group, peer
        self._answer = answer
        self._queue: queue.SimpleQueue[AskTarget | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)
        self._thread.start()

    def ask(self, question: AskTarget) -> None:
        """Queue a question; returns at once."""
        self._queue.put(question)

    def stop(self) -> None:
        """End the thread after the question it is at."""
        self._queue.put(None)
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            self._client.close()

    def _run(self) -> None:
        while (question := self._queue.get()) is not None:
            reply = self._carry_out(question)
            if question.token:
                self._answer(reply)

    def _carry_out(self, question: AskTarget) -> Reply:
        try:
            if question.op == "group.promote" and not self._claim(CLAIM_S):
                return Reply(question.token, error="another peer still feeds this group")
            result: Any
            if question.op.startswith("pair."):
                result = self._ask_above(question.op, question.args)
            else:
                result = self._client.call(question.op, group=self._group, peer=self._peer, **question.args)
        except DaemonNotRunning as exc:
            return Reply(question.token, error=f"the target does not answer: {exc.message}")
        except FarstripeError as exc:
            return Reply(question.token, error=exc.message)
        except Exception as exc:  # a result that is no map, a frame that cannot be built: the session must hear of it
            return Reply(question.token, error=f"{type(exc).__name__}: {exc}")
        return Reply(question.token, result=result if isinstance(result, dict) else {})
