"""Control operations on earlier instants: group.retention, group.view."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nbdplugin import arguments, retention
from nbdplugin.retention import Policy
from replicator.capture.preimages import instants
from replicator.core.errors import BadInput

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler

MOST_SECONDS = 10 * 365 * 86400


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""
    groups, views = target.groups, target.views
    changing = threading.Lock()

    def retain(args: dict[str, Any]) -> dict[str, Any]:
        service = groups.get(arguments.text(args, "group"))
        engine, uuid = service.engine, service.engine.state.uuid
        directory = groups.directory(uuid)
        with changing:
            wanted = _wanted(args, Policy.load(directory))
            if wanted is not None:
                retention.change(engine, directory, wanted, lambda why: groups.note_retention(uuid, why))
                target.events.add("retention.changed", f"group {engine.state.name} {_text(wanted)}")
            policy = Policy.load(directory)
        return {"keep_image": policy.keep_image, "retention": retention.facts(engine, directory)}

    def view(args: dict[str, Any]) -> dict[str, Any]:
        service = groups.get(arguments.text(args, "group"))
        key, value = instants.target_of(args)
        suffix = arguments.name(args, "suffix") if args.get("suffix") is not None else None
        return views.create(service, key, value, suffix, writable=arguments.flag(args, "writable"))

    return {"group.retention": retain, "group.view": view}


def _wanted(args: dict[str, Any], before: Policy) -> Policy | None:
    """The policy that a request asks for, what it does not name being as before; None when it only asks."""
    keep = arguments.flag(args, "keep_image", before.keep_image)
    if arguments.flag(args, "off"):
        return Policy(keep_image=keep)
    wanted = replace(before, keep_image=keep)
    if args.get("seconds") is not None:
        wanted.seconds = _seconds(args["seconds"])
    if args.get("bytes") is not None:
        wanted.bytes = arguments.integer(args, "bytes", low=1, high=1 << 50)
    if args.get("path") is not None:
        wanted.path = arguments.path(args, "path")
    if all(args.get(key) is None for key in ("seconds", "bytes", "path")):
        return wanted if wanted != before else None
    return replace(wanted, bytes=wanted.bytes or retention.DEFAULT_BYTES, failed="")


def _text(policy: Policy) -> str:
    if not policy.bytes:
        return "retains nothing"
    age = f", not older than {policy.seconds:g} s" if policy.seconds else ""
    return f"retains what its copy overwrites, up to {policy.bytes} bytes{age}"


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_SECONDS:
        raise BadInput(f"the argument 'seconds' must be from 0 (no limit) to {MOST_SECONDS}, not {value!r}")
    return float(value)
