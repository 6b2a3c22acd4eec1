"""What an administrator gets for bad input, from real nodes: a clear error, a stable exit code, nothing changed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, Pair

USAGE, BAD_INPUT, REFUSED, NOT_FOUND, EXISTS, NOT_RUNNING, PEER = 2, 3, 4, 5, 6, 7, 8


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two nodes with a synchronous pair of the volumes data and log; `alone` is a volume in no group."""
    with NetNS() as net, Node("A", net, replication_port=10810) as a, Node("B", net, replication_port=10820) as b:
        pair = Pair.create(a.init(), b.init(), {"data": 8 << 20, "log": 4 << 20}, ["--mode", "sync"])
        a.farstripe("volume", "create", "alone", "--size", "1M")
        a.farstripe("volume", "create", "vast", "--size", "8T")
        a.writer("alone").pwrite(b"precious" * 512, (1 << 20) - 4096)
        yield pair


def everything(node: Node) -> dict[str, Any]:
    """What bad input must not change; counters left out."""
    pool = node.ask("target", "pool.status")
    groups = node.ask("target", "group.list")
    return {
        "volumes": [
            [one[key] for key in ("name", "uuid", "size", "group")] for one in node.ask("target", "volume.list")
        ],
        "members": [[member["path"], member["state"]] for group in pool["groups"] for member in group["members"]],
        "groups": [{key: one[key] for key in ("name", "role", "state", "policy", "volumes")} for one in groups],
        "peers": node.ask("replicator", "peer.list"),
        "pairs": [[one["name"], one["peer"], one["split"]] for one in node.ask("replicator", "pair.list")],
    }


CASES = [
    # names
    (["volume", "create", "data", "--size", "1M"], EXISTS, "data"),
    (["volume", "create", "../x", "--size", "1M"], BAD_INPUT, "../x"),
    (["volume", "delete", "nope", "--yes"], NOT_FOUND, "nope"),
    (["volume", "resize", "nope", "--size", "1M"], NOT_FOUND, "nope"),
    (["group", "create", "app", "alone"], EXISTS, "app"),
    (["group", "create", "g", "nope"], NOT_FOUND, "nope"),
    (["group", "create", "g", "alone", "alone"], BAD_INPUT, "twice"),
    (["group", "create", "g", "data"], REFUSED, "group app"),
    (["group", "policy", "nope"], NOT_FOUND, "nope"),
    (["pair", "show", "nope"], NOT_FOUND, "nope"),
    (["pair", "create", "app", "--peer", "C"], NOT_FOUND, "C"),
    (["pair", "create", "app", "--peer", "B"], EXISTS, "paired"),
    (["peer", "delete", "C", "--yes"], NOT_FOUND, "C"),
    (["attach", "nope"], NOT_FOUND, "nope"),
    (["detach", "data"], NOT_FOUND, "data"),
    (["explain", "nope"], NOT_FOUND, "nope"),
    (["status", "nope"], NOT_FOUND, "nope"),
    # sizes
    (["volume", "create", "x", "--size", "4097"], BAD_INPUT, "4096"),
    (["volume", "create", "x", "--size", "0"], BAD_INPUT, "0 bytes"),
    (["volume", "create", "x", "--size", "lots"], BAD_INPUT, "lots"),
    (["volume", "create", "x", "--size", "1P", "--thick"], REFUSED, "x|space|free"),
    (["volume", "resize", "alone", "--size", "512K"], REFUSED, "allocated data"),
    (["volume", "resize", "data", "--size", "9000G"], BAD_INPUT, "group app"),
    (["group", "create", "g", "alone", "--journal", "64K"], BAD_INPUT, "journal"),
    (["group", "create", "g", "alone", "--journal", "99999999P"], BAD_INPUT, "1024 PiB"),
    (["volume", "create", "x", "--size", "99999999P"], BAD_INPUT, "1024 PiB"),
    (["group", "create", "g", "vast"], BAD_INPUT, "7 TiB"),
    # times and states
    (["group", "policy", "app", "--loss-timeout", "nan"], USAGE, "nan"),
    (["group", "policy", "app", "--full-timeout", "inf"], USAGE, "inf"),
    (["pair", "wait", "app", "--state", "SINK"], BAD_INPUT, "SINK"),
    # what is in use
    (["volume", "delete", "data", "--yes"], REFUSED, "group app"),
    (["group", "delete", "app", "--yes"], REFUSED, "paired"),
    (["peer", "delete", "B", "--yes"], REFUSED, "app"),
    (["pool", "create", "second", "raid0", "/nowhere"], EXISTS, "pool"),
    (["pool", "fail", "/nowhere", "--yes"], NOT_FOUND, "/nowhere"),
    # tokens
    (["peer", "join", "nonsense"], BAD_INPUT, "token"),
    (["peer", "join", "fs1.AAAA"], BAD_INPUT, "damaged"),
    # roles
    (["takeover", "app", "--yes"], REFUSED, "primary already"),
    (["pair", "resync", "app", "--discard", "C", "--yes"], NOT_FOUND, "C"),
    # unattended questions
    (["volume", "delete", "alone"], REFUSED, "--yes"),
    (["pair", "delete", "app"], REFUSED, "--yes"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "code", "words"), [pytest.param(*case, id=" ".join(case[0])) for case in CASES])
