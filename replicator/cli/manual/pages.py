"""What the pages say beside commands and examples, written by hand: the overview, notes on nouns, files.

An item is a paragraph, or a pair of a term and what it means.
"""

from __future__ import annotations

from replicator.cli.access import DEFAULT_RUN, DEFAULT_STATE

Item = str | tuple[str, str]

INTRODUCTION: tuple[Item, ...] = (
    "farstripe pools files or disks into RAID groups, carves volumes from the pool, serves them by NBD, and carries "
    "every write to another host: synchronously, or asynchronously in exact write order through a journal. When a host "
    "dies the other one takes over with a consistent image; when it returns, only differences are copied. No kernel "
    "module of its own is needed.",
    "A host runs a node, which is two processes: the target serves volumes and owns the pool, the replicator talks to "
    "other nodes. Volumes that belong together form a group, which has one journal and one write order. A pair is a "
    "group on one node (the primary, which hosts write to) and its copy on a peer (the secondary, which follows).",
    "Every command asks these processes by their control sockets, so it runs on the node's host as the user that owns "
    "them, as a rule root. Several nodes can live on one host: give each its own --state and --run, before the "
    "command.",
    "The answer goes to standard output; errors, questions, notes and progress go to standard error. An error names "
    "the thing and a way out. With --json a command prints one JSON document, and an error as one on standard error.",
    "Before something is done that cannot be taken back the command asks; where nobody can answer, it refuses. --yes "
    "answers the question and overrides no refusal. --force overrides one refusal, which the help of its command "
    "names.",
    "Sizes are bytes, or a number with K, M, G, T or P, which are powers of 1024: 4096, 512M, 1.5G.",
)

NOTES: dict[str, tuple[Item, ...]] = {
    "environment": (
        ("FARSTRIPE_STATE", "The node's durable directory, where --state is not given."),
        ("FARSTRIPE_RUN", "The node's directory for sockets, pids and logs, where --run is not given."),
        ("FARSTRIPE_DEBUG", "When it is set and not empty, a defect of ours (exit code 1) shows its traceback."),
        ("FARSTRIPE_PARITY", "Of the target: `numpy` computes parity without the ISA-L library."),
    ),
    "states": (
        "The words that `farstripe status` shows for a group, as `farstripe explain` tells them; after them the "
        "conditions that it may show besides, as remarks.",
    ),
    "node": (
        "On a host with systemd the units farstripe-target.service and farstripe-replicator.service run the two "
        "processes, farstripe-attach@VOLUME.service keeps a volume attached, and farstripe-scrub.timer scrubs the pool "
        "once a month.",
    ),
    "volume": (
        "A volume that is in no group is not replicated. Snapshots and clones share the space of what they were taken "
        "from until either side is overwritten.",
    ),
    "set": (
        "Write times of one node rise in the order in which its writes depend on each other; those of two nodes cannot "
        "be compared. So a set lives on one primary node, and markers serve across nodes.",
        "With --order counter every record carries its number in the set, which `group journal log` shows. After a "
        "crash of the primary there may be numbers that no record has; each group is told so by a record of its own, "
        "and copies pass over them once they have it from every group. All nodes of the groups have to run a version "
        "that knows numbers.",
    ),
    "marker": (
        "Commands given with --before and --after are run by the shell of the coordinating node, as the user that the "
        "replicator runs as, with FARSTRIPE_MARKER in their environment, and are killed after 30 seconds. To mark what "
        "a filesystem has flushed, freeze it before and thaw it after.",
        "With --hold hosts every host that was linked by `marker host add` and writes to one of the groups is asked to "
        "stop its writes. The command of a host is run by the shell of the coordinating node, for all hosts at once, "
        "with FARSTRIPE_MARKER and FARSTRIPE_HOLD_S, the seconds of --deadline, in its environment. It prints a line "
        "`held` when writes have stopped, reads a line `release`, and prints `released` and ends with 0 if they were "
        "stopped all the time. The deadline counts from the first host that holds. A marker is refused when one host "
        "does not confirm, when anything is written to the groups between the last confirmation and the marker, and "
        "when one host does not confirm at the end; all hosts are released in any case. For a client of a database the "
        "command may be a session that locks its tables.",
        "A schedule makes at most eight markers more than it keeps while copies are behind or away; then it waits "
        "until older ones are complete and deleted, and `marker list` says so.",
        "Snapshots of a marker are named VOLUME.MARKER and are volumes like others: they can be read, and cloned.",
    ),
    "pair": (
        "Where the two sides stand to each other is settled each time they meet, from the histories both keep. "
        "Nothing that a host was told is stored is given up without the name of the node it is on: see `pair resync "
        "--discard`.",
    ),
}

FILES: dict[str, tuple[Item, ...]] = {
    "farstripe": (
        (f"{DEFAULT_STATE}/", "The state directory: everything that has to outlive the machine. Keep it on a medium "
         "that honours fsync."),
        (f"{DEFAULT_STATE}/node.json", "The node's name, id, addresses and ports."),
        (f"{DEFAULT_STATE}/pool.json", "Where the members of the pool were last; their superblocks say what they are."),
        (f"{DEFAULT_STATE}/groups/", "Of each group: state, bitmaps, and the journal unless it was put elsewhere."),
        (f"{DEFAULT_STATE}/keys/, peers/, pairs/", "The node's certificate and key, the peers it trusts, its pairs."),
        (f"{DEFAULT_RUN}/", "The run directory: sockets, pids, logs. It lies on tmpfs and is made anew after a boot."),
        (f"{DEFAULT_RUN}/nbd.sock", "Where NBD clients on this host connect; a volume's name is its export name."),
        (f"{DEFAULT_RUN}/target.log, replicator.log", "Logs of processes that `farstripe node start` started."),
    ),
    "node": (
        (f"{DEFAULT_STATE}/node.json", "What `node init` wrote. Addresses, ports and threads may be changed by hand; "
         "the processes read them when they start."),
        (f"{DEFAULT_RUN}/target.log, replicator.log", "What the two processes had to say."),
    ),
    "pool": ((f"{DEFAULT_STATE}/pool.json", "Paths at which the members were last."),),
    "group": ((f"{DEFAULT_STATE}/groups/", "A directory for each group, with its journal unless --journal-path named "
               "another place."),),
    "peer": (
        (f"{DEFAULT_STATE}/keys/", "This node's private key and certificate; readable by its owner only."),
        (f"{DEFAULT_STATE}/peers/", "Names, addresses and certificates of the peers."),
    ),
    "set": (
        (f"{DEFAULT_STATE}/sets/", "Each set: its groups, and the time up to which their copies go."),
        (f"{DEFAULT_STATE}/cycles/", "Of each set: the images that its cycles have taken on this node."),
    ),
    "marker": (
        (f"{DEFAULT_STATE}/markers/", "The markers and schedules of this node as coordinator."),
        (f"{DEFAULT_STATE}/groups/UUID/markers", "What a group's copy has of which marker."),
    ),
    "pair": ((f"{DEFAULT_STATE}/pairs/", "Which group is paired with whom. Positions are in the group's state."),),
    "verbs": (
        ("/dev/nbd*", "The devices. The kernel's nbd module must be loaded: modprobe nbd."),
        (f"{DEFAULT_RUN}/attach/", "What is attached on this host, and the supervisors' log."),
        ("/etc/farstripe/attach/VOLUME.conf", "Options of farstripe-attach@VOLUME.service."),
    ),
}  # fmt: skip
