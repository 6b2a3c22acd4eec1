"""Two link threads over real TLS on loopback, with journals in a directory, and no target: the data path alone.

The sessions are stand-ins that start shipping and receiving at once. The test plays the targets: `append` is what the
primary's target does for a write, `acked` what its waiting writers look at.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crc32c import crc32c

from replicator.core.events import Effect, Event, LinkUp, StartReceiving, StartShipping
from replicator.core.records import HEADER_BYTES, pack_header
from replicator.core.transfer import Transfer, from_map
from replicator.daemon.identity import Identity, load_or_create
from replicator.daemon.link.connection import Connection
from replicator.daemon.link.flow import Flow
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.daemon.link.loop import PairLoop, Surroundings
from replicator.daemon.tls import tune
from replicator.daemon.tlsstream import TlsStream
from replicator.journal.files import PlainFile
from replicator.journal.page import (
    HEAD_SEQ,
    TARGET_ASLEEP,
    Doorbell,
    Page,
    boot_number,
)
from replicator.journal.ring import DATA_START, Journal
from tests.testing.pairharness import PEER_DURABLE_SEQ, PEER_RECEIVED_SEQ, REPLICATOR_ASLEEP

GROUP = "ab" * 16
EPOCH = 1 << 24 | 7


class Side:
    """One node's group: files as the target would have made them."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self.state, self.run = folder / "state", folder / "run"
        (self.state / "groups" / GROUP).mkdir(parents=True)
        self.run.mkdir()
        self.page = Page.map(self.run / f"{GROUP}.page")
        self.page.clear(boot_number())
        path = self.state / "groups" / GROUP / "journal"
        file = PlainFile(path, create_bytes=capacity + DATA_START)
        self.journal = Journal.create(file, self.page, bytes.fromhex(GROUP), capacity)
        self.bell = Doorbell(self.run / f"{GROUP}.t")
        self.replicator_bell = Doorbell(self.run / f"{GROUP}.r.0")

    def open_files(self) -> GroupFiles:
        return GroupFiles(self.state, self.run, GROUP)

    def append(self, payload: bytes, kind: int = 1, flags: int = 0, ring: bool = True) -> int:
        """Append a WRITE of `payload` to the journal, as a primary's target does. Returns its seq."""
        seq = self.page[HEAD_SEQ] + 1
        header = pack_header(
            kind, flags, EPOCH, seq, time.time_ns(), 0, len(payload), 0, len(payload), crc32c(payload) if payload else 0
        )
        if not self.journal.room_for(HEADER_BYTES + len(payload)):
            raise BufferError("journal full")
        self.journal.append(header, payload or None, seq, EPOCH)
        if ring and self.page[REPLICATOR_ASLEEP]:
            self.replicator_bell.ring()
        return seq

    def wait_acked(self, seq: int, timeout_s: float = 20.0, slot: int = PEER_RECEIVED_SEQ) -> bool:
        """Wait as a synchronous writer does."""
        until = time.monotonic() + timeout_s
        while self.page[slot] < seq:
            if time.monotonic() > until:
                return False
            self.page[TARGET_ASLEEP] = 1
            if self.page[slot] < seq:
                self.bell.wait(0.02)
            self.page[TARGET_ASLEEP] = 0
        return True

    def wait_durable(self, seq: int, timeout_s: float = 20.0) -> bool:
        return self.wait_acked(seq, timeout_s, PEER_DURABLE_SEQ)


