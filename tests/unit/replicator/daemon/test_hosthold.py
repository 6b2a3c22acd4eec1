"""Hosts that hold their own writes: what their commands say, and what counts."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
import threading
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from replicator.core.errors import AlreadyExists, NotFound, Refused
from replicator.daemon import hosthold
from replicator.daemon.hosthold import HostHolds, linked
from replicator.daemon.markers import HOSTS
from replicator.daemon.markerstore import MADE, MarkerStore
from tests.unit.replicator.daemon.test_markers import OneNode, coordinator

GOOD = "echo held; read word; echo $word >> {0}; echo released"
SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "farstripe-freeze"


def holds(tmp_path: Path, *commands: str, hold_s: float = 5.0) -> HostHolds:
    hosts = {f"h{at}": command.format(tmp_path / f"h{at}") for at, command in enumerate(commands)}
    return HostHolds(hosts, "monday", hold_s)


def test_all_hosts_hold_at_once_and_are_released(tmp_path: Path) -> None:
    both = holds(tmp_path, GOOD, 'echo "$FARSTRIPE_MARKER $FARSTRIPE_HOLD_S" > {0}; ' + GOOD)
    began = time.monotonic()
    until = both.hold()
    assert began < until <= time.monotonic() + 5
    assert both.release() == ""
    assert (tmp_path / "h0").read_text() == "release\n"
    assert (tmp_path / "h1").read_text() == "monday 5\nrelease\n"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo cannot >&2; exit 3", "host h1 does not hold: its command ended with 3: cannot"),
        ("true", "host h1 does not hold: it did not hold"),
        ("read x; echo held", "no word in time that these hosts hold: h1"),
    ],
)
def test_one_host_that_does_not_hold_is_enough_and_the_others_go_on(tmp_path: Path, command: str, why: str) -> None:
    both = holds(tmp_path, GOOD, command, hold_s=0.2)
    with pytest.raises(Refused, match=why):
        both.hold()
    both.release()
    assert (tmp_path / "h0").read_text() == "release\n"


def test_nobody_is_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosthold, "FIRST_S", 0.1)
    none = holds(tmp_path, "read x")
    with pytest.raises(Refused, match="no word in time that these hosts hold: h0"):
        none.hold()
    none.release()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo held; read x; exit 1", "host h0: its command ended with 1"),
        ("echo held; read x", "host h0: it did not hold all the time"),
        ("echo held; echo released; read x", "host h0: it did not hold all the time"),
    ],
)
def test_a_hold_that_lapsed_does_not_count(tmp_path: Path, command: str, why: str) -> None:
    one = holds(tmp_path, command)
    one.hold()
    time.sleep(0.05)
    assert one.release() == why


def test_a_command_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosthold, "RELEASE_S", 0.1)
    one = holds(tmp_path, "trap '' TERM; echo held; sleep 30 & echo $! > {0}; wait; wait")
    monkeypatch.setattr(hosthold, "KILL_S", 0.2)
    one.hold()
    assert "did not end within 0.1 s" in one.release()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int((tmp_path / "h0").read_text()), 0)
            time.sleep(0.02)


def test_every_group_needs_a_host_that_is_asked() -> None:
    shop, books = {"name": "shop", "uuid": "1"}, {"name": "books", "uuid": "2"}
    hosts = {"web": {"command": "a", "uuids": ["1"]}, "db": {"command": "b", "uuids": ["1", "3"]}}
    assert linked(hosts, [shop]) == {"web": "a", "db": "b"}
    with pytest.raises(Refused, match="no host is linked that writes to group books"):
        linked(hosts, [shop, books])
    assert linked(hosts | {"all": {"command": "c", "uuids": []}}, [books]) == {"all": "c"}


def test_hosts_survive_a_restart(tmp_path: Path) -> None:
    MarkerStore(tmp_path, 5).host("web", {"command": "a", "groups": [], "uuids": []})
    store = MarkerStore(tmp_path, 5)
    assert store.hosts() == {"web": {"command": "a", "groups": [], "uuids": []}}
    with pytest.raises(AlreadyExists):
        store.host("web", {"command": "b", "groups": [], "uuids": []})
    store.host("web", None)
    with pytest.raises(NotFound):
        MarkerStore(tmp_path, 5).host("web", None)


# -- markers ----------------------------------------------------------------------------------------------------------


def test_a_marker_is_made_while_hosts_hold_and_nothing_is_parked(tmp_path: Path) -> None:
    node = OneNode()
    markers = coordinator(tmp_path, node)
    markers.store.host("web", {"command": GOOD.format(tmp_path / "web"), "groups": [], "uuids": []})
    made = markers.create("m", ["g"], hold=HOSTS)
    assert made["state"] == MADE and made["hosts"] == ["web"]
    (hold,) = [args for op, args in node.asked if op == "marker.hold"]
    assert hold["park"] is False and 0 < hold["lease_s"] <= 2
    assert (tmp_path / "web").read_text() == "release\n"


def test_a_hold_that_lapsed_before_the_marker_makes_it_none_and_its_images_go(tmp_path: Path) -> None:
    node = OneNode()
    markers = coordinator(tmp_path, node)
    markers.store.host("web", {"command": "echo held; sleep 0.1; exit 1", "groups": [], "uuids": []})
    with pytest.raises(Refused, match="marker m was not made: host web: its command ended with 1"):
        markers.create("m", ["g"], hold=HOSTS)
    assert [op for op, _ in node.asked if op in ("marker.mark", "marker.forget")] == ["marker.mark", "marker.forget"]
    assert markers.store.all() == []


def test_without_a_linked_host_nothing_is_asked(tmp_path: Path) -> None:
    node = OneNode()
    markers = coordinator(tmp_path, node)
    with pytest.raises(Refused, match="no host is linked that writes to group g"):
        markers.create("m", ["g"], hold=HOSTS)
    assert "marker.hold" not in [op for op, _ in node.asked] and markers.store.all() == []


def test_hosts_are_released_when_a_node_refuses(tmp_path: Path) -> None:
    node = OneNode()
    node.fails = "marker.mark"
    markers = coordinator(tmp_path, node)
    markers.store.host("web", {"command": GOOD.format(tmp_path / "web"), "groups": [], "uuids": []})
    with pytest.raises(Refused, match="marker m was not made: A is silent"):
        markers.create("m", ["g"], hold=HOSTS)
    assert (tmp_path / "web").read_text() == "release\n"


# -- the command for filesystems ---------------------------------------------------------------------------------------


@pytest.fixture
def script() -> ModuleType:
    loader = SourceFileLoader("farstripe_freeze", str(SCRIPT))
    spec = importlib.util.spec_from_loader("farstripe_freeze", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Kernel:
    """Which directories are frozen, by inode; what FIFREEZE and FITHAW say."""

    def __init__(self, script: ModuleType) -> None:
        self._freezes = script.FIFREEZE
        self.frozen: set[int] = set()

    def __call__(self, fd: int, what: int) -> None:
        inode = os.fstat(fd).st_ino
        if what == self._freezes:
            if inode in self.frozen:
                raise OSError(errno.EBUSY, "busy")
            self.frozen.add(inode)
        elif inode not in self.frozen:
            raise OSError(errno.EINVAL, "not frozen")
        else:
            self.frozen.remove(inode)


def places(tmp_path: Path) -> list[str]:
    for name in "ab":
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in "ab"]


def test_all_filesystems_are_frozen_or_none(script: ModuleType, tmp_path: Path) -> None:
    kernel, both = Kernel(script), places(tmp_path)
    frozen = script.freeze(both, kernel)
    assert len(kernel.frozen) == 2
    assert script.thaw(frozen, kernel) == [] and not kernel.frozen
    assert script.thaw(frozen, kernel) == both[::-1], "somebody else has thawed them"
    kernel.frozen.add(os.stat(both[1]).st_ino)
    with pytest.raises(OSError, match="busy") as caught:
        script.freeze(both, kernel)
    assert caught.value.filename == both[1]
    assert kernel.frozen == {os.stat(both[1]).st_ino}


def test_the_word_to_go_on_is_waited_for_until_its_time_or_the_end_of_input(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(script.os, "read", lambda fd, n, read=os.read: read(reader if fd == 0 else fd, n))
    good = script.select.select
    selecting: Any = lambda r, w, x, t: good([reader if fd == 0 else fd for fd in r], w, x, t)  # noqa: E731
    monkeypatch.setattr(script, "select", type("S", (), {"select": staticmethod(selecting)}))
    assert "within 0.05 s" in script.wait_for_word(0.05)
    threading.Timer(0.02, lambda: os.write(writer, b"release\n")).start()
    assert script.wait_for_word(5) == ""
    os.close(writer)
    assert "nobody is there" in script.wait_for_word(5)
    os.close(reader)


def test_what_cannot_be_frozen_is_said_with_status_1(tmp_path: Path) -> None:
    """A directory of this host's own filesystem, which no test freezes: the name is wrong."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "nothing")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "held" not in done.stdout and "nothing" in done.stderr
