"""What the demo says: steps as they happen, then the report."""

from __future__ import annotations

import time


def amount(count: int) -> str:
    """Bytes in words."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


class Report:
    """Collects facts and checks; a failed check makes the whole demo fail."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._facts: list[tuple[str, str]] = []
        self._checks: list[tuple[bool, str]] = []

    def step(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", flush=True)

    def fact(self, name: str, text: str) -> None:
        self._facts.append((name, text))

    def check(self, ok: bool, text: str) -> None:
        self._checks.append((ok, text))
        self.step(("ok: " if ok else "FAILED: ") + text)

    @property
    def passed(self) -> bool:
        return bool(self._checks) and all(ok for ok, _ in self._checks)

    def print(self) -> None:
        print("\nReport")
        width = max(len(name) for name, _ in self._facts)
        for name, text in self._facts:
            print(f"  {name:<{width}}  {text}")
        good = sum(ok for ok, _ in self._checks)
        print(f"  {'checks':<{width}}  {good} of {len(self._checks)} passed")
        for ok, text in self._checks:
            if not ok:
                print(f"  {'':<{width}}  FAILED: {text}")
