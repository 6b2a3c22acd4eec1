"""Settings for the whole suite."""

from __future__ import annotations

from hypothesis import settings

# A loaded machine is no defect: examples have no deadline of their own, the test's timeout bounds them.
settings.register_profile("farstripe", deadline=None, print_blob=True)
settings.load_profile("farstripe")
