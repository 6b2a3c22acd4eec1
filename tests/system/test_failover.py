"""Two real nodes and a real kernel with ext4 on top: what dies, and what the filesystem sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.system.filesystem import WRITER, check_files, files_done, wait_for_files
from tests.testing.netns import HOST_IP, NetNS
from tests.testing.nodes import GROUP, Node, Pair
from tests.testing.uml import Guest, Job

pytestmark = pytest.mark.system

VOLUMES = {"data": 96 << 20, "log": 16 << 20}
PORTS = {"A": 10809, "B": 10819}


@pytest.fixture
def nodes(net: NetNS) -> Iterator[tuple[Node, Node]]:
    def node(name: str) -> Node:
        return Node(name, net, HOST_IP, nbd_port=PORTS[name], replication_port=PORTS[name] + 1)

    with node("A") as a, node("B") as b:
        yield a.init(), b.init()


@pytest.fixture
def pair(nodes: tuple[Node, Node], request: pytest.FixtureRequest) -> Pair:
    return Pair.create(*nodes, VOLUMES, ["--mode", getattr(request, "param", "async")])


def attach(guest: Guest, node: Node) -> None:
    guest.run(f"python -m replicator.attach {HOST_IP} {node.nbd_port} data --device /dev/nbd0")


def start_files(guest: Guest, enough: int = 20) -> Job:
    """mkfs, mount, and a writer of fsynced files under way; returns its job."""
    guest.run("set -e; mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt")
    writer = guest.popen(f"{WRITER} write /mnt")
    wait_for_files(writer, enough)
    return writer


def test_stock_nbd_client_on_a_node(pair: Pair, guest: Guest) -> None:
    connect = f"nbd-client {HOST_IP} {PORTS['A']} /dev/nbd0 -N data -b 4096 -connections 4"
    guest.run(f"set -e; {connect}; mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt")
    guest.run(
        f"set -e; {WRITER} write /mnt 0 40; fstrim /mnt; umount /mnt; nbd-client -d /dev/nbd0; sleep 0.5; {connect}"
    )
    check_files(guest, "/dev/nbd0", 40)
    guest.run("nbd-client -d /dev/nbd0")
    pair.assert_images_equal()


@pytest.mark.parametrize("pair", ["async", "sync"], indirect=True)
def test_writer_sees_no_error_while_the_target_dies_and_returns(pair: Pair, guest: Guest) -> None:
    attach(guest, pair.primary)
    writer = start_files(guest)
    for _ in range(3):
        wait_for_files(writer, files_done(writer) + 15)
        pair.primary.kill("target")
        pair.primary.start()
    wait_for_files(writer, files_done(writer) + 15)
    guest.run("pkill -f fsync_writer")
    writer.wait(30)
    guest.run("umount /mnt")
    check_files(guest, "/dev/nbd0", files_done(writer))
    guest.run("python -m replicator.attach --detach /dev/nbd0")
    pair.assert_images_equal()


@pytest.mark.parametrize("pair", ["sync"], indirect=True)
def test_takeover_keeps_every_fsynced_file(pair: Pair, boot: Callable[[], Guest]) -> None:
    host_a = boot()
    attach(host_a, pair.primary)
    writer = start_files(host_a, enough=60)
    dead, survivor = pair.primary, pair.secondary
    dead.kill()
    host_a.kill()  # the host goes with its node
    done = files_done(writer)
    survivor.farstripe("takeover", GROUP, "--yes")
    pair.swapped()

    host_b = boot()
    attach(host_b, survivor)
    check_files(host_b, "/dev/nbd0", done)
    host_b.run(f"set -e; mount /dev/nbd0 /mnt; {WRITER} write /mnt {done} 20; umount /mnt")
    dead.start()
    pair.give_up_tail_of(dead)
    pair.wait_in_sync()
    host_b.run("python -m replicator.attach --detach /dev/nbd0")

    survivor.farstripe("switchover", GROUP)
    pair.swapped()
    pair.assert_images_equal()
    attach(host_b, dead)
    check_files(host_b, "/dev/nbd0", done + 20)


@pytest.mark.parametrize("pair", ["async"], indirect=True)
def test_power_cut_of_the_host_leaves_both_copies_sound(pair: Pair, boot: Callable[[], Guest]) -> None:
    first = boot()
    attach(first, pair.primary)
    writer = start_files(first, enough=40)
    first.kill()
    done = files_done(writer)
    pair.assert_images_equal()
    second = boot()
    attach(second, pair.primary)
    check_files(second, "/dev/nbd0", done)
