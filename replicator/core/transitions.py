"""States of a pair's session and the table of its transitions. Everything that may happen, and nothing else, is here.

One session runs on each node of a pair. The table does not know which side we are: the states do. A (state, input)
pair that is not in the table is an error and changes nothing: for a frame the peer broke the protocol, for anything
else we did.

An entry names the handler (a method of session.Session) and every state it may leave the session in.
docs/SESSION.md is generated from this table.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """What a session is doing."""

    DOWN = "down"  # no link; waiting for the back-off to end or for the peer to call
    DIALLING = "dialling"  # waiting for the shell's attempt to connect
    ASKING = "asking"  # link up; asking our own target for the facts of our HELLO
    HELLO = "hello"  # our HELLO is sent, waiting for the peer's
    VERDICT = "verdict"  # our verdict is sent, waiting for the peer's
    STEPPING_DOWN = "stepping-down"  # our target gives up the primary role, then we connect again
    PROMOTING = "promoting"  # our target becomes primary (takeover, or the end of a switchover)
    COLLECTING = "collecting"  # copy source: waiting for the peer's bitmaps
    PLANNING = "planning"  # copy source: our target joins both sides' bitmaps into the list of blocks to copy
    EXTENDING = "extending"  # copy source in the middle of a tree: the primary adds these blocks to its copy list
    OFFERED = "offered"  # copy source: ATTACH is sent, waiting for the peer to have it durably
    MAPPING = "mapping"  # copy target: reading our bitmaps
    AWAITING = "awaiting"  # copy target: bitmaps are sent, waiting for ATTACH
    ADOPTING = "adopting"  # copy target: our target makes the ATTACH durable
    COPY_SOURCE = "copy-source"  # records flow out, the copy is not complete
    COPY_TARGET = "copy-target"  # records flow in, the copy is inconsistent until SYNCED is applied
    SOURCE = "source"  # records flow out, the copy is complete and behind by the lag
    SYNC_SOURCE = "sync-source"  # the same, and every write waits for the peer
    TARGET = "target"  # records flow in, the copy is consistent
    HOLDING = "holding"  # switchover, old primary: our target parks new writes
    DRAINING = "draining"  # switchover, old primary: waiting until the peer has everything durably
    YIELDING = "yielding"  # switchover, old primary: our target becomes secondary durably
    HANDED = "handed"  # switchover, old primary: HANDOVER is sent, waiting for the new primary
    WAITING = "waiting"  # link up, nothing to ship: split by the operator, or no primary
    REFUSED = "refused"  # link up, and the handshake says that only the operator can decide
    STOPPED = "stopped"  # our journal takes nothing; nothing is tried until the operator asks for a resync


class Input(enum.Enum):
    """Kinds of input the table distinguishes."""

    LINK_UP = "link up"
    LINK_DOWN = "link down"
    TICK = "tick"
    REPLY = "reply"  # the awaited answer of our target
    FAILED = "failed"  # our target answered with an error
    ACKED = "acked"
    DATA_STOPPED = "data stopped"
    HELLO = "frame hello"
    VERDICT = "frame verdict"
    BITMAP = "frame bitmap"
    ATTACH = "frame attach"
    ATTACHED = "frame attached"
    COPIED = "frame copied"
    HANDOVER = "frame handover"
    TAKEN = "frame taken"
    SPLIT = "frame split"
    RESYNC = "frame resync"
    PING = "frame ping"
    PONG = "frame pong"
    CMD_SPLIT = "command split"
    CMD_RESYNC = "command resync"
    CMD_SWITCHOVER = "command switchover"
    CMD_TAKEOVER = "command takeover"


S, I = State, Input  # noqa: E741  # the table reads better with one letter

LINKED = (
    S.ASKING, S.HELLO, S.VERDICT, S.COLLECTING, S.PLANNING, S.EXTENDING, S.OFFERED, S.MAPPING, S.AWAITING, S.ADOPTING,
    S.COPY_SOURCE, S.COPY_TARGET, S.SOURCE, S.SYNC_SOURCE, S.TARGET, S.WAITING, S.REFUSED,
)  # fmt: skip
"""States with a link and nothing irrevocable in progress: the link may go, or the operator may change his mind."""

SHIPPING = frozenset({S.COPY_SOURCE, S.SOURCE, S.SYNC_SOURCE, S.HOLDING, S.DRAINING})
"""States in which StartShipping is in force."""

RECEIVING = frozenset({S.COPY_TARGET, S.TARGET})
"""States in which StartReceiving is in force."""

COMPLETE = frozenset({S.SOURCE, S.SYNC_SOURCE})
"""States in which the peer holds a complete copy of ours."""

CLAIMING = RECEIVING | {S.MAPPING, S.AWAITING, S.ADOPTING, S.PROMOTING}
"""States in which no other session of this node may append to the group's journal."""

