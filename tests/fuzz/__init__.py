"""Fuzzing of everything that takes bytes from a disk or from a peer.

Each test makes its inputs from a seed by mutating right ones where their structure is (mutate.py), and judges by
what must always hold: no error but the documented ones, no record with a wrong CRC taken, nothing read beyond what was
given, bounded memory. EXECUTIONS says how often; a test runs exactly that often, or fails. For a longer run:

    FARSTRIPE_FUZZ_FACTOR=100 FARSTRIPE_FUZZ_SEED=7 .venv/bin/pytest tests/fuzz
"""
