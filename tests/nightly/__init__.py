"""Proofs that take too long for each change: each module is a command, ``python -m tests.nightly.NAME``.

It prints what it has counted, with the seed that makes it do the same again, and ends with status 1 if a promise was
broken. The tests beside them run the same code in small, so that a command that no longer works is noticed at once.
"""
