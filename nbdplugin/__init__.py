"""The target: nbdkit's Python plugin, which serves a node's volumes and owns its pool."""
