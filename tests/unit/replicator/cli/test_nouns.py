"""pool, volume, group, events: what is asked of the target, and what people and scripts see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replicator.cli.pool import parse_layout
from replicator.core.errors import BadInput, InternalError, MediumError, TimedOut
from tests.unit.replicator.cli.conftest import FakeNode


def member(path: str, state: str = "in_sync", rebuilt: float | None = None, reason: str = "") -> dict[str, Any]:
    return {"path": path, "state": state, "rebuilt": rebuilt, "reason": reason}


def pool_status(*members: dict[str, Any]) -> dict[str, Any]:
    """A RAID-1 group of which 4 MiB are used on each member."""
    group = {"name": "safe", "level": 1, "state": "ok", "members": list(members), "chunk_bytes": 65536,
             "size": 4 << 20, "free": 1 << 20}  # fmt: skip
    return {"name": "main", "parity": "isa-l", "groups": [group], "remarks": []}


# -- pool ----------------------------------------------------------------------------------------------------


def test_a_layout_is_levels_and_their_members() -> None:
    words = ["raid6", "/a", "/b", "/c", "/d", "fast=raid0@128K", "/e", "raid0", "/f", "raid0", "/g"]
    groups = parse_layout(words)
    assert [(g["name"], g["level"], g["members"]) for g in groups] == [
        ("raid6", 6, ["/a", "/b", "/c", "/d"]), ("fast", 0, ["/e"]), ("raid0", 0, ["/f"]), ("raid0-2", 0, ["/g"]),
    ]  # fmt: skip
    assert groups[1]["chunk"] == 128 << 10
    assert "chunk" not in groups[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "at least one"),
        (["/a", "raid0"], "before any RAID level"),
        (["raid6", "/a", "/b"], "needs 4"),
        (["raid1", "/a", "/b", "raid0", "/a"], "named twice"),
        (["x=raid0", "/a", "x=raid0", "/b"], "two RAID groups"),
        (["raid0@12q", "/a"], "chunk"),
    ],
)
def test_layouts_that_cannot_be(words: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_layout(words)


def test_two_names_of_one_file_are_one_member(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BadInput, match="named twice"):
        parse_layout(["raid1", str(tmp_path / "a"), str(tmp_path / "b")])


def test_pool_create_makes_the_files_it_was_told_to(node: FakeNode, tmp_path: Path) -> None:
    node.target.answers["pool.create"] = pool_status()
    paths = [str(tmp_path / "disks" / str(n)) for n in range(4)]
    assert node.run("pool", "create", "main", "raid6", *paths, "--make-files", "8M").code == 0
    assert [Path(path).stat().st_size for path in paths] == [8 << 20] * 4
    asked = node.target.asked("pool.create")
    assert asked == {
        "name": "main", "area_bytes": 4 << 20, "groups": [{"name": "raid6", "level": 6, "members": paths}],
        "force": False,
    }  # fmt: skip
    assert node.run("pool", "create", "main", "raid6", *paths, "--force").code == 0
    assert node.target.asked("pool.create")["force"] is True


def test_a_refused_pool_leaves_no_files(node: FakeNode, tmp_path: Path) -> None:
    node.target.answers["pool.create"] = BadInput("no")
    paths = [str(tmp_path / str(n)) for n in range(2)]
    assert node.run("pool", "create", "main", "raid1", *paths, "--make-files", "8M").code == 3
    assert not any(Path(path).exists() for path in paths)


@pytest.mark.parametrize("error", [TimedOut("slow"), InternalError("odd")])
def test_files_that_the_target_may_be_using_stay(node: FakeNode, tmp_path: Path, error: Exception) -> None:
    node.target.answers["pool.create"] = node.target.answers["pool.replace"] = error
    new = tmp_path / "new"
    assert node.run("pool", "create", "main", "raid0", str(tmp_path / "0"), "--make-files", "8M").code != 0
    assert node.run("pool", "replace", str(tmp_path / "0"), str(new), "--make-file", "8M").code != 0
    assert (tmp_path / "0").exists() and new.exists()


def test_no_files_are_made_for_a_target_that_does_not_run(node: FakeNode, tmp_path: Path) -> None:
    node.target.stop()
    assert node.run("pool", "create", "main", "raid0", str(tmp_path / "0"), "--make-files", "8M").code == 7
    assert not (tmp_path / "0").exists()


def test_files_that_exist_are_not_overwritten(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("precious")
    paths = [str(tmp_path / str(n)) for n in range(2)]
    assert node.run("pool", "create", "main", "raid1", *paths, "--make-files", "8M").code == 6
    assert (tmp_path / "1").read_text() == "precious"
    assert not (tmp_path / "0").exists()


def test_pool_status_names_the_members_that_are_not_well(node: FakeNode) -> None:
    ill = [member("/d/1", "failed", reason="I/O error"), member("/d/2", "rebuilding", 0.75)]
    node.target.answers["pool.status"] = pool_status(member("/d/0"), *ill)
    out = node.run("pool", "status").out
    assert "1/3 in sync" in out and "I/O error" in out and "75 % done" in out
    assert "/d/1" in out and "/d/0" not in out


def test_replace_waits_until_the_member_is_whole(node: FakeNode) -> None:
    work = {"member": "/new", "remaining_bytes": 2 << 20, "total_bytes": 4 << 20}
    looks = [{**pool_status(member("/new", "rebuilding", 0.5)), "rebuilds": [work]}, pool_status(member("/new"))]
    node.target.answers["pool.replace"] = pool_status()
    node.target.answers["pool.status"] = lambda _args: looks.pop(0)
    done = node.run("pool", "replace", "/old", "/new", "--wait")
    assert done.code == 0 and "/new is complete in the place of /old" in done.out
    assert "50 %, 2 MiB of 4 MiB left" in done.err and "100 %" in done.err  # no terminal: lines instead of a bar


def test_a_member_that_fails_while_it_is_rebuilt_ends_the_wait(node: FakeNode) -> None:
    node.target.answers["pool.replace"] = pool_status()
    node.target.answers["pool.status"] = pool_status(member("/new", "failed"))
    assert node.run("pool", "replace", "/old", "/new", "--wait", "--json").code == MediumError.exit_code


def test_waiting_can_have_an_end(node: FakeNode) -> None:
    node.target.answers["pool.replace"] = pool_status()
    node.target.answers["pool.status"] = pool_status(member("/new", "rebuilding"))
    assert node.run("pool", "replace", "/old", "/new", "--wait", "--timeout", "0.1").code == 11


def test_declaring_a_member_lost_asks_first(node: FakeNode) -> None:
    node.target.answers["pool.fail"] = pool_status()
    node.target.answers["pool.status"] = pool_status({"path": "/d/0", "uuid": "00"})
    assert node.run("pool", "fail", "/d/0").code == 4
    assert [op for op, _ in node.target.calls] == ["pool.status"]
    assert node.run("pool", "fail", "/d/0", "--yes").code == 0
    assert node.target.asked("pool.fail") == {"member": "/d/0"}


# -- volume --------------------------------------------------------------------------------------------------


def test_volume_create(node: FakeNode) -> None:
    node.target.answers["volume.create"] = {"name": "data"}
    assert node.run("volume", "create", "data", "--size", "1G", "--raid-group", "raid6", "--thick").code == 0
    assert node.target.asked("volume.create") == {
        "name": "data", "size": 1 << 30, "raid_group": "raid6", "thin": False,
    }  # fmt: skip


def test_a_size_that_is_no_multiple_of_4096_names_its_neighbours(node: FakeNode) -> None:
    done = node.run("volume", "create", "data", "--size", "4097")
    assert done.code == 3 and "4096" in done.err and "8192" in done.err


def test_volume_list(node: FakeNode) -> None:
    node.target.answers["volume.list"] = [
        {
            "name": "data",
            "size": 1 << 30,
            "allocated": None,
            "group": "app",
            "role": "primary",
            "writers": 1,
            "readers": 0,
        }
    ]
    out = node.run("volume", "list").out
    assert "data" in out and "1 GiB" in out and "unknown" in out and "primary" in out
    assert node.run("volume", "list", "--json").json[0]["name"] == "data"


def test_no_volumes_says_how_to_make_one(node: FakeNode) -> None:
    node.target.answers["volume.list"] = []
    assert "volume create" in node.run("volume", "list").out


def test_deleting_a_volume_asks_first(node: FakeNode) -> None:
    node.target.answers["volume.delete"] = None
    node.target.answers["volume.list"] = [{"name": "data"}]
    assert node.run("volume", "delete", "data").code == 4
    assert [op for op, _ in node.target.calls] == ["volume.list"]
    assert node.run("volume", "delete", "data", "-y", "--json").json == {"name": "data", "deleted": True}


def test_volume_resize(node: FakeNode) -> None:
    node.target.answers["volume.resize"] = {"name": "data", "size": 2 << 30}
    done = node.run("volume", "resize", "data", "--size", "2G")
    assert done.code == 0 and "2 GiB" in done.out
    assert node.target.asked("volume.resize") == {"name": "data", "size": 2 << 30, "force": False}
    node.target.answers["volume.list"] = [{"name": "data"}]
    assert node.run("volume", "resize", "data", "--size", "1G", "--force").code == 4  # nobody there to confirm
    assert node.run("volume", "resize", "data", "--size", "1G", "--force", "--yes").code == 0
    assert node.target.asked("volume.resize")["force"] is True


# -- group ---------------------------------------------------------------------------------------------------


def test_group_create(node: FakeNode) -> None:
    node.target.answers["group.create"] = {"name": "app"}
    assert node.run("group", "create", "app", "data", "log", "--journal", "64M").code == 0
    assert node.target.asked("group.create") == {"name": "app", "volumes": ["data", "log"], "journal_bytes": 64 << 20}
    assert node.run("group", "create", "app", "data", "--journal-path", "/fast/j").code == 0
    assert node.target.asked("group.create")["journal_path"] == "/fast/j"


def test_group_policy_changes_what_is_given_and_shows_the_rest(node: FakeNode) -> None:
    node.target.answers["group.policy"] = {}
    node.target.answers["group.status"] = {"policy": {"mode": "sync", "on_loss": "stall", "loss_timeout_s": 5.0}}
    out = node.run("group", "policy", "app", "--mode", "sync", "--loss-timeout", "0").out
    assert node.target.asked("group.policy") == {"group": "app", "mode": "sync", "loss_timeout_s": 0.0}
    assert "stall" in out
    node.target.calls.clear()
    assert node.run("group", "policy", "app").code == 0
    assert [op for op, _ in node.target.calls] == ["group.status"]


def test_a_copy_does_not_pretend_to_set_what_its_primary_decides(node: FakeNode) -> None:
    copy = {"name": "app", "role": "secondary", "upstream": "a" * 32, "policy": {"mode": "sync"}}
    node.target.answers |= {"group.policy": {}, "group.status": copy}
    node.replicator.answers["pair.show"] = {"peer": "c" * 32}
    done = node.run("group", "policy", "app", "--on-full", "stall")
    assert done.code == 4 and "on_full" in done.err and "set it on the primary" in done.err
    assert node.run("group", "policy", "app", "--mode", "sync").code == 4
    assert "group.policy" not in [op for op, _ in node.target.calls]
    assert node.run("group", "policy", "app", "C", "--mode", "sync").code == 0
    assert node.target.asked("group.policy")["mode"] == "sync"
    node.replicator.answers["pair.show"] = {"peer": "a" * 32}
    assert node.run("group", "policy", "app", "A", "--mode", "async").code == 4


def test_group_delete_asks_and_forces_only_when_told(node: FakeNode) -> None:
    node.target.answers |= {"group.delete": None, "group.list": [{"name": "app", "uuid": "00"}]}
    assert node.run("group", "delete", "app").code == 4
    assert node.run("group", "delete", "app", "--yes").code == 0
    assert node.target.asked("group.delete") == {"group": "app", "force": False}
    assert node.run("group", "delete", "app", "--yes", "--force").code == 0
    assert node.target.asked("group.delete")["force"] is True


@pytest.mark.parametrize(
    "words",
    [
        ("volume", "delete", "nope"), ("volume", "rollback", "data", "nope"), ("volume", "rollback", "nope", "data"),
        ("volume", "resize", "nope", "--size", "1G", "--force"), ("group", "delete", "nope"),
        ("pool", "remove-group", "nope"), ("pool", "fail", "/nope"), ("pool", "remove", "/nope"),
    ],
)  # fmt: skip
def test_nobody_is_asked_about_what_is_not_there(node: FakeNode, words: tuple[str, ...]) -> None:
    status = pool_status({"path": "/d/0", "uuid": "00"})
    node.target.answers |= {"volume.list": [{"name": "data"}], "group.list": [], "pool.status": status}
    done = node.run(*words)
    assert done.code == 5 and "nope" in done.err and "Nobody is there" not in done.err


# -- events --------------------------------------------------------------------------------------------------


def event(n: int, time: str, kind: str) -> dict[str, Any]:
    return {"n": n, "time": time, "kind": kind, "text": f"event {n}"}


def test_events_of_both_processes_come_in_the_order_of_time(node: FakeNode) -> None:
    node.target.answers["events.list"] = [event(1, "T1", "node.started"), event(2, "T3", "member.failed")]
    node.replicator.answers["events.list"] = [event(1, "T2", "pair.linked")]
    found = node.run("events", "--json").json
    assert [(one["time"], one["process"]) for one in found] == [
        ("T1", "target"), ("T2", "replicator"), ("T3", "target"),
    ]  # fmt: skip
    assert [one["kind"] for one in node.run("events", "--kind", "member", "--json").json] == ["member.failed"]
    assert len(node.run("events", "--last", "1", "--json").json) == 1


def test_one_process_is_enough_for_events_and_none_is_not(node: FakeNode) -> None:
    node.target.answers["events.list"] = [event(1, "T1", "node.started")]
    node.replicator.stop()
    assert len(node.run("events", "--json").json) == 1
    node.target.stop()
    assert node.run("events").code == 7


def test_resume_says_what_was_resumed(node: FakeNode) -> None:
    answers = node.replicator.answers
    answers["marker.resume"] = {"copies": []}
    assert "no copy here stood at a marker" in node.run("marker", "resume", "--groups", "app").out
    answers["marker.resume"] = {"copies": ["app"]}
    assert node.run("marker", "resume", "--groups", "app").out == "the copies follow again\n"
    answers["marker.resume"] = {"copies": [{"node": "B", "state": "unreachable"}, {"node": "A", "state": "made"}]}
    assert "B could not be asked" in node.run("marker", "resume", "monday").out
