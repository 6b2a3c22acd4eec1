"""A journal has one writer, whatever a group's pairs agree on with their peers."""

import threading
import time

from replicator.daemon.link.claims import Claims


class Session:
    def __init__(self, claims: Claims) -> None:
        self.claims, self.evicted = claims, 0

    def evict(self) -> None:
        self.evicted += 1

    def take(self) -> bool:
        return self.claims.take(self, self.evict)


def test_the_journal_is_claimed_by_who_asks_while_nobody_has_it() -> None:
    claims = Claims()
    a = Session(claims)
    claims.look(a)
    assert a.take() and a.take()
    assert claims.holder is a
    claims.release(a)
    assert claims.holder is None


def test_a_newcomer_evicts_the_holder_and_has_to_compare_again() -> None:
    claims = Claims()
    a, b = Session(claims), Session(claims)
    claims.look(a)
    assert a.take()
    claims.look(b)
    assert not b.take() and a.evicted == 1
    claims.release(a)
    assert not b.take()  # its facts are of a time when the other one received
    claims.look(b)
    assert b.take()


def test_facts_from_before_another_held_the_journal_do_not_count() -> None:
    claims = Claims()
    a, b = Session(claims), Session(claims)
    claims.look(b)
    claims.look(a)
    assert a.take()
    claims.release(a)
    assert not b.take()


def test_only_the_holder_can_release() -> None:
    claims = Claims()
    a, b = Session(claims), Session(claims)
    claims.look(a)
    assert a.take()
    claims.release(b)
    assert claims.holder is a


def test_who_becomes_primary_waits_until_the_holder_is_gone() -> None:
    claims = Claims()
    a, b = Session(claims), Session(claims)
    claims.look(a)
    assert a.take()
    threading.Timer(0.1, claims.release, (a,)).start()
    assert claims.take_alone(b, b.evict, 5.0)
    assert a.evicted >= 1 and claims.holder is b
    began = time.monotonic()
    assert not claims.take_alone(a, a.evict, 0.2)
    assert time.monotonic() - began < 2.0
