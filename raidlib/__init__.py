"""RAID pools over files or block devices, and thin volumes on them. Knows no replication and no network.

Pool.create("tank", [GroupSpec("g6", 6, paths)])     make a pool
pool = Pool.open(paths)                              open it, repairing what a crash left
volume = pool.create_volume("v1", 1 << 30)
volume.pwrite(data, offset); pool.sync()
"""

from raidlib.blockfile import BlockFile, OSFile
from raidlib.create import GroupSpec
from raidlib.errors import RaidError
from raidlib.pool import Pool
from raidlib.volume import Volume

__all__ = ["BlockFile", "GroupSpec", "OSFile", "Pool", "RaidError", "Volume"]
