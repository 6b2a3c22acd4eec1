"""Fixtures of the end-to-end tests: a namespace with a tap, and guest kernels in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.uml import Guest


@pytest.fixture
def net() -> Iterator[NetNS]:
    """A network namespace with loopback and a tap for one guest at a time."""
    needs("ip", root=True, files=("/dev/net/tun",))
    with NetNS() as net:
        net.add_tap()
        yield net


@pytest.fixture
def boot(net: NetNS) -> Iterator[Callable[[], Guest]]:
    """boot() starts a guest; the former one must be dead by then (one tap). All are gone after the test."""
    guests: list[Guest] = []

    def start() -> Guest:
        guests.append(Guest(net))
        return guests[-1].start()

    yield start
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(boot: Callable[[], Guest]) -> Guest:
    """A freshly booted guest."""
    return boot()
