"""The one TCP port other nodes come to.

A connection must finish TLS and say in one frame what it wants within OPEN_S, or it is closed; at most MAX_OPENING are
at that stage, so strangers cost bounded memory and time. With a pinned certificate it may ask for

    {"t": "rpc", "op", "args"}      one call, answered like a control call (rpc.py)
    {"t": "link", "group": uuid, "bundle": name}   the pair's data path, a new link of this name; after the answer
                                    {"ok": true} frames are those of link/wire.py
    {"t": "lane", "group", "bundle"}               one more connection of the link of this name

and without a certificate only for {"t": "join", ...} (joining.py). Everything else is closed without an answer.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from replicator.control import BadFrame, read_frame, write_frame
from replicator.core.errors import Refused, to_map
from replicator.daemon.identity import fingerprint_of
from replicator.daemon.peers import Peer, PeerStore
from replicator.daemon.tls import Contexts, tune
from replicator.daemon.tlsstream import TlsStream

log = logging.getLogger("farstripe.listener")

OPEN_S = 10.0
REFUSED_S = 0.5
MAX_OPENING = 32
MAX_OPENING_UNKNOWN_BYTES = 64 << 10
MAX_NAME = 64
RPC_S = 150.0

JoinHandler = Callable[[dict[str, Any], str], dict[str, Any]]
RpcHandler = Callable[[Peer, str, dict[str, Any]], Any]
LinkHandler = Callable[[Peer, str, str, bool], Callable[[TlsStream], None]]


class Listener:
    """Accepts connections of peers and of nodes that want to join."""

    def __init__(
        self,
        address: str,
        port: int,
        contexts: Contexts,
        peers: PeerStore,
        *,
        on_join: JoinHandler,
        on_rpc: RpcHandler,
        on_link: LinkHandler,
        event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """on_join(frame, address it came from) -> reply; on_rpc(peer, op, args) -> result; on_link(peer, group, name of
        the link, whether it exists) -> what takes the connection, called after the answer was sent. All may raise a
        FarstripeError, sent as an error map.
        """
        self.address, self.port = address, port
        self._contexts = contexts
        self._peers = peers
        self._on_join, self._on_rpc, self._on_link = on_join, on_rpc, on_link
        self._event = event
        self._opening = threading.BoundedSemaphore(MAX_OPENING)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._next_complaint = 0.0

    def start(self) -> None:
        """Bind and accept. Raises Refused when the address or port cannot be had."""
        try:
            family, _, _, _, where = socket.getaddrinfo(
                self.address, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as exc:
            raise Refused(
                f"cannot listen on {self.address}: {exc.strerror or exc}", "correct replication.address"
            ) from exc
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(64)
        except OSError as exc:
            sock.close()
            raise Refused(
                f"the replicator cannot listen on {self.address} port {self.port}: {exc.strerror or exc}",
                f"'ss -ltnp sport = :{self.port}' shows who has it; replication.port in node.json is ours to change",
            ) from exc
        self._socket = sock
        self._thread.start()

    def stop(self) -> None:
        """Close the port. Connections that were handed over live on."""
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            self._thread.join(timeout=2)

    def _accept(self) -> None:
        while (listener := self._socket) is not None:
            try:
                raw, address = listener.accept()
            except OSError:
                if self._socket is None:
                    return
                time.sleep(0.05)  # out of descriptors, or the caller is gone already
                continue
            if not self._opening.acquire(blocking=False):
                raw.close()
                self._complain("too many connections wait to be let in", str(address[0]))
                continue
            threading.Thread(target=self._open, args=(raw, str(address[0])), name="opening", daemon=True).start()

    def _open(self, raw: socket.socket, address: str) -> None:
        guard = _Deadline(raw, OPEN_S)
        opening = contextlib.ExitStack()
        opening.callback(self._opening.release)
        opening.callback(guard.cancel)
        sock: socket.socket | TlsStream | None = raw
        try:
            tune(raw)
            raw.settimeout(OPEN_S)
            sock = stream = TlsStream(raw, self._contexts.server, server_side=True)
            certificate = stream.peer_certificate
            peer = self._peers.by_fingerprint(fingerprint_of(certificate)) if certificate else None
            frame = read_frame(stream, MAX_OPENING_UNKNOWN_BYTES if peer is None else 16 << 20)
            opening.close()
            if frame is not None and self._serve(stream, peer, frame, address):
                sock = None  # handed over
        except (OSError, BadFrame) as exc:
            self._complain(_words(exc), address)
            guard.let_read()
        except Exception:  # outermost loop of a connection: a defect of ours must not end the listener
            log.exception("a connection from %s failed", address)
        finally:
            opening.close()
            if sock is not None:
                _close(sock)

    def _serve(self, stream: TlsStream, peer: Peer | None, frame: dict[str, Any], address: str) -> bool:
        """Answer the first frame. Returns whether the connection now belongs to somebody else."""
        kind = frame.get("t")
        taker: Callable[[TlsStream], None] | None = None
        stream.settimeout(RPC_S)
        try:
            if peer is None:
                if kind != "join":
                    raise BadFrame("an unknown node may only join")
                reply: dict[str, Any] = {"ok": True, "result": self._on_join(frame, address)}
            elif kind == "rpc" and isinstance(frame.get("op"), str) and isinstance(frame.get("args"), dict):
                reply = {"ok": True, "result": self._on_rpc(peer, frame["op"], frame["args"])}
            elif kind in ("link", "lane") and isinstance(frame.get("group"), str):
                taker = self._on_link(peer, frame["group"], str(frame.get("bundle", ""))[:MAX_NAME], kind == "lane")
                reply = {"ok": True}
            else:
                raise BadFrame("not a request")
        except (BadFrame, OSError):
            raise
        except Exception as exc:  # becomes the error map of the answer
            if not hasattr(exc, "exit_code"):
                log.exception("request %s of %s failed", kind, address)
            reply = {"ok": False, "error": to_map(exc)}
        write_frame(stream, reply)
        if taker is None:
            return False
        taker(stream)
        return True

    def _complain(self, text: str, address: str) -> None:
        """Note a refused connection, at most one a second: a port scan must not fill the log."""
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + 1.0
            self._event("connection-refused", {"address": address, "reason": text})


class _Deadline:
    """Shuts a socket down when its time is over, whatever trickles in; a timeout per read would not."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._fd = sock.dup()
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._fd.shutdown(socket.SHUT_RDWR)

    def let_read(self) -> None:
        """Give the other side a moment to read why it was refused: closing at once would reset it."""
        with contextlib.suppress(OSError):
            self._fd.shutdown(socket.SHUT_WR)
            self._fd.settimeout(REFUSED_S)
            for _ in range(64):
                if not self._fd.recv(4096):
                    break

    def cancel(self) -> None:
        """End the watch."""
        self._timer.cancel()
        with self._lock:
            self._fd.close()


def _close(sock: socket.socket | TlsStream) -> None:
    with contextlib.suppress(OSError):
        sock.close()


def _words(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "its certificate is not one of a peer"
    if isinstance(exc, ssl.SSLError):
        return f"no TLS 1.3 handshake ({exc.reason or 'garbage'})"
    if isinstance(exc, TimeoutError):
        return "it took too long"
    return str(exc) or type(exc).__name__
