"""Calls to a peer's replicator: one mutually authenticated TLS connection, one request, one answer."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from replicator.control import BadFrame, read_frame, write_frame
from replicator.core.errors import AuthError, FarstripeError, NotFound, PeerError, ProtocolError, TimedOut, from_map
from replicator.daemon.peers import Peer
from replicator.daemon.tls import Contexts
from replicator.daemon.tlsstream import TlsStream

CONNECT_S = 5.0


def call(contexts: Contexts, peer: Peer, op: str, args: dict[str, Any], timeout_s: float = 60.0) -> Any:
    """Run `op` on the peer's replicator and return its result.

    Raises the peer's own error again, PeerError (unreachable), AuthError, TimedOut (whether it was done is not known).
    """
    with contextlib.closing(contexts.connect(peer, min(CONNECT_S, timeout_s))) as sock:
        sock.settimeout(timeout_s)
        return ask(sock, {"t": "rpc", "op": op, "args": args}, peer.name)


def open_link(contexts: Contexts, peer: Peer, group: str, bundle: str, *, more: bool = False) -> TlsStream:
    """Open the data path of a pair: a link named `bundle`, or one `more` connection of it. Raises as `call`."""
    sock = contexts.connect(peer, CONNECT_S)
    try:
        ask(sock, {"t": "lane" if more else "link", "group": group, "bundle": bundle}, peer.name)
    except BaseException:
        sock.close()
        raise
    return sock


def ask(sock: TlsStream, frame: dict[str, Any], name: str) -> Any:
    """Send one opening frame and return the result of the answer. `name`: of the other side, for errors."""
    try:
        try:
            write_frame(sock, frame)
        except OSError:
            read_frame(sock)  # refused while we wrote: the alert that says why may be here
            raise
        reply = read_frame(sock)
    except TimeoutError as exc:
        raise TimedOut(
            f"{name} did not answer in time", "see there whether both processes answer: farstripe node status"
        ) from exc
    except ssl.SSLError as exc:
        if "ALERT" in (exc.reason or ""):
            raise AuthError(
                f"{name} does not know this node's certificate",
                "it may have deleted this peer: join again with a new token",
            ) from exc
        raise PeerError(f"the connection to {name} broke: {exc.reason or exc}") from exc
    except BadFrame as exc:
        raise ProtocolError(f"{name}: {exc}") from exc
    except OSError as exc:
        raise PeerError(
            f"the connection to {name} broke: {exc.strerror or exc}", "see the log of its replicator"
        ) from exc
    if reply is None:
        raise PeerError(f"{name} closed the connection", "see the log of its replicator")
    if reply.get("ok"):
        return reply.get("result")
    error = reply.get("error")
    told = from_map(error if isinstance(error, dict) else {})
    told.answered = True
    raise told


def is_unknown(exc: FarstripeError, op: str) -> bool:
    """Whether a peer has answered that it does not know `op`, since it is of an older version (ops_remote.run)."""
    return isinstance(exc, NotFound) and exc.answered and exc.message.endswith(f"knows no operation {op!r}")
