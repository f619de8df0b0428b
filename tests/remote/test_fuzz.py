"""A short run of the fuzzer; a long one by hand: ``python -m tests.remote.fuzz_protocol``."""

from __future__ import annotations

from tests.remote.fuzz_protocol import fuzz


def test_mutated_frames_raise_nothing_but_our_own_errors() -> None:
    assert fuzz(3_000, seed=5) > 0
