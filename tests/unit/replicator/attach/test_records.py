from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator.attach import records
from replicator.attach.handshake import Endpoint
from replicator.attach.records import Attachment

AT = Attachment(export="data", endpoint=Endpoint(host="::1", port=10809), index=2, connections=4, size=1 << 30)


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    records.save(tmp_path, AT)
    assert records.load_all(tmp_path) == [AT]
    records.remove(tmp_path, 2)
    records.remove(tmp_path, 2)
    assert records.load_all(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"export": "x", "endpoint": {"nonsense": 1}}'])
def test_a_damaged_record_is_left_out(tmp_path: Path, text: str) -> None:
    records.save(tmp_path, AT)
    (tmp_path / "attach/nbd0.json").write_text(text)
    (tmp_path / "attach/nbd1.tmp").write_text(AT.to_json())
    assert records.load_all(tmp_path) == [AT]


def test_supervised_means_the_very_process_that_wrote_the_record(tmp_path: Path) -> None:
    import dataclasses

    started = records.process_started(os.getpid())
    ours = dataclasses.replace(AT, pid=os.getpid(), pid_started=started)
    assert ours.supervised
    assert not dataclasses.replace(ours, pid_started=str(int(started) + 1)).supervised  # the number was reused
    assert not AT.supervised


def test_a_zombie_is_no_process(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (a) b) Z " + " ".join(str(n) for n in range(40)))
    assert records.process_started(7, str(tmp_path)) == ""
    (tmp_path / "7/stat").write_text("7 (a) b) S " + " ".join(str(n) for n in range(40)))
    assert records.process_started(7, str(tmp_path)) == "18"
