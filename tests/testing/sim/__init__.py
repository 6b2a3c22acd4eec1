"""A deterministic simulator of a pair or a tree of nodes: real engine, session and data path; fake disks, wire and
time.

    clock.py     events in the order of virtual time, and the hash of what happened
    storage.py   volumes, pool, mapped files and group files over FakeDisk
    lists.py     volumes by name, and who adds, removes and resizes them
    network.py   connections that delay, stall, break; frames that come again
    reads.py     hosts that read, and what they may be told
    target.py    one target process: the engine and its service, and host requests that wait
    replicator.py  one replicator process: session and flow of each edge
    node.py      what survives the processes of one node, and how they die
    world.py     nodes, hosts, operator; one run
    nemesis.py   what goes wrong, and when
    operator.py  who clears afterwards what only a person can
    oracles.py   what must hold after every event
    truth.py     the record of what was written, kept apart from the code under test

Everything random comes from one seed. The same seed gives the same run, event for event.
"""
