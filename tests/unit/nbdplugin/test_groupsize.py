"""What a group may hold: checked before anything is made."""

import errno

import pytest

from nbdplugin.grouphost import MAX_GROUP_BYTES, MAX_VOLUMES, _check_extent
from nbdplugin.journalhost import _no_journal
from replicator.capture.copies import MAX_EXTENDED
from replicator.capture.state import SLOT_BYTES, Edge, GroupState, StateFile
from replicator.control import MAX_FRAME_BYTES
from replicator.core.errors import BadInput
from replicator.core.hello import MAX_DROPPED, MAX_REWOUND
from replicator.daemon.link.wire import MAX_CONTROL_BYTES
from replicator.journal.page import EDGES
from tests.testing.fakedisk import FakeDisk

REWOUND = [[1 << 62, 1 << 60, [[1 << 62, 1 << 60]] * MAX_DROPPED, 1 << 60]] * MAX_REWOUND
HISTORY = [[1 << 63, 1 << 62]] * 128


def test_more_than_a_group_can_carry_is_refused() -> None:
    _check_extent("g", [MAX_GROUP_BYTES // MAX_VOLUMES] * MAX_VOLUMES)
    with pytest.raises(BadInput, match="257 volumes"):
        _check_extent("g", [4096] * (MAX_VOLUMES + 1))
    with pytest.raises(BadInput, match="7 TiB"):
        _check_extent("g", [MAX_GROUP_BYTES, 4096])


def test_the_bitmaps_of_the_largest_group_fit_into_one_message_of_either_kind() -> None:
    packed_bytes = MAX_GROUP_BYTES // (64 << 10) // 8
    assert packed_bytes + (1 << 20) < min(MAX_FRAME_BYTES, MAX_CONTROL_BYTES)


def test_the_state_of_the_largest_group_fits_with_the_longest_history() -> None:
    volumes = [
        {"index": 1 << 31 | i, "name": "x" * 64, "uuid": "f" * 32, "size": 1 << 60, "born": 1 << 62}
        for i in range(MAX_VOLUMES)
    ]
    attaching = {
        "p": 1 << 60,
        "epoch": 1 << 62,
        "hist": HISTORY,
        "copy_id": "f" * 32,
        "synced_after": 1 << 60,
        "synced_epoch": 1 << 62,
        "rewound": REWOUND,
    }
    state = GroupState("f" * 32, "n" * 64, 1, volumes, hist=HISTORY, attaching=attaching)
    state.rewound = REWOUND
    state.next_index, state.listed_at = 1 << 32, [1 << 62, 1 << 60]
    state.edges = [
        Edge(k, "f" * 32, copy_id="f" * 64, synced_after=1 << 60, synced_epoch=1 << 62, synced_seq=1 << 60)
        for k in range(EDGES)
    ]
    state.extended = {f"{k:064x}": 1 << 60 for k in range(MAX_EXTENDED)}
    disk = FakeDisk()
    disk.create("state", 2 * SLOT_BYTES)
    StateFile(disk.open("state")).save(state)  # type: ignore[arg-type]  # a RandomFile by shape


def test_a_journal_that_finds_no_room_is_named_with_its_size_and_place() -> None:
    error = _no_journal("/srv/groups", 1 << 26, OSError(errno.ENOSPC, "No space left on device"))
    assert (
        "67108864 bytes" in error.message
        and "/srv/groups" in error.message
        and "another size or place" in error.way_out
    )
