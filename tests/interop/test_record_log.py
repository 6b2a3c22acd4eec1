"""The list of a journal's records, and a pair's transfer settings, on real nodes by the command line."""

from __future__ import annotations

import threading

from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, Pair

MIB = 1 << 20


def test_parallel_clients_get_one_order_without_holes() -> None:
    with NetNS() as net, Node("A", net, replication_port=10810) as a, Node("B", net, replication_port=10820) as b:
        pair = Pair.create(a.init(), b.init(), {"data": 8 * MIB, "log": 4 * MIB})
        a.farstripe("pair", "set", GROUP, "--connections", 2, "--limit", "50M")
        pair.wait_in_sync()
        shown = a.json("pair", "show", GROUP)["transfer"]
        assert (shown["connections"], shown["limit"]) == (2, 50 * MIB)
        b.kill()
        before = a.group()["pos"]

        def write(volume: str, first: int) -> None:
            handle = a.writer(volume)
            for n in range(25):
                handle.pwrite(bytes([first + 1]) * 4096, (first * 25 + n) * 4096)

        clients = [threading.Thread(target=write, args=(v, k)) for k, v in enumerate(["data", "log", "data", "log"])]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        listed = a.json("group", "journal", "log", GROUP, "--since", before, "--limit", 1000)["records"]
        assert [one["seq"] for one in listed] == list(range(before + 1, before + 1 + len(listed)))
        times = [one["time_ns"] for one in listed]
        assert times == sorted(set(times))
        writes = sorted((one["volume"], one["offset"]) for one in listed if one["kind"] == "write")
        assert writes == sorted((v, (k * 25 + n) * 4096) for k, v in enumerate(["data", "log"] * 2) for n in range(25))
        assert f"the newest is {listed[-1]['seq']}" in a.farstripe(
            "group", "journal", "log", GROUP, "--since", listed[-1]["seq"]
        )
