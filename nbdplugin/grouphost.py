"""The node's consistency groups as the target holds them: their files, their services, who their volumes are.

    STATE/groups/<uuid>/group.json   name and volumes, for a group whose state cannot be read
    STATE/groups/<uuid>/state        the group's state (replicator.capture.state)
    STATE/groups/<uuid>/journal      the ring, or a symbolic link to where it is; further files: journal.<n>
    STATE/groups/<uuid>/rates        what its hosts wrote, hour by hour
    STATE/groups/<uuid>/bitmap.<n>   block map of volume n
    STATE/groups/<uuid>/markers      markers in its sequence (nbdplugin.markerhost)
    STATE/groups/<uuid>/retention.json, preimages   what it retains as a secondary (nbdplugin.retention)
    RUN/<uuid>.page .t .r.<k>        counters and doorbells, one of the replicator for each edge

A group is made under a name that begins with a dot and renamed when it is whole, so a crash leaves a group or none;
what is left under a dot is removed at start. A group that cannot be opened does not keep the node from serving the
others: its volumes can be read, and refuse every change with the reason, since a write without a record could never be
made good.
"""

from __future__ import annotations

import json
import shutil
import uuid as uuids
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nbdplugin import journalhost
from nbdplugin.cuthost import CutHost
from nbdplugin.exports import Exports
from nbdplugin.groupevents import describe_event
from nbdplugin.groupvolumes import GroupVolumes
from nbdplugin.journalhost import MIN_JOURNAL_BYTES, too_small
from nbdplugin.nodeconfig import NodeConfig
from nbdplugin.poolhost import PoolHost
from nbdplugin.retention import open_recorder, remove_rings
from replicator.capture.bitmaps import blocks_of
from replicator.capture.recovery import JournalUnreadable, Parts, create_engine, open_engine
from replicator.capture.service import GroupService
from replicator.capture.state import FRESH, OK, PRIMARY, SECONDARY, STATE_FILE_BYTES, UNTRACKED, GroupState, StateFile
from replicator.capture.writerates import WriteRates
from replicator.core.batching import Crowd
from replicator.core.errors import AlreadyExists, BadInput, MediumError, NotFound, Refused
from replicator.eventlog import EventLog
from replicator.journal.files import MappedFile, PlainFile, sync_directory
from replicator.journal.page import EDGES, Doorbell, Page, boot_number
from replicator.journal.volumes import JournalDirectory

MAX_VOLUMES = 256
"""Names and sizes of a group's volumes have to fit into its state beside the longest history; see capture/state.py."""
MAKE_S = 600.0
"""Time for a slow disk to write out a journal."""
MAX_GROUP_BYTES = 7 << 40
"""Of all volumes of a group: the bitmaps of a resync travel in one message, which holds those of 8 TiB."""


