"""Control sockets: small requests between the processes of one node.

A Unix stream socket carries frames of u32 little-endian length + one msgpack map.

    request  {"id": n, "op": "noun.verb", "args": {...}}
    reply    {"id": n, "ok": true, "result": ...}
             {"id": n, "ok": false, "error": {"name", "message", "way_out", "exit_code", "errno"}}

One thread per connection; requests of one connection are answered in order. Whatever is not a valid request closes
that connection only. The socket has mode 0600: who may open it may do everything. No data path runs here.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgpack

from replicator.core import errors

MAX_FRAME_BYTES = 16 << 20
MAX_CONNECTIONS = 4096
"""Every pair of the node keeps one connection to the target; each costs a sleeping thread."""
LAST_WORDS_S = 1.0
"""How long a server that stops lets answers under way go out."""
_LEN = struct.Struct("<I")

Handler = Callable[[dict[str, Any]], object]


class BadFrame(Exception):
    """The bytes are not a frame of this protocol."""


class Stream(Protocol):
    """What frames are read from and written to: a socket, or TLS over one."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data`."""


def _read_exactly(sock: Stream, count: int) -> bytes | None:
    """Return `count` bytes, or None when the stream ends before the first of them; BadFrame when it ends later."""
    buf = bytearray(count)
    view = memoryview(buf)
    got = 0
    while got < count:
        n = sock.recv_into(view[got:])
        if n == 0:
            if got == 0:
                return None
            raise BadFrame("stream ended inside a frame")
        got += n
    return bytes(buf)


def read_frame(sock: Stream, limit_bytes: int = MAX_FRAME_BYTES) -> dict[str, Any] | None:
    """Read one frame; None at the end of the stream. Raises BadFrame for anything that is not a map of legal size."""
    head = _read_exactly(sock, 4)
    if head is None:
        return None
    (length,) = _LEN.unpack(head)
    if length > limit_bytes:
        raise BadFrame(f"frame of {length} bytes exceeds {limit_bytes}")
    body = _read_exactly(sock, length)
    if body is None:
        raise BadFrame("stream ended inside a frame")
    try:
        message = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:  # TypeError: a map whose keys are maps
        raise BadFrame("not msgpack") from exc
    if not isinstance(message, dict):
        raise BadFrame("not a map")
    return message


def write_frame(sock: Stream, message: Mapping[str, Any]) -> None:
    """Send one frame. Raises BadFrame, with nothing sent, when the message is too large."""
    body = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    sock.sendall(_LEN.pack(len(body)) + body)


class Args(dict[str, Any]):
    """The arguments of a request: a missing one is the caller's mistake and says so."""

    def __missing__(self, key: str) -> Any:
        raise errors.BadInput(f"the argument {key!r} is missing")


def number(args: Mapping[str, Any], key: str, default: float) -> float:
    """The argument `key`, a finite number and not negative; the default when it is left out. Raises BadInput."""
    value = args.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise errors.BadInput(f"the argument {key!r} must be a number, not {value!r}")
    return value


