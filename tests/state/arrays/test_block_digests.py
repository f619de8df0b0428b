"""Digests by one thread or two; the GIL is released by time that passes, not for each array."""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs
import numpy as np
import pytest

from trio_ckpt._util.errors import NoThreadError
from trio_ckpt._util.threads import start_thread
from trio_ckpt.state._arrays import block_digests
from trio_ckpt.state._arrays.block_digests import (
    HELD_S,
    SPAN_BYTES,
    let_others_run,
    span_digests,
    span_rows,
)


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


@pytest.mark.parametrize("spans", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("is_refused", [False, True])
def test_two_threads_find_the_digests_of_one(
    monkeypatch: pytest.MonkeyPatch, spans: int, is_refused: bool
) -> None:
    started: list[str] = []

    def start(work: Callable[[], None], name: str) -> threading.Thread:
        started.append(name)
        if is_refused:
            raise NoThreadError(RuntimeError("can't start new thread"))
        return start_thread(work, name)

    monkeypatch.setattr(block_digests, "TWO_THREADS_FROM_BYTES", 2 * SPAN_BYTES)
    monkeypatch.setattr(block_digests, "start_thread", start)
    data = np.random.default_rng(0).integers(0, 256, spans * SPAN_BYTES + 5, np.uint8)
    assert span_rows(data).tobytes() == b"".join(span_digests(data))
    assert bool(started) is (spans >= 2)
