"""Errors of raidlib, grouped by who must act.

Each carries a message that names the thing, the way out, a stable exit code for the command line and the errno an NBD
client gets. The shape is the one of replicator.core.errors, without an import between the two packages.

    exit code   who must act
            3   the caller: bad input
            4   the operator: refused in this state
            5   the caller: no such thing
            6   the caller: exists already
            9   the medium: I/O error, lost member
           10   an integrity check failed
"""

from __future__ import annotations

import errno as _errno


class RaidError(Exception):
    """Base of every error raidlib raises on purpose."""

    exit_code = 1
    errno = _errno.EIO

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    @property
    def name(self) -> str:
        """The stable name of the error: its class name."""
        return type(self).__name__

    def __str__(self) -> str:
        return f"{self.message} ({self.way_out})" if self.way_out else self.message


class BadInput(RaidError):
    """What was asked for cannot be: a wrong size, name, level or path. Nothing was changed."""

    exit_code = 3
    errno = _errno.EINVAL


class MemberInUse(BadInput):
    """A member belongs to a pool already, or another process has it open."""

    errno = _errno.EBUSY


class Refused(RaidError):
    """Possible, but not in this state, or not without force."""

    exit_code = 4
    errno = _errno.EPERM


class OutOfSpace(RaidError):
    """No free area is left in the group."""

    exit_code = 4
    errno = _errno.ENOSPC


class NotFound(RaidError):
    """No such pool, group, volume or member."""

    exit_code = 5
    errno = _errno.ENOENT


class AlreadyExists(RaidError):
    """The name is taken."""

    exit_code = 6
    errno = _errno.EEXIST


class MediumError(RaidError):
    """Members are lost or fail beyond what the level can bear."""

    exit_code = 9
    errno = _errno.EIO


class IntegrityError(RaidError):
    """On-disk data is not what it must be: bad checksum, impossible value, a version from the future."""

    exit_code = 10
    errno = _errno.EIO
