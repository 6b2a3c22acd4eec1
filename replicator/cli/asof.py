"""farstripe snapshot, group retention: a group as it was at an earlier instant."""

from __future__ import annotations

import time
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.instants import parse_instant
from replicator.cli.output import confirm, emit, json_option, table, yes_option
from replicator.cli.units import SecondsType, SizeType, format_duration, format_size
from replicator.core.epochs import epoch_text

PATIENCE_S = 24 * 3600
"""A view of much that was overwritten takes long; the target ends it when it stops."""


@click.command()
@click.argument("group", shell_complete=names.groups)
@click.option("--at", "when", required=True, metavar="INSTANT",
              help="A time (2026-05-17T12:34:56Z; in local time: \"2026-05-17 14:34:56\", 14:34; -90s, -5min, -2h), "
              "a marker (its name, or marker:7), a record (4711 or seq:4711), or now: the newest record "
              "here.")  # fmt: skip
@click.option("--name", "suffix", metavar="NAME", help="Call the images VOLUME-NAME; else they are VOLUME-at-SEQ.")
@click.option("--writable", is_flag=True, help="Make clones that can be written to, instead of snapshots.")
@json_option
@pass_node
def snapshot(here: Node, group: str, when: str, suffix: str | None, writable: bool, as_json: bool) -> None:
    """Show all volumes of GROUP as they were at an earlier instant, exact to the record, while replication goes on.

    On the secondary, for instants within the window that `farstripe group retention` keeps. A time means the last write
    not later than it, by the primary's clock. The images are served by NBD under their names and deleted like volumes.
    They share space with the volumes.

    \b
      farstripe snapshot shop --at -5min
      farstripe snapshot shop --at "2026-05-17 14:30:00" --name before --writable
    """
    asked: dict[str, Any] = parse_instant(when, time.time_ns())
    if suffix is not None:
        asked["suffix"] = suffix
    done = here.target("group.view", group=group, writable=writable, wait_s=PATIENCE_S, **asked)
    images = ", ".join(one["name"] for one in done["images"])
    written = f", written {done['time']}" if done["time"] else ""
    doubt = "" if done["certain"] else "; it is the newest here, and what the primary wrote then may not have arrived"
    where = f"after record {done['seq']} in epoch {epoch_text(done['epoch'])}"
    emit(as_json, done, f"{images}: group {group} {where}{written}{doubt}")


@click.command()
@click.argument("group", shell_complete=names.groups)
@click.option("--bytes", "size", type=SizeType(4096),
              help="Room for what is overwritten; 1G when only --time is given.")  # fmt: skip
@click.option("--time", "seconds", type=SecondsType(0), metavar="SECONDS",
              help="Keep nothing that is older; 0: whatever there is room for.")  # fmt: skip
@click.option("--path", type=click.Path(), help="A new file for it, instead of one in the state directory.")
@click.option("--off", is_flag=True, help="Keep nothing any more; earlier instants can no longer be shown.")
@click.option("--keep-image/--no-keep-image", default=None,
              help="Before a resync, keep the last consistent image as snapshots until it is complete. "
              "At first: yes.")  # fmt: skip
@yes_option
@json_option
@pass_node
def retention(
    here: Node, group: str, size: int | None, seconds: float | None, path: str | None, off: bool,
    keep_image: bool | None, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show or set what this node keeps of what the copy of GROUP overwrites, so that earlier instants can be shown.

    It counts on the node where GROUP is secondary; set it on both nodes when roles may change. The window reaches back
    as far as its bytes allow, and no further than its time. Another size or place begins a new window.
    """
    given = {"bytes": size, "seconds": seconds, "keep_image": keep_image,
             "path": str(click.format_filename(path)) if path else None}  # fmt: skip
    asked = {key: value for key, value in given.items() if value is not None}
    if off and len(asked) > (keep_image is not None):
        raise click.UsageError("--off goes with no --bytes, --time or --path")
    if off:
        confirm(f"Forget earlier instants of group {group}?", yes, as_json)
        asked["off"] = True
    found = here.target("group.retention", group=group, wait_s=300, **asked)
    table(as_json, found, ("retention", "value"), _rows(found), "")


def retained_lines(one: dict[str, Any]) -> list[str]:
    """What status and explain say of the instants that a group of view.collect shows, or can show."""
    lines = []
    if kept := one["kept_image"]:
        written = f" ({kept['time']})" if kept["time"] else ""
        listed = ", ".join(kept["names"])
        lines.append(f"its image at record {kept['seq']}{written} is kept until the resync is complete: {listed}")
    window = one["retention"] or {}
    if window.get("failed"):
        lines.append(f"what it overwrites is no longer kept: {window['failed']}")
    elif window.get("spans"):
        spans = "; ".join(span_text(span) for span in window["spans"])
        lines.append(f"can be shown as of {spans}: farstripe snapshot {one['name']} --at INSTANT")
    return lines


def _rows(found: dict[str, Any]) -> list[tuple[str, object]]:
    kept = found["retention"]
    rows: list[tuple[str, object]] = [("keep image before a resync", found["keep_image"])]
    if kept is None:
        return [("window", "off"), *rows]
    if kept["failed"]:
        rows.append(("failed", kept["failed"]))
    age = format_duration(kept["seconds"]) if kept["seconds"] else "no limit"
    return [
        ("bytes", format_size(kept["bytes"])),
        ("used", format_size(kept["used"])),
        ("time", age),
        *((f"instants {number}", span_text(span)) for number, span in enumerate(kept["spans"], 1)),
        *rows,
    ]


def span_text(span: dict[str, Any]) -> str:
    """Return a stretch of instants in words."""
    ends = [f"{one['time'] or 'time not known'} (seq {one['seq']})" for one in (span["from"], span["to"])]
    return " to ".join(ends)
