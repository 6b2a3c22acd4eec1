"""Other threads and the pair's thread: answers, timeouts, and an end that leaves nobody waiting."""

import threading
import time

import pytest

from replicator.core.errors import MediumError, PeerError, Refused, TimedOut, to_map
from replicator.core.events import Answer, Command, Tick
from replicator.daemon.link.mailbox import Mailbox, Query


def serve(box: Mailbox, answer: Answer | None) -> threading.Thread:
    """Play the pair's thread: answer the first command."""

    def run() -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for item in box.take():
                if isinstance(item, Query):
                    item.future.set_result({"seen": True})
                if isinstance(item, Command) and answer is not None:
                    box.answer(Answer(item.id, answer.result, answer.error))
                return
            time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_command_gets_its_answer() -> None:
    box = Mailbox("app")
    thread = serve(box, Answer(0, {"epoch": 7}))
    assert box.command("takeover", {"force": True}, 5) == {"epoch": 7}
    thread.join()


def test_an_error_is_raised_where_the_command_was_given() -> None:
    box = Mailbox("app")
    thread = serve(box, Answer(0, error=to_map(Refused("the primary is alive", "use --force"))))
    with pytest.raises(Refused, match="alive") as info:
        box.command("takeover", {}, 5)
    assert info.value.way_out == "use --force"
    thread.join()


def test_no_answer_in_time_says_so_and_a_late_one_harms_nobody() -> None:
    box = Mailbox("app")
    with pytest.raises(TimedOut, match="app: no outcome of switchover"):
        box.command("switchover", {}, 0.05)
    [command] = box.take()
    assert isinstance(command, Command)
    box.answer(Answer(command.id))
    box.answer(Answer(999))


def test_a_query_is_answered() -> None:
    box = Mailbox("app")
    thread = serve(box, None)
    assert box.query(5) == {"seen": True}
    thread.join()


def test_nobody_waits_for_a_thread_that_has_ended() -> None:
    box = Mailbox("app")
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            box.command("split", {}, 20)
        except PeerError as exc:
            failed.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not list(box.take()):
        time.sleep(0.005)
    box.close()
    waiting.join(5)
    assert len(failed) == 1
    for late in (lambda: box.command("split", {}, 20), lambda: box.query(20)):
        with pytest.raises(PeerError, match="was stopped"):
            late()
    box.put(Tick())
    box.wake()
    assert list(box.take()) == []


def test_a_thread_that_a_full_disk_ended_says_so() -> None:
    box = Mailbox("app")
    box.close(MediumError("pairs/app.json cannot be written: No space left on device"))
    with pytest.raises(MediumError, match="No space"):
        box.command("split", {}, 20)
