"""Seeded runs of the pair simulator; `python -m tests.sim --seed S --runs N`."""
