"""A TCP proxy that misbehaves on command: what a network, a middlebox or an attacker can do to a connection.

    with FaultProxy(target_port) as proxy:          # the dialling side is told proxy.port
        proxy.cut()                                 # reset every connection now
        proxy.refuse = True                         # and let nobody through
        proxy.stall("up")                           # pass nothing on, keep everything open (up: dialler to listener)
        proxy.delay_s = 0.05                        # each chunk so late, in order
        proxy.rate_bytes_s = 100_000                # throttle
        proxy.truncate_after(5000)                  # pass so many bytes more, then cut
        proxy.corrupt(every_bytes=100_000)          # flip a bit now and then
        proxy.tamper("drop")                        # once: lose a chunk; or double, swap, flip, cut one, or repeat
        proxy.half_open()                           # the listener sees a reset, the dialler sees nothing
        proxy.only = 1                              # connection faults hit this one of the standing ones alone
        proxy.record = True ... proxy.replay(n)     # say to the listener again what connection n said

Each connection has two pumps, one thread each. Faults apply to connections that stand and to new ones. Nothing is read
ahead of what is passed on by more than a chunk, so backpressure goes through.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

CHUNK_BYTES = 32 << 10
RECORD_LIMIT_BYTES = 64 << 20
_RESET = struct.pack("ii", 1, 0)


@dataclass
class _Connection:
    number: int
    client: socket.socket
    server: socket.socket
    said: bytearray = field(default_factory=bytearray)  # bytes of the dialling side, when recording
    held: bytes = b""  # a chunk that its successor overtakes
    before: bytes = b""  # the first chunk that was passed on
    pumps: int = 2  # that still run
    deaf: bool = False  # what the dialling side says disappears, and nobody tells it

    def reset(self) -> None:
        """End both halves with a TCP reset, as a cable cut followed by a reboot would."""
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                sock.close()


class FaultProxy:
    """A proxy from a port of its own to `target_port`; attributes are the faults in force."""

    def __init__(self, target_port: int, target_address: str = "127.0.0.1", seed: int = 0, port: int = 0) -> None:
        """seed: of the places where bits are flipped. port: to listen on, 0 for any."""
        self.target = (target_address, target_port)
        self.refuse = False
        self.delay_s = 0.0
        self.rate_bytes_s = 0
        self.record = False
        self.only: int | None = None
        self._tampering = ""
        self.bytes_passed = {"up": 0, "down": 0}
        self.connections: list[_Connection] = []
        self.accepted = 0
        self._said: list[bytearray] = []
        self._flow = {"up": threading.Event(), "down": threading.Event()}
        for event in self._flow.values():
            event.set()
        self._cut_at: int | None = None
        self._corrupt_every = 0
        self._next_flip = 0
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    # -- faults -----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection that stands, or the one that `only` names."""
        for connection in self._take():
            connection.reset()

    def half_open(self) -> None:
        """End connections towards the listener; the dialling side is not told, and what it says goes nowhere."""
        for connection in self._take(keep=True):
            connection.deaf = True
            with contextlib.suppress(OSError):
                connection.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.server.shutdown(socket.SHUT_RDWR)

    def _take(self, keep: bool = False) -> list[_Connection]:
        with self._lock:
            standing = self.connections
            hit = standing if self.only is None else standing[self.only : self.only + 1]
            self.connections = standing if keep else [one for one in standing if one not in hit]
        return hit

    def tamper(self, how: str) -> None:
        """Do something to one of the next chunks: "drop" it, "double" it, "swap" it with the one after it, "flip" a bit
        in its middle, pass "half" of it and cut, or pass on the "old" first bytes of its connection once more.
        """
        assert how in ("drop", "double", "swap", "flip", "half", "old")
        self._tampering = how

    def stall(self, *ways: str) -> None:
        """Pass nothing on, in the given directions ("up", "down"; both when none is given), until `resume`."""
        for way in ways or ("up", "down"):
            self._flow[way].clear()

    def resume(self) -> None:
        """End a stall."""
        for event in self._flow.values():
            event.set()

    def truncate_after(self, count: int) -> None:
        """Let `count` more bytes pass, both directions together, then cut everything once."""
        self._cut_at = sum(self.bytes_passed.values()) + count

    def corrupt(self, every_bytes: int) -> None:
        """Flip one bit about every so many bytes; 0 ends it."""
        self._corrupt_every = every_bytes
        self._next_flip = sum(self.bytes_passed.values()) + every_bytes

    def heal(self) -> None:
        """End every fault; connections that were cut stay cut."""
        self.refuse, self.delay_s, self.rate_bytes_s = False, 0.0, 0
        self._cut_at, self._corrupt_every = None, 0
        self.only, self._tampering = None, ""
        self.resume()
        with self._lock:
            deaf = [one for one in self.connections if one.deaf]
            self.connections = [one for one in self.connections if not one.deaf]
        for connection in deaf:
            connection.reset()

    def replay(self, number: int, timeout_s: float = 5.0) -> bytes:
        """Connect to the target and say again what the dialling side of connection `number` said (0: the first).

        Returns what the target answered before it closed or `timeout_s` passed.
        """
        said = bytes(self._said[number])
        answer = bytearray()
        with socket.create_connection(self.target, timeout=timeout_s) as sock:
            sock.settimeout(timeout_s)
            with contextlib.suppress(OSError):
                sock.sendall(said)
                while chunk := sock.recv(65536):
                    answer += chunk
        return bytes(answer)

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.settimeout(None)
            connection = _Connection(self.accepted, client, server)
            self.accepted += 1
            self._said.append(connection.said)
            with self._lock:
                self.connections.append(connection)
            for way, source, sink in (("up", client, server), ("down", server, client)):
                threading.Thread(target=self._pump, args=(connection, way, source, sink), daemon=True).start()

    def _pump(self, connection: _Connection, way: str, source: socket.socket, sink: socket.socket) -> None:
        flow = self._flow[way]
        try:
            while True:
                chunk = source.recv(CHUNK_BYTES)
                if not chunk:
                    break
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.rate_bytes_s:
                    time.sleep(len(chunk) / self.rate_bytes_s)
                flow.wait()
                if not self._pass_on(connection, way, sink, chunk):
                    return
            with contextlib.suppress(OSError):
                if not connection.deaf:
                    sink.shutdown(socket.SHUT_WR)
        except OSError:
            if not connection.deaf:
                connection.reset()
        finally:
            self._ended(connection)

    def _ended(self, connection: _Connection) -> None:
        """One of the two pumps has; after both, nothing of the connection is left."""
        with self._lock:
            connection.pumps -= 1
            if connection.pumps or connection.deaf:
                return
            self.connections = [one for one in self.connections if one is not connection]
        for sock in (connection.client, connection.server):
            sock.close()

    def _tampered(self, connection: _Connection, chunk: bytes) -> tuple[bytes, bool]:
        """The chunk as it is passed on, and whether the connection ends then."""
        if connection.held:
            chunk, connection.held = chunk + connection.held, b""
        elif self._tampering and len(chunk) > 64 and connection.before:
            how, self._tampering = self._tampering, ""
            middle = len(chunk) // 2
            if how == "swap":
                connection.held, chunk = chunk, b""
            elif how == "flip":
                chunk = chunk[:middle] + bytes((chunk[middle] ^ 1,)) + chunk[middle + 1 :]
            else:
                kinds = {"drop": b"", "double": chunk * 2, "half": chunk[:middle], "old": chunk + connection.before}
                return kinds[how], how == "half"
        connection.before = connection.before or chunk
        return chunk, False

    def _pass_on(self, connection: _Connection, way: str, sink: socket.socket, chunk: bytes) -> bool:
        if connection.deaf:
            return True
        chunk, ends = self._tampered(connection, chunk)
        if ends:
            sink.sendall(chunk)
            connection.reset()
            return False
        passed = sum(self.bytes_passed.values())
        if self._corrupt_every and passed + len(chunk) > self._next_flip:
            self._next_flip = passed + self._corrupt_every
            flipped = bytearray(chunk)
            flipped[self._rng.randrange(len(flipped))] ^= 1 << self._rng.randrange(8)
            chunk = bytes(flipped)
        last = self._cut_at is not None and passed + len(chunk) >= self._cut_at
        if last:
            assert self._cut_at is not None
            chunk, self._cut_at = chunk[: max(0, self._cut_at - passed)], None
        if self.record and way == "up" and len(connection.said) < RECORD_LIMIT_BYTES:
            connection.said += chunk
        self.bytes_passed[way] += len(chunk)
        sink.sendall(chunk)
        if last:
            time.sleep(0.01)  # let the last bytes through: a reset may overtake them
            self.cut()
            return False
        return True

    def close(self) -> None:
        """Stop listening and cut what stands."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.resume()
        self.cut()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
