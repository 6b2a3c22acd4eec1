"""NBD's fixed newstyle negotiation, client side, as far as the kernel driver needs it.

The kernel knows only the transmission phase, so somebody else opens the connection, names the export and stops
exactly where the first request would be sent. Here that is done with NBD_OPT_GO, which also returns size, flags and
block sizes. Structured replies are never asked for: the kernel understands simple replies only. TLS is not offered
for the same reason (the kernel would have to decrypt).

Source: NetworkBlockDevice/nbd doc/proto.md, "Fixed newstyle negotiation" and "NBD_OPT_INFO and NBD_OPT_GO". All
numbers are big-endian:

    server greeting   u64 "NBDMAGIC", u64 "IHAVEOPT", u16 handshake flags
    client flags      u32
    option request    u64 "IHAVEOPT", u32 option, u32 length, data
    option reply      u64 0x0003e889045565a9, u32 option, u32 type, u32 length, data
    NBD_OPT_GO data   u32 name length, name, u16 count of information requests, u16 each
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

from replicator.core.errors import BadInput, NotFound, PeerError, ProtocolError, Refused, TimedOut

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2
OPT_GO = 7
REP_ACK = 1
REP_INFO = 3
REP_ERROR = 1 << 31
INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_SEND_TRIM = 1 << 5
FLAG_CAN_MULTI_CONN = 1 << 8

MAX_NAME_BYTES = 4096
MAX_REPLY_BYTES = 64 << 10

# Liveness of a link is judged by TCP, never by how long a request takes: a target that waits for its peer is slow,
# not dead. These options stay in force after the kernel has taken the socket over.
KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_PROBES = 5
USER_TIMEOUT_MS = 15_000

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")

_REFUSALS = {
    REP_ERROR | 1: "the server does not know NBD_OPT_GO (an old server)",
    REP_ERROR | 2: "refused by the server's policy",
    REP_ERROR | 3: "the server calls our request invalid",
    REP_ERROR | 4: "not supported on the server's platform",
    REP_ERROR | 5: "the server insists on TLS, which the kernel driver cannot do",
    REP_ERROR | 6: "no such export",
    REP_ERROR | 7: "the server is shutting down",
    REP_ERROR | 8: "the server insists on block size negotiation",
    REP_ERROR | 9: "the request is too big for the server",
}


@dataclass(frozen=True)
class Endpoint:
    """Where an NBD server listens: a Unix socket (`path`) or TCP (`host` and `port`)."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout_s: float) -> socket.socket:
        """Return a connected stream socket with keepalive set. Raises PeerError when nothing answers."""
        try:
            if self.path:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                try:
                    sock.settimeout(timeout_s)
                    sock.connect(self.path)
                except BaseException:
                    sock.close()
                    raise
                return sock
            sock = socket.create_connection((self.host, self.port), timeout_s)
        except OSError as exc:
            raise PeerError(
                f"no NBD server answers at {self}: {exc.strerror or exc}",
                "look at the node that serves the volume: farstripe node status",
            ) from exc
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        return sock


@dataclass(frozen=True)
class Export:
    """What the server said about an export. Sizes are bytes; `flags` are NBD transmission flags."""

    size: int
    flags: int
    min_block: int = 1
    preferred_block: int = 4096
    max_block: int = 32 << 20

    @property
    def read_only(self) -> bool:
        return bool(self.flags & FLAG_READ_ONLY)

    @property
    def multi_conn(self) -> bool:
        return bool(self.flags & FLAG_CAN_MULTI_CONN)


def negotiate(endpoint: Endpoint, name: str, timeout_s: float = 10.0) -> tuple[socket.socket, Export]:
    """Open a connection to export `name` and bring it to the transmission phase.

    The returned socket is blocking, belongs to the caller, and has not read one byte beyond the negotiation.
    Raises PeerError (nothing there), TimedOut, ProtocolError (not an NBD server we can use), NotFound (no such
    export), Refused (the server said no).
    """
    raw = name.encode()
    if len(raw) > MAX_NAME_BYTES:
        raise BadInput(f"an export name has at most {MAX_NAME_BYTES} bytes, this one has {len(raw)}")
    sock = endpoint.connect(timeout_s)
    try:
        try:
            export = _handshake(sock, endpoint, raw)
        except TimeoutError as exc:
            raise TimedOut(f"the server at {endpoint} did not finish the NBD negotiation in {timeout_s:g} s") from exc
        except OSError as exc:
            raise PeerError(f"the connection to {endpoint} broke during the NBD negotiation: {exc}") from exc
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock, export


def hang_up(sock: socket.socket) -> None:
    """Close a negotiated connection that is not used after all, as the protocol asks: NBD_CMD_DISC, then close."""
    with contextlib.suppress(OSError):
        sock.settimeout(1)
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
    sock.close()


def _handshake(sock: socket.socket, endpoint: Endpoint, name: bytes) -> Export:
    magic, option_magic, handshake_flags = _GREETING.unpack(_read(sock, _GREETING.size, endpoint))
    if magic != NBDMAGIC or option_magic != IHAVEOPT or not handshake_flags & FLAG_FIXED_NEWSTYLE:
        raise ProtocolError(f"{endpoint} does not speak fixed newstyle NBD", "check the port")
    sock.sendall(struct.pack(">I", handshake_flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)))
    data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, INFO_BLOCK_SIZE)
    sock.sendall(_OPTION.pack(IHAVEOPT, OPT_GO, len(data)) + data)
    size = flags = None
    blocks = (1, 4096, 32 << 20)
    while True:
        magic, option, kind, length = _REPLY.unpack(_read(sock, _REPLY.size, endpoint))
        if magic != REPLY_MAGIC or option != OPT_GO or length > MAX_REPLY_BYTES:
            raise ProtocolError(f"{endpoint} sent an NBD option reply that makes no sense")
        body = _read(sock, length, endpoint)
        if kind == REP_ACK:
            break
        if kind & REP_ERROR:
            raise _refusal(kind, endpoint, name.decode(), body)
        if kind != REP_INFO or length < 2:
            continue
        what = int.from_bytes(body[:2], "big")
        if what == INFO_EXPORT and length == 12:
            size, flags = struct.unpack(">QH", body[2:])
        elif what == INFO_BLOCK_SIZE and length == 14:
            blocks = struct.unpack(">III", body[2:])
    if size is None or flags is None:
        raise ProtocolError(f"{endpoint} accepted the export without telling its size")
    return Export(size, flags, *blocks)


def _refusal(kind: int, endpoint: Endpoint, name: str, body: bytes) -> Exception:
    reason = _REFUSALS.get(kind, f"error {kind:#x}")
    said = body.decode(errors="replace").strip()
    detail = f"{reason}: {said}" if said else reason
    if kind == REP_ERROR | 6:
        return NotFound(f"{endpoint} has no export {name!r}", "farstripe volume list shows what the node serves")
    if kind == REP_ERROR | 7:  # shutting down: it may be back soon
        return PeerError(f"{endpoint} does not serve {name!r} now: {detail}")
    return Refused(f"{endpoint} refuses {name!r}: {detail}")


def _read(sock: socket.socket, count: int, endpoint: Endpoint) -> bytes:
    buf = bytearray()
    while len(buf) < count:
        part = sock.recv(count - len(buf))
        if not part:
            raise PeerError(
                f"{endpoint} closed the connection during the NBD negotiation",
                "the server's log says why: it may not know the export, or be stopping",
            )
        buf += part
    return bytes(buf)
