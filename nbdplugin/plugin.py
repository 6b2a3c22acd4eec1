"""nbdkit's Python plugin: the NBD face of a node. nbdkit runs this file as `__main__`; nbdplugin.launch starts nbdkit.

The idea: every callback hands its request to the volume's route (nbdplugin.routes) and does nothing else. pread and
pwrite are the hot path: a test for the worker's interpreter state (nbdplugin.workers), one call, no allocation.

Invariants
* An exception becomes an NBD error number before it leaves a callback; without set_error nbdkit would report EIO.
* What can_* promises holds: multi-conn because a flush covers the whole pool and group, FUA natively, fast zero only
  where holes may be punched.
* Threads start in after_fork; nothing is opened before it.

What this file does not do: decide anything about roles, replication or RAID.
"""

from __future__ import annotations

import errno
from threading import get_ident
from time import monotonic

import nbdkit  # made by nbdkit, exists only inside it

from nbdplugin import routes, workers
from nbdplugin.departure import LATE_S, Departure, connection_probe
from nbdplugin.exports import describe
from nbdplugin.markerdoor import MarkerDoor
from nbdplugin.nbderror import RequestFailed, error_number, reason
from nbdplugin.target import Target

API_VERSION = 2

MAX_REQUEST_BYTES = 32 << 20
PREFERRED_BLOCK_BYTES = 4096

_FUA = nbdkit.FLAG_FUA
_MAY_TRIM = nbdkit.FLAG_MAY_TRIM
_FAST_ZERO = nbdkit.FLAG_FAST_ZERO
_REQ_ONE = nbdkit.FLAG_REQ_ONE
_HOLE = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO

_client_has_gone = connection_probe()
_settings: dict[str, str] = {}
_target: Target | None = None


class Handle:
    """One connection to one volume."""

    __slots__ = ("departure", "readonly", "route", "states")

    def __init__(self, route: routes.VolumeRoute | MarkerDoor, readonly: bool) -> None:
        self.route = route
        self.readonly = readonly
        self.states: workers.WorkerStates = {}
        self.departure = Departure(_client_has_gone)


def _target_or_fail() -> Target:
    if _target is None:
        raise RequestFailed("the target has not started")
    return _target


def _fail(exc: BaseException, h: Handle | None = None) -> RequestFailed:
    """Set the NBD error for `exc` and return the exception to raise, whose one line nbdkit logs."""
    if h is not None:
        h.departure.before_error()
    nbdkit.set_error(error_number(exc))
    return RequestFailed(reason(exc))


# -- start and stop ---------------------------------------------------------------------------------------------------


def config(key: str, value: str) -> None:
    if key not in ("state", "run", "force"):
        raise RequestFailed(f"unknown parameter {key}")
    _settings[key] = value


def config_complete() -> None:
    for key in ("state", "run"):
        if key not in _settings:
            raise RequestFailed(f"the parameter {key}= is missing; start the target with python -m nbdplugin.launch")


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def after_fork() -> None:
    global _target
    target = Target(_settings["state"], _settings["run"], nbdkit.shutdown, _settings.get("force") == "1")
    target.start()
    _target = target


def cleanup() -> None:
    if _target is not None:
        _target.close()


def preconnect(readonly: bool) -> None:
    try:
        _target_or_fail().admit_client()
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc) from None


# -- exports ----------------------------------------------------------------------------------------------------------


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    return _target_or_fail().list_exports()


def default_export(readonly: bool, is_tls: bool) -> str:
    exports = _target_or_fail().list_exports()
    return exports[0][0] if len(exports) == 1 else ""


def open(readonly: bool) -> Handle:
    try:
        route, is_readonly = _target_or_fail().open_volume(nbdkit.export_name(), readonly)
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc) from None
    return Handle(route, is_readonly)


def close(h: Handle) -> None:
    _target_or_fail().close_volume(h.route, h.readonly)
    workers.free(h.states)


def export_description(h: Handle) -> str:
    return h.route.description if isinstance(h.route, MarkerDoor) else describe(h.route)


def get_size(h: Handle) -> int:
    return h.route.volume.size


def block_size(h: Handle) -> tuple[int, int, int]:
    return (1, PREFERRED_BLOCK_BYTES, MAX_REQUEST_BYTES)


def is_rotational(h: Handle) -> bool:
    return False


def can_write(h: Handle) -> bool:
    return not h.readonly


def can_flush(h: Handle) -> bool:
    return True


def can_trim(h: Handle) -> bool:
    return True


def can_zero(h: Handle) -> bool:
    return True


def can_fast_zero(h: Handle) -> bool:
    return True


def can_extents(h: Handle) -> bool:
    return True


def can_multi_conn(h: Handle) -> bool:
    return True


def can_fua(h: Handle) -> int:
    return int(nbdkit.FUA_NATIVE)


def can_cache(h: Handle) -> int:
    return int(nbdkit.CACHE_EMULATE)  # nbdkit reads the range into a buffer: that warms the page cache of the members


# -- data -------------------------------------------------------------------------------------------------------------


def _begin(h: Handle) -> None:
    """A worker's first request on this connection."""
    workers.keep(h.states)
    _target_or_fail().together.join()


def pread(h: Handle, buf: memoryview, offset: int, flags: int) -> None:
    if get_ident() not in h.states:
        _begin(h)
    try:
        waited = h.route.read(buf, offset)
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc, h) from None
    if waited:
        h.departure.before_late_answer()


def pwrite(h: Handle, buf: memoryview, offset: int, flags: int) -> None:
    if get_ident() not in h.states:
        _begin(h)
    began = monotonic()
    try:
        if flags & _FUA:
            h.route.write_fua(buf, offset)
        else:
            h.route.write(buf, offset)
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc, h) from None
    if monotonic() - began > LATE_S:
        h.departure.before_late_answer()


def flush(h: Handle, flags: int) -> None:
    try:
        h.route.flush()
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc, h) from None
    h.departure.before_late_answer()


def trim(h: Handle, count: int, offset: int, flags: int) -> None:
    try:
        h.route.trim(offset, count, bool(flags & _FUA))
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc, h) from None
    h.departure.before_late_answer()


def zero(h: Handle, count: int, offset: int, flags: int) -> None:
    may_punch = bool(flags & _MAY_TRIM)
    if flags & _FAST_ZERO and not may_punch:
        nbdkit.set_error(errno.EOPNOTSUPP)
        raise RequestFailed("zeroes that stay allocated are written, which is not fast")
    try:
        h.route.zero(offset, count, may_punch, bool(flags & _FUA))
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc, h) from None
    h.departure.before_late_answer()


def extents(h: Handle, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    try:
        found = h.route.extents(offset, count)
    except Exception as exc:  # outermost: becomes the NBD error
        raise _fail(exc, h) from None
    h.departure.before_late_answer()
    result: list[tuple[int, int, int]] = []
    at = offset
    for length, allocated in found:
        kind = 0 if allocated else _HOLE
        if result and result[-1][2] == kind:
            first, so_far, _ = result[-1]
            result[-1] = (first, so_far + length, kind)
        else:
            if result and flags & _REQ_ONE:
                break
            result.append((at, length, kind))
        at += length
    return result


routes.watched_codes.update(f.__code__ for f in (pwrite, flush, trim, zero))
routes.reading_codes.update(f.__code__ for f in (pread, extents))
