"""A world of groups whose copies must be consistent with each other: the real clock, beacons, sets, holds, markers,
books, followers and takeovers, on disks that forget, driven step by step by chance. No threads, no real time.

    node P1: groups 0 and 1, one clock      copies on S1, a consistency set that takes images in cycles
    node P2: group 2, a clock of its own     copy on S2
    markers over all three, from a coordinator that dies, over messages that are lost, late and doubled; writes are held
    at storage, or by the hosts themselves, of which one may not be asked, or go on too early

In every other world the set orders by counter, and its groups get no beacons at all.

Hosts write blocks that say which write of their group they are and which writes of every group their writer knew to be
answered. So an image is judged by what it holds alone (`judge`): whoever is visible must not know of what is not. A
Violation says which promise broke:

    img   an image that a takeover, a marker or a cycle gives is no cut
    blk   a host is still held although no marker is under way
    fin   with all faults over, a copy does not get everything
    num   a number of a set was given twice
    gone  the last marker that was reported complete, or image of a cycle that was offered, cannot be given any more
"""

from __future__ import annotations

import heapq
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nbdplugin.cyclehost import CycleHost
from nbdplugin.markerhost import MarkerHost
from replicator.capture import follower, roles
from replicator.capture.clock import RESERVE_FILE_BYTES, WriteClock
from replicator.capture.cutter import publish_beacon
from replicator.capture.marking import Marking
from replicator.capture.parking import NoRoom, Parked
from replicator.capture.sets import COUNTER, ORDERS, SetHost
from replicator.capture.state import PRIMARY, SECONDARY
from replicator.core.cycles import Cycle
from replicator.core.errors import FarstripeError, Refused
from replicator.core.markers import Answer, Ask, Attempt, Finished, Marker, Stage, Tick, make_number, offered, retire
from replicator.core.records import FLAG_NUMBERED, NUMBER_BYTES, unpack_number
from replicator.journal.beacons import look, publish
from replicator.journal.files import PlainFile
from replicator.journal.page import APPLIED_SEQ, ARRIVED_GEN, ARRIVED_TIME, BEACON_GEN, HEAD_SEQ, TAIL_SEQ
from tests.testing.cutpools import Died, FakeExports, FakePools
from tests.testing.fakedisk import PowerCut
from tests.testing.pairharness import Pair, Side

GROUPS = (0, 1, 2)
PRIMARY_OF = {0: "P1", 1: "P1", 2: "P2"}
COPY_OF = {0: "S1", 1: "S1", 2: "S2"}
SLOTS, SLOT_BYTES = 64, 64
_BLOCK = struct.Struct("<II3I")
HOUR_NS = 3600 * 10**9
DEADLINE_S = 0.6
CYCLE = Cycle(every_ms=200, keep=2)


class Violation(AssertionError):
    """A promise was broken."""


def judge(images: Mapping[int, bytes], what: str) -> None:
    """Raise Violation unless the images (group -> bytes of its volume) hold one instant, judged by their content."""
    seen: dict[int, list[tuple[int, ...]]] = {}
    for group, raw in images.items():
        blocks = [_BLOCK.unpack_from(raw, at * SLOT_BYTES) for at in range(SLOTS)]
        seen[group] = [block[1:] for block in blocks if block[1]]
        newest = max((block[0] for block in seen[group]), default=0)
        want = set(range(max(1, newest - SLOTS + 1), newest + 1))
        if {block[0] for block in seen[group]} != want:
            raise Violation(f"img: {what}: group {group} holds no prefix of its writes")
    newest_of = {group: max((block[0] for block in blocks), default=0) for group, blocks in seen.items()}
    for group, blocks in seen.items():
        for count, *known in blocks:
            for other, newest in newest_of.items():
                if known[other] > newest:
                    raise Violation(
                        f"img: {what}: write {count} of group {group} knew write {known[other]} of group {other}, "
                        f"which is not there (up to {newest})"
                    )


def dies(*_: object) -> None:
    """The process ends before its record is in the journal."""
    raise Died


