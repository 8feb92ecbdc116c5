"""The tests. Generated cases are the same in each run; HYPOTHESIS_PROFILE=searching looks for new ones."""

import os

from hypothesis import settings

# Without a time limit for each case: what else a host does is no matter of theirs.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
