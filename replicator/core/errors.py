"""What can go wrong, grouped by who must act.

Every error carries a message that names the thing, a way out (what to do next, may be empty), a stable exit code for
the command line and an errno for NBD clients. The class name is the error's name on the control socket, so a client
can raise the same class again (`from_map`). raidlib has errors of the same shape; neither imports the other.
"""

from __future__ import annotations

import errno as _errno
from typing import Any

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_BAD_INPUT = 3
EXIT_REFUSED = 4
EXIT_NOT_FOUND = 5
EXIT_EXISTS = 6
EXIT_DAEMON = 7
EXIT_PEER = 8
EXIT_MEDIUM = 9
EXIT_INTEGRITY = 10
EXIT_TIMEOUT = 11


class FarstripeError(Exception):
    """Base of all errors that are reported to a user. The class attributes are the defaults of each group."""

    exit_code: int = EXIT_INTERNAL
    errno: int = _errno.EIO
    answered: bool = False
    """A peer has answered with it; else it arose here, also as the failure to reach a peer."""

    def __init__(
        self, message: str, way_out: str = "", *, exit_code: int | None = None, errno: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out
        self.name = type(self).__name__
        if exit_code is not None:
            self.exit_code = exit_code
        if errno is not None:
            self.errno = errno

    def __str__(self) -> str:
        return f"{self.message} ({self.way_out})" if self.way_out else self.message


class InternalError(FarstripeError):
    """A defect of ours."""


class BadInput(FarstripeError):
    """The user's argument cannot be right: a size, a name, a token."""

    exit_code = EXIT_BAD_INPUT
    errno = _errno.EINVAL


class Refused(FarstripeError):
    """Right in itself, but not in this state or role; some of these yield to a force option: the way out names it."""

    exit_code = EXIT_REFUSED
    errno = _errno.EPERM


class NotFound(FarstripeError):
    """No group, pair, peer or volume of that name."""

    exit_code = EXIT_NOT_FOUND
    errno = _errno.ENOENT


class AlreadyExists(FarstripeError):
    """The name or thing is taken."""

    exit_code = EXIT_EXISTS
    errno = _errno.EEXIST


class DaemonNotRunning(FarstripeError):
    """Nothing listens on the control socket, or it hung up."""

    exit_code = EXIT_DAEMON
    errno = _errno.ECONNREFUSED


class PeerError(FarstripeError):
    """The other node cannot be reached or answered with an error."""

    exit_code = EXIT_PEER
    errno = _errno.EHOSTUNREACH


class ProtocolError(PeerError):
    """The other side sent bytes or messages that the protocol does not allow."""

    errno = _errno.EPROTO


class AuthError(PeerError):
    """The other side did not prove who it is."""

    errno = _errno.EACCES


class MediumError(FarstripeError):
    """A disk, file or member failed."""

    exit_code = EXIT_MEDIUM
    errno = _errno.EIO


class IntegrityError(FarstripeError):
    """Stored data contradicts its checksum or its metadata."""

    exit_code = EXIT_INTEGRITY
    errno = _errno.EIO


class TimedOut(FarstripeError):
    """The awaited state was not reached in time. Nothing is undone by it."""

    exit_code = EXIT_TIMEOUT
    errno = _errno.ETIMEDOUT


def _all_classes() -> dict[str, type[FarstripeError]]:
    found: dict[str, type[FarstripeError]] = {}
    todo = [FarstripeError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo.extend(cls.__subclasses__())
    return found


def to_map(exc: BaseException) -> dict[str, Any]:
    """Return the error map of the control protocol for any exception.

    Takes message, way_out, exit_code and errno where the exception has them, so errors of other packages pass
    through with their own name. An OSError is a medium error; anything else is internal.
    """
    message = getattr(exc, "message", None) or str(exc) or type(exc).__name__
    number = getattr(exc, "errno", None)
    if hasattr(exc, "exit_code"):
        code = int(exc.exit_code)
    elif isinstance(exc, OSError):
        code = EXIT_MEDIUM
    else:
        code = EXIT_INTERNAL
        message = f"{type(exc).__name__}: {message}"
    return {
        "name": type(exc).__name__,
        "message": str(message),
        "way_out": str(getattr(exc, "way_out", "")),
        "exit_code": code,
        "errno": int(number) if number else _errno.EIO,
    }


def from_map(error: dict[str, Any]) -> FarstripeError:
    """Return the exception for an error map: our class of that name when there is one, else the base class.

    Name, exit code and errno are taken from the map, so an error of another package keeps its meaning.
    """
    name = str(error.get("name", "FarstripeError"))
    cls = _all_classes().get(name, FarstripeError)
    exc = cls.__new__(cls)
    FarstripeError.__init__(
        exc,
        str(error.get("message", "unknown error")),
        str(error.get("way_out", "")),
        exit_code=int(error.get("exit_code", EXIT_INTERNAL)),
        errno=int(error.get("errno", _errno.EIO)),
    )
    exc.name = name
    return exc
