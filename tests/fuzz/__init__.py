"""Whatever comes from outside, chosen byte by byte by a fuzzer: each target says what must be true of it all the same.

``python -m tests.fuzz`` lets atheris choose, guided by coverage, from the inputs in ``corpus`` on. Those themselves are
replayed as tests, without atheris. A target is a function of bytes that raises where a promise is broken; it reads its
input as `tests.fuzz.choices` says, so that bytes which were changed a little mean something that is changed a little.
"""
