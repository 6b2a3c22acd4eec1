"""Control sockets, the replication port and links, fed with mutated frames in pieces of any size."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack

from replicator.control import BadFrame, ControlServer, read_frame
from replicator.core.errors import BadInput, ProtocolError
from replicator.core.transfer import from_map
from replicator.daemon.link import wire
from replicator.daemon.link.connection import BUFFER_BYTES, Connection, Lost
from tests.fuzz.mutate import EXECUTIONS, FACTOR, WORDS, executions, mutate_bytes, mutate_value, only, record

REQUESTS: tuple[dict[str, Any], ...] = (
    {"id": 1, "op": "group.status", "args": {"group": "app", "settle": True}},
    {"id": 2, "op": "volume.create", "args": {"name": "v", "size": 1 << 30, "raid_group": "fast"}},
    {"id": 3, "op": "nothing", "args": {}},
    {"id": 4, "op": "group.status"},
)
OPENINGS: tuple[dict[str, Any], ...] = (
    {"t": "rpc", "op": "pair.peek", "args": {"group": "ab" * 16}},
    {"t": "link", "group": "ab" * 16, "bundle": "cd" * 16},
    {"t": "lane", "group": "ab" * 16, "bundle": "cd" * 16},
    {"t": "join", "token": b"x" * 32, "cert": "-----BEGIN CERTIFICATE-----" * 4},
)
LIMIT = 4096


class Pipe:
    """A stream that gives what it was filled with, in pieces of chance, and then ends; remembers the largest wish."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.data, self.rng = memoryview(data), rng
        self.wish = 0
        self.sent = bytearray()

    def recv_into(self, buffer: memoryview, /) -> int:
        self.wish = max(self.wish, len(buffer))
        count = min(len(buffer), len(self.data), 1 + self.rng.getrandbits(6))
        buffer[:count] = self.data[:count]
        self.data = self.data[count:]
        return count

    def sendall(self, data: bytes, /) -> None:
        self.sent += data

    def close(self) -> None:
        pass


def framed(value: Any, rng: random.Random) -> bytes:
    """A frame of a mutated value; its bytes now and then mutated as well."""
    value = mutate_value(value, rng) if rng.getrandbits(2) else value
    try:
        body = msgpack.packb(value)
    except (ValueError, TypeError, OverflowError):
        body = msgpack.packb(rng.choice(WORDS))
    if rng.getrandbits(1):
        body = mutate_bytes(body, rng)
    data = struct.pack("<I", len(body)) + body
    return mutate_bytes(data, rng) if not rng.getrandbits(3) else data


def test_a_control_socket_answers_or_closes_whatever_comes() -> None:
    calls: list[dict[str, Any]] = []

    def handler(args: dict[str, Any]) -> object:
        calls.append(args)
        return {"group": args["group"], "twice": args}

    server = ControlServer("/nonexistent/fuzz.sock", {"group.status": handler})
    done = 0
    for number, rng in executions("control frame"):
        data = framed(REQUESTS[number % len(REQUESTS)], rng)
        pipe = Pipe(data, rng)
        server._serve(pipe)  # type: ignore[arg-type]  # a socket by shape
        answers = Pipe(bytes(pipe.sent), rng)
        while (answer := read_frame(answers)) is not None:
            assert set(answer) == {"id", "ok", "result"} or set(answer["error"]) >= {"name", "message", "exit_code"}
        done += 1
    assert done == EXECUTIONS["control frame"] * FACTOR and len(calls) > done // 20


def test_an_opening_frame_is_a_map_within_its_limit_or_refused() -> None:
    done = maps = 0
    for number, rng in executions("opening frame"):
        pipe = Pipe(framed(OPENINGS[number % len(OPENINGS)], rng), rng)
        found = only((BadFrame,), lambda pipe=pipe: read_frame(pipe, LIMIT), lambda pipe=pipe: bytes(pipe.data))
        assert found is None or isinstance(found, dict | BadFrame)
        assert pipe.wish <= LIMIT, "memory for a frame beyond the limit"
        maps += isinstance(found, dict)
        done += 1
    assert done == EXECUTIONS["opening frame"] * FACTOR and maps > done // 10


class Socket:
    """What a Connection wants of a TlsStream: bytes in pieces of chance, then nothing for now, then the end."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.data, self.rng = memoryview(data), rng
        self.unsent = self.unread = False
        self.pauses = 3

    def unblock(self) -> None:
        pass

    def recv_into(self, buffer: memoryview) -> int:
        if self.pauses and not self.rng.getrandbits(2):
            self.pauses -= 1
            raise BlockingIOError
        count = min(len(buffer), len(self.data), 1 + self.rng.getrandbits(9))
        buffer[:count] = self.data[:count]
        self.data = self.data[count:]
        return count


def link_frames() -> list[bytes]:
    """One right frame of every type."""
    run = record(7, b"payload" * 9) + record(8, b"")
    settings = {"connections": 2, "transfer": "pull", "window": 1 << 20, "limit": 0, "schedule": "mon 5M"}
    return [
        wire.HEAD.pack(len(run), wire.DATA, 0, 0, 7) + run,
        wire.HEAD.pack(20, wire.DATA, wire.FLAG_ZSTD, 0, 7) + bytes(20),
        wire.ack(9, 8, 7),
        wire.beat(9, 1 << 20, 8, 1 << 60, 9),
        wire.grant(1 << 20),
        wire.need(5, 1 << 20),
        wire.control({"t": "ping", "seq": 9, "role": "primary", "state": "source"}),
        wire.control({"t": "transfer", "settings": settings}),
        wire.control({"t": "policy", "policy": {"mode": "sync", "ack": "durable"}}),
    ]


def test_a_link_hands_out_whole_frames_of_legal_size_or_breaks_off() -> None:
    frames = link_frames()
    done = handed = 0
    for number, rng in executions("link frame"):
        before, broken, after = (frames[(number + step) % len(frames)] for step in (0, rng.getrandbits(4), 3))
        stream = Socket(before + mutate_bytes(broken, rng) + after, rng)
        conn = Connection.__new__(Connection)
        Connection.__init__(conn, stream)  # type: ignore[arg-type]  # a stream by shape
        try:
            while True:
                found = conn.next_frame()
                if found is None:
                    continue
                kind, flags, _first_seq, body = found
                wire.check_head(len(body), kind, flags, 0)
                handed += 1
                if kind == wire.CONTROL:
                    parsed = wire.parse_control(body)
                    if parsed.get("t") == "transfer" and isinstance(parsed.get("settings"), dict):
                        only((BadInput,), lambda p=parsed: from_map(p["settings"]), lambda p=parsed: p)
                assert len(conn._buf) <= max(BUFFER_BYTES, wire.MAX_DATA_BYTES + wire.HEAD_BYTES)
        except (Lost, ProtocolError):
            pass
        done += 1
    assert done == EXECUTIONS["link frame"] * FACTOR and handed >= done
