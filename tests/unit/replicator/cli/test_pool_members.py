"""pool readd, remove, spare, rebuild-limit, destroy, and what explain says of a pool that is not well."""

from __future__ import annotations

from typing import Any

from replicator.cli import explain_pool
from replicator.cli.pool import parse_layout
from replicator.core.errors import Refused
from tests.unit.replicator.cli.conftest import FakeNode

URI = "nbd+unix:///?socket=/run/x"


def member(path: str, state: str = "in_sync", **more: Any) -> dict[str, Any]:
    return {"path": path, "state": state, "rebuilt": None, "reason": "", "away": False, "replacement": None,
            "slow_requests": 0, "slowest_s": 0.0, **more}  # fmt: skip


def status(*members: dict[str, Any], state: str = "degraded", **more: Any) -> dict[str, Any]:
    group = {"name": "safe", "level": 1, "state": state, "members": list(members), "chunk_bytes": 65536,
             "size": 4 << 20, "free": 1 << 20}  # fmt: skip
    return {"name": "main", "parity": "isa-l", "groups": [group], "remarks": [], "volumes": [], "spares": [],
            "rebuilds": [], **more}  # fmt: skip


def test_an_nbd_uri_is_a_member_like_a_path() -> None:
    groups = parse_layout(["raid1", URI, "nbd://host:10809/disk"])
    assert groups[0]["members"] == [URI, "nbd://host:10809/disk"]


def test_readd_says_how_much_is_copied(node: FakeNode) -> None:
    node.target.answers["pool.readd"] = {**status(member(URI)), "to_copy_bytes": 3 << 20}
    done = node.run("pool", "readd", URI)
    assert done.code == 0 and "copying 3 MiB" in done.out
    assert node.target.asked("pool.readd")["member"] == URI
    work = {"member": URI, "remaining_bytes": 1 << 20, "total_bytes": 3 << 20}
    looks = [status(member(URI, "rebuilding"), rebuilds=[work]), status(member(URI))]
    node.target.answers["pool.status"] = lambda _args: looks.pop(0)
    done = node.run("pool", "readd", URI, "--wait")
    assert done.code == 0 and "was brought up by copying 3 MiB" in done.out


def test_a_readd_that_is_refused_names_the_reason(node: FakeNode) -> None:
    node.target.answers["pool.readd"] = Refused("it did not merely go away: sync", "pool replace")
    done = node.run("pool", "readd", "/d/0")
    assert done.code == 4 and "did not merely go away" in done.err and "pool replace" in done.err


def test_spares_are_added_listed_and_removed(node: FakeNode) -> None:
    node.target.answers["pool.spare_add"] = node.target.answers["pool.remove"] = status()
    node.target.answers["pool.spare_list"] = [
        {"path": "/d/s", "uuid": "u", "size": 1 << 30, "group": None, "there": True}
    ]
    assert node.run("pool", "spare", "add", "/d/s", "--group", "safe").code == 0
    assert node.target.asked("pool.spare_add") == {"member": "/d/s", "force": False, "raid_group": "safe"}
    out = node.run("pool", "spare", "list").out
    assert "/d/s" in out and "1 GiB" in out and "ready" in out
    assert node.run("pool", "spare", "remove", "/d/s").code == 0
    assert node.run("pool", "spare", "remove", "/d/t").code == 4


def test_destroying_asks_first_and_refusals_pass_through(node: FakeNode) -> None:
    node.target.answers["pool.status"] = status(volumes=[{"name": "v"}])
    node.target.answers["pool.destroy"] = {"not_erased": ["/d/1: I/O error"]}
    assert node.run("pool", "destroy").code == 4
    assert not any(op == "pool.destroy" for op, _ in node.target.calls)
    done = node.run("pool", "destroy", "--yes", "--force")
    assert done.code == 0 and "/d/1: I/O error" in done.out
    assert node.target.asked("pool.destroy")["force"] is True


