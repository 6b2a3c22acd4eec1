"""Everything that carries writes to other hosts: journal, capture, the replicator daemon, the command line."""
