"""Words of this project, each in a few sentences, for `farstripe explain WORD`. States have tables of their own."""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """What a word means, and commands that go with it."""

    text: str
    commands: tuple[str, ...] = ()


TERMS: dict[str, Term] = {
    "node": Term(
        "One host's farstripe: a target process, a replicator process and one state directory. Several nodes can "
        "live on one host, each with its own --state and --run.",
        ("farstripe node init NAME", "farstripe node status"),
    ),
    "target": Term(
        "The process that serves volumes by NBD and is the only one to open pool members. While it is away, "
        "attached devices wait; nothing that was flushed is lost.",
    ),
    "replicator": Term(
        "The process that talks to other nodes. It may die at any time: asynchronous groups go on, synchronous "
        "ones do what their policy says, and it carries on from the journal.",
    ),
    "pool": Term(
        "RAID groups, each of members (files, disks or NBD exports). A node has one pool.",
        ("farstripe pool status",),
    ),
    "away": Term(
        "A member that vanished or was stopped in order. What it missed is remembered, so it can be taken back by "
        "copying only that.",
        ("farstripe pool readd MEMBER",),
    ),
    "spare": Term(
        "A file, disk or NBD export that waits in the pool and takes the place of a member that is lost, by itself.",
        ("farstripe pool spare add MEMBER", "farstripe pool spare list"),
    ),
    "volume": Term(
        "A block device in the pool, served by NBD under its name. Thin: it takes space at the first write.",
        ("farstripe volume list", "farstripe attach VOLUME"),
    ),
    "group": Term(
        "Volumes that share one journal and one write order, and are paired as one. The copy of a group is at "
        "every moment what the group was at some earlier moment, across all its volumes.",
        ("farstripe group create NAME VOLUME...",),
    ),
    "pair": Term(
        "A group here and its copy on a peer. One side is primary (hosts write to it), the other secondary (it "
        "follows and can only be read).",
        ("farstripe pair create GROUP --peer NAME", "farstripe status"),
    ),
    "tree": Term(
        "All nodes of a group with several pairs. The primary is its top; every other node is fed by one peer, and may "
        "feed others. Where that is so on both sides it is called a relay: it passes on what it receives, and a "
        "synchronous one answers only for what the synchronous peers below it have as well.",
        ("farstripe status GROUP", "farstripe pair list"),
    ),
    "set": Term(
        "Groups of one primary node whose copies are applied only as far as everything has arrived in all of them, so "
        "that "
        "together they hold one instant. A group whose link is down holds the others.",
        ("farstripe set create NAME GROUP...", "farstripe set list"),
    ),
    "marker": Term(
        "One named instant over groups of any nodes. Writes are held for a moment while every group's sequence gets "
        "it; "
        "each copy keeps an image of it.",
        ("farstripe marker create NAME --groups GROUP,GROUP@NODE", "farstripe marker list"),
    ),
    "write time": Term(
        "When a write was accepted, by its node's clock, made unique: it rises in the order of all writes of the node, "
        "whatever the clock does. Copies keep it.",
        ("farstripe status",),
    ),
    "journal": Term(
        "A ring that holds every write of a group in order until the peer has it durably and it is in the pool. "
        "Its size divided by the write rate is how long the peer may be away before order is given up for a "
        "bitmap.",
    ),
    "bitmap": Term(
        "Which 64-KiB blocks changed since some position. When the journal no longer reaches back to where a peer "
        "stopped, the blocks that either side's bitmap names are copied instead: a difference, not the whole "
        "volume. During such a copy the secondary is not consistent.",
    ),
    "record": Term(
        "One write (or zero, trim, copied block, marker) in the journal, with its seq, epoch and time.",
    ),
    "seq": Term(
        "A record's position in its group's write order. It rises by one; both sides speak of the same seq.",
    ),
    "epoch": Term(
        "The history a record belongs to. A side that becomes primary opens a new one; comparing the lists of "
        "epochs tells two nodes at once whether one is behind, or both went on by themselves (split brain), and "
        "from where.",
    ),
    "retention": Term(
        "What a secondary keeps of the bytes that it overwrites (pre-images), in a ring of a size that you choose. As "
        "far "
        "back as it reaches, the group can be shown as of any record, time or marker, exactly, while replication goes "
        "on.",
        ("farstripe group retention GROUP --bytes 20G", "farstripe snapshot GROUP --at -5min"),
    ),
    "kept-image": Term(
        "Snapshots of the last consistent image of a copy, taken when a resync begins, if there is room, and removed "
        "when "
        "it is complete. While the copy is a mixture of two instants, they are what can be used.",
        ("farstripe status", "farstripe volume clone SNAPSHOT NAME", "farstripe group retention GROUP --no-keep-image"),
    ),
    "sync": Term(
        "A mode: a write is answered when the peer has it too, in memory (ack receive) or on stable storage (ack "
        "durable). Nothing acknowledged is lost with this node, unless the group is degraded, which status shows.",
        ("farstripe group policy GROUP --mode sync",),
    ),
    "async": Term(
        "A mode: a write is answered at once and sent behind, in exact order. If this node is lost, the newest "
        "writes are lost with it; status shows how many.",
        ("farstripe group policy GROUP --mode async",),
    ),
    "degraded": Term(
        "A synchronous group whose peer was silent for --loss-timeout, with policy degrade: writes are answered "
        "without the peer. This is durable and visible before the first such answer. It ends by itself when the "
        "peer has caught up.",
    ),
    "scrub": Term(
        "Reading everything in a RAID group and comparing its members. What cannot be read, or does not fit its "
        "checksum, is written anew from the others. A mismatch, where all can be read, tells that a member is wrong "
        "but not which; RAID-6 can locate one, and --repair makes parity or copies agree.",
        ("farstripe pool scrub --wait", "farstripe pool scrub --repair", "farstripe pool status"),
    ),
    "checksums": Term(
        "A CRC32C of every block of a RAID group, kept beside the data. A disk that gives wrong bytes without an "
        "error is found at every read, and the block is repaired from the other members; on RAID-0 the read fails. "
        "Chosen when the pool is made. Errors are counted for each member: replace one that has more and more.",
        ("farstripe pool create NAME raid6 MEMBER... --checksums", "farstripe pool replace OLD NEW"),
    ),
    "rpo": Term(
        "How much would be lost if the primary vanished now, in writes, bytes and seconds. It is as true as the "
        "last contact: without a link it only grows, and what cannot be known is shown as unknown.",
        ("farstripe status",),
    ),
    "switchover": Term(
        "Exchange roles as planned: writers are held, the rest is drained to the peer, then it becomes primary. "
        "Nothing is lost. Run it on either side while both are up.",
        ("farstripe switchover GROUP",),
    ),
    "takeover": Term(
        "Make this side primary because the other is gone. What had not arrived is lost; the command says how much "
        "first. When the old primary comes back it becomes secondary and is resynced by difference.",
        ("farstripe takeover GROUP",),
    ),
    "resync": Term(
        "Bring a copy up again by difference: from the journal where it reaches back far enough, else by the "
        "bitmaps. Acknowledged writes of a former primary are given up only when you name that node with "
        "--discard.",
        ("farstripe pair resync GROUP",),
    ),
    "split": Term(
        "Stop a pair on purpose, for example to keep the copy as it is during a risky change. What changes "
        "meanwhile is tracked, so the resync is a difference.",
        ("farstripe pair split GROUP", "farstripe pair resync GROUP"),
    ),
    "split-brain": Term(
        "Both sides took writes of hosts after they lost each other. Nothing is merged or overwritten by itself: "
        "look at both, decide, and name the side to give up.",
        ("farstripe pair show GROUP", "farstripe pair resync GROUP --discard NODE"),
    ),
}
