"""Random worlds for whole caches: whatever happens in them, in whatever order, what is promised must hold.

`machine` has the rules: what callers, servers and clocks may do. `world` does it and compares, after each step, what
the cache says with what servers have seen and callers were told; `books` keep who has asked for what and who has which
session. `tests.test_cache_model` tries the cache in memory, `tests.remote.test_keeper_model` a keeper and borrowers.
"""
