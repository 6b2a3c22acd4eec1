"""Waiting for long work with a bar: a copy, a resync, a rebuild.

The work belongs to the node and goes on whatever happens here: Ctrl-C ends the looking, not the work. The bar goes to
stderr; without a terminal there is a line a tenth instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import click

from replicator.cli.units import format_duration, format_size
from replicator.core.errors import TimedOut

POLL_S = 0.2


class Look(NamedTuple):
    """One look at the work. `left` and `total` are bytes, None when not known (yet)."""

    done: bool
    left: int | None = None
    total: int | None = None
    text: str = ""


def wait(look: Callable[[], Look], what: str, timeout_s: float | None, show: bool, *, pause_s: float = POLL_S) -> Look:
    """Call `look` until it says done; returns the last look. Raises TimedOut after `timeout_s`, and what `look` raises.

    `pause_s`: between two looks; 0 where `look` itself waits. `show`: draw the bar. The total is the
    largest amount left that was seen, unless `look` knows better.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    began = time.monotonic()
    meter = _meter(what) if show else None
    try:
        while True:
            now = look()
            if meter:
                meter.update(now)
            if now.done:
                return now
            if until is not None and time.monotonic() >= until:
                left = f", {format_size(now.left)} left" if now.left is not None else ""
                text = f" ({now.text}{left})" if now.text else ""
                raise TimedOut(
                    f"{what}: not reached in {format_duration(time.monotonic() - began)}{text}",
                    "ask again; farstripe status shows whether it goes on in the background or needs you",
                )
            time.sleep(pause_s if until is None else max(0.0, min(pause_s, until - time.monotonic())))
    finally:
        if meter:
            meter.close()


class _Bar:
    """A rich progress bar."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._what = what
        self._task = self._progress.add_task(what, total=None)
        self._total = 0
        self._progress.start()

    def update(self, now: Look) -> None:
        text = f"{self._what}: {now.text}" if now.text else self._what
        if now.left is None and not now.done:
            self._progress.update(self._task, description=text)
            return
        left = 0 if now.done else now.left or 0
        self._total = max(self._total, now.total or 0, left)
        self._progress.update(self._task, description=text, total=self._total or None, completed=self._total - left)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """A line each time another tenth is done: for logs."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._total = 0
        self._said: tuple[int, str] | None = None

    def update(self, now: Look) -> None:
        left = 0 if now.done else now.left
        if left is not None:
            self._total = max(self._total, now.total or 0, left)
        tenth = 10 if now.done else -1 if left is None or not self._total else 10 * (self._total - left) // self._total
        if (tenth, now.text) == self._said:
            return
        self._said = (tenth, now.text)
        share = "" if tenth < 0 else f" {10 * tenth} %"
        size = "" if left is None or not self._total else f", {format_size(left)} of {format_size(self._total)} left"
        text = f" {now.text}" if now.text else ""
        click.echo(f"{self._what}:{text}{share}{size}", err=True)

    def close(self) -> None:
        pass


def _meter(what: str) -> _Bar | _Lines:
    return _Bar(what) if sys.stderr.isatty() else _Lines(what)