def test_status_shows_work_its_speed_and_spares(node: FakeNode) -> None:
    work = {"member": "/new", "replaces": "/old", "group": "safe", "by_difference": False, "remaining_bytes": 1 << 30,
            "total_bytes": 2 << 30, "copied_bytes": 1 << 30, "bytes_s": 100 << 20, "left_s": 10.2}  # fmt: skip
    spare = {"path": "/d/s", "uuid": "u", "size": 1 << 30, "group": None, "there": False}
    node.target.answers["pool.status"] = status(member("/old"), rebuilds=[work], spares=[spare])
    out = node.run("pool", "status").out
    assert "replaces /old" in out and "100 MiB/s" in out and "10" in out and "missing" in out


def test_every_trouble_is_explained_with_a_command_that_helps(node: FakeNode) -> None:
    ill = status(
        member("/a", "failed", reason="missing", away=True),
        member("/b", "failed", reason="sync: Input/output error"),
        member("/c", "rebuilding"),
        member("/d", replacement={"path": "/e"}, slow_requests=3, slowest_s=9.5),
        spares=[{"path": "/s", "uuid": "u", "size": 1, "group": None, "there": False}],
    )
    entries = explain_pool.troubles(ill)
    assert [entry["state"] for entry in entries] == [
        "degraded", "away", "failed", "rebuilding", "being replaced by /e", "slow", "spare missing",
    ]  # fmt: skip
    assert all(entry["commands"] and entry["why"] for entry in entries)
    assert explain_pool.troubles(status(member("/a", "failed"), state="lost"))[0]["state"] == "lost"
    assert explain_pool.troubles(status(member("/a"), state="ok")) == []
    busy = status(member("/a", checksum_errors=2, repaired=2), state="ok")
    busy["groups"][0] |= {"draining": True, "lost_blocks": 1, "areas": 100, "free_areas": 4, "size": 100, "free": 4}
    busy["moves"] = [{"volume": "v", "group": "fast", "areas": 9, "remaining": 4}]
    entries = explain_pool.troubles(busy)
    assert [entry["state"] for entry in entries] == [
        "being removed", "has damaged blocks", "nearly full", "gives errors", "moving to RAID group fast",
    ]  # fmt: skip
    assert all(entry["commands"] and entry["why"] for entry in entries)
    node.target.answers["pool.status"] = ill
    out = node.run("explain", "pool").out
    assert "farstripe pool readd /a" in out and "farstripe pool replace /b NEW" in out


def test_raid_groups_and_members_are_explained_by_name(node: FakeNode) -> None:
    spare = {"path": "/d/spare", "uuid": "5", "size": 1, "group": None, "there": True}
    ill = status(member("/d/a", uuid="1"), member("/d/b", "failed", uuid="2", reason="write: EIO"), spares=[spare])
    node.target.answers |= {"pool.status": ill, "group.list": []}
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    out = node.run("explain", "safe").out
    assert out.startswith("RAID group safe: degraded") and "member /d/b: failed" in out
    for word in ("/d/b", "b", "2"):
        assert node.run("explain", word).out.startswith("member /d/b: failed")
    assert node.run("explain", "/d/a").out.startswith("member /d/a: in sync")
    assert "takes the place" in node.run("explain", "spare", "--kind", "member").out
    (entry,) = node.run("explain", "b", "--json").json
    assert entry["state"] == "failed"
    node.target.answers["pool.status"] = status(member("/d/a"), state="ok")
    assert node.run("explain", "safe").out.startswith("RAID group safe: ok")


def test_a_name_that_stands_for_several_things_is_not_guessed(node: FakeNode) -> None:
    node.target.answers |= {
        "pool.status": status(member("/d/safe"), member("/e/x"), member("/f/x"), state="ok"), "group.list": [],
    }  # fmt: skip
    node.replicator.answers["status"] = {"node": {}, "pairs": [], "peers": []}
    done = node.run("explain", "safe")
    assert done.code == 3 and "RAID group safe and member /d/safe" in done.err and "--kind member" in done.err
    assert node.run("explain", "safe", "--kind", "raid-group").out.startswith("RAID group safe: ok")
    assert node.run("explain", "safe", "--kind", "member").out.startswith("member /d/safe")
    done = node.run("explain", "x")
    assert done.code == 3 and "/e/x" in done.err and "whole path" in done.err
    assert node.run("explain", "/f/x").code == 0
    assert node.run("explain", "safe", "--kind", "group").code == 5
    assert node.run("explain", "journal", "--kind", "word").code == 0
