"""RAID-striped pools of files or disks, and the thin volumes carved from them.

Knows nothing of replication, NBD or networks.
"""
