"""Members of an open pool: replacing, failing, taking back, spares. memberops.py does it; here is what it promises."""

from __future__ import annotations

from typing import Any

from raidlib.assemble import known_paths
from raidlib.create import OpenFile
from raidlib.nbdfile import open_exclusive
from raidlib.openpool import OpenPool


class PoolMembers(OpenPool):
    """What is done with members."""

    def replace_member(
        self, old: str, new_path: str, open_file: OpenFile = open_exclusive, *, force: bool = False
    ) -> None:
        """Put a new file or device in the place of a member (its path or uuid); rebuild_step() then fills it.

        A member that works stays, and is read and written, until the new one is complete (replacing.py).
        Raises NotFound, MemberInUse (yields to force), BadInput, Refused, MediumError; then nothing was changed.
        Durable: the exchange; of a member that works, that it is to be exchanged.
        """
        with self._admin:
            self._member_ops.replace(old, new_path, open_file, force)

    def rebuild_step(self) -> int:
        """Do a small step (one area) of the first rebuild or replacement there is; return the areas that remain in all.

        Call it in one thread, again and again, until it returns 0. Raises MediumError.
        """
        return self._member_ops.step()

    def fail_member(self, path: str) -> None:
        """Take a member (its path or uuid) out in good order; of a replacement under way, the new one.

        Raises NotFound, MediumError, Refused when its group needs it. Durable: that it is out.
        """
        with self._admin:
            self._member_ops.fail(path)

    def remove_member(self, path: str) -> None:
        """Let go for good of a spare, a replacement under way, or a member that failed, which then cannot be re-added.

        Raises NotFound, Refused for a member in use. Durable: that.
        """
        with self._admin:
            self._member_ops.forget(path)

    def clear_errors(self, path: str = "") -> int:
        """Hold no errors against a member (its path or uuid), or any, any more; return how many had some.

        Raises NotFound. Durable: that.
        """
        with self._admin, self._ledger.lock:
            return self._member_ops.clear_errors(path)

    def readd_member(self, path: str, open_file: OpenFile = open_exclusive) -> int:
        """Take back a member that was away; rebuild_step() copies what was written meanwhile (readd.py).

        Returns about how many bytes that is. Raises NotFound, Refused with the reason, MediumError; then nothing was
        changed. Durable: that it takes part again.
        """
        with self._admin:
            return self._member_ops.readd(path, open_file)

    def add_spare(
        self, path: str, raid_group: str = "", open_file: OpenFile = open_exclusive, *, force: bool = False
    ) -> None:
        """Make a file or device a hot spare, of one RAID group or of all.

        Raises NotFound, MemberInUse (yields to force), BadInput, AlreadyExists, MediumError. Durable: the spare.
        """
        with self._admin:
            self._member_ops.add_spare(path, raid_group, open_file, force)

    def take_spare(self) -> tuple[str, str] | None:
        """Put the smallest spare that fits in the place of a failed member, if there are both; rebuild_step() fills it.

        Returns (failed, spare). Raises MediumError. Durable: the exchange.
        """
        with self._admin:
            return self._member_ops.take_spare()

    @property
    def wants_spare(self) -> bool:
        """Whether a member failed and there is a spare. Cheap."""
        return self._member_ops.wants_spare

    @property
    def rebuilds(self) -> list[dict[str, Any]]:
        """Rebuilds and replacements under way, as in status()."""
        with self._ledger.lock:
            rebuilds: list[dict[str, Any]] = self._member_ops.report()["rebuilds"]
            return rebuilds

    @property
    def rebuilt_bytes(self) -> int:
        """Bytes that the last rebuild or replacement that ended wrote, as far as this process did it."""
        return self._member_ops.rebuilt_bytes

    @property
    def member_remarks(self) -> list[str]:
        """What became of replacements that did not come off, one line each."""
        return list(self._member_ops.remarks)

    @property
    def requests(self) -> int:
        """A number that grows with every request on a volume that is there."""
        return sum(volume.gate.entered for volume in list(self._volumes.values()))

    @property
    def paths(self) -> list[str]:
        """Where its members, those that are to replace some, and its spares are."""
        with self._ledger.lock:
            return known_paths(self._ledger.state)