class GroupHost:
    """All groups of the node. What changes the set of groups holds PoolHost.changing."""

    def __init__(
        self, state_dir: Path, run_dir: Path, config: NodeConfig, pools: PoolHost, exports: Exports, events: EventLog
    ) -> None:
        self._dir = state_dir / "groups"
        self._pairs = state_dir / "pairs"
        self._run = run_dir
        self._tag = config.tag
        self._pools = pools
        self._exports = exports
        self._events = events
        self._services: dict[str, GroupService] = {}
        self._crowd = Crowd()
        self._hosts: dict[str, GroupVolumes] = {}
        self._broken: dict[str, dict[str, Any]] = {}
        self._boot = boot_number()
        self.cuts = CutHost(state_dir, run_dir, self._boot, pools, exports, events, self._services.get, self.services)

    # -- life -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open every group. Durable: what its recovery made durable."""
        self._dir.mkdir(mode=0o700, exist_ok=True)
        for entry in sorted(self._dir.iterdir()):
            if entry.name.startswith("."):
                shutil.rmtree(entry, ignore_errors=True)
                continue
            try:
                service = self._open_one(entry.name)
            except Exception as exc:  # outermost: one broken group must not keep the others from being served
                self._set_broken(entry.name, exc)
                continue
            self._begin(service)
        self.cuts.start()

    def _begin(self, service: GroupService) -> None:
        """Serve a group that has been opened."""
        state = service.engine.state
        self._services[state.uuid] = service
        if why := state.journal_error:
            self._events.add("group.journal-broken", f"group {state.name} has no journal: {why}", group=state.name)
        if why := service.engine.damaged_at_start:
            self._events.add("group.journal-damaged", f"group {state.name}: {why}", group=state.name)
        self.cuts.hold_at_start(service.engine)
        service.start(wait_for_peer=True)

    def _open_one(self, uuid: str, *, give_up_journal: bool = False) -> GroupService:
        file = PlainFile(self._dir / uuid / "state")
        volumes = StateFile(file).load().volumes
        file.close()
        self._fit(volumes)
        unclean = self._pools.require().unclean_ranges
        host = self._host_of(uuid)
        parts = self._parts(self._dir / uuid, uuid, volumes, host)
        marked = [
            (volume["index"], offset, length)
            for volume in volumes
            for offset, length in unclean.get(volume["name"], ())
        ]
        engine = open_engine(parts, marked, give_up_journal=give_up_journal)
        service = self._service(engine, uuid)
        self.cuts.join(service, self._dir / uuid)
        host.service = service
        host.settled(engine.state.volumes)
        return service

    def _fit(self, volumes: list[dict[str, Any]]) -> None:
        """Give volumes the sizes that the group's state says, after a crash in the middle of a change of them."""
        for volume in volumes:
            route = self._exports.get(volume["name"])
            if route.volume.size != volume["size"]:
                self._pools.resize_volume(route, volume["size"], True)

    def _host_of(self, uuid: str) -> GroupVolumes:
        return self._hosts.setdefault(uuid, GroupVolumes(self._dir / uuid, self._pools, self._exports))

    def _listed(self, uuid: str) -> dict[str, Any]:
        path = self._dir / uuid / "group.json"
        try:
            listed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {
                "uuid": uuid,
                "name": str(listed["name"]),
                "volumes": list(listed["volumes"]),
                "made": list(listed.get("made", ())),
            }
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise MediumError(f"{path} cannot be read: {exc}", "restore it, or delete the group's directory") from exc

    def _set_broken(self, uuid: str, exc: Exception) -> None:
        """Keep every change away from the volumes of a group that could not be opened."""
        listed = self._listed(uuid)  # when even this fails nobody knows which volumes to protect: the start fails
        reason = str(exc)
        self._broken[uuid] = {**listed, "failed": reason, "unread_journal": None}
        if isinstance(exc, JournalUnreadable):
            self._broken[uuid]["unread_journal"] = {"role": exc.role, "intact": exc.intact}
        why = f"group {listed['name']} could not be opened: {reason}"
        self._exports.block([v["name"] for v in listed["volumes"]], why)
        self._events.add("group.broken", why, group=listed["name"])

    def release_waiters(self) -> None:
        """End every wait of a host request, with an error: the process stops and the connections are shut."""
        for service in self._services.values():
            service.end_waits()

    def sync_tracking(self) -> set[str]:
        """Durable: what every group knows of changes so far. Before marks of the pool's intent log are cleared.

        Returns the volumes of which that is not so: their groups have failed, or could not be opened, and know what
        changed by the marks alone, which have to stay until they are open again.
        """
        kept = {str(v["name"]) for broken in list(self._broken.values()) for v in broken["volumes"]}
        for service in list(self._services.values()):
            if not service.engine.sync_tracking():
                kept.update(str(v["name"]) for v in service.engine.state.volumes)
        return kept

    def close(self) -> set[str]:
        """Stop every group. Durable: everything of those that stop in order.

        Returns the volumes of the others, for which marks of the pool's intent log have to stay.
        """
        kept = {str(v["name"]) for broken in self._broken.values() for v in broken["volumes"]}
        self.cuts.stop()
        for service in self._services.values():
            try:
                service.stop()
            except Exception as exc:  # outermost: the other groups are stopped in order all the same
                name = service.engine.state.name
                self._events.add("group.unclean", f"group {name} was not stopped in order: {exc}", group=name)
            if service.engine.failed or not service.engine.state.clean:
                kept.update(str(v["name"]) for v in service.engine.state.volumes)
        self.cuts.close()
        return kept

    # -- files ----------------------------------------------------------------------------------------------------

    def _parts(self, directory: Path, uuid: str, volumes: list[dict[str, Any]], host: GroupVolumes) -> Parts:
        pool = self._pools.require()
        maps: list[Any] = [MappedFile(directory / f"bitmap.{v['index']}", blocks_of(v["size"])) for v in volumes]
        served: list[Any] = [pool.volume(v["name"]) for v in volumes]
        host.serve(served)
        return Parts(
            state=PlainFile(directory / "state"),
            journal=JournalDirectory(directory),
            page=Page.map(self._run / f"{uuid}.page"),
            maps=maps,
            volumes=served,
            pool_sync=host.sync,
            clock=self.cuts.clock,
            boot=self._boot,
            preimages=open_recorder(directory, uuid, lambda why: self.note_retention(uuid, why)),
            volume_host=host,
        )

    def directory(self, uuid: str) -> Path:
        """Where the files of a group are."""
        return self._dir / uuid

    def note_retention(self, uuid: str, why: str) -> None:
        """What a group overwrites is no longer recorded."""
        try:
            name = self._listed(uuid)["name"]
        except MediumError:
            name = uuid
        self._events.add("retention.failed", f"group {name} no longer keeps what it overwrites: {why}", group=name)

    def _service(self, engine: Any, uuid: str) -> GroupService:
        own = Doorbell(self._run / f"{uuid}.t")

        def edge_bell(slot: int) -> Doorbell:
            return Doorbell(self._run / f"{uuid}.r.{slot}")

        def note(what: str, **detail: Any) -> None:
            kind, text = describe_event(what, detail)
            self._events.add(kind, text, **detail)

        service = GroupService(engine, own, edge_bell, note, WriteRates(self._dir / uuid / "rates"), self._crowd)
        service.reads.install = partial(self._exports.guard_reads, service)
        return service

    def _make_files(self, directory: Path, listed: dict[str, Any], journal_bytes: int, journal_path: str | None) -> int:
        """Make the files of a new group; returns the size of the journal in bytes."""
        directory.mkdir(mode=0o700)
        PlainFile(directory / "state", create_bytes=STATE_FILE_BYTES).close()
        (directory / "group.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
        return journalhost.make_first(self._dir, directory, journal_bytes, journal_path)

    # -- groups ---------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all groups, broken ones included."""
        broken = [b["name"] for b in self._broken.values()]
        return sorted([s.engine.state.name for s in self._services.values()] + broken)

    def services(self) -> list[GroupService]:
        """Every group that is served."""
        return list(self._services.values())

    def get(self, which: str) -> GroupService:
        """The group with this name or uuid. Raises NotFound, MediumError when it could not be opened."""
        if which in self._services:
            return self._services[which]
        for service in self._services.values():
            if service.engine.state.name == which:
                return service
        broken = self._broken_one(which)
        if broken is not None:
            name = broken["name"]
            raise MediumError(
                f"group {name} could not be opened: {broken['failed']}", f"farstripe explain {name} says what to do"
            )
        raise NotFound(f"no group {which!r} on this node", "farstripe group list shows them")

    def _broken_one(self, which: str) -> dict[str, Any] | None:
        """The group with this name or uuid that could not be opened."""
        return next((one for one in self._broken.values() if which in (one["name"], one["uuid"])), None)

    def statuses(self) -> list[dict[str, Any]]:
        """Status of every group. One that could not be opened has no `role`, and `failed` says why; `unread_journal`
        {role, intact} where it is for its journal alone."""
        return [s.status() for s in self._services.values()] + [dict(b) for b in self._broken.values()]

    def create(self, name: str, names: list[str], journal_bytes: int, journal_path: str | None) -> GroupService:
        """Make a group of existing volumes; clients may go on. Durable: the group."""
        with self._pools.changing:
            self._check_new(name, journal_bytes)
            for volume in names:
                self.check_free(volume)
            _check_extent(name, [self._exports.get(volume).volume.size for volume in names])
            listed = [{"name": volume} for volume in names]
            service = self._make(uuids.uuid4().hex, name, listed, journal_bytes, journal_path, PRIMARY)
        self._events.add("group.created", f"group {name} created", group=name, volumes=names)
        return service

    def adopt(self, uuid: str, name: str, volumes: list[dict[str, Any]], journal_bytes: int) -> GroupService:
        """Make the secondary copy of a peer's group, with volumes of the same names and sizes where they are missing.

        volumes: {name, size, index?, born?}, sorted by index. Adopting what is adopted already returns it. Durable: the
        group. Raises Refused when a volume of that name has another size, is in another group, or is in use.
        """
        with self._pools.changing:
            if uuid in self._services:
                return self._adopted_already(self._services[uuid], volumes)
            self._check_new(name, journal_bytes)
            _check_extent(name, [volume["size"] for volume in volumes])
            have = {route.name for route in self._exports.routes()}
            for volume in volumes:
                if volume["name"] in have:
                    self._check_adoptable(volume)
            made: list[str] = []
            try:
                for volume in volumes:
                    if volume["name"] not in have:
                        self._pools.create_volume(volume["name"], volume["size"], volume.get("raid_group"))
                        made.append(volume["name"])
                service = self._make(uuid, name, volumes, journal_bytes, None, SECONDARY, made)
            except BaseException:
                for name_made in made:
                    self._pools.delete_volume(self._exports.get(name_made))
                raise
        self._events.add("group.adopted", f"group {name} is a copy of a peer's group from now on", group=name)
        return service

    def _adopted_already(self, service: GroupService, volumes: list[dict[str, Any]]) -> GroupService:
        mine = [(v["name"], v["size"]) for v in service.engine.state.volumes]
        if mine != [(v["name"], v["size"]) for v in volumes]:
            raise Refused(f"group {service.engine.state.name} is here with other volumes: {mine}", "delete it first")
        return service

    def _check_new(self, name: str, journal_bytes: int) -> None:
        self._pools.require()
        if name in self.names():
            raise AlreadyExists(f"group {name} exists", "choose another name")
        if journal_bytes < MIN_JOURNAL_BYTES:
            raise too_small(journal_bytes)

    def check_free(self, volume: str) -> None:
        """Raise Refused unless the volume can come into a group."""
        route = self._exports.get(volume)
        if route.frozen:
            raise Refused(f"{volume} is a snapshot, which never changes", "make a clone of it: farstripe volume clone")
        if route.blocked:
            raise Refused(f"volume {volume} is not to be used: {route.blocked}", "farstripe group delete --force")
        if route.group is not None:
            group = route.group.engine.state.name
            raise Refused(f"volume {volume} is in group {group}", "a volume is in one group only")

    def _check_adoptable(self, volume: dict[str, Any]) -> None:
        name = volume["name"]
        self.check_free(name)
        route = self._exports.get(name)
        if route.volume.size != volume["size"]:
            raise BadInput(
                f"volume {name} has {volume['size']} bytes on the primary and {route.volume.size} on the other node",
                "make the sizes equal, or delete the volume on the other node and let pairing make it",
            )
        if route.writers:
            raise Refused(f"volume {name} of the node that gets the copy is open for writing", "detach it there first")

    def _make(
        self,
        uuid: str,
        name: str,
        listed: Sequence[dict[str, Any]],
        journal_bytes: int,
        journal_path: str | None,
        role: str,
        made: Sequence[str] = (),
    ) -> GroupService:
        """Make files and service of a group of volumes {name, index?, born?}; `made`: those that were made for it."""
        names = [v["name"] for v in listed]
        volumes = []
        for at, volume in enumerate(listed):
            served = self._exports.get(volume["name"]).volume
            index, born = volume.get("index", at), volume.get("born", 0)
            volumes.append(
                {"index": index, "name": served.name, "uuid": served.uuid, "size": served.size, "born": born}
            )
        new, final = self._dir / f".{uuid}", self._dir / uuid
        service = None
        try:
            about = {"name": name, "volumes": volumes, "made": list(made)}
            journal_bytes = self._make_files(new, about, journal_bytes, journal_path)
            state = GroupState(uuid, name, self._tag, volumes, role=role, copy=OK if role == PRIMARY else FRESH)
            host = self._host_of(uuid)
            parts = self._parts(new, uuid, volumes, host)
            engine = create_engine(parts, state, journal_bytes)
            service = self._service(engine, uuid)
            self.cuts.join(service, new)
            self._exports.join_group({v["name"]: v["index"] for v in volumes}, service)
            sync_directory(new)
            new.rename(final)
            if isinstance(parts.journal, JournalDirectory):
                parts.journal.directory = final
            sync_directory(self._dir)
            host.service = service
        except BaseException:
            if service is not None:
                joined = [n for n in names if self._exports.get(n).group is service]
                self._exports.leave_group(joined, self._pools.require().sync)
            if new.is_dir():
                journalhost.remove_all(new)  # a link is there only once the file it names was made here
            shutil.rmtree(new, ignore_errors=True)
            self._hosts.pop(uuid, None)
            raise
        self._services[uuid] = service
        self.cuts.hold_at_start(engine)
        service.start()
        return service

    def add_journal(self, which: str, path: str, size: int) -> dict[str, Any]:
        """Add a file or device to a group's journal; see journalhost.add."""
        with self._pools.changing:
            engine = self.get(which).engine
            added = journalhost.add(self._dir, engine, path, size)
        name = engine.state.name
        self._events.add("group.journal-added", f"{path} is part of the journal of group {name}", group=name, path=path)
        return added

    def remove_journal(self, which: str, path: str) -> dict[str, Any]:
        """Take a file or device out of a group's journal; see journalhost.remove."""
        with self._pools.changing:
            service = self.get(which)
            removed = journalhost.remove(service.engine, path)
        if removed["at_once"]:
            kind, text = describe_event("journal-released", {"group": service.engine.state.name, **removed})
            self._events.add(kind, text, group=service.engine.state.name, path=removed["path"])
        service.look_after()
        return removed

    def replace_journal(self, which: str, path: str | None, size: int, force: bool = False) -> dict[str, Any]:
        """Give a group a new journal in the place of a broken one; see journalhost.replace.

        A group that could not be opened for its journal is opened without it, durably, before the new one is made.
        force: also where its volumes may lack what was answered; Refused without.
        """
        with self._pools.changing:
            broken = self._broken_one(which)
            service = self.get(which) if broken is None else self._open_again(broken, force)
            wait_s = service.engine.state.policy.startup_wait_s if broken is not None else 0.0
            if wait_s:
                service.wait_for_peers(MAKE_S)
            try:
                dropped = journalhost.replace(self._dir, service.engine, path, size)
            finally:
                if wait_s:
                    service.wait_for_peers(wait_s)  # with a journal they can be reached: one may have taken over
        service.look_after()
        name = service.engine.state.name
        text = f"group {name} has a new journal; {dropped} records that were received are sent again"
        self._events.add("group.journal-replaced", text, group=name, dropped=dropped)
        return {"dropped": dropped, **service.status()["journal"]}

    def _open_again(self, broken: dict[str, Any], force: bool) -> GroupService:
        """Open a group that was not opened for its journal, which is given up. Durable: that. The caller holds
        `changing`. Raises Refused, MediumError with nothing changed."""
        name, unread = broken["name"], broken["unread_journal"]
        if unread is None:
            self.get(broken["uuid"])
        if not unread["intact"] and not force:
            raise Refused(
                f"the journal of group {name} may hold writes that hosts were told are stored, and its volumes not: "
                f"{broken['failed']}",
                f"make it readable and restart this node; or take over where a copy is complete (farstripe takeover "
                f"{name}), and then, or if there is none, repeat with --force: everything is copied then",
            )
        service = self._open_one(broken["uuid"], give_up_journal=True)
        self._begin(service)
        del self._broken[broken["uuid"]]
        return service

    @staticmethod
    def check_extent(name: str, sizes: Sequence[int]) -> None:
        """Raise BadInput for more volumes, or larger ones, than a group can have."""
        _check_extent(name, sizes)

    def delete(self, which: str, force: bool, undo: bool = False) -> None:
        """Forget a group; its volumes stay and are served without it. `undo`: those that adopting it made go too.

        Raises Refused, unless forced, while it is paired or its copy here is not consistent.
        """
        with self._pools.changing:
            if force and self._delete_broken(which):
                return
            service = self.get(which)
            state = service.engine.state
            paired = (self._pairs / f"{state.uuid}.json").exists()
            if not force and (paired or (state.role == PRIMARY and state.mode != UNTRACKED)):
                raise Refused(f"group {state.name} is paired", "farstripe pair delete comes first")
            names = [v["name"] for v in state.volumes]
            made = [n for n in self._listed(state.uuid)["made"] if n in names] if undo else []
            if state.role == SECONDARY and state.copy != OK and not force:
                raise Refused(
                    f"the copy of group {state.name} is {state.copy}: its volumes hold no consistent image",
                    "finish the resync, or force it and delete the volumes too",
                )
            self._exports.leave_group(names, self._pools.require().sync)
            del self._services[state.uuid]
            self._hosts.pop(state.uuid, None)
            try:
                service.stop()
            finally:
                self.cuts.leave(state.uuid)
                self._remove_files(state.uuid)
            for name in made:
                self._pools.delete_volume(self._exports.get(name))
        self._events.add("group.deleted", f"group {state.name} deleted", group=state.name)

    def _delete_broken(self, which: str) -> bool:
        """Forget a group that could not be opened, if `which` is one."""
        broken = self._broken_one(which)
        if broken is None:
            return False
        self._exports.leave_group([v["name"] for v in broken["volumes"]], self._pools.require().sync)
        del self._broken[broken["uuid"]]
        self._remove_files(broken["uuid"])
        self._events.add("group.deleted", f"group {broken['name']} deleted", group=broken["name"])
        return True

    def _remove_files(self, uuid: str) -> None:
        directory, gone = self._dir / uuid, self._dir / f".{uuid}"
        remove_rings(directory)
        directory.rename(gone)
        sync_directory(self._dir)
        journalhost.remove_all(gone)
        shutil.rmtree(gone, ignore_errors=True)
        for suffix in ("page", "t", *(f"r.{slot}" for slot in range(EDGES))):
            (self._run / f"{uuid}.{suffix}").unlink(missing_ok=True)


def _check_extent(name: str, sizes: Sequence[int]) -> None:
    """Raise BadInput for more volumes, or larger ones, than a group can have."""
    if len(sizes) > MAX_VOLUMES:
        raise BadInput(f"group {name} cannot have {len(sizes)} volumes", f"put up to {MAX_VOLUMES} into one group")
    if sum(sizes) > MAX_GROUP_BYTES:
        raise BadInput(
            f"the volumes of group {name} have {sum(sizes) / (1 << 40):.1f} TiB together",
            f"put up to {MAX_GROUP_BYTES >> 40} TiB into one group; thin volumes count with their size",
        )
