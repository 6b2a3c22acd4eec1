"""The `farstripe` command: one file a noun, all of them thin over the two control sockets.

main.py puts the commands together and turns errors into messages and exit codes; access.py finds the node's
directories and sockets; output.py prints for people and as JSON; units.py reads and writes sizes. What a command
means is decided by the target and the replicator, never here.
"""