GREETING = (S.ASKING, S.HELLO, S.VERDICT, S.COLLECTING, S.OFFERED, S.AWAITING)
"""Waiting for the peer, or for a quick answer of our target."""
ASKED = (S.PLANNING, S.EXTENDING, S.MAPPING, S.ADOPTING)
"""Waiting for a target or for nodes above, which may take long."""
FLOWING = (S.COPY_SOURCE, S.COPY_TARGET, S.SOURCE, S.SYNC_SOURCE, S.TARGET)
"""Records flow."""
SWITCHING = (S.HOLDING, S.DRAINING, S.YIELDING, S.HANDED)
BUSY = (S.STEPPING_DOWN, S.PROMOTING)
UNLINKED = (S.DOWN, S.DIALLING, S.STOPPED)

Row = tuple[str, tuple[State, ...]]


def _rows(
    states: tuple[State, ...], what: Input, handler: str, *to: State, stays: bool = False
) -> dict[tuple[State, Input], Row]:
    """The same row for several states. The state may stay as it is when there is no `to`, or with `stays`."""
    return {(state, what): (handler, (state, *to) if stays or not to else to) for state in states}


TRANSITIONS: dict[tuple[State, Input], Row] = {
    # A link comes and goes.
    **_rows((S.DOWN, S.DIALLING), I.LINK_UP, "link_up", S.ASKING),
    **_rows((*BUSY, S.YIELDING, S.STOPPED), I.LINK_UP, "turn_away"),
    **_rows((S.DIALLING,), I.LINK_DOWN, "link_failed", S.DOWN),
    **_rows(LINKED, I.LINK_DOWN, "link_lost", S.DOWN),
    **_rows((S.HOLDING, S.DRAINING), I.LINK_DOWN, "switchover_link_lost", S.DOWN),
    **_rows((S.YIELDING,), I.LINK_DOWN, "link_lost_while_busy"),
    **_rows((S.HANDED,), I.LINK_DOWN, "link_lost", S.DOWN),
    # Time.
    **_rows((S.DOWN,), I.TICK, "dial", S.DIALLING, stays=True),
    **_rows((S.DIALLING,), I.TICK, "nothing"),
    **_rows(GREETING, I.TICK, "watch_handshake", S.DOWN, stays=True),
    **_rows((*ASKED, S.YIELDING, *BUSY, S.STOPPED), I.TICK, "watch_link_only", S.DOWN, stays=True),
    **_rows((S.WAITING, S.REFUSED), I.TICK, "watch_idle", S.DOWN, stays=True),
    **_rows(FLOWING, I.TICK, "watch_flow", S.DOWN, stays=True),
    **_rows((S.HOLDING, S.DRAINING), I.TICK, "watch_switchover", S.DOWN, S.SOURCE, stays=True),
    **_rows((S.HANDED,), I.TICK, "watch_handed", S.DOWN, stays=True),
    # The handshake.
    **_rows((S.ASKING,), I.HELLO, "keep_hello"),
    **_rows((S.ASKING,), I.REPLY, "say_hello", S.HELLO, S.VERDICT, S.DOWN),
    **_rows((S.HELLO,), I.HELLO, "judge", S.VERDICT, S.DOWN),
    **_rows(
        (S.VERDICT,), I.VERDICT, "act", S.REFUSED, S.WAITING, S.STEPPING_DOWN, S.PROMOTING, S.SOURCE, S.TARGET,
        S.COPY_SOURCE, S.COPY_TARGET, S.COLLECTING, S.MAPPING, S.DOWN,
    ),
    **_rows((S.STEPPING_DOWN,), I.REPLY, "stepped_down", S.DOWN),
    **_rows((S.STEPPING_DOWN,), I.FAILED, "busy_failed", S.DOWN),
    **_rows((S.ASKING, S.PLANNING, S.EXTENDING, S.MAPPING, S.ADOPTING), I.FAILED, "target_failed", S.DOWN),
    # A copy by difference.
    **_rows((S.MAPPING,), I.REPLY, "send_bitmaps", S.AWAITING),
    **_rows((S.COLLECTING,), I.BITMAP, "collect_bitmap", S.PLANNING, stays=True),
    **_rows((S.PLANNING,), I.REPLY, "planned", S.OFFERED, S.EXTENDING),
    **_rows((S.EXTENDING,), I.REPLY, "extended", S.OFFERED, stays=True),
    **_rows((S.AWAITING,), I.ATTACH, "adopt", S.ADOPTING),
    **_rows((S.ADOPTING,), I.REPLY, "adopted", S.COPY_TARGET),
    **_rows((S.OFFERED,), I.ATTACHED, "start_copy", S.COPY_SOURCE),
    **_rows((S.COPY_TARGET,), I.REPLY, "copy_progress", S.TARGET, stays=True),
    **_rows((S.COPY_SOURCE,), I.COPIED, "copy_complete", S.SOURCE),
    # Records flow.
    **_rows((S.COPY_SOURCE, S.SYNC_SOURCE, S.HOLDING), I.ACKED, "acked"),
    **_rows((S.SOURCE,), I.ACKED, "acked", S.SYNC_SOURCE, stays=True),
    **_rows((S.DRAINING,), I.ACKED, "drained", S.YIELDING, stays=True),
    **_rows((S.COPY_SOURCE,), I.REPLY, "source_progress"),
    **_rows((S.SOURCE,), I.REPLY, "source_progress", S.SYNC_SOURCE, stays=True),
    **_rows((S.SYNC_SOURCE,), I.REPLY, "source_progress", S.SOURCE, stays=True),
    **_rows((S.TARGET,), I.REPLY, "target_progress"),
    **_rows(FLOWING, I.FAILED, "poll_failed"),
    **_rows(FLOWING, I.DATA_STOPPED, "data_stopped", S.DOWN, S.STOPPED),
    **_rows((S.HOLDING, S.DRAINING), I.DATA_STOPPED, "switchover_link_lost", S.DOWN),
    # Switchover.
    **_rows((S.SOURCE, S.SYNC_SOURCE), I.CMD_SWITCHOVER, "switchover", S.HOLDING, stays=True),
    **_rows(tuple(s for s in S if s not in (S.SOURCE, S.SYNC_SOURCE)), I.CMD_SWITCHOVER, "switchover_refused"),
    **_rows((S.HOLDING,), I.REPLY, "drain", S.DRAINING, S.YIELDING),
    **_rows((S.HOLDING,), I.FAILED, "hold_failed", S.SOURCE),
    **_rows((S.YIELDING,), I.REPLY, "yielded", S.HANDED, S.DOWN),
    **_rows((S.YIELDING,), I.FAILED, "yield_failed", S.DOWN),
    **_rows((S.TARGET,), I.HANDOVER, "take", S.PROMOTING),
    **_rows((S.HANDED,), I.TAKEN, "taken", S.DOWN),
    **_rows((S.PROMOTING,), I.REPLY, "promoted", S.DOWN),
    **_rows((S.PROMOTING,), I.FAILED, "busy_failed", S.DOWN),
    # The operator.
    **_rows((*LINKED, S.DOWN, S.DIALLING), I.CMD_SPLIT, "split", S.DOWN),
    **_rows((S.STOPPED,), I.CMD_SPLIT, "split_stopped"),
    **_rows((*LINKED, S.DOWN, S.DIALLING, S.STOPPED), I.CMD_RESYNC, "resync", S.DOWN),
    **_rows((*LINKED, S.DOWN, S.DIALLING, S.STOPPED), I.CMD_TAKEOVER, "takeover", S.PROMOTING, stays=True),
    **_rows((*SWITCHING, *BUSY), I.CMD_SPLIT, "busy_refused"),
    **_rows((*SWITCHING, *BUSY), I.CMD_RESYNC, "busy_refused"),
    **_rows((*SWITCHING, *BUSY), I.CMD_TAKEOVER, "busy_refused"),
    **_rows(LINKED, I.SPLIT, "peer_split", S.DOWN),
    **_rows(LINKED, I.RESYNC, "peer_resync", S.DOWN),
    **_rows((*SWITCHING, *BUSY), I.SPLIT, "nothing"),
    **_rows((*SWITCHING, *BUSY), I.RESYNC, "nothing"),
    # Heartbeats are welcome whenever there is a link.
    **_rows((*LINKED, *SWITCHING), I.PING, "ping"),
    **_rows((*LINKED, *SWITCHING), I.PONG, "pong"),
}  # fmt: skip
