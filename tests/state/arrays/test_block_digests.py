"""The GIL is released for other threads by time that has passed, not once for each array."""

from __future__ import annotations

import threading

import attrs
import pytest

from trio_ckpt.state._arrays import block_digests
from trio_ckpt.state._arrays.block_digests import HELD_S, let_others_run


@attrs.define(eq=False)
class Clock:
    """Time that passes only where a test lets it, and the pauses that were made."""

    now: float = 1_000.0
    pauses: int = 0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(block_digests, "time", clock)
    monkeypatch.setattr(block_digests, "_turn", block_digests._Turn())
    return clock


@pytest.mark.parametrize(("piece_s", "pauses"), [(1e-6, 4), (30e-6, 100), (HELD_S, 1_000)])
def test_pauses_are_of_time_that_has_passed(clock: Clock, piece_s: float, pauses: int) -> None:
    for _ in range(1_000):
        let_others_run()
        clock.now += piece_s
    assert clock.pauses == pytest.approx(pauses, rel=0.1)


def test_each_thread_has_pauses_of_its_own(clock: Clock) -> None:
    let_others_run()
    thread = threading.Thread(target=let_others_run)
    thread.start()
    thread.join()
    let_others_run()
    assert clock.pauses == 2