class ControlServer:
    """Serve `handlers` ("noun.verb" -> function of the args map) on the Unix socket `path`."""

    def __init__(self, path: str | os.PathLike[str], handlers: Mapping[str, Handler]) -> None:
        self.path = Path(path)
        self.handlers = handlers
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Bind and serve in background threads. A socket left by a dead process is replaced.

        Raises AlreadyExists when a live process answers on `path`, BadInput when the path cannot be bound.
        """
        if someone_listens(self.path):
            raise errors.AlreadyExists(f"a process already serves {self.path}", "stop it first")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(self.path.stat().st_mode):
                    self.path.unlink()
            listener.bind(str(self.path))
            os.chmod(self.path, 0o600)
            listener.listen(32)
        except OSError as exc:
            listener.close()
            raise errors.BadInput(f"cannot serve {self.path}: {exc.strerror or exc}") from exc
        self._listener = listener
        self._thread = threading.Thread(target=self._accept_loop, name="control-accept", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and every connection, after the answers under way are out or LAST_WORDS_S passed.

        Handlers that run longer finish by themselves; nobody hears them.
        """
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._shut_down(socket.SHUT_RD)
        deadline = time.monotonic() + LAST_WORDS_S
        while self._connections and time.monotonic() < deadline:
            time.sleep(0.005)
        self._shut_down(socket.SHUT_RDWR)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _shut_down(self, how: int) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(how)

    def _accept_loop(self) -> None:
        while (listener := self._listener) is not None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                full = len(self._connections) >= MAX_CONNECTIONS
                if not full:
                    self._connections.add(connection)
            if full:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="control", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while (request := read_frame(connection)) is not None:
                if not isinstance(request.get("op"), str) or not isinstance(request.get("args", {}), dict):
                    raise BadFrame("not a request")
                reply = self._answer(request)
                try:
                    write_frame(connection, reply)
                except (BadFrame, TypeError, ValueError, OverflowError) as exc:
                    failure = errors.InternalError(f"the result of {request['op']} cannot be sent: {exc}")
                    write_frame(connection, {"id": request.get("id"), "ok": False, "error": errors.to_map(failure)})
        except (BadFrame, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        try:
            handler = self.handlers.get(op)
            if handler is None:
                raise errors.NotFound(f"no operation {op!r} here", "the two programs may be of different versions")
            return {"id": request.get("id"), "ok": True, "result": handler(Args(request.get("args", {})))}
        except Exception as exc:  # outermost loop of a request: becomes the error map
            return {"id": request.get("id"), "ok": False, "error": errors.to_map(exc)}


def someone_listens(path: Path) -> bool:
    """Whether a live process accepts connections on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _at_end(sock: socket.socket) -> bool:
    """Whether an idle connection was closed by the other side, or holds bytes nobody asked for."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


class ControlClient:
    """Calls to a ControlServer. Connects at the first call and again after the server was away; thread-safe."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 30.0) -> None:
        self.path = Path(path)
        self.timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._next_id = 0
        self._lock = threading.Lock()

    def call(self, op: str, **args: Any) -> Any:
        """Run `op` on the server and return its result.

        Raises the server's error again (a FarstripeError); DaemonNotRunning when nothing answers or the server goes
        away during the call (whether the operation was done is then unknown); TimedOut after `timeout_s` seconds.
        """
        with self._lock:
            self._next_id += 1
            request = {"id": self._next_id, "op": op, "args": args}
            if self._sock is not None and _at_end(self._sock):  # the server was restarted since the last call
                self._drop()
            reply = self._exchange(request)
            if reply is None:
                raise errors.DaemonNotRunning(
                    f"{self.path} closed the connection during {op}", "look at the daemon's log"
                )
        if reply.get("id") != request["id"]:
            self.close()
            raise errors.ProtocolError(f"{self.path} answered another request")
        if reply.get("ok"):
            return reply.get("result")
        error = reply.get("error")
        raise errors.from_map(error if isinstance(error, dict) else {})

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Send and receive; None when the connection broke (then closed)."""
        sock = self._sock
        if sock is None:
            sock = self._connect()
        try:
            write_frame(sock, request)
            reply = read_frame(sock)
        except TimeoutError as exc:
            self._drop()
            raise errors.TimedOut(f"no answer to {request['op']} within {self.timeout_s:g} s") from exc
        except BadFrame as exc:
            self._drop()
            raise errors.ProtocolError(f"{self.path}: {exc}") from exc
        except OSError:
            reply = None
        if reply is None:
            self._drop()
        return reply

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(self.timeout_s)
        try:
            sock.connect(str(self.path))
        except OSError as exc:
            sock.close()
            raise errors.DaemonNotRunning(
                f"nothing answers on {self.path}: {exc.strerror or exc}", "start it: farstripe node start"
            ) from exc
        self._sock = sock
        return sock

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._drop()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
