from __future__ import annotations

from pathlib import Path

import pytest

from replicator.attach import device
from replicator.core.errors import BadInput


@pytest.mark.parametrize("text", ["/dev/nbd3", "nbd3", "3"])
def test_a_device_can_be_named_in_three_ways(text: str) -> None:
    assert device.parse_index(text) == 3


@pytest.mark.parametrize("text", ["/dev/sda", "nbd", "nbd3p1", "-1", ""])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        device.parse_index(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    block = tmp_path / "sys/block/nbd0"
    (block / "queue").mkdir(parents=True)
    (block / "holders").mkdir()
    (block / "nbd0p1/holders").mkdir(parents=True)
    (block / "dev").write_text("43:0\n")
    (block / "nbd0p1/dev").write_text("43:1\n")
    (block / "size").write_text("2048\n")
    (block / "inflight").write_text("       1        2\n")
    (block / "pid").write_text("12\n")
    (block / "backend").write_text("farstripe:data\n")
    (block / "queue/io_timeout").write_text("30000\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    return tmp_path


def test_what_the_kernel_shows(tree: Path) -> None:
    sys = str(tree / "sys")
    assert device.is_attached(0, sys) and not device.is_attached(1, sys)
    assert device.size_bytes(0, sys) == 1 << 20
    assert device.size_bytes(1, sys) == 0
    assert (device.in_flight(0, sys), device.in_flight(1, sys)) == (3, 0)
    assert device.backend(0, sys) == "farstripe:data"
    assert device.backend(1, sys) == ""


def test_the_request_timer_is_set_where_the_kernel_has_one(tree: Path) -> None:
    assert device.set_request_timer(0, 1000, str(tree / "sys"))
    assert (tree / "sys/block/nbd0/queue/io_timeout").read_text() == "1000\n"
    assert not device.set_request_timer(9, 1000, str(tree / "sys"))


def users(tree: Path) -> list[str]:
    return device.users(0, str(tree / "sys"), str(tree / "proc"))


def test_an_idle_device_has_no_users(tree: Path) -> None:
    assert users(tree) == []


def test_a_mounted_partition_is_a_user_and_the_mount_point_is_readable(tree: Path) -> None:
    with open(tree / "proc/self/mountinfo", "a") as file:
        file.write("30 22 43:1 / /mnt/my\\040data rw - ext4 /dev/nbd0p1 rw\n")
    assert users(tree) == ["mounted on /mnt/my data"]


def test_swap_and_stacked_devices_are_users(tree: Path) -> None:
    (tree / "sys/block/nbd0/holders/dm-0").touch()
    with open(tree / "proc/swaps", "a") as file:
        file.write("/dev/nbd0p1 partition 1024 0 -2\n")
    assert users(tree) == ["/dev/dm-0 is built on it", "in use as swap"]
