"""The tests. Generated cases are the same in each run; HYPOTHESIS_PROFILE=searching looks for new ones."""

import os

from hypothesis import HealthCheck, settings

# Without a time limit for each case, nor for making it up: what else a host does is no matter of theirs.
BUSY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, **BUSY)
settings.register_profile("searching", print_blob=True, **BUSY)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
