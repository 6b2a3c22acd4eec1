"""What the peer lacks is never understated."""

from __future__ import annotations

from replicator.capture.backlog import MOST_NOTES, Backlog


def test_a_peer_that_has_all_lacks_nothing():
    backlog = Backlog()
    backlog.note(10, 1000, 1.0)
    assert backlog.behind(10, 10, 1000, 5.0) == (0, 0, 0.0)


def test_writes_are_exact_and_bytes_and_seconds_reach_back_to_the_note_before():
    backlog = Backlog()
    for seq, now in ((10, 1.0), (20, 2.0), (30, 3.0)):
        backlog.note(seq, seq * 100, now)
    assert backlog.behind(25, 35, 3500, 4.0) == (10, 1500, 2.0)


def test_an_idle_time_before_the_backlog_does_not_count():
    backlog = Backlog()
    backlog.note(10, 1000, 1.0)
    backlog.note(10, 1000, 60.0)
    found = backlog.behind(10, 11, 1100, 60.5)
    assert found is not None and found.seconds == 0.5


def test_a_position_before_all_notes_is_not_known():
    backlog = Backlog()
    backlog.note(10, 1000, 1.0)
    assert backlog.behind(9, 10, 1000, 2.0) is None


def test_a_head_that_goes_back_starts_anew():
    backlog = Backlog()
    backlog.note(100, 9000, 1.0)
    backlog.note(5, 9000, 2.0)
    assert backlog.behind(5, 6, 9100, 3.0) == (1, 100, 1.0)


def test_many_notes_are_thinned_without_understating():
    backlog = Backlog()
    for seq in range(1, 5 * MOST_NOTES):
        backlog.note(seq, seq * 10, float(seq))
    head = 5 * MOST_NOTES
    for peer in range(1, head, 97):
        found = backlog.behind(peer, head, head * 10, float(head))
        assert found is not None
        assert found.writes == head - peer
        assert found.bytes >= (head - peer) * 10 and found.seconds >= head - peer
