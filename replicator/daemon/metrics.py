"""Metrics for Prometheus: what status says, as numbers, at the moment they are asked for.

Nothing is counted for its own sake: a scrape asks the target and the pairs as `farstripe status` does. What is not
known has no sample, and never an old one; a process that does not answer is farstripe_up 0.

The text is had by `farstripe metrics` (for node_exporter's textfile collector), or by HTTP where node.json says
{"metrics": {"address": "127.0.0.1", "port": N}}. HTTP has neither password nor TLS, so it belongs on loopback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from replicator.core import rpo
from replicator.core.errors import FarstripeError, Refused
from replicator.daemon import pairview

if TYPE_CHECKING:
    from replicator.daemon.node import Node

TARGET_S = 2.0
EDGE = ("group", "peer")
Metric = GaugeMetricFamily | CounterMetricFamily
Facts = dict[str, Any]


class Metrics(Collector):
    """Collects everything of one node, anew for every scrape."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._server: WSGIServer | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the collector is alone in its registry."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return all families. What cannot be asked is left out."""
        pool = self._ask("pool.status")
        groups = self._ask("group.list")
        yield from _processes(target=groups is not None)
        yield from pool_families(pool or {})
        yield from group_families([one for one in groups or () if "role" in one])
        yield from pair_families(pairview.view_all(self._node))

    def _ask(self, op: str) -> Any:
        try:
            return self._node.target(op, TARGET_S)
        except FarstripeError:
            return None

    def text(self) -> str:
        """Return the exposition text."""
        return generate_latest(self._registry).decode()

    def serve(self, address: str, port: int) -> None:
        """Answer HTTP requests from now on. Raises Refused when the port cannot be had."""
        try:
            self._server, _ = start_http_server(port, address, registry=self._registry)
        except OSError as exc:
            raise Refused(
                f"metrics cannot be served on {address} port {port}: {exc.strerror or exc}",
                "correct metrics.port in node.json",
            ) from exc

    def stop(self) -> None:
        """End the HTTP server, if there is one."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"farstripe_{name}", text, labels=labels)


