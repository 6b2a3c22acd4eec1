"""Instants as people write them: a time, a marker, a seq."""

from __future__ import annotations

import datetime
import re
from typing import Any

from replicator.core.errors import BadInput

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"-(\d+(?:\.\d+)?) ?(s|sec|min|m|h|d)")
_TIME = re.compile(
    r"(?:(?P<date>\d{4}-\d\d-\d\d)[T ])?(?P<clock>\d\d:\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?"
    r" ?(?P<zone>Z|[+-]\d\d:?\d\d)?",
    re.IGNORECASE,
)
FORMS = (
    "write 2026-05-17T12:34:56Z, 2026-05-17 14:34:56 (local time), 14:34 (today), -90s, -5min, -2h, now, seq:NUMBER or "
    "marker:NAME"
)


def parse_instant(text: str, now_ns: int) -> dict[str, Any]:
    """Return the arguments of group.view that `text` stands for: one of seq, time_ns, marker, newest.

    now_ns: nanoseconds since 1970. What looks like nothing else names a marker. Raises BadInput.
    """
    kind, colon, rest = text.partition(":")
    if text == "now":
        return {"newest": True}
    if text.isdecimal() or (colon and kind == "seq"):
        return {"seq": _number(text if text.isdecimal() else rest)}
    if colon and kind == "marker" and rest:
        return {"marker": rest}
    if ago := _AGO.fullmatch(text):
        return {"time_ns": max(0, now_ns - round(float(ago[1]) * _UNITS[ago[2]] * 1e9))}
    if time := _TIME.fullmatch(text):
        return {"time_ns": _past(_time_ns(time, now_ns), now_ns, text)}
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) and not re.match(r"\d{4}-\d", text):
        return {"marker": text}
    raise BadInput(f"{text!r} is no instant", FORMS)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise BadInput(f"{text!r} is not the number of a record", FORMS)
    return int(text)


def _time_ns(found: re.Match[str], now_ns: int) -> int:
    here = datetime.datetime.fromtimestamp(now_ns // 10**9).astimezone()
    zone = (found["zone"] or "").upper().replace("Z", "+00:00")
    try:
        moment = datetime.datetime.fromisoformat(
            f"{found['date'] or here.date()}T{found['clock']}:{found['second'] or '00'}{zone}"
        )
    except ValueError as exc:
        raise BadInput(f"{found[0]!r} is no time: {exc}", FORMS) from exc
    return int(moment.timestamp()) * 10**9 + int((found["fraction"] or "0").ljust(9, "0"))


def _past(time_ns: int, now_ns: int, text: str) -> int:
    if time_ns > now_ns:
        raise BadInput(f"{text} has not come yet", "name an instant of the past, or: now")
    return max(0, time_ns)
