"""Sizes as people write them: 4096, 512M, 1.5GiB. Units are powers of 1024."""

from __future__ import annotations

import re

FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes in `4096`, `512M`, `1G`, `1.5GiB`. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 4096, 512M or 1G")
    whole, fraction, unit = match.groups()
    factor = FACTORS[unit.upper()]
    size = int(whole) * factor
    if fraction:
        part, rest = divmod(int(fraction) * factor, 10 ** len(fraction))
        if rest:
            raise ValueError(f"{text!r} is not a whole number of bytes")
        size += part
    return size


def size_text(size: int) -> str:
    """Return a size that parse_size reads back: in the largest unit that divides it."""
    for unit in ("P", "T", "G", "M", "K"):
        if size and size % FACTORS[unit] == 0:
            return f"{size // FACTORS[unit]}{unit}"
    return str(size)