def test_bad_input(pair: Pair, argv: list[str], code: int, words: str) -> None:
    said = pair.primary.farstripe(*argv, expect=code)
    assert said.startswith("farstripe: ")
    assert any(word in said for word in words.split("|")), said


@pytest.fixture(autouse=True)
def nothing_changes(pair: Pair) -> Iterator[None]:
    before = [everything(node) for node in (pair.primary, pair.secondary)]
    yield
    assert [everything(node) for node in (pair.primary, pair.secondary)] == before


def test_taking_over_from_a_living_primary_says_what_to_do(pair: Pair) -> None:
    said = pair.secondary.farstripe("takeover", GROUP, "--yes", expect=REFUSED)
    assert "alive" in said and "switchover" in said and "--force" in said


def test_a_token_is_good_once(pair: Pair) -> None:
    with Node("C", pair.primary.net, replication_port=10830) as c:
        c.init()
        token = c.farstripe("peer", "token").strip()
        with Node("D", pair.primary.net, replication_port=10840) as d:
            d.init()
            d.farstripe("peer", "join", token)
            said = pair.primary.farstripe("peer", "join", token, expect=PEER)
            assert "used already" in said
            own = c.farstripe("peer", "token").strip()
            assert "this node made the token" in c.farstripe("peer", "join", own, expect=BAD_INPUT)


def test_too_few_members_and_members_in_use(pair: Pair) -> None:
    used = [str(pair.primary.dir / f"disk{n}") for n in range(6)]
    with Node("C", pair.primary.net, replication_port=10830) as c:
        c.init()
        assert "needs" in c.farstripe("pool", "create", "p", "raid6", *used[:3], expect=BAD_INPUT)
        assert "disk0" in c.farstripe("pool", "create", "p", "raid6", *used, expect=BAD_INPUT)
        assert "no pool" in c.farstripe("volume", "create", "x", "--size", "1M", expect=NOT_FOUND)


def test_a_node_that_does_not_run_and_ports_that_are_taken(pair: Pair) -> None:
    with Node("C", pair.primary.net, replication_port=10810) as c:
        c.farstripe("node", "init", "C", "--replication-port", "10810")
        for argv in (["status"], ["volume", "list"], ["pair", "list"], ["events"], ["takeover", "x"]):
            assert "farstripe node status" in c.farstripe(*argv, expect=NOT_RUNNING)
        assert "10810" in c.farstripe("node", "start", expect=REFUSED)
        assert c.farstripe("node", "status", expect=NOT_RUNNING) == ""  # the table is on stdout, there is no error
        c.farstripe("node", "stop")


@pytest.mark.parametrize("process", ["target", "replicator"])
def test_garbage_on_a_control_socket(pair: Pair, process: str) -> None:
    for junk in (b"\xff" * 64, b"\x04\0\0\0\xc1\xc1\xc1\xc1", os.urandom(4096)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(pair.primary.run_dir / f"{process}.sock"))
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            try:
                assert sock.recv(1) == b""
            except ConnectionResetError:
                pass  # closed with our bytes unread
    pair.primary.farstripe("node", "status")
