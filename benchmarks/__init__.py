"""The benchmark: one table, every row a comparison with an established tool doing the same work in the same run.

    table.py      the rows: what is compared with what, and the bar each row is held to
    measure.py    alternating runs, medians, ratios
    load.py       fio and nbdcopy as load generators
    peers.py      nbdkit's file plugin, QEMU's mirror job
    nodes.py      our nodes, started through the real command line
    pair.py       two of them with one volume paired
    replicated.py the rows that need a pair
    trees.py      the rows of several peers and many groups
    pools.py      the rows of a pool alone
    mapped.py     a pool with the areas of 1 TiB, in a process of its own
    md.py         Linux md in a User Mode Linux guest
    settings.py   what a run is asked to do
    workspace.py  one directory and the processes of a run, and their end

The load goes over NBD on unix sockets, directly to the servers; replication goes over loopback. Nothing of a run is
left behind. See docs/BENCHMARKS.md.
"""
