"""HELLO frames: everything survives the wire, nothing malformed gets through."""

from typing import Any

import msgpack
import pytest

from replicator.core import hello
from replicator.core.epochs import make_epoch
from replicator.core.errors import ProtocolError

NODE, GROUP = "ab" * 16, "cd" * 16
E1 = make_epoch(1, 0xABABAB)


def status(**changes: Any) -> dict[str, Any]:
    return {
        "uuid": GROUP, "role": "primary", "state": "ok", "mode": "journal", "pos": 9, "durable": 7, "floor": 9,
        "hist": [[E1, 0]], "journal": {"first_seq": 3, "head_seq": 9}, "bitmaps": {1: 4, 6: 0}, "copying": False,
        "volumes": [{"index": 1, "size": 8192, "born": E1}, {"index": 0, "size": 4096}], **changes,
    }  # fmt: skip


def test_a_hello_survives_the_wire():
    mine = hello.from_status(NODE, status(), split=True, discard=NODE, handover="ef" * 16)
    wire = msgpack.unpackb(msgpack.packb(hello.to_frame(mine)))
    assert hello.from_frame(wire) == mine
    assert mine.volumes == ((0, 4096, 0), (1, 8192, E1))
    assert (mine.journal, mine.starts) == ((3, 9), (1, 6))


def test_in_bitmap_mode_there_is_no_journal_to_stream_from():
    assert hello.from_status(NODE, status(mode="bitmap"), split=False).journal is None


def test_a_copy_with_blocks_left_is_not_yet_synced():
    assert hello.from_status(NODE, status(copying=True, synced_seq=4), split=False).synced == hello.NOT_YET
    assert hello.from_status(NODE, status(synced_seq=4), split=False).synced == 4


def test_another_version_is_understood_as_far_as_the_version():
    theirs = hello.from_frame({"t": "hello", "version": 99, "node": NODE, "group": GROUP, "future": 1})
    assert (theirs.version, theirs.node) == (99, NODE)


GARBAGE = [
    ("node", "short"), ("node", "z" * 32), ("group", 5), ("role", "king"), ("state", None), ("pos", -1), ("pos", "9"),
    ("pos", True), ("pos", 1 << 64), ("hist", [[E1]]), ("hist", [[E1, 0], [E1, 3]]), ("hist", 7), ("hist", [[E1, 10]]),
    ("volumes", [[0]]), ("volumes", [[0, 4096]]), ("listed", -1), ("changed", None), ("journal", [1]),
    ("journal", 3), ("starts", ["x"]), ("version", "one"),
    ("floor", None), ("synced", -1), ("rewound", 3), ("rewound", [[1, 2, 3]]), ("rewound", [[1, 2, [[E1]], 3]]),
    ("rewound", [[E1, 0, [], -1]]), ("rewound", [[E1, 0, [[E1, 3], [E1, 0]], 1]]), ("rewound", [[E1, 0, [], 1]] * 17),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), GARBAGE)
def test_a_malformed_hello_is_a_protocol_error(key: str, value: object):
    frame = hello.to_frame(hello.from_status(NODE, status(), split=False))
    frame[key] = value
    with pytest.raises(ProtocolError, match="malformed"):
        hello.from_frame(frame)


OPTIONAL = ("version", "torn", "rewound", "stands", "source_durable")


@pytest.mark.parametrize("key", [k for k in hello.Hello._fields if k not in OPTIONAL])
def test_a_missing_field_is_a_protocol_error(key: str):
    frame = hello.to_frame(hello.from_status(NODE, status(), split=False))
    del frame[key]
    with pytest.raises(ProtocolError, match="malformed"):
        hello.from_frame(frame)


def test_a_hello_of_a_node_that_tells_less_is_understood():
    frame = hello.to_frame(hello.from_status(NODE, status(), split=False))
    assert hello.from_frame(frame).rewound == ()
    del frame["rewound"], frame["torn"], frame["stands"], frame["source_durable"]
    old = hello.from_frame(frame)
    assert (old.rewound, old.torn, old.stands, old.source_durable) == (None, None, None, None)


def test_a_missing_field_is_named():
    frame = hello.to_frame(hello.from_status(NODE, status(), split=False))
    del frame["sync"]
    with pytest.raises(ProtocolError, match="field 'sync' is missing"):
        hello.from_frame(frame)
