"""Earlier instants on two real nodes: what a view holds is compared with a replay of the primary's journal."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import nbd
import pytest

from replicator.core.records import DATA_KINDS, HEADER_BYTES, MAGIC, Header, unpack_header
from tests.testing.needs import needs
from tests.testing.nodes import GROUP, Node, Pair, wait_until

SIZES = {"data": 8 << 20, "log": 4 << 20}
REFUSED, NOT_FOUND, BAD_INPUT, MEDIUM = 4, 5, 3, 9


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    needs("nbdkit")
    with Node("a", replication_port=10896) as a, Node("b", replication_port=10897) as b:
        pair = Pair.create(a.init(), b.init(), SIZES)
        b.farstripe("group", "retention", GROUP, "--bytes", "64M")
        yield pair


class Writer:
    """Writes to both volumes, one after the other, until it is stopped: little enough that neither ring wraps."""

    def __init__(self, node: Node, seed: int) -> None:
        self.handles = [node.writer(name) for name in SIZES]
        self.rng = random.Random(seed)
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rng = self.rng
        while not self._stop.wait(0.003):
            self.count += 1
            volume, length = rng.randrange(2), rng.choice((512, 4096, 4096, 10_240))
            offset = rng.randrange((list(SIZES.values())[volume] - length) // 512) * 512
            if rng.random() < 0.05:
                self.handles[volume].zero(length, offset)
            else:
                self.handles[volume].pwrite(self.count.to_bytes(8, "little") * (length // 8), offset)
            if rng.random() < 0.02:
                self.handles[volume].flush()

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for handle in self.handles:
            handle.shutdown()


def journal_of(node: Node) -> list[tuple[Header, bytes]]:
    """Every record of the journal's first lap, also those that were freed."""
    [path] = [path for path in node.state.glob("groups/*/journal*") if path.stat().st_size >= 16 << 20]
    raw = path.read_bytes()
    at, found = raw.index(MAGIC.to_bytes(4, "little"), 4096), []
    while raw[at : at + 4] == MAGIC.to_bytes(4, "little"):
        header = unpack_header(raw, at)
        if found and header.seq != found[-1][0].seq + 1:
            break
        found.append((header, raw[at + HEADER_BYTES : at + header.total_bytes]))
        at += header.total_bytes
    return found


def replay(records: list[tuple[Header, bytes]], seq: int) -> list[bytes]:
    """What the volumes hold after record `seq`."""
    images = [bytearray(size) for size in SIZES.values()]
    for header, data in records:
        if header.seq <= seq and header.kind in DATA_KINDS:
            images[header.volume][header.offset : header.offset + header.length] = data or bytes(header.length)
    return [bytes(image) for image in images]


def read(node: Node, name: str) -> bytes:
    handle = node.connect(name)
    size = handle.get_size()
    data = b"".join(bytes(handle.pread(min(1 << 20, size - at), at)) for at in range(0, size, 1 << 20))
    handle.shutdown()
    return data


def window(node: Node) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = node.group()["retention"]
    return found


def delete(node: Node, name: str) -> None:
    """The node learns a moment later that a client has gone."""
    wait_until(lambda: not any(v["readers"] for v in node.json("volume", "list") if v["name"] == name), "gone", 10)
    node.farstripe("volume", "delete", name, "--yes")


def test_views_at_random_instants_are_exact_while_replication_goes_on(pair: Pair) -> None:
    b, rng = pair.secondary, random.Random(5)
    first = window(b)["from"]["seq"]
    taken: list[tuple[dict[str, int], int | None]] = []
    with Writer(pair.primary, 1) as writer:
        wait_until(lambda: writer.count > 300, "no writes", 30)
        for number in range(6):
            before = writer.count
            now = window(b)
            if number % 2:
                asked = rng.randrange(now["from"]["time_ns"], now["to"]["time_ns"])
                view = b.ask("target", "group.view", 60, group=GROUP, time_ns=asked, suffix=f"v{number}")
                taken.append((view, asked))
            else:
                view = b.json("snapshot", GROUP, "--at", rng.randint(first, now["to"]["seq"]), "--name", f"v{number}")
                taken.append((view, None))
            wait_until(lambda before=before: writer.count > before, "writes stopped", 10)  # type: ignore[misc]
    pair.wait_in_sync()
    records = journal_of(pair.primary)
    assert len(records) > writer.count > 0
    for number, (view, asked) in enumerate(taken):
        if asked is not None:
            assert view["seq"] == max(header.seq for header, _ in records if header.write_time <= asked)
        [time_ns] = [header.write_time for header, _ in records if header.seq == view["seq"]]
        assert view["time_ns"] == time_ns
        for name, want in zip(SIZES, replay(records, view["seq"]), strict=True):
            assert b.connect(f"{name}-v{number}").is_read_only()
            assert read(b, f"{name}-v{number}") == want, f"{name} at {view['seq']}"
    for number in range(6):
        for name in SIZES:
            delete(b, f"{name}-v{number}")
    assert b.json("pool", "check")["problems"] == []
    pair.assert_images_equal()


def _final_now(b: Node) -> bool:
    """Whether a view as of four seconds ago is known to be of all that was written until then."""
    view = b.json("snapshot", GROUP, "--at", "-4s", "--name", "final")
    for name in SIZES:
        delete(b, f"{name}-final")
    return bool(view["certain"])


