"""Errors as NBD clients see them."""

from __future__ import annotations

import errno

import pytest

from nbdplugin.nbderror import error_number, reason
from replicator.core import errors


@pytest.mark.parametrize(
    ("exc", "number"),
    [
        (errors.Refused("secondary"), errno.EPERM),
        (errors.Refused("read-only", errno=errno.EROFS), errno.EROFS),
        (errors.MediumError("member lost"), errno.EIO),
        (errors.NotFound("no volume"), errno.ENOENT),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.ETIMEDOUT, "slow"), errno.EIO),
        (errors.TimedOut("peer"), errno.EIO),
        (ValueError("bug"), errno.EIO),
    ],
)
def test_error_numbers(exc: BaseException, number: int) -> None:
    assert error_number(exc) == number


def test_the_reason_names_the_way_out_and_the_type_of_the_unexpected() -> None:
    assert reason(errors.Refused("it is secondary", "use the primary")) == "it is secondary (use the primary)"
    assert reason(KeyError("x")) == "KeyError: 'x'"
