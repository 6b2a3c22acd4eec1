"""Writes the tables of docs/ that are generated from code. `python -m tests.testing.doctables` from the top folder."""

from __future__ import annotations

import sys
from pathlib import Path

from replicator.core import decisions, takeover
from replicator.core.decisions import DOMAIN, Action, Facts
from replicator.core.transitions import TRANSITIONS, Input, State

DOCS = Path(__file__).resolve().parents[2] / "docs"
_ACTION_TEXT = {
    Action.REFUSE: "nothing is shipped; both sides stay as they are until the operator acts",
    Action.WAIT: "the link stays, nothing is shipped",
    Action.STEP_DOWN: "the named side gives up the primary role durably, then the handshake runs again",
    Action.PROMOTE: "the named side becomes primary: a switchover is completed",
    Action.STREAM: "records after the follow side's position are shipped",
    Action.RESUME: "the copy under way goes on; records after the follow side's position are shipped",
    Action.COPY: "bitmaps are exchanged; the union of what either side touched since the common position is copied",
}


def handshake_page() -> str:
    """The text of docs/HANDSHAKE.md."""
    lines = [
        "# The handshake",
        "",
        "Generated from `replicator/core/decisions.py` by `python -m tests.testing.doctables`; do not edit.",
        "",
        "On every connection both nodes send a HELLO with the facts of their side, both compute the decision below",
        "from the two, and both state it. Only when the two verdicts are equal does anything happen.",
        "",
        "*lead* is the primary; with two primaries it is the one the operator did not name for discarding, else the",
        "one with the newer history. *follow* is the other one. A fact that a row does not name may have any value.",
        "Every combination of facts matches exactly one row.",
        "",
        "## Facts",
        "",
        "| fact | values |",
        "|---|---|",
        *(f"| {name} | {', '.join(values)} |" for name, values in DOMAIN.items()),
        "",
        "## Actions",
        "",
        "| action | meaning |",
        "|---|---|",
        *(f"| {action.value} | {text} |" for action, text in _ACTION_TEXT.items()),
        "",
        "## Decisions",
        "",
        "| label | when | action | cause |",
        "|---|---|---|---|",
    ]
    for row in decisions.TABLE:
        when = ", ".join(f"{name} {value}".replace("|", " or ") for name, value in _named(row.when) if value != "*")
        action = row.action.value + (f" ({row.acts})" if row.acts else "")
        lines.append(f"| {row.label} | {when} | {action} | {row.cause} |")
    lines += [
        "",
        "## Takeover",
        "",
        "Judged on the node that is to become primary; the first row that fits counts.",
        "",
    ]
    lines += ["| label | allowed | says |", "|---|---|---|"]
    allowed = {None: "never", True: "with --force", False: "yes"}
    lines += [f"| {row.label} | {allowed[row.force]} | {row.message} |" for row in takeover.TABLE]
    return "\n".join(lines) + "\n"


def _named(facts: Facts) -> list[tuple[str, str]]:
    return list(zip(Facts._fields, facts, strict=True))


def session_page() -> str:
    """The text of docs/SESSION.md."""
    lines = [
        "# The session of a pair",
        "",
        "Generated from `replicator/core/transitions.py` by `python -m tests.testing.doctables`; do not edit.",
        "",
        "One session runs on each node of a pair. An input that is not listed for a state is an error and changes",
        "nothing. State names are those of `replicator/core/transitions.py`.",
        "Frames are named in `replicator/core/events.py`.",
    ]
    for state in State:
        lines += ["", f"## {state.value}", "", "| input | handler | may lead to |", "|---|---|---|"]
        for what in Input:
            row = TRANSITIONS.get((state, what))
            if row is not None:
                to = ", ".join(dict.fromkeys(s.value for s in row[1]))
                lines.append(f"| {what.value} | {row[0]} | {to} |")
    return "\n".join(lines) + "\n"


PAGES = {"HANDSHAKE.md": handshake_page, "SESSION.md": session_page}


def main() -> int:
    """Write all pages."""
    DOCS.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
