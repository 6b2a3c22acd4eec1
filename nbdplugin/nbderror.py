"""Error numbers for NBD clients.

The protocol knows few: EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN. nbdkit translates the
nearest system numbers to these (EROFS to EPERM, EFBIG and EDQUOT to ENOSPC) and anything else to EINVAL. A client that
sees EINVAL looks for its own mistake, so a number that has no NBD counterpart becomes EIO here.
"""

from __future__ import annotations

import errno

_EXPRESSIBLE = frozenset(
    {
        errno.EPERM, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
        errno.ESHUTDOWN, errno.EOVERFLOW, errno.EOPNOTSUPP, errno.ENOENT,
    }
)  # fmt: skip


class RequestFailed(Exception):
    """What a callback raises to nbdkit: its text is the line in the log."""


def error_number(exc: BaseException) -> int:
    """Return the errno to report for `exc`: its own where a client can be told, EINVAL for bad arguments, else EIO."""
    number = getattr(exc, "errno", None)
    if number in _EXPRESSIBLE:
        return int(number)
    return errno.EIO


def reason(exc: BaseException) -> str:
    """Return one line: what failed, and for an unexpected exception also its type."""
    if hasattr(exc, "exit_code"):
        return str(exc)
    return f"{type(exc).__name__}: {exc}"
