"""A connection that ends in the middle of a frame, of every kind and at every part of it: nothing of it counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from replicator.core.events import LinkDown, StartReceiving
from replicator.daemon.link import wire
from replicator.daemon.link.connection import Connection
from replicator.daemon.tlsstream import TlsStream
from replicator.journal.page import HEAD_SEQ
from tests.fuzz.mutate import record
from tests.testing.linkpair import Scripted, Side, make_loop, tls_pair
from tests.unit.replicator.daemon.test_link import until

FIRST = record(1, b"whole")
SECOND = record(2, b"never whole" * 99)
PACKED = zstandard.ZstdCompressor().compress(SECOND)
FRAMES = {
    "data": wire.HEAD.pack(len(SECOND), wire.DATA, 0, 0, 2) + SECOND,
    "data, compressed": wire.HEAD.pack(len(PACKED), wire.DATA, wire.FLAG_ZSTD, 0, 2) + PACKED,
    "data, out of turn": wire.HEAD.pack(len(SECOND), wire.DATA, 0, 0, 9) + SECOND,
    "ack": wire.ack(9, 9, 9),
    "beat": wire.beat(9, 9, 9, 9, 1),
    "grant": wire.grant(1 << 30),
    "need": wire.need(0, 99),
    "control": wire.control({"t": "policy", "policy": {"mode": "sync", "ack": "durable"}}),
}
CUTS = {"header": 0.0, "middle": 0.5, "last byte": 1.0}


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[tuple[Side, Scripted, TlsStream]]:
    """A receiving link thread, its session, and the other end of its connection."""
    side, session = Side(tmp_path / "b", 1 << 20), Scripted(StartReceiving(1, 0))
    loop = make_loop(side, session, "b")
    here, there = tls_pair(tmp_path)
    loop.connected(Connection(there))
    yield side, session, here
    loop.stop()


@pytest.mark.parametrize("cut", list(CUTS))
@pytest.mark.parametrize("kind", list(FRAMES))
def test_nothing_of_a_cut_frame_counts(sink: tuple[Side, Scripted, TlsStream], kind: str, cut: str) -> None:
    side, session, stream = sink
    frame = FRAMES[kind]
    count = wire.HEAD_BYTES // 2 if cut == "header" else 1 + int((len(frame) - 2) * CUTS[cut])
    stream.sendall(wire.HEAD.pack(len(FIRST), wire.DATA, 0, 0, 1) + FIRST + frame[:count])
    assert until(lambda: side.page[HEAD_SEQ] == 1)
    stream.close()
    assert "closed" in session.saw(LinkDown).reason or "reset" in session.saw(LinkDown).reason
    assert side.page[HEAD_SEQ] == 1
