"""What a group's service reports, as events that people read."""

from __future__ import annotations

from typing import Any

from replicator.core.epochs import epoch_text

_SENTENCES = {
    "journal-overflow": "the journal is full: from now on only block numbers are kept, the peer needs a resync",
    "journal-lost": "{reason}; from now on only block numbers are kept, until the journal is replaced",
    "journal-damaged": "{reason}. The volumes here hold it, and hosts are not concerned{follow}",
    "received-again": "{reason}. It cannot be applied: {dropped} received records are wanted again from the node above",
    "journal-filling": "{percent} % of the journal is used{when}",
    "journal-relieved": "no more than {percent} % of the journal is used now",
    "journal-released": "{path} is no part of the journal any more",
    "edge-dropped": "the journal is full and no longer kept for node {peer}: it needs a resync when it comes back",
    "degraded": "the peer did not answer: writes go on without it from now on",
    "writers-wait": "writes of hosts wait {want}",
    "writes-fail": "writes of hosts fail {want}",
    "writers-go-on": "writes of hosts go on, after {lasted_s} s in which they waited or failed {want}",
    "apply-stopped": "received writes cannot be applied: {reason}",
    "apply-resumed": "received writes are applied again",
    "copy-stopped": "the copy to the peer stopped: {reason}",
    "group-failed": "the group has failed: {reason}",
    "volumes-changed": "{change} {volume}, {size} bytes: every copy does so at the same place of the write order",
    "hold-released": "parked writes go on: {reason}",
    "promoted": "primary here from now on, epoch {epoch}",
    "demoted": "secondary here from now on, at write {seq}",
}

_WANTS = {
    "room": "for want of room in the journal, which is full with what node {peer} lacks",
    "peer": "for the answer of node {peer}",
}


class _Known(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "unknown"


def describe_event(what: str, detail: dict[str, Any]) -> tuple[str, str]:
    """Return (kind, sentence) for what a GroupService reports with `detail`."""
    if what == "journal-filling":
        left_s = detail.get("full_in_s")
        left = f"{left_s:.0f} s" if left_s is not None and left_s < 120 else f"{(left_s or 0) / 60:.0f} min"
        when = "" if left_s is None else f"; it is full in {left} at this rate"
        detail = {**detail, "when": when}
    if isinstance(detail.get("epoch"), int):
        detail = {**detail, "epoch": epoch_text(detail["epoch"])}
    if want := _WANTS.get(str(detail.get("want"))):
        detail = {**detail, "want": want.format_map(_Known(detail))}
    if what == "journal-damaged":
        peers = ", ".join(detail.get("peers", ()))
        detail = {**detail, "follow": f"; these nodes follow by difference: {peers}" if peers else ""}
    sentence = _SENTENCES.get(what, what.replace("-", " ")).format_map(_Known(detail))
    return f"group.{what}", f"group {detail.get('group', '?')}: {sentence}"