def test_a_writable_view_is_a_clone_of_its_own(pair: Pair) -> None:
    b = pair.secondary
    seq = window(b)["to"]["seq"]
    view = b.json("snapshot", GROUP, "--at", "now", "--name", "w", "--writable")
    assert view["seq"] >= seq and view["writable"] and view["certain"]
    time.sleep(4.5)
    wait_until(lambda: _final_now(b), "nobody says that no earlier write is on its way", 10)
    handle = b.connect("data-w")
    handle.pwrite(b"\xee" * 4096, 0)
    assert bytes(b.connect("data").pread(4096, 0)) != b"\xee" * 4096
    handle.shutdown()
    for name in SIZES:
        delete(b, f"{name}-w")


def test_what_cannot_be_shown_is_refused_and_says_what_can(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    first = window(b)["from"]["seq"]
    assert f"seq {first} (" in b.farstripe("snapshot", GROUP, "--at", "1", expect=REFUSED)
    assert "not in the window" in b.farstripe("snapshot", GROUP, "--at", "-30d", expect=REFUSED)
    assert "no marker" in b.farstripe("snapshot", GROUP, "--at", "marker:none", expect=NOT_FOUND)
    assert "has not come yet" in b.farstripe("snapshot", GROUP, "--at", "2999-01-01T00:00:00Z", expect=BAD_INPUT)
    assert "primary here" in a.farstripe("snapshot", GROUP, "--at", "now", expect=REFUSED)
    assert "too small" in b.farstripe("group", "retention", GROUP, "--bytes", "1M", expect=BAD_INPUT)
    assert "1P" not in b.farstripe("group", "retention", GROUP, "--bytes", "1P", expect=MEDIUM)
    assert window(b)["from"]["seq"] == first, "a size that has no room leaves the window as it was"
    there = b.dir / "there"
    there.touch()
    assert "exists" in b.farstripe("group", "retention", GROUP, "--path", there, expect=6)


def test_the_window_and_the_views_survive_a_kill_and_half_built_views_do_not(pair: Pair) -> None:
    b = pair.secondary
    with Writer(pair.primary, 2) as writer:
        wait_until(lambda: writer.count > 200, "no writes", 30)
        first = window(b)["from"]
        asking = threading.Thread(
            target=lambda: _ignore_errors(lambda: b.ask("target", "group.view", 60, group=GROUP, seq=first["seq"]))
        )
        asking.start()
        time.sleep(0.05)
        b.kill("target")
        asking.join()
        b.start()
        pair.wait_streaming()
    pair.wait_in_sync()
    assert window(b)["from"] == first
    for name in [v["name"] for v in b.json("volume", "list") if "-at-" in v["name"]]:
        delete(b, name)
    assert {v["name"] for v in b.json("pool", "status")["volumes"]} == set(SIZES)
    assert b.json("pool", "check")["problems"] == []
    seq = window(b)["from"]["seq"]
    b.farstripe("snapshot", GROUP, "--at", seq, "--name", "k")
    assert read(b, "data-k") == replay(journal_of(pair.primary), seq)[0]
    for name in SIZES:
        delete(b, f"{name}-k")


def _ignore_errors(action: object) -> None:
    try:
        action()  # type: ignore[operator]
    except Exception:  # the node was killed meanwhile
        pass


def test_a_resync_keeps_the_last_image_and_instants_of_before(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    pair.wait_in_sync()
    before = window(b)["to"]["seq"]
    image = read(b, "data")
    b.kill("replicator")
    handle = a.writer("data")
    for turn in range(6):
        for at in range(0, SIZES["data"], 1 << 20):
            handle.pwrite(bytes([turn + 1]) * (1 << 20), at)
    handle.flush()
    assert a.group()["mode"] == "bitmap"
    b.start()
    pair.wait_in_sync()
    kinds = [event["kind"] for event in b.json("events")]
    assert "image.kept" in kinds
    wait_until(lambda: b.group()["kept_image"] is None, "the image stays", 20)
    spans = window(b)["spans"]
    assert spans[-2]["to"]["seq"] == before
    b.farstripe("snapshot", GROUP, "--at", before, "--name", "old")
    assert read(b, "data-old") == image
    lost = spans[-1]["from"]["seq"] - 1
    assert "resynced" in b.farstripe("snapshot", GROUP, "--at", lost, expect=REFUSED)
    handle.shutdown()
    for name in SIZES:
        delete(b, f"{name}-old")
    pair.assert_images_equal()


def test_a_group_that_was_primary_begins_a_new_window(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    a.farstripe("switchover", GROUP)
    pair.swapped()
    assert "primary here" in b.farstripe("snapshot", GROUP, "--at", "now", expect=REFUSED)
    assert b.group()["retention"]["from"] is None
    with pytest.raises(nbd.Error):
        a.connect("data").pwrite(b"x" * 512, 0)
    b.writer("data").pwrite(b"y" * 4096, 0)
    pair.wait_in_sync()
    b.farstripe("switchover", GROUP)
    pair.swapped()
    pair.wait_in_sync()
    a.writer("data").pwrite(b"z" * 4096, 0)
    pair.wait_in_sync()
    wait_until(lambda: window(b)["to"] is not None, lambda: str(window(b)), 10)
    assert window(b)["to"]["seq"] == b.group()["applied"]
