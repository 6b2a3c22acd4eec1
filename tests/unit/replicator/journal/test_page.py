"""The shared page and the doorbells."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from replicator.journal.page import BOOT, HEAD_OFF, INCARNATION, SLOTS, Doorbell, Page, boot_number


def test_two_processes_see_one_page(tmp_path: Path) -> None:
    one, other = Page.map(tmp_path / "page"), Page.map(tmp_path / "page")
    one[HEAD_OFF] = (1 << 63) + 5
    assert other[HEAD_OFF] == (1 << 63) + 5


def test_a_page_is_valid_for_the_boot_it_was_cleared_in(tmp_path: Path) -> None:
    page = Page.map(tmp_path / "page")
    assert not page.valid(7)
    page.clear(7)
    assert page.valid(7)
    assert not page.valid(8)


def test_clearing_forgets_everything_but_raises_the_incarnation() -> None:
    page = Page.in_memory()
    page.clear(7)
    for slot in range(BOOT + 1, SLOTS):
        page[slot] = 9
    page.clear(8)
    assert page[INCARNATION] == 10
    assert not any(page[slot] for slot in range(INCARNATION + 1, SLOTS))


def test_the_boot_number_is_stable_and_fits_a_slot() -> None:
    assert boot_number() == boot_number() < 1 << 64


def test_a_ring_before_the_wait_is_not_lost(tmp_path: Path) -> None:
    sleeper, other = Doorbell(tmp_path / "bell"), Doorbell(tmp_path / "bell")
    other.ring()
    other.ring()
    assert sleeper.wait(5)
    assert not sleeper.wait(0), "rings coalesce"


def test_a_ring_wakes_the_sleeper(tmp_path: Path) -> None:
    sleeper, other = Doorbell(tmp_path / "bell"), Doorbell(tmp_path / "bell")
    threading.Timer(0.05, other.ring).start()
    began = time.monotonic()
    assert sleeper.wait(30)
    assert time.monotonic() - began < 10


def test_a_full_fifo_counts_as_rung(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path / "bell")
    for _ in range(70000):
        bell.ring()
    assert bell.wait(0)
