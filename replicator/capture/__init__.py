"""The target's side of replication: capture of writes, redo of received records, copying, roles.

    state.py     what a group must remember across crashes, and how it is written
    bitmaps.py   history bitmaps and the list of blocks still to copy: a byte a block, a bit a bitmap
    groupbase.py GroupBase: a group's parts and durable state, admission of writes, how it stops
    sequence.py  SequencedGroup: numbers, records and epochs; one step under the group lock
    engine.py    GroupEngine: the write path, and the parts below behind one face
    parking.py   why a change is not made now
    follower.py  a secondary's redo of the journal, and a primary's after a crash
    copier.py    initial copy and resync as records
    roles.py     arm, attach, promote, demote, overflow: changes of role and mode, each durable before it acts
    waiters.py   synchronous writes that wait for the peer
    fulljournal.py  a journal without room, or whose medium has failed
    journalloss.py  a journal's medium that failed, and a new journal
    recordlog.py    records of a journal as a list
    backlog.py   how far the peer is behind
    damage.py    records that cannot be had from the journal any more
    hardship.py  host writes that wait or fail for want of room or of a peer: told once an episode
    facts.py     what a group says about itself: status
    service.py   threads around an engine, for the real target

Nothing here knows RAID or nbdkit: volumes and files are injected, so the simulator runs the same code.
"""
