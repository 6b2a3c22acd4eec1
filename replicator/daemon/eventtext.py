"""Sentences for the events of pairs and connections: kind and text by the name the session or the shell gives."""

from __future__ import annotations

from typing import Any

from replicator.core.epochs import epoch_text

_TEXTS: dict[str, tuple[str, str]] = {
    "link-up": ("pair.connected", "connected to {peer}"),
    "link-down": ("pair.disconnected", "no link to {peer}: {reason}"),
    "handshake": ("pair.handshake", "both sides agree: {label}"),
    "refused": ("pair.refused", "nothing is shipped: {label}; 'farstripe explain' tells more"),
    "copy-planned": ("pair.copy", "a copy to {peer} is needed: {label}"),
    "copy-begun": ("pair.copy", "the copy has begun after record {p}"),
    "copy-complete": ("pair.copied", "the copy is complete at record {seq}"),
    "in-sync": ("pair.insync", "every write waits for {peer} from record {seq} on"),
    "out-of-sync": ("pair.outofsync", "writes do not wait for {peer} any more"),
    "switchover": ("pair.switchover", "switchover to {peer} begun"),
    "stepped-down": ("pair.demoted", "this node is secondary now: {label}"),
    "handover": ("pair.handover", "{peer} hands the primary role over"),
    "promoted": ("pair.promoted", "this node is primary now, epoch {epoch}"),
    "takeover": ("pair.takeover", "takeover: {lost}"),
    "split": ("pair.split", "split by the operator"),
    "resync": ("pair.resync", "resync asked by the operator"),
    "stopped": ("pair.stopped", "stopped, the journal failed: {reason}"),
    "protocol-error": ("pair.protocol", "{peer} broke the protocol, the connection was closed: {message}"),
    "internal-error": ("pair.internal", "{message}"),
    "connection-refused": ("connection.refused", "a connection from {address} was refused: {reason}"),
}
QUIET = frozenset({"pair-state"})
"""Names that are for the debug log only."""


class _Lenient(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def describe(name: str, detail: dict[str, Any]) -> tuple[str, str]:
    """Return (kind, text) for an event; a name nobody knows is shown as it is."""
    if isinstance(detail.get("epoch"), int):
        detail = {**detail, "epoch": epoch_text(detail["epoch"])}
    kind, text = _TEXTS.get(name, (f"pair.{name}", name))
    return kind, text.format_map(_Lenient(detail))
