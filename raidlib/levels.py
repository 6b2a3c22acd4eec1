"""Which class serves which RAID level."""

from __future__ import annotations

from raidlib.mirrored import MirroredGroup
from raidlib.parityraid import ParityGroup
from raidlib.raidgroup import RaidGroup
from raidlib.striped import StripedGroup

LEVELS: dict[int, type[RaidGroup]] = {
    0: StripedGroup,
    1: MirroredGroup,
    5: ParityGroup,
    6: ParityGroup,
    10: MirroredGroup,
}
