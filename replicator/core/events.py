"""What goes into a pair's session, what comes out, and the control frames on the wire.

`Session.handle(event, now)` returns a list of effects. The shell (the link thread, or the simulator) carries them out
in the order of the list; an effect is begun only when the one before it has returned. Nothing here does I/O. `now`
and all deadlines are seconds of a monotonic clock.

The shell's duties, beside carrying out effects:
  * Give each new connection a link number, rising, never reused while the process lives, and put it on every event of
    that connection. The session drops events of any other link, so late frames of an old connection do no harm.
  * Call handle(Tick(...), now) when `session.next_deadline()` has passed.
  * When handle() raises ProtocolError (NotExpected is one) for a FrameIn: close the connection, report LinkDown.
  * CloseLink after Send: the frames sent before are delivered if the peer reads them (half-close, linger a little).
  * Data frames and acks do not pass through the session. While a StartShipping is in force the shell reads the journal
    and sends runs; while a StartReceiving is in force it takes runs, appends, syncs and acknowledges. A data frame that
    arrives while no StartReceiving is in force is dropped.
  * Report acks with Acked, at most once per poll round (the newest is enough).
  * Answer each AskTarget with exactly one Reply of the same token, also when the target cannot be reached.
  * A node may have several sessions for one group, one an edge. At most one of them may append to the group's journal,
    or have it emptied (`session.claims`). The shell knows which: it grants ClaimJournal, and lets go of the claim as
    soon as `session.claims` is False. group.promote is asked only when no other session claims.

Control frames are msgpack maps with the key "t":

    t          sent by        fields
    hello      both           see hello.py
    verdict    both           label, lead, acts, c, from_seq, full
    bitmap     copy target    volume, start (null: unknown, all blocks), bits (numpy packbits, little), last (bool)
    attach     copy source    p, c, epoch, hist, masks {volume: bits}, full, volumes (as group.begin_copy or
                              group.pin_copy returned them), rewound (the same; may be missing), copy_id,
                              synced_after (the SYNCED that ends the copy has a higher seq)
    attached   copy target    copy_id
    copied     copy target    seq (applied and durable position that includes SYNCED)
    handover   old primary    seq, epoch (the old primary is durably a secondary; everything up to seq is yours)
    taken      new primary    epoch, base
    split      either         reason
    resync     either         discard ("" or node id), epoch (newest of that node): connect again with what the operator
                              wants
    ping       both           seq (own position), role, state (of the session), tree_durable (up to here the journal is
                              durable and applied on this node and on all below it), feeds (node ids of the other
                              nodes that the sender feeds), stands (seq of the marker that its copy stands at, else
                              0), kept (seq of the image that it keeps during a copy, else 0); may be missing: names
                              {node id: name}, copies {node id: seq} (below the sender, those that hold a complete
                              copy, as last heard), refused {peer, label, cause} of another pair; in a ping: instance
                              (the process), full_s (seconds for which its journal has had no room)
    pong       both           the same
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A connection to the peer stands and is authenticated."""

    link: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection ended, or could not be made (link 0)."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A decoded control frame arrived."""

    link: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Acked:
    """The peer acknowledged: seqs it has received, made durable and applied. Comes to the shipping side."""

    link: int
    received: int
    durable: int
    applied: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to AskTarget. `error` is None or a short message; `result` is the map the control op returns."""

    token: int
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A user's wish; ops in session.COMMANDS. `id` comes back in Answer."""

    id: int
    op: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. `last_rx` is when bytes last came from the peer on this link (0.0 before the first). `quiet`:
    nothing of the group has changed here for some seconds, so nobody needs to look often. `rests`: and another link to
    the same process of the peer carries the heartbeat; `pulse` is when that process was last heard."""

    last_rx: float = 0.0
    quiet: bool = False
    rests: bool = False
    pulse: float = 0.0


@dataclass(frozen=True, slots=True)
class DataStopped:
    """Shipping or receiving cannot go on: the wanted record left the journal ("journal"), bytes from the peer are not a
    valid run ("peer"), a record to be shipped cannot be read, or is not what was written ("damaged": the target sees to
    it), or our own journal failed ("medium": not retried, the pair stops until the operator acts).

    off, seq: when damaged, a place in the journal in bytes and the record that lies there; the damage is there or
    behind.
    """

    link: int
    cause: str
    message: str
    off: int = 0
    seq: int = 0


Event = LinkUp | LinkDown | FrameIn | Acked | Reply | Command | Tick | DataStopped


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to connect now; answer with LinkUp or LinkDown(0, reason). Only given to the side that dials."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a control frame on the current link, after everything sent before it."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Close the current connection. No LinkDown is wanted for it; events of that link are ignored from here on."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskTarget:
    """Call `op` on the target's control socket ("group" and "peer" are added to `args` by the shell). Answered by
    Reply(token); for token 0 nobody waits, but calls are made in the order they were asked. An `op` that begins with
    "pair." goes to the replicator of the node that feeds this one, which passes it on until a primary carries it out.

    Durable: what the target's op promises; the session continues only after the Reply, so a frame that follows it in
    a later effect list is sent after the promise holds.
    """

    token: int
    op: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartShipping:
    """Send journal records from seq `from_seq` on, and go on until StopShipping, CloseLink or LinkDown.

    incarnation: that of the journal which is meant, 0 for the present one; when it is another by now the shell reports
    DataStopped instead.
    """

    from_seq: int
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class StopShipping:
    """Send no more records."""


@dataclass(frozen=True, slots=True)
class StartReceiving:
    """Take runs whose first new record is `expect_seq`; records of an epoch below `min_epoch` are refused.

    Durable: a received_seq is acknowledged once the run is in the journal, a durable_seq once the journal was synced.
    """

    expect_seq: int
    min_epoch: int


@dataclass(frozen=True, slots=True)
class ClaimJournal:
    """From here on only this session may append to the group's journal on this node. Granted when no other session had
    it since this link's group.status was asked; else the shell takes it away from the other one and closes this link,
    because what our HELLO said may have moved."""


@dataclass(frozen=True, slots=True)
class StopReceiving:
    """Take no more runs; those already appended stay."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the pair's configuration with these keys changed.

    Durable: on stable storage before the next effect is begun.
    """

    changes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of Command `id`. `error` is None on success, else {message, way_out, exit_code}."""

    id: int
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """An entry for the event list: `name` is stable, `detail` holds numbers and labels."""

    name: str
    detail: dict[str, Any] = field(default_factory=dict)


Effect = (
    Dial
    | Send
    | CloseLink
    | AskTarget
    | StartShipping
    | StopShipping
    | StartReceiving
    | ClaimJournal
    | StopReceiving
    | Persist
    | Answer
    | Log
)
