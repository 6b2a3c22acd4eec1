"""The session of one pair on one node: from "no link" to "in sync", and through split, resync, switchover and takeover.

The idea: one state, one literal table (transitions.py), one handler a row. A handler returns effects (events.py) and
the next state; it does no I/O. The same object runs under the replicator's link thread and under the simulator.

Invariants:
  * An input that the table does not know in this state raises NotExpected and changes nothing.
  * Events of a former link, and replies to questions no longer open, are dropped before they reach the table.
  * Nothing is shipped or received before both sides computed the same verdict from the same two HELLOs.
  * A copy target states its bitmaps only after it is durably a secondary, and takes records only after the ATTACH is
    durable; it says COPIED only after its target reported the copy complete (SYNCED applied and durable).
  * HANDOVER is sent only after the old primary is durably a secondary and the peer holds everything durably.

The data path (runs, acks, journal) and the loss policy of waiting writers are not here: the shell moves runs, the
target's engine decides about writers and is only told when the link begins and ends to carry records.

    base.py       variables, constants and tools of all handlers
    links.py      links that come and go, time, heartbeats
    greeting.py   the handshake
    flowing.py    copies by difference, flowing records
    switching.py  switchover
    operating.py  split, resync, takeover
    machine.py    the session: `handle`
"""

from replicator.core.session.base import (
    CONSENT_S,
    DEAD_S,
    HANDSHAKE_S,
    QUIET_SLACK_S,
    NotExpected,
)
from replicator.core.session.machine import COMMANDS, Session

__all__ = ["COMMANDS", "CONSENT_S", "DEAD_S", "HANDSHAKE_S", "QUIET_SLACK_S", "NotExpected", "Session"]
