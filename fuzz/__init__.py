"""Fuzzing of what reads bytes of strangers: `python -m fuzz TARGET --seconds N`.

A target takes bytes and raises where the reader did what it may not: raise anything but a refusal, give a tensor
that does not fit, answer 500, or keep something back. What was found once lies in `corpus/TARGET`, and
tests/runtime/test_corpus.py replays all of it; for that nothing but the runtime is needed.
"""