class NodeHost:
    """What one node has beside its groups: clock, sets, markers. Lost with its process, made anew by `restart`."""

    def __init__(self, world: CutWorld, name: str) -> None:
        self.world, self.name = world, name
        self.offset_ns = 0
        self._page = memoryview(bytearray(16)).cast("Q")
        self._numbers: dict[str, memoryview] = {}
        self._folder = world.folder / name
        (self._folder / "books").mkdir(parents=True)
        self.groups = [g for g in GROUPS if name in (PRIMARY_OF[g], COPY_OF[g])]
        self.pools = FakePools()
        self.restart()

    def close(self) -> None:
        """Release the files, as the end of the process does."""
        self.cycles.close()
        for one in self.sets._sets.values():
            one.file.close()
        for _, book in self.markers._books.values():
            book.close()
        if self.clock._slots is not None:
            self.clock._slots.close()

    def restart(self) -> None:
        """A new process: the clock's page, books, sets and snapshots stay."""
        path = self._folder / "clock"
        reserve = PlainFile(path) if path.exists() else PlainFile(path, create_bytes=RESERVE_FILE_BYTES)
        self.clock = WriteClock(self._wall, 1, self._page, reserve)
        self.sets = SetHost(self._folder / "sets", self.service, 1, self._number_page)
        quiet: Any = SimpleNamespace(add=lambda *a, **k: None)
        exports: Any = FakeExports(self.pools)
        pools: Any = self.pools
        self.markers = MarkerHost(pools, exports, quiet)
        folder = self._folder / "cycles"
        self.cycles = CycleHost(folder, pools, exports, self.sets, self.service, lambda *note: None)
        self.markers.marking = Marking(lambda: self.world.now, self.world.later)

    def _number_page(self, name: str) -> memoryview:
        return self._numbers.setdefault(name, memoryview(bytearray(16)).cast("Q"))

    def _wall(self) -> int:
        return 1_700_000_000 * 10**9 + int(self.world.now * 1e9) + self.offset_ns

    def side(self, group: int) -> Side:
        """This node's side of a group."""
        pair = self.world.pairs[group]
        return pair.a if PRIMARY_OF[group] == self.name else pair.b

    def service(self, uuid: str) -> Any:
        """A stand-in for the group's service."""
        for group in self.groups:
            side = self.side(group)
            if side.uuid == uuid and side._engine is not None:
                return SimpleNamespace(engine=side.engine, wake_follower=lambda: None)
        return None

    def join(self, group: int) -> None:
        """As GroupHost does it when it opens a group."""
        side = self.side(group)
        engine = side.engine
        engine.linked.add(0)

        def lifted() -> None:
            self.sets.lifted(engine.state.uuid)
            self.markers.lifted(engine)

        engine.on_lift = lifted
        self.sets.join(engine)
        folder = self._folder / "books" / str(group)
        folder.mkdir(exist_ok=True)
        self.pools.serve(f"{side.volume_prefix}0", side)
        self.markers.join(self.service(side.uuid), folder)
        self.sets.hold_at_start(side.uuid)

    def services(self) -> list[Any]:
        """Every group that runs here."""
        return [found for group in self.groups if (found := self.service(self.side(group).uuid)) is not None]