class Scripted:
    """In place of a Session: answers LinkUp with given effects, remembers every other event."""

    def __init__(self, *on_link: Effect) -> None:
        self.on_link = on_link
        self.seen: list[Event] = []
        self.status: dict[str, Any] = {}
        self.dials = True
        self.link = 0
        self.claims = False
        self.times_caught_up = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, LinkUp):
            self.link = event.link
            return list(self.on_link)
        self.seen.append(event)
        return []

    def next_deadline(self) -> float | None:
        return None

    def noted(self, link: int, positions: tuple[int, int, int], now: float) -> bool:
        return False

    def caught_up(self, now: float) -> None:
        self.times_caught_up += 1

    def facts(self, now: float) -> dict[str, Any]:
        return {}

    def saw(self, kind: type, timeout_s: float = 10.0) -> Any:
        """Wait for an event of `kind` and return it."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for event in list(self.seen):
                if isinstance(event, kind):
                    return event
            time.sleep(0.005)
        raise AssertionError(f"no {kind.__name__} in {self.seen[-5:]}")


def make_loop(
    side: Side,
    session: Scripted,
    name: str,
    settings: Callable[[], Transfer] = Transfer,
    open_more: Callable[[str, int], None] = lambda bundle, count: None,
    persist: Callable[[dict[str, Any]], None] = lambda changes: None,
    ask: Callable[[Any], None] = lambda question: None,
) -> PairLoop:
    """A link thread over `side`, started."""
    around = Surroundings(
        name=name,
        ask=ask,
        dial=lambda: None,
        open_more=open_more,
        persist=persist,
        event=lambda what, detail: None,
        transfer=settings,
        failed=lambda: None,
    )
    loop = PairLoop(session, Flow(side.open_files), around)  # type: ignore[arg-type]
    loop.start()
    return loop


def tls_pair(folder: Path) -> tuple[TlsStream, TlsStream]:
    """Two ends of a TLS 1.3 connection over loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends = connect_tls(folder, listener, listener.getsockname()[1])
    listener.close()
    return ends


def connect_tls(folder: Path, listener: socket.socket, port: int) -> tuple[TlsStream, TlsStream]:
    """Connect to `port`, accept on `listener`, TLS on both ends; returns (connecting end, accepting end)."""
    identity: Identity = load_or_create(folder / "keys", "00" * 16)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    server.num_tickets = 0
    server.load_cert_chain(identity.cert_path, identity.key_path)
    accepted: list[TlsStream] = []

    def accept() -> None:
        raw, _ = listener.accept()
        tune(raw)
        accepted.append(TlsStream(raw, server, server_side=True))

    thread = threading.Thread(target=accept)
    thread.start()
    raw = socket.create_connection(("127.0.0.1", port))
    tune(raw)
    end = TlsStream(raw, client)
    thread.join()
    return end, accepted[0]


class LinkPair:
    """Both sides, connected. `a` ships, and makes the connections."""

    def __init__(
        self, folder: Path, capacity: int = 32 << 20, settings: Transfer | None = None, sink_capacity: int = 0
    ) -> None:
        self.folder = folder
        self.settings = settings or Transfer()
        self.kept: dict[str, Any] = {}
        """What the sink made durable of the source's settings."""
        self.a, self.b = Side(folder / "a", capacity), Side(folder / "b", sink_capacity or capacity)
        self.source, self.sink = Scripted(StartShipping(1)), Scripted(StartReceiving(1, 0))
        self.loop_a = make_loop(self.a, self.source, "a", lambda: self.settings, self._open_more)
        self.loop_b = make_loop(self.b, self.sink, "b", lambda: from_map(self.kept), persist=self.kept.update)
        self.sink.dials = False

    def connect(self) -> LinkPair:
        one, other = tls_pair(self.folder)
        self.loop_b.connected(Connection(other, "bundle"))
        self.loop_a.connected(Connection(one, "bundle"))  # the last: once it ships it makes more connections
        return self

    def _open_more(self, bundle: str, count: int) -> None:
        for _ in range(count):
            one, other = tls_pair(self.folder)
            self.loop_b.joined(Connection(other, bundle))
            self.loop_a.joined(Connection(one, bundle))

    def close(self) -> None:
        self.loop_a.stop()
        self.loop_b.stop()

    def __enter__(self) -> LinkPair:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def random_payload(size: int) -> bytes:
    return os.urandom(size)
