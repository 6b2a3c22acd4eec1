"""Writes every page of the manual into a folder, docs/man when none is named."""

from __future__ import annotations

import sys
from pathlib import Path

from replicator.cli.manual.generate import pages


def main() -> int:
    """Write all pages and remove those of commands that are gone. Returns 0."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/man")
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="ascii")
    for path in folder.glob("farstripe*.8"):
        if path.name not in made:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
