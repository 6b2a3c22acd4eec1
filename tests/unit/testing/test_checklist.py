"""docs/CHECKLIST.md names tests that exist, and says something of every row."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/CHECKLIST.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    folder = ""
    for path, name in re.findall(r"`([\w/]*\w+\.py|)(?:::([\w-]+))?`", TEXT):
        if not path and not name:
            continue
        if path:
            there = ROOT / "tests" / path
            folder = path if there.is_file() else str(Path(folder).parent / path)
        file = ROOT / "tests" / folder
        assert file.is_file(), f"{path or folder} does not exist"
        text = file.read_text(encoding="utf-8")
        named = f'"{name}"' in text if "-" in name else f"def {name or 'test_'}" in text or "testing/" in folder
        assert named, f"{folder}::{name}"


def test_every_row_has_its_line() -> None:
    rows = [f"F1-{n:02}" for n in range(1, 34)] + ["F3-01", *(f"F3-{n}" for n in range(22, 27))]
    lines = [line.split()[1] for line in TEXT.splitlines() if re.match(r"\| F\d-\d\d ", line)]
    assert lines == rows


def test_every_hazard_has_its_line() -> None:
    of_order = [f"H1-{n:02}" for n in range(1, 32)]
    of_journals = [f"H3-{n}" for n in (*range(15, 24), *range(26, 33), 34, *range(36, 39))]
    lines = [line.split()[1] for line in TEXT.splitlines() if re.match(r"\| H\d-\d\d ", line)]
    assert lines == of_order + of_journals