def _counter(name: str, text: str, labels: tuple[str, ...] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(f"farstripe_{name}", text, labels=labels)


def _processes(*, target: bool) -> Iterable[Metric]:
    up = _gauge("up", "Whether a process of the node answers.", ("process",))
    up.add_metric(["target"], int(target))
    up.add_metric(["replicator"], 1)
    yield up


def pool_families(pool: Facts) -> Iterable[Metric]:
    """RAID groups and their members, from pool.status; nothing without a pool."""
    group = ("pool", "raid_group")
    member = (*group, "member")
    state = _gauge("raid_group_state", "1 for the state the RAID group is in.", (*group, "level", "state"))
    size = _gauge("raid_group_size_bytes", "Room for areas in the RAID group.", group)
    free = _gauge("raid_group_free_bytes", "Room that no area uses.", group)
    lost = _gauge("raid_group_lost_blocks", "Blocks that cannot be read any more.", group)
    member_state = _gauge("member_state", "1 for the state the member is in.", (*member, "state"))
    errors = _gauge("member_read_errors", "Reads of the member that failed.", member)
    sums = _gauge("member_checksum_errors", "Blocks of the member that did not fit their checksum.", member)
    repaired = _gauge("member_repaired_blocks", "Blocks of the member that were written anew from the others.", member)
    rebuilt = _gauge("member_rebuilt_ratio", "Part of the member that is rebuilt.", member)
    for one in pool.get("groups", ()):
        its = [str(pool.get("name")), str(one["name"])]
        state.add_metric([*its, str(one["level"]), str(one["state"])], 1)
        size.add_metric(its, one["size"])
        free.add_metric(its, one["free"])
        lost.add_metric(its, one["lost_blocks"])
        for m in one["members"]:
            labels = [*its, str(m["path"])]
            member_state.add_metric([*labels, str(m["state"])], 1)
            errors.add_metric(labels, m["read_errors"])
            sums.add_metric(labels, m["checksum_errors"])
            repaired.add_metric(labels, m["repaired"])
            if m["rebuilt"] is not None:
                rebuilt.add_metric(labels, m["rebuilt"])
    yield from (state, size, free, lost, member_state, errors, sums, repaired, rebuilt)


def group_families(groups: list[Facts]) -> Iterable[Metric]:
    """Consistency groups, from group.list."""
    one_group = ("group",)
    role = _gauge("group_role", "1 for the role the group has here.", ("group", "role", "copy", "mode"))
    records = _counter("group_records", "Place in the write order of the newest record here.", one_group)
    used = _gauge("journal_used_bytes", "Bytes of the journal that hold records still wanted.", one_group)
    room = _gauge("journal_size_bytes", "Bytes the journal has.", one_group)
    degraded = _gauge("group_degraded", "Whether a synchronous group goes on without a peer.", one_group)
    waits = _gauge("group_writers_wait", "Whether host writes have waited for some time for room or a peer.", one_group)
    fails = _gauge("group_writes_fail", "Whether host writes fail for want of room or of a peer.", one_group)
    refused = _counter("group_failed_writes", "Host writes that failed so since the target began.", one_group)
    failed = _gauge("group_failed", "Whether the group takes no requests because a disk failed.", one_group)
    for one in groups:
        name = [str(one["name"])]
        role.add_metric([*name, str(one["role"]), str(one["state"]), str(one["mode"])], 1)
        records.add_metric(name, one["pos"])
        journal = one.get("journal") or {}
        if journal.get("used") is not None:
            used.add_metric(name, journal["used"])
            room.add_metric(name, journal["capacity"])
        degraded.add_metric(name, int(bool(one.get("degraded"))))
        failed.add_metric(name, int(bool(one.get("failed"))))
        if writers := one.get("writers"):
            waits.add_metric(name, int(writers["waits"]))
            fails.add_metric(name, int(writers["fails"]))
            refused.add_metric(name, writers["failed"])
    yield from (role, records, used, room, degraded, failed, waits, fails, refused)


def pair_families(views: list[Facts]) -> Iterable[Metric]:
    """Pairs, from pairview: the state as a word, the recovery point, what was moved."""
    state = _gauge("pair_state", "1 for the word that describes the pair; level: ok, busy, warn, bad.",
                   (*EDGE, "state", "level"))  # fmt: skip
    besides = _gauge("pair_condition", "1 for each condition of the pair that status names.",
                     (*EDGE, "condition", "level"))  # fmt: skip
    connected = _gauge("pair_connected", "Whether there is a link to the peer.", EDGE)
    writes = _gauge("rpo_writes", "Writes that would be lost with the primary.", (*EDGE, "bound"))
    size = _gauge("rpo_bytes", "Bytes of journal that would be lost with the primary.", (*EDGE, "bound"))
    seconds = _gauge("rpo_seconds", "Seconds of writes that would be lost with the primary.", (*EDGE, "bound"))
    group = ("group", "bound")
    of_group = [
        _gauge("group_rpo_writes", "Writes that would be lost with the primary now: the best copy.", group),
        _gauge("group_rpo_bytes", "Bytes of journal that would be lost so.", group),
        _gauge("group_rpo_seconds", "Seconds of writes that would be lost so.", group),
    ]
    exceeded = _gauge("rpo_budget_exceeded", "Whether more would be lost than the pair's budget allows.", EDGE)
    left = _gauge("copy_left_bytes", "Bytes still to be copied until the copy is consistent.", EDGE)
    for view in views:
        edge = [str(view["name"]), str(view["peer_name"])]
        state.add_metric([*edge, str(view["word"]), str(view["level"])], 1)
        for one in view["conditions"]:
            besides.add_metric([*edge, str(one["label"]), str(one["level"])], 1)
        connected.add_metric(edge, int(view["connected"]))
        lost = view["rpo"]
        for family, unit in ((writes, "writes"), (size, "bytes"), (seconds, "seconds")):
            if lost[unit] is not None:
                family.add_metric([*edge, str(lost["bound"])], lost[unit])
        if view["budget"] is not None:
            exceeded.add_metric(edge, int(view["budget"]["exceeded"]))
        if view["todo_bytes"] is not None:
            left.add_metric(edge, view["todo_bytes"])
    for name in dict.fromkeys(str(view["name"]) for view in views):
        _, best = rpo.of_group([(bool(v["feeds_us"]), v["rpo"]) for v in views if str(v["name"]) == name])
        for family, unit in zip(of_group, ("writes", "bytes", "seconds"), strict=True):
            if best is not None and best[unit] is not None:
                family.add_metric([name, str(best["bound"])], best[unit])
    yield from (state, besides, connected, writes, size, seconds, *of_group, exceeded, left)
