"""The replicator process: everything between the pure session core and sockets, files and the clock.

    service.py      puts the parts together; __main__.py starts them
    nodeconfig.py, identity.py, peers.py, tokens.py, pairs.py, durablefile.py     what is stored, and how durably
    tls.py, listener.py, rpc.py, joining.py      connections between nodes
    link/           the data path of a pair: one thread, one connection, one journal
    ops_*.py        the operations of the control socket

Nothing about roles and positions is stored here: the target owns it, and is asked.
"""
