"""Worked examples, by page. A line may begin with a host's prompt; a test runs every farstripe line through the parser.

Throughout, alpha and beta are two nodes, and group `shop` has the volumes `web` and `data`.
"""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """What it is for, the lines to type, and what then happens."""

    what: str
    lines: tuple[str, ...]
    happens: str


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "set": (
        Example(
            "Two groups whose copies belong together, and the loss of their primary.",
            (
                "alpha# farstripe set create all shop books",
                "beta# farstripe set list",
                "beta# farstripe set takeover all",
            ),
            "The list shows as of when both copies are consistent and for which group the other one waits. The "
            "takeover makes beta primary of both at the same instant.",
        ),
        Example(
            "An image of both groups each minute, to read on the copy, and to go back to.",
            (
                "alpha# farstripe set cycle all --every 60 --keep 5",
                "beta# farstripe set images all",
                "beta# farstripe set takeover all --cycle",
            ),
            "Each image is a snapshot of every volume, such as data.all-17, all of one instant. The takeover goes back "
            "to the newest; without --cycle it would go on to the latest instant that both copies reach.",
        ),
    ),
    "marker": (
        Example(
            "An image of one instant over two nodes, with a filesystem frozen meanwhile.",
            (
                "alpha# farstripe marker create monday --groups shop,books@gamma --before 'fsfreeze -f /srv' "
                "--after 'fsfreeze -u /srv'",
                "alpha# farstripe marker wait monday",
                "alpha# farstripe marker show monday",
            ),
            "Every copy keeps snapshots such as data.monday. Should a node not answer within two seconds, no marker is "
            "made and all writes go on.",
        ),
        Example(
            "A marker for which two hosts freeze their filesystems, each by a connection of its own.",
            (
                "alpha# farstripe marker host add web1 --groups shop --run 'ssh web1 farstripe-freeze --seconds "
                "$FARSTRIPE_HOLD_S /srv'",
                "alpha# farstripe marker host add db1 --groups books@gamma --run 'ssh db1 farstripe-freeze --seconds "
                "$FARSTRIPE_HOLD_S /var/lib/db'",
                "alpha# farstripe marker host test web1",
                "alpha# farstripe marker create tuesday --groups shop,books@gamma --hold hosts --deadline 10",
            ),
            "Both filesystems are frozen at the same moment, for ten seconds at most. Should one not be, or thaw "
            "before the marker is in both groups, or anything else write to them, no marker is made. The script is "
            "copied to the hosts from scripts/farstripe-freeze.",
        ),
        Example(
            "The same from a node that knows neither primary: delta has a copy of shop from beta, and gamma is its "
            "peer.",
            (
                "delta# farstripe marker create tuesday --groups shop,books@gamma --received",
                "delta# farstripe marker wait tuesday",
            ),
            "delta asks beta, and beta asks alpha, which is primary of shop. If gamma only has a copy of books, it "
            "asks on likewise. The first command ends when the primaries and the nodes that they feed have the marker.",
        ),
        Example(
            "An image every minute, and the loss of both primaries.",
            (
                "alpha# farstripe marker schedule often --every 60 --keep 5 --groups shop,books@gamma",
                "beta# farstripe marker takeover --groups shop,books@delta",
                "delta# farstripe marker takeover often-20260102-030405.678 --groups books,shop@beta",
            ),
            "beta takes the newest marker that its copy of shop and delta's copy of books have, and names it; delta is "
            "told the name, so both go on from the same instant.",
        ),
    ),
    "farstripe": (
        Example(
            "Two nodes with a pool each, which meet once.",
            (
                "alpha# farstripe node init alpha --replication-address 192.0.2.1",
                "alpha# farstripe node start",
                "alpha# farstripe pool create main raid6 /dev/sd{b..g} --checksums",
                "beta# farstripe node init beta --replication-address 192.0.2.2",
                "beta# farstripe node start",
                "beta# farstripe pool create main raid6 /dev/sd{b..g} --checksums",
                "alpha# farstripe peer token",
                "beta# farstripe peer join TOKEN",
            ),
            "Any two disks of either pool may fail. The token lets beta in once; from then on both know each other's "
            "certificate.",
        ),
        Example(
            "Two volumes on alpha, replicated to beta in one write order.",
            (
                "alpha# farstripe volume create web --size 100G",
                "alpha# farstripe volume create data --size 1T",
                "alpha# farstripe group create shop web data",
                "alpha# farstripe pair create shop --peer beta --mode sync",
                "alpha# farstripe pair wait shop --state sync --progress",
                "alpha# farstripe attach data --device /dev/nbd0",
                "alpha# mkfs.ext4 /dev/nbd0",
            ),
            "The volumes are made on beta too. When the wait is over, every write that alpha acknowledges is on beta "
            "as well; `farstripe status` says SYNC as long as that is so.",
        ),
        Example(
            "alpha is lost; beta goes on, and later the roles are exchanged again.",
            (
                "beta# farstripe takeover shop",
                "beta# farstripe attach data",
                "beta# farstripe pair wait shop",
                "beta# farstripe switchover shop",
            ),
            "The takeover says first what is lost and asks. Once alpha is back it follows by difference, for which "
            "the wait waits; then switchover hands the role back and loses nothing. Unmount and detach data on beta "
            "before. If alpha comes back with acknowledged writes that beta never got, the wait ends with 4 and says "
            "what to do.",
        ),
    ),
    "node": (
        Example(
            "A node that other nodes reach at 192.0.2.1, started by systemd.",
            (
                "farstripe node init alpha --replication-address 192.0.2.1",
                "systemctl enable --now farstripe-target farstripe-replicator",
                "farstripe node status",
            ),
            "The name and an id are written to node.json for good. The last command exits with 7 unless both processes "
            "answer, so it serves as a health check.",
        ),
        Example(
            "Serve NBD clients on other hosts too.",
            ("farstripe node init alpha --nbd-address 192.0.2.1 --nbd-port 10809 --replication-address 192.0.2.1",),
            "NBD has no password: let only trusted hosts reach that port.",
        ),
        Example(
            "A second node on the same host, to try things out.",
            (
                "export FARSTRIPE_STATE=/tmp/beta/state FARSTRIPE_RUN=/tmp/beta/run",
                "farstripe node init beta --replication-port 10820",
                "farstripe node start",
                "farstripe node stop",
            ),
            "All commands of this shell speak to beta. stop answers the last requests, makes everything durable and "
            "marks the pool clean.",
        ),
        Example(
            "The pool does not open, because more members are missing than the level bears.",
            ("farstripe node start", "farstripe node start --force"),
            "The first command names the members that are missing: bring them back if you can. With --force the other "
            "RAID groups are served, and members that had failed are taken back: check the data.",
        ),
        Example(
            "Run the target in the foreground, as the systemd unit does.",
            ("farstripe node run target",),
            "It ends in good order on SIGTERM.",
        ),
    ),
    "pool": (
        Example(
            "Six disks of which any two may fail, with checksums.",
            ("farstripe pool create main raid6 /dev/sd{b..g} --checksums", "farstripe pool status"),
            "Disks that hold something are refused, and then nothing is made. A block that does not fit its checksum "
            "is found by every read and repaired from the other members.",
        ),
        Example(
            "A fast and a large RAID group in one pool.",
            ("farstripe pool create main fast=raid10@64K /dev/nvme{0..3}n1 slow=raid6@128K /dev/sd{b..i}",),
            "Volumes choose by name: `farstripe volume create --raid-group fast`.",
        ),
        Example(
            "A pool of files, to try things out.",
            ("farstripe pool create lab raid5 /var/tmp/lab/{0..3} --make-files 1G",),
            "Four sparse files of 1 GiB are made first; they are removed again if the pool cannot be made.",
        ),
        Example(
            "A disk failed; a new one takes its place.",
            ("farstripe pool status", "farstripe pool replace /dev/sdc /dev/sdh --wait"),
            "Hosts go on while /dev/sdh is filled from the other members. Ctrl-C ends the waiting, not the rebuild.",
        ),
        Example(
            "Let that happen by itself, with disks that wait for it.",
            ("farstripe pool spare add /dev/sdx", "farstripe pool spare add /dev/sdy --group slow",
             "farstripe pool spare list"),
            "When a member is lost a spare takes its place at once: of those that fit, the smallest.",
        ),
        Example(
            "A disk was away for a while, behind a cable or a controller.",
            ("farstripe pool readd /dev/sdc --wait",),
            "Only what was written meanwhile is copied. A disk that failed for errors of its own is refused.",
        ),
        Example(
            "Leave disks to the hosts while a rebuild runs.",
            ("farstripe pool rebuild-limit 50M", "farstripe pool rebuild-limit 0"),
            "Rebuilds write at most 50 MiB a second; 0 lifts the limit.",
        ),
        Example(
            "A disk looks doubtful, and is taken out of use before its replacement is there.",
            ("farstripe pool fail /dev/sdd", "farstripe pool replace /dev/sdd /dev/sdi --timeout 3600 --wait"),
            "Between the two the RAID group has less redundancy, and status says so. The first command is refused "
            "where the RAID group cannot do without the disk. With the new disk at hand leave it out: the old one then "
            "stays a member until the new one is complete.",
        ),
        Example(
            "A cable was loose; it is mended, and the errors it caused are to be counted no longer.",
            ("farstripe pool scrub --check --wait", "farstripe pool clear-errors /dev/sdd"),
            "Errors of a member are counted as long as it is one, over restarts.",
        ),
        Example(
            "Read everything and compare it, not faster than 200 MiB a second.",
            ("farstripe pool scrub --limit 200M --wait", "systemctl enable --now farstripe-scrub.timer"),
            "The exit code is 9 when something could not be repaired; `farstripe pool status` names the ranges of "
            "volumes it concerns. The timer begins a scrub once a month.",
        ),
        Example(
            "Make members that disagree agree again.",
            ("farstripe pool scrub slow --repair", "farstripe pool scrub slow --pause",
             "farstripe pool scrub slow --resume"),
            "Only RAID group slow is looked at. The scrub halts where it is and goes on from there, also after a "
            "restart.",
        ),
        Example(
            "More room.",
            ("farstripe pool add-group more=raid6 /dev/sd{j..o}",),
            "The new RAID group has room for volumes at once; what lies on others stays there.",
        ),
        Example(
            "Disks, files or exports were enlarged, and volumes are to have the room.",
            ("truncate -s 2T /disks/{0..5}", "farstripe pool grow --dry-run", "farstripe pool grow"),
            "All members of a RAID group have to be larger: the smallest decides. Hosts go on meanwhile. Members that "
            "were replaced one by one by larger ones give their room in the same way.",
        ),
        Example(
            "Old disks leave the pool while hosts go on.",
            ("farstripe pool remove-group slow --wait", "farstripe pool keep-group slow"),
            "What lies on RAID group slow moves to the others; then its disks are free. Until it is gone, keep-group "
            "gives the removal up, and what has moved stays where it is.",
        ),
        Example(
            "Do the pool's books balance?",
            ("farstripe pool check",),
            "Areas are counted anew while the pool is in use. The exit code is 10 when one is lost or used twice.",
        ),
        Example(
            "The disks are wanted for something else.",
            ("farstripe volume list", "farstripe pool destroy"),
            "The pool is gone for good, so destroy asks, and is refused while there are volumes.",
        ),
    ),
    "volume": (
        Example(
            "A thin volume, grown later under a mounted file system.",
            (
                "farstripe volume create data --size 100G",
                "farstripe attach data --device /dev/nbd0",
                "farstripe volume resize data --size 200G",
                "resize2fs /dev/nbd0",
            ),
            "Space is taken at the first write. The attached device has the new size at once.",
        ),
        Example(
            "The first 10 GiB on fast disks, the rest on slow ones.",
            (
                "farstripe volume create db --size 100G --raid-group slow --place 0:10G=fast",
                "farstripe volume extend db 100G 50G --raid-group slow",
                "farstripe volume map db",
            ),
            "extend grows the volume and says which range it mapped; map shows what lies where.",
        ),
        Example(
            "Move it to the fast disks while it is used.",
            ("farstripe volume move db --to fast", "farstripe volume map db", "farstripe volume move db --cancel"),
            "The move outlives restarts; map shows how far it is. Cancelled, it leaves what has moved where it is.",
        ),
        Example(
            "Snapshots of a database and its log at one instant, and a look into them.",
            (
                "farstripe volume snapshot db=db-monday log=log-monday",
                "farstripe volume clone db-monday db-look",
                "farstripe attach db-look",
            ),
            "Writes wait for a moment while both are taken. The clone is a volume that can be written to; the snapshot "
            "stays as it is.",
        ),
        Example(
            "What changed since Monday, for a backup by difference.",
            ("farstripe volume diff db-monday db --json",),
            "Ranges in which the two may differ; outside of them they are equal.",
        ),
        Example(
            "Back to Monday, and away with the snapshot.",
            ("farstripe detach db", "farstripe volume rollback db db-monday", "farstripe volume delete db-monday",
             "farstripe volume list"),
            "What was written since Monday is lost, so rollback asks. Deleting gives space back that nothing shares.",
        ),
    ),
    "group": (
        Example(
            "A database and its log, which must never be apart, with room for a long outage.",
            ("farstripe group create shop web data --journal 16G", "farstripe group list"),
            "At 10 MiB written a second, the peer may be away for almost half an hour before the journal is full and "
            "differences are counted instead.",
        ),
        Example(
            "One more volume for a group that is paired and in use, and an old one out of it.",
            (
                "farstripe volume create logs --size 20G",
                "farstripe group add-volume shop logs",
                "farstripe volume resize data --size 200G",
                "farstripe group remove-volume shop web",
            ),
            "On the primary; every copy does the same at the same place of the write order. The volume that leaves "
            "stays "
            "on every node, in no group.",
        ),
        Example(
            "Lose nothing when both hosts lose power, and stop rather than go on alone.",
            (
                "farstripe group policy shop --mode sync --ack durable --on-loss stall --loss-timeout 30",
                "farstripe group policy shop",
            ),
            "A write waits until it is on stable storage of the peer; when the peer is silent for 30 seconds writes "
            "fail. The second command shows the policy.",
        ),
        Example(
            "Give up order, not the writers, when the journal is full.",
            ("farstripe group policy shop --mode async --on-full bitmap --full-timeout 10",),
            "Writers wait up to 10 seconds for a peer that is too slow; then differences are counted, and a resync "
            "copies them.",
        ),
        Example(
            "Keep what the copy overwrites, for an hour at most, so that earlier instants can be shown.",
            (
                "beta# farstripe group retention shop --bytes 20G --time 3600",
                "beta# farstripe group retention shop",
                "beta# farstripe group retention shop --off",
            ),
            "It counts where shop is secondary. The second command shows from when to when; a window that its bytes "
            "fill before the hour is over begins later. --off gives the space back.",
        ),
        Example(
            "The peer is away for longer than was planned: give the journal more room, and take it back later.",
            (
                "farstripe group journal show shop",
                "farstripe group journal add shop /dev/disk/by-id/nvme-spare-part1",
                "farstripe group journal remove shop /dev/disk/by-id/nvme-spare-part1",
            ),
            "The room counts at once, while hosts write. The device is free again when nothing in it is needed any "
            "more; `journal show` no longer lists it then.",
        ),
        Example(
            "In which order were these two volumes written?",
            ("farstripe group journal log shop --since 4700 --limit 20",),
            "Twenty records with their times, kinds and places. On a copy the same numbers and times are listed.",
        ),
        Example(
            "The journal's disk has failed. Hosts went on, and differences were counted.",
            ("farstripe group journal replace shop /dev/disk/by-id/nvme-other-part1", "farstripe pair wait shop"),
            "The pair comes together again by difference.",
        ),
        Example(
            "Take the group apart.",
            ("farstripe pair delete shop", "farstripe group delete shop"),
            "The volumes and what is in them stay, on both nodes.",
        ),
    ),
    "plan": (
        Example(
            "How large must the journal be for the peer to be away for four hours?",
            ("farstripe plan journal shop --outage 4h", "farstripe plan journal shop --outage 4h --rate 20M --json"),
            "The first goes by what hosts wrote in the busiest four hours of the last week, the second by 20 MiB a "
            "second. Both say what to add on which node.",
        ),
    ),
    "peer": (
        Example(
            "Two nodes meet.",
            ("alpha# farstripe peer token --life 600", "beta# farstripe peer join TOKEN", "beta# farstripe peer list"),
            "The token is good once, for ten minutes. Both nodes list each other afterwards.",
        ),
        Example(
            "The same in one line, without the token on a screen.",
            ("alpha# farstripe peer token | ssh root@beta farstripe peer join -",),
            "Only the token is printed to standard output, so it can be piped.",
        ),
        Example(
            "A node is given away.",
            ("alpha# farstripe peer delete beta", "beta# farstripe peer delete alpha"),
            "From now on each refuses the other. Pairs between them have to be deleted before.",
        ),
    ),
    "pair": (
        Example(
            "A second copy far away, and from there a third one.",
            (
                "alpha# farstripe pair create shop --peer gamma --mode async",
                "alpha# farstripe pair wait shop gamma --progress",
                "gamma# farstripe pair create shop --peer delta",
                "alpha# farstripe status shop",
            ),
            "Records go once over the line to gamma, which passes them on to delta. The status has a line for each "
            "pair of "
            "the node, and says what the loss of each node would mean.",
        ),
        Example(
            "Replicate a group, and know when the copy is complete.",
            ("farstripe pair create shop --peer beta --mode sync", "farstripe pair wait shop --state sync --progress"),
            "Hosts may write during the first copy. When the wait ends with 0, every write waits for beta; what "
            "happens when beta falls silent, --on-loss decides.",
        ),
        Example(
            "Over a slow line, compressed, with a larger journal on the other side.",
            ("farstripe pair create shop --peer beta --mode async --compress 3 --journal 16G", "farstripe pair list"),
            "Hosts wait for the line only when the journal is full, as --on-full says. The list shows how many "
            "records beta is behind.",
        ),
        Example(
            "A long line that others use too.",
            (
                "farstripe pair set shop --connections 4 --compress auto",
                'farstripe pair set shop --schedule "mon-fri 08:00-18:00 20M; else unlimited"',
                "farstripe pair show shop",
            ),
            "Four connections fill a line on which one would not; what shrinks is compressed. In office hours 20 MiB a "
            "second are sent at most, by the clock of this node; what is written beyond that waits in the journal. The "
            "last command says which limit holds now and what compression gained.",
        ),
        Example(
            "Keep the copy as it is during a risky upgrade.",
            ("farstripe pair split shop", "farstripe pair resync shop", "farstripe pair wait shop --timeout 600"),
            "After the split the copy does not change. If all went well the resync copies what changed; if not, beta "
            "holds the state of before, and `farstripe takeover shop --force` on beta makes that the valid one. The "
            "wait exits with 11 after ten minutes.",
        ),
        Example(
            "Everything on the other side, before the power is switched off here.",
            ("farstripe pair wait shop --state equal --timeout 60",),
            "Ends when everything written so far is applied on the peer too.",
        ),
        Example(
            "Both sides were written to while they could not see each other (SPLIT-BRAIN).",
            ("farstripe pair show shop", "farstripe pair resync shop --discard alpha"),
            "Nothing was merged or overwritten. After you have looked at both and decided, the writes that only alpha "
            "has are given up, and alpha follows beta by difference.",
        ),
        Example(
            "The peer burnt down.",
            ("farstripe pair delete shop --local-only", "farstripe peer delete beta"),
            "The group goes on without a pair. A new one, with another peer, begins with a full copy.",
        ),
    ),
    "verbs": (
        Example(
            "Both volumes as they were five minutes ago, to look at, and as they were before a mistake, to work with.",
            (
                "beta# farstripe snapshot shop --at -5min",
                'beta# farstripe snapshot shop --at "2026-05-17 14:29:59" --name rescue --writable',
                "beta# farstripe attach data-rescue",
            ),
            "The first makes snapshots web-at-SEQ and data-at-SEQ; the answer says after which record, and when that "
            "was "
            "written. The second makes clones. shop is replicated on meanwhile. They are deleted like volumes.",
        ),
        Example(
            "A volume as a device with a file system.",
            (
                "farstripe attach data --device /dev/nbd0",
                "mkfs.ext4 /dev/nbd0",
                "mount /dev/nbd0 /srv/data",
                "umount /srv/data",
                "farstripe detach data",
            ),
            "A restart of the target is a pause of I/O, not an error. detach is refused while the device is mounted.",
        ),
        Example(
            "A volume of another host, and what is attached here.",
            ("farstripe attach data --host 192.0.2.1 --read-only", "farstripe attach --list"),
            "The other node serves TCP if it was made with --nbd-address and --nbd-port.",
        ),
        Example(
            "Exchange roles before maintenance; it works on either node.",
            ("farstripe switchover shop --deadline 30",),
            "Writers are held while the rest is drained, for 30 seconds at most; then everything stays as it was.",
        ),
        Example(
            "What would a takeover lose?",
            ("farstripe takeover shop --plan", "farstripe takeover shop --yes"),
            "The first changes nothing. The second is refused while the primary answers; use switchover then.",
        ),
        Example(
            "Watch it by a script.",
            (
                "farstripe status",
                "farstripe status --json | jq -r '.groups[] | select(.level == \"bad\") | .name'",
                "farstripe events --follow --kind pair --kind member --json",
            ),
            "The second prints the groups that need somebody; the third prints one JSON document for each event about "
            "a pair or a member as it comes.",
        ),
        Example(
            "Why is it so, and what now?",
            ("farstripe explain shop", "farstripe explain split-brain"),
            "The state of the group with its cause, what it means and the commands to do next; or what a word means, "
            "for which no node has to run.",
        ),
        Example(
            "Complete commands, options and names in bash.",
            ("farstripe completion bash > /etc/bash_completion.d/farstripe",),
            "New shells complete volumes, groups, pairs, peers, members and devices by name.",
        ),
    ),
}  # fmt: skip
