"""Seeded bugs: small patches of real code, each of which the simulator must find."""
