"""Linux md on the same kind of files, in a User Mode Linux guest: what striping and parity cost there and here.

A guest kernel pays for every request in its own way, so speeds do not compare. What compares is what is left of a plain
file's speed: ours is the pool's speed over that of nbdkit's file plugin, md's the array's over that of one plain disk
of the same guest. In both, all files lie in one directory and nobody syncs.

The array has no superblock and is made through sysfs (Documentation/admin-guide/md.rst), so mdadm is not needed. It
has no write-intent bitmap and no journal either: a crash may leave md's parity wrong, ours not.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.load import Load, Measured, command, measured
from benchmarks.workspace import BenchmarkError, Workspace, make_file
from tests.testing.uml import MODULES, UML, Guest, GuestError

CHUNK_BYTES = 65536
_LAYOUT = {0: 0, 6: 2}  # RAID 6: left-symmetric, as ours
_MAKE = r"""
modules=$MODULES/$(uname -r)
insert() {
    # modules.dep names what a module needs, the last of it first
    for one in $(sed -n "s|^\([^:]*/$1.ko\): *\(.*\)|\1 \2|p" $modules/modules.dep | tr ' ' '\n' | tac); do
        insmod $modules/$one 2>/dev/null
    done
}
insert md-mod
insert $PERSONALITY
set -e
echo md_bench >/sys/module/md_mod/parameters/new_array
cd /sys/block/md_bench/md
echo none >metadata_version
echo raid$LEVEL >level
echo $DISKS >raid_disks
echo $CHUNK >chunk_size
echo $LAYOUT >layout
[ $LEVEL = 0 ] || echo $((SIZE / 1024)) >component_size
slot=0
for name in $(ls /sys/block | grep '^ubd' | head -n $DISKS); do
    cat /sys/block/$name/dev >new_dev
    echo $slot >dev-$name/slot
    [ $LEVEL != 0 ] || echo $((SIZE / 1024)) >dev-$name/size
    slot=$((slot + 1))
done
[ $LEVEL = 0 ] || echo none >resync_start
echo active >array_state
ls /sys/block | grep '^ubd' | tail -n 1
"""


class MdGuest:
    """A guest with an md array of `disks` files and one more disk that is a plain file, both of `size_bytes`."""

    def __init__(self, space: Workspace, level: int, disks: int, data_disks: int, size_bytes: int) -> None:
        """Boot and make the array. Raises BenchmarkError where that cannot be."""
        if os.geteuid() or not Path(UML).exists():
            raise BenchmarkError("md runs in User Mode Linux: root and the package user-mode-linux are needed")
        files = [space.path / f"md{i}" for i in range(disks)]
        for path in files:
            make_file(path, size_bytes // data_disks)
        plain = space.path / "plain"
        make_file(plain, size_bytes)
        self._size_bytes = size_bytes
        self._guest = Guest(disks=[*files, plain])
        space.on_close(self._guest.close)
        settings: dict[str, object] = {
            "MODULES": MODULES,
            "PERSONALITY": "raid456" if level == 6 else f"raid{level}",
            "LEVEL": level,
            "DISKS": disks,
            "CHUNK": CHUNK_BYTES,
            "LAYOUT": _LAYOUT[level],
            "SIZE": size_bytes // data_disks,
        }
        try:
            self._guest.start()
            self._plain = self._guest.run(_MAKE, env=settings).out.split()[-1]
        except GuestError as e:
            raise BenchmarkError(f"md in User Mode Linux: {e}") from e

    def share(self, load: Load, seconds: float) -> float:
        """The array's speed as a share of the plain disk's."""
        return self._run("md_bench", load, seconds).iops / self._run(self._plain, load, seconds).iops

    def _run(self, device: str, load: Load, seconds: float) -> Measured:
        where = ["--ioengine=libaio", "--direct=1", f"--filename=/dev/{device}"]
        argv = command(where, load, seconds, self._size_bytes)
        try:
            done = self._guest.run(" ".join(argv), timeout_s=seconds + 60, check=False)
        except GuestError as e:
            raise BenchmarkError(f"md in User Mode Linux: {e}") from e
        return measured(load, done.rc, done.out, "")