class CutWorld:
    """See the top of the file. `run` makes one history; a failure is a Violation."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.order = ORDERS[seed % 2]
        self.numbers: set[tuple[int, int]] = set()
        self.now = 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="cuts-", dir="/dev/shm"))
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer = 0
        self.pairs: dict[int, Pair] = {}
        for group in GROUPS:
            self.pairs[group] = pair = Pair(*(self._side(f"{letter}{group}", group, seed) for letter in "ab"))
            pair.a.on_record = self._noted(pair.a.on_record)
        self.nodes = {name: NodeHost(self, name) for name in ("P1", "P2", "S1", "S2")}
        self.nodes["P2"].offset_ns = self.rng.choice((0, HOUR_NS, -HOUR_NS))
        for group, pair in self.pairs.items():
            for side, name, role in ((pair.a, PRIMARY_OF, PRIMARY), (pair.b, COPY_OF, SECONDARY)):
                host = self.nodes[name[group]]
                side.make_clock = lambda host=host: host.clock  # type: ignore[misc]
                side.create(role)
                host.join(group)
            roles.arm(pair.a.engine, pair.b.node_id)
            roles.arm(pair.b.engine, pair.a.node_id, upstream=True)
            pair.sync_up()
        self.linked = dict.fromkeys(GROUPS, True)
        self.beacons: dict[int, list[tuple[int, int]]] = {group: [] for group in GROUPS}
        self.count = dict.fromkeys(GROUPS, 0)
        self.know = [dict.fromkeys(GROUPS, 0) for _ in range(3)]
        uuids = [self.pairs[group].a.uuid for group in (0, 1)]
        for name in ("P1", "S1"):
            self.nodes[name].sets.put("set", 1, uuids, CYCLE, self.order)
        self.offered = 0
        self.attempt: Attempt | None = None
        self.holding: set[int] = set()
        """Hosts that hold their writes."""
        self.by_hosts: set[int] = set()
        """Numbers of markers for which hosts hold."""
        self.marker: Marker | None = None
        self.counter = 0
        self.made: list[Marker] = []
        self.abandoned: list[int] = []
        self.reported = 0
        self.mail: list[tuple[str, Any]] = []

    def _noted(self, then: Callable[[Any, bytes | None], None] | None) -> Callable[[Any, bytes | None], None]:
        """What a primary's records are told to: their numbers are given once."""

        def told(header: Any, payload: bytes | None) -> None:
            if header.flags & FLAG_NUMBERED:
                number = unpack_number((payload or b"")[-NUMBER_BYTES:])
                if number in self.numbers:
                    raise Violation(f"num: number {number[0]} was given twice")
                self.numbers.add(number)
            assert then is not None
            then(header, payload)

        return told

    def _side(self, name: str, group: int, seed: int) -> Side:
        side = Side(name[0], sizes=(SLOTS * SLOT_BYTES,), journal_bytes=(512 << 10) + 8192, seed=seed * 8 + group)
        side.uuid, side.group_name, side.volume_prefix = f"{group + 1:032x}", f"g{group}", f"g{group}-"
        return side

    def close(self) -> None:
        """Remove what lies in files."""
        for host in self.nodes.values():
            host.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something when the time has come."""
        self._timer += 1
        heapq.heappush(self._timers, (self.now + seconds, self._timer, call))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with what it brings."""
        self.now += seconds
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()

    # -- hosts and lines --------------------------------------------------------------------------------------------

    def write(self, to: int | None = None, who: int | None = None, *, kills: bool = False) -> None:
        """A host (`who`, or any) writes to a group (`to`, or any), knowing what it knows.

        kills: its node dies of it.
        """
        who = self.rng.randrange(len(self.know)) if who is None else who
        group = self.rng.choice(GROUPS) if to is None else to
        if who in self.holding:
            return
        known = self.know[who]
        count = self.count[group] + 1
        block = _BLOCK.pack(group, count, *(known[g] for g in GROUPS)).ljust(SLOT_BYTES, b"\0")
        journal = self.pairs[group].a.engine.journal
        append = journal.append
        if kills or (self.order == COUNTER and group in (0, 1) and self.rng.random() < 0.03):
            journal.append = dies  # type: ignore[method-assign]
        try:
            self.pairs[group].a.engine.write(0, count % SLOTS * SLOT_BYTES, block)
        except (Parked, NoRoom):
            pass
        except Died:  # after it has drawn a time and a number, which are in no record now
            self.crash(PRIMARY_OF[group], power=False)
        else:
            self.count[group] = known[group] = count
        journal.append = append  # type: ignore[method-assign]

    def talk(self, hosts: list[int] | None = None) -> None:
        """A host tells another one what it knows."""
        one, other = (self.know[host] for host in hosts or self.rng.sample(range(len(self.know)), 2))
        for group in GROUPS:
            other[group] = max(one[group], other[group])

    def converse(self) -> None:
        """A host writes to one group and tells another host, which writes to another group, all in no time."""
        hosts, groups = self.rng.sample(range(len(self.know)), 2), self.rng.sample(GROUPS, 2)
        self.write(groups[0], hosts[0])
        self.talk(hosts)
        self.write(groups[1], hosts[1])

    def ship(self, group: int, records: int, told: float = 0.5) -> None:
        """Records go over the line. told: how likely it is known at once that they have arrived."""
        pair = self.pairs[group]
        if not self.linked[group]:
            return
        pair.ship(pair.a, pair.b, records)
        if self.rng.random() < told or records > 100:
            journal = pair.b.engine.journal
            if pair.b.page[HEAD_SEQ] >= pair.b.page[TAIL_SEQ]:
                header = journal.header_at(journal.find(pair.b.page[HEAD_SEQ]))
                if header.write_time > pair.b.page[ARRIVED_TIME]:
                    publish(pair.b.page.u64, ARRIVED_GEN, header.seq, header.write_time)

    def beacon(self, group: int) -> None:
        """The primary states a beacon; the link takes it along if all it speaks of was sent."""
        if self.order == COUNTER and group in (0, 1):
            return
        pair = self.pairs[group]
        publish_beacon(pair.a.engine)
        found = look(pair.a.page.u64, BEACON_GEN)
        if self.linked[group] and found.seq <= pair.b.page[HEAD_SEQ]:
            self.beacons[group].append(found)

    def hear(self, group: int) -> None:
        """A beacon arrives, as in Receiver.note_beacon."""
        if self.beacons[group]:
            seq, time_ns = self.beacons[group].pop(0)
            page = self.pairs[group].b.page
            if 0 < seq <= page[HEAD_SEQ] and time_ns > page[ARRIVED_TIME]:
                publish(page.u64, ARRIVED_GEN, seq, time_ns)

    def apply(self, group: int, limit_bytes: int) -> None:
        """The follower goes on."""
        engine = self.pairs[group].b.engine
        if engine.state.role == SECONDARY:
            follower.apply_some(engine, limit_bytes)

    def toggle(self, group: int) -> None:
        """A link breaks or comes back; what was under way on it is lost."""
        self.linked[group] = not self.linked[group]
        self.beacons[group].clear()

    # -- faults -----------------------------------------------------------------------------------------------------

    def crash(self, name: str, power: bool) -> None:
        """A node's processes are killed, or it loses power (secondaries only), and comes back."""
        host = self.nodes[name]
        for group in host.groups:
            side = host.side(group)
            if power:
                side.power_cut()
            else:
                side.kill()
            self.beacons[group].clear()
        if power:
            host._page[0] = 0
        host.close()
        host.restart()
        for group in host.groups:
            host.side(group).start()
            host.join(group)

    def jump(self) -> None:
        """A wall clock steps."""
        self.nodes[self.rng.choice(("P1", "P2"))].offset_ns = self.rng.choice((0, HOUR_NS, -HOUR_NS))

    # -- markers ----------------------------------------------------------------------------------------------------

    def begin_marker(self) -> None:
        """The coordinator begins, with a new number; one that was under way is abandoned."""
        if self.attempt is not None and self.attempt.stage in (Stage.HOLDING, Stage.MARKING):
            if self.rng.random() < 0.8:
                return
            self.abandoned.append(self.attempt.n)
        self.counter = self.next_counter()
        n = make_number(self.counter, 1)
        self.marker = Marker(n, f"m{self.counter}", "c", 3, True, self.rng.random() < 0.15)
        by_node, by_group = ("P1", "P2"), [f"{PRIMARY_OF[group]}:{group}" for group in GROUPS]
        self.attempt = Attempt(n, by_group if self.counter % 2 else by_node, self.now, DEADLINE_S)
        self.holding.clear()
        if self.rng.random() < 0.3:
            self.by_hosts.add(n)
            self.holding = {host for host in range(len(self.know)) if self.rng.random() < 0.8}
        self._send(self.attempt.begin())

    def next_counter(self) -> int:
        """Durable before use, so a coordinator that was killed does not use it again."""
        return self.counter + 1

    def _send(self, effects: list[Ask | Finished]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                assert self.marker is not None
                self.mail.append(("ask", (effect, self.marker)))
                continue
            self.holding.clear()
            if effect.why:
                assert self.attempt is not None
                self.abandoned.append(self.attempt.n)
            else:
                assert self.marker is not None
                self.made.append(self.marker)

    def post(self) -> None:
        """A message arrives, twice, or never."""
        if self.holding and self.rng.random() < 0.02:
            self.holding.pop()
        if not self.mail:
            if self.attempt is not None:
                self._send(self.attempt.handle(Tick(), self.now))
            return
        kind, content = self.mail.pop(self.rng.randrange(len(self.mail)))
        fate = self.rng.random()
        if fate < 0.06:
            return
        if fate < 0.12:
            self.mail.append((kind, content))
        if kind == "ask":
            self.mail.append(("answer", (content[0], self._obey(*content), content[1].n)))
        elif self.attempt is not None and self.attempt.n == content[2]:
            self._send(self.attempt.handle(content[1], self.now))

    def _obey(self, ask: Ask, marker: Marker) -> Answer:
        name, _, group = ask.node.partition(":")  # with a group: several ways lead to the node (core/markerway.py)
        host, token = self.nodes[name], ""
        marking = host.markers.marking
        services = [host.service(host.side(int(group)).uuid)] if group else host.services()
        if services == [None]:
            return Answer(ask.node, ask.op, False, "the group does not run")
        try:
            if ask.op == "hold":
                park = marker.n not in self.by_hosts
                token = marking.hold(marker.n, host.markers.booked(services), DEADLINE_S, park=park)
            elif ask.op == "mark":
                marking.mark(marker, ask.token)
            else:
                marking.release(marker.n)
        except FarstripeError as exc:
            return Answer(ask.node, ask.op, False, exc.message)
        return Answer(ask.node, ask.op, True, "", token)

    def manage(self) -> None:
        """What the coordinator does later: end abandoned and old suspensions, report and retire what is complete."""
        self.resume([*self.abandoned, *(m.n for m in self.made if m.suspend and self.rng.random() < 0.5)])
        self.abandoned.clear()
        complete = [n for n in offered(self.images()) if n in {marker.n for marker in self.made}]
        self.reported = max([self.reported, *complete])
        for n in retire(complete, 2) if len(complete) > 2 else []:
            for name in ("S1", "S2"):
                self.nodes[name].markers.forget(n)

    def resume(self, numbers: list[int]) -> None:
        """Tell the copies that nobody stands at these markers any more; told once, also before a marker has come."""
        for n in numbers:
            for name in ("S1", "S2"):
                self.nodes[name].markers.resume(self.nodes[name].services(), n)

    def images(self) -> dict[int, list[int]]:
        """Of which markers each group has an image."""
        found = {}
        for group in GROUPS:
            host = self.nodes[COPY_OF[group]]
            _, book = host.markers._books[host.side(group).uuid]
            found[group] = [entry["n"] for entry in book.entries() if entry["state"] == "taken"]
        return found

    def check_markers(self) -> None:
        """Every marker that all groups can give is a cut, and there is one as new as was ever reported."""
        numbers = offered(self.images())
        if self.reported and (not numbers or numbers[0] < self.reported):
            raise Violation(f"gone: marker {self.reported} was complete, now there is {numbers}")
        for n in numbers:
            content = {}
            for group in GROUPS:
                host = self.nodes[COPY_OF[group]]
                _, book = host.markers._books[host.side(group).uuid]
                content[group] = host.pools.images[book.find(n).snapshots[f"g{group}-0"]]
            judge(content, f"marker {n:#x}")

    # -- cycles -----------------------------------------------------------------------------------------------------

    def cycle(self) -> None:
        """The thread that takes the images of cycles looks; its process may end while it takes one."""
        host = self.nodes["S1"]
        if self.rng.random() < 0.1:
            host.pools.dies = self.rng.choice(("before", "after"))
        try:
            host.cycles.tick(self.now)
        except Died:
            self.crash("S1", power=self.rng.random() < 0.5)
        host.pools.dies = ""

    def check_cycles(self) -> None:
        """Every image of a cycle that is offered is a cut, and there is one as new as was ever offered."""
        host = self.nodes["S1"]
        found = host.cycles.listing("set")
        if len(found) > CYCLE.keep + 1:
            raise Violation(f"gone: {len(found)} images of cycles are kept")
        if self.offered and (not found or found[0]["n"] < self.offered):
            raise Violation(f"gone: image {self.offered} was offered, now there is {found}")
        for image in found:
            self.offered = max(self.offered, image["n"])
            content = {}
            for at, place in enumerate(sorted(image["groups"], key=lambda one: str(one["uuid"]))):
                (snapshot,) = place["snapshots"].values()
                content[at] = host.pools.images.get(snapshot, bytes(SLOTS * SLOT_BYTES))
            judge(content, f"image {image['n']} of a cycle")

    # -- the end ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """The last fault: numbers are lost. Then no more: holds end, copies get everything."""
        self.mail.clear()
        self.holding.clear()
        self.write(self.rng.choice((0, 1)), kills=True)
        self.write(0)
        if self.attempt is not None and self.attempt.stage in (Stage.HOLDING, Stage.MARKING):
            self.abandoned.append(self.attempt.n)
        self.attempt = None
        self.pass_time(DEADLINE_S * 2)
        for group in GROUPS:
            if self.pairs[group].a.engine.parked_for:
                raise Violation(f"blk: hosts of group {group} are still held")
            self.linked[group] = True
        self.resume([marker.n for marker in self.made])
        for _ in range(6):
            self.pass_time(6.0)
            self.manage()
            self.nodes["P1"].sets.tick()
            for group in GROUPS:
                self.ship(group, 10_000)
                self.beacon(group)
                self.hear(group)
                self.hear(group)
            self.nodes["S1"].sets.tick()
            self.cycle()
            for group in GROUPS:
                follower.apply_all(self.pairs[group].b.engine)
        for group in GROUPS:
            pair = self.pairs[group]
            if pair.b.page[APPLIED_SEQ] != pair.a.page[HEAD_SEQ]:
                raise Violation(f"fin: group {group} applied {pair.b.page[APPLIED_SEQ]} of {pair.a.page[HEAD_SEQ]}")
        self.check_markers()
        self.cycle()
        self.check_cycles()

    def take_over_set(self) -> None:
        """P1 is gone: S1 becomes primary of the set, with a power cut somewhere in between."""
        host = self.nodes["S1"]
        for _ in range(self.rng.randint(1, 3)):
            for group in self.rng.sample((0, 1), 2):
                self.ship(group, self.rng.randint(1, 12), told=0.2)
            host.sets.tick()
            self.apply(self.rng.choice((0, 1)), 2000)
        if self.rng.random() < 0.6:
            self.crash("S1", power=self.rng.random() < 0.8)
        try:
            host.sets.decide("set", keep=False)
        except Refused:
            return  # it says that there is no cut here
        while left := self.to_take_over():
            host.sets.decide("set", keep=False)
            if self.rng.random() < 0.5:
                self.restart_in_takeover()
            side = self.rng.choice(left)
            if not self.unless_killed(side, lambda side=side: roles.promote(side.engine, at_limit=True)):
                self.restart_in_takeover()
        judge({group: self.pairs[group].b.image()[0] for group in (0, 1)}, "takeover of the set")

    def to_take_over(self) -> list[Side]:
        """Groups of the set that are not primary on S1 yet."""
        return [self.pairs[group].b for group in (0, 1) if self.pairs[group].b.engine.state.role == SECONDARY]

    def unless_killed(self, side: Side, act: Callable[[], object]) -> bool:
        """Do something to a group of S1; returns False when its process ended in the middle of that."""
        if self.rng.random() < 0.5:
            side.disk.cut_at(side.disk.operations + self.rng.randrange(16))
        try:
            act()
        except PowerCut:
            return False
        finally:
            side.disk.cut_at(None)
        return True

    def restart_in_takeover(self) -> None:
        """S1 dies in the middle of a takeover and comes back, and the primary is alive after all."""
        host = self.nodes["S1"]
        self.crash("S1", power=self.rng.random() < 0.7)
        for other in (0, 1):
            if self.pairs[other].b.engine.state.role == SECONDARY and self.rng.random() < 0.5:
                self.ship(other, 20)
                self.beacon(other)
                self.hear(other)
                self.apply(other, 2000)
        host.sets.tick()
        self.cycle()

    def take_over_cycle(self) -> None:
        """P1 is gone, and perhaps S1 for a while: it becomes primary of the set as it was in the newest image."""
        if self.rng.random() < 0.5:
            self.crash("S1", power=self.rng.random() < 0.7)
        host = self.nodes["S1"]
        if not host.cycles.listing("set"):
            return
        while left := self.to_take_over():
            n = self.decided_cycle()
            if self.rng.random() < 0.5:
                self.restart_in_takeover()
            side = self.rng.choice(left)
            if not self.unless_killed(side, lambda side=side, n=n: self._go_back(side, n)):
                self.restart_in_takeover()
        judge({group: self.pairs[group].b.image()[0] for group in (0, 1)}, f"takeover at image {n}")

    def _go_back(self, side: Side, n: int) -> None:
        """As group.promote does it for an image of a cycle."""
        host = self.nodes["S1"]
        host.cycles.stand_at(host.service(side.uuid), "set", n)
        roles.promote(side.engine)

    def decided_cycle(self) -> int:
        """The takeover that goes back to an image, begun or found."""
        host = self.nodes["S1"]
        (known,) = (one for one in host.sets.listing() if one["name"] == "set")
        if not known["decided_ns"]:
            return int(host.cycles.decide("set", 0)["cycle"])
        return int(known["decided_cycle"])

    def see_a_marker_through(self) -> None:
        """A marker is made and comes to all copies, which go on to different places behind it."""
        for group in GROUPS:
            self.linked[group] = True
        self.begin_marker()
        for _ in range(80):
            self.pass_time(0.002)
            self.post()
        for _ in range(3):
            for group in GROUPS:
                self.ship(group, 10_000)
                self.beacon(group)
                self.hear(group)
            self.nodes["S1"].sets.tick()
            self.cycle()
            for group in GROUPS:
                follower.apply_all(self.pairs[group].b.engine)
        for _ in range(self.rng.randint(0, 12)):
            self.converse()
            group = self.rng.choice(GROUPS)
            self.ship(group, self.rng.randint(1, 6))
            self.apply(group, 2000)

    def take_over_marker(self) -> None:
        """All primaries are gone: the copies go back to the newest marker that all can give."""
        if self.rng.random() < 0.7:
            self.see_a_marker_through()
        numbers = offered(self.images())
        if not numbers:
            return
        n = numbers[0]
        for group in self.rng.sample(GROUPS, 3):
            host, side = self.nodes[COPY_OF[group]], self.pairs[group].b
            if self.rng.random() < 0.3:
                self.crash(COPY_OF[group], power=True)
            host.markers.stand_at(host.service(side.uuid), n)
            if self.rng.random() < 0.3:
                self.crash(COPY_OF[group], power=True)
            if side.engine.state.role == SECONDARY:
                host.markers.stand_at(host.service(side.uuid), n)
                roles.promote(side.engine)
        judge({group: self.pairs[group].b.image()[0] for group in GROUPS}, f"takeover at marker {n:#x}")

    # -- chance -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens."""
        rng, group = self.rng, self.rng.choice(GROUPS)
        self.pass_time(rng.expovariate(100))
        what = rng.choices(
            ("write", "talk", "ship", "beacon", "hear", "apply", "tick", "post", "marker", "manage", "link", "jump",
             "checkpoint", "crash", "cycle", "converse"),
            (18, 12, 14, 5, 8, 14, 8, 40, 4, 2, 1, 1, 3, 1, 10, 14),
        )[0]  # fmt: skip
        if what == "write":
            self.write()
        elif what == "talk":
            self.talk()
        elif what == "converse":
            self.converse()
        elif what == "ship":
            self.ship(group, rng.randint(1, 6))
        elif what == "beacon":
            self.beacon(group)
        elif what == "hear":
            self.hear(group)
        elif what == "apply":
            self.apply(group, rng.choice((130, 400, 2000)))
        elif what == "tick":
            self.nodes["P1"].sets.tick()
            self.nodes["S1"].sets.tick()
        elif what == "post":
            self.post()
        elif what == "marker":
            self.begin_marker()
        elif what == "manage":
            self.manage()
            self.check_markers()
        elif what == "link":
            self.toggle(group)
        elif what == "jump":
            self.jump()
        elif what == "cycle":
            self.cycle()
            self.check_cycles()
        elif what == "checkpoint":
            follower.checkpoint(self.pairs[group].b.engine)
        else:
            name = rng.choice(("P1", "P2", "S1", "S2"))
            self.crash(name, power=name[0] == "S" and rng.random() < 0.5)


def run(seed: int, steps: int = 300) -> None:
    """Make one history. Raises Violation."""
    world = CutWorld(seed)
    try:
        for _ in range(steps):
            world.step()
        end = world.rng.random()
        if end < 0.3:
            world.take_over_set()
        elif end < 0.42:
            world.take_over_cycle()
        elif end < 0.55:
            world.take_over_marker()
        else:
            world.settle()
    finally:
        world.close()
