"""Attach a volume to the kernel's NBD driver: negotiate in Python, hand the sockets over, keep them alive.

handshake.py speaks NBD's fixed newstyle negotiation; kernel.py speaks generic netlink to nbd.ko; device.py looks at
the block device in /sys and /proc; supervisor.py ties them together and replaces connections that die, so the writer
waits instead of failing; records.py remembers what is attached on this host.

Runs alone with nothing but Python and pyroute2: `python -m replicator.attach HOST PORT EXPORT`.
"""
