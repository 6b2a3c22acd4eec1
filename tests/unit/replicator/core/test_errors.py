"""Errors keep name, message, way out, exit code and errno across the control socket."""

import errno

import pytest

from replicator.core import errors


@pytest.mark.parametrize("cls", sorted(errors._all_classes().values(), key=lambda c: c.__name__))
def test_every_class_survives_the_round_trip(cls: type[errors.FarstripeError]) -> None:
    original = cls.__new__(cls)  # some say their own message: what counts here is the class
    errors.FarstripeError.__init__(original, "volume v1 is in use", "detach it")
    again = errors.from_map(errors.to_map(original))
    assert type(again) is cls
    assert (again.message, again.way_out, again.exit_code, again.errno) == (
        "volume v1 is in use",
        "detach it",
        original.exit_code,
        original.errno,
    )


def test_an_error_of_another_package_keeps_its_meaning() -> None:
    class PoolError(Exception):
        exit_code = 9
        errno = errno.ENOSPC
        way_out = "add a member"

    again = errors.from_map(errors.to_map(PoolError("pool full")))
    assert (again.name, again.message, again.exit_code, again.errno) == ("PoolError", "pool full", 9, errno.ENOSPC)
    assert str(again) == "pool full (add a member)"


def test_os_errors_are_medium_errors_and_the_rest_internal() -> None:
    assert errors.to_map(OSError(errno.ENOSPC, "full"))["exit_code"] == errors.EXIT_MEDIUM
    assert errors.to_map(OSError(errno.ENOSPC, "full"))["errno"] == errno.ENOSPC
    assert errors.to_map(ZeroDivisionError("x"))["exit_code"] == errors.EXIT_INTERNAL


def test_exit_codes_are_distinct_by_group() -> None:
    codes = [errors.BadInput, errors.Refused, errors.NotFound, errors.AlreadyExists, errors.DaemonNotRunning]
    codes += [errors.PeerError, errors.MediumError, errors.IntegrityError, errors.TimedOut]
    assert [c.exit_code for c in codes] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
