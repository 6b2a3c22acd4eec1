"""What a node keeps durably of the images of one consistency set's cycles: which there are, and at which record of each
group each was taken.

    taking   its snapshots are being taken; they come all or not at all, so a start finds out which
    taken    all of them exist, unless somebody has deleted one by hand
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any, Final

from replicator.core.errors import BadInput, IntegrityError, MediumError, NotFound
from replicator.journal.files import RandomFile
from replicator.journal.slots import SlotFile

SLOT_BYTES: Final = 512 << 10
BOOK_FILE_BYTES: Final = 2 * SLOT_BYTES
TAKING: Final = "taking"
TAKEN: Final = "taken"


@dataclass(frozen=True)
class Place:
    """Where one group of the set stood."""

    name: str
    seq: int
    epoch: int
    snapshots: dict[str, str]
    """Volume -> its snapshot."""


@dataclass(frozen=True)
class Image:
    """The images of all groups at one cut: everything with a write time up to `bound_ns`, and nothing later."""

    n: int
    bound_ns: int
    places: dict[str, Place]
    """By the group's uuid."""
    state: str = TAKING

    @property
    def snapshots(self) -> list[str]:
        """Names of all its snapshots."""
        return [name for place in self.places.values() for name in place.snapshots.values()]

    def positions(self) -> dict[str, tuple[int, int]]:
        """(seq, epoch) of every group: an image with the same ones has the same contents."""
        return {uuid: (place.seq, place.epoch) for uuid, place in self.places.items()}


class CycleBook:
    """The images of one set on this node. Thread-safe; every change is durable on return, or raises MediumError."""

    def __init__(self, file: RandomFile, name: str) -> None:
        """Load. name: of the set, for errors. Raises IntegrityError when the file is damaged."""
        self._slots = SlotFile(file, b"FSRY", SLOT_BYTES)
        self._name = name
        self._lock = threading.Lock()
        value = self._slots.load() or {"last": 0, "images": []}
        try:
            self._last = int(value["last"])
            self._images = [_image(one) for one in value["images"]]
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(f"the cycles of set {name} are damaged: {exc}", "remove its file in cycles/") from exc

    @property
    def next_number(self) -> int:
        """The number of the next image. None is given twice."""
        return self._last + 1

    def images(self) -> list[Image]:
        """All of them, oldest first."""
        with self._lock:
            return list(self._images)

    def find(self, n: int) -> Image:
        """The image with number `n`. Raises NotFound."""
        for image in self.images():
            if image.n == n:
                return image
        raise NotFound(f"set {self._name} has no image {n} here", f"farstripe set images {self._name}")

    def put(self, image: Image) -> None:
        """Enter an image, in the place of the one with its number. Durable: it, and that its number was used.

        Raises BadInput when the set has too many volumes for one more.
        """
        with self._lock:
            rest = [one for one in self._images if one.n != image.n]
            self._save(max(self._last, image.n), [*rest, image])

    def drop(self, n: int) -> None:
        """Forget an image; its snapshots are gone. Durable."""
        with self._lock:
            self._save(self._last, [one for one in self._images if one.n != n])

    def _save(self, last: int, images: list[Image]) -> None:
        try:
            self._slots.save({"last": last, "images": [asdict(one) for one in images]})
        except BadInput as exc:
            raise BadInput(f"the images of set {self._name} are of too many volumes", "keep fewer of them") from exc
        except OSError as exc:
            raise MediumError(f"the cycles of set {self._name} cannot be written: {exc}", "check the disk") from exc
        self._last, self._images = last, images

    def close(self) -> None:
        """Release the file."""
        self._slots.close()


def _image(value: dict[str, Any]) -> Image:
    places = {str(uuid): Place(**place) for uuid, place in value["places"].items()}
    return Image(int(value["n"]), int(value["bound_ns"]), places, str(value["state"]))
