from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.cli.units import SecondsType, SizeType, format_duration, format_size
from replicator.core.errors import BadInput
from replicator.core.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096), ("0", 0), ("1G", 1 << 30), ("512M", 512 << 20), ("512m", 512 << 20), ("1GiB", 1 << 30),
        ("2 T", 2 << 40), ("1.5G", 3 << 29), ("64kb", 64 << 10), (" 7B ", 7), ("1P", 1 << 50),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1.5", "1.3K", "0x10", "1 000", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole"):
        parse_size(text)


def test_no_size_is_too_large_for_a_message() -> None:
    assert SizeType().convert("1024P", None, None) == 1 << 60
    with pytest.raises(BadInput, match="1024 PiB"):
        SizeType(4096).convert("99999999P", None, None)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "-1"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SecondsType(0).convert(text, None, None)


def test_times_are_seconds() -> None:
    assert SecondsType(0).convert("1.5", None, None) == 1.5


@given(st.integers(0, 1 << 60))
def test_a_bare_number_is_bytes(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "unknown"), (0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (10 << 30, "10 GiB")],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"), (0.04, "0.0 s"), (9.96, "10.0 s"), (42.4, "42 s"), (61, "1 min 1 s"),
        (7200, "2 h 0 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("size", "way_out"), [("1K", "the nearest is 4096"), ("5K", "the nearest are 4096 and 8192")])
def test_a_size_that_does_not_fit_is_answered_by_those_that_do(size: str, way_out: str) -> None:
    with pytest.raises(BadInput) as caught:
        SizeType(4096).convert(size, None, None)
    assert caught.value.way_out == way_out
