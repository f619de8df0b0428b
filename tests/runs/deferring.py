"""Work that defers some of its batches, under a clock of the system that goes as trio's does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    RunStoppedError,
    Status,
    run_batches,
)
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt.abc import Store

Clock = trio.testing.MockClock
Until = Callable[[Batch[Any]], float | datetime | None]

DAY_S = 86_400.0


class Wall:
    """The clock of the system, which goes as trio's clock does, and can be set."""

    at = 1_800_000_000.0

    def __call__(self) -> float:
        try:
            return self.at + trio.current_time()
        except RuntimeError:
            return self.at


@pytest.fixture(autouse=True)
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    clock = Wall()
    monkeypatch.setattr(time, "time", clock)
    return clock


class Work:
    """Defers some batches, each once; remembers when it began which.

    Args:
        until: Until when a batch is deferred; None: it is completed.
    """

    def __init__(self, until: Until) -> None:
        self.until = until
        self.begun: list[tuple[int, float]] = []
        self.stopped: RunStoppedError | None = None

    @property
    def indexes(self) -> list[int]:
        return [index for index, _ in self.begun]

    async def handle(self, batch: Batch[Any]) -> None:
        is_new = batch.index not in self.indexes
        self.begun.append((batch.index, trio.current_time()))
        await trio.sleep(1.0)
        until = self.until(batch) if is_new else None
        if until is None:
            batch.complete()
        else:
            batch.defer(until=until)

    async def run(self, store: Store, count: int = 6, concurrency: int = 1, **options: Any) -> int:
        """Work on what is left of a list; returns the exit code."""
        self.stopped = None
        try:
            async with begin(store, **options) as run, run.open_stream("s") as stream:
                await run_batches(stream, range(count), self.handle, concurrency=concurrency)
                assert stream.status is Status.COMPLETE  # the loop ends with nothing left
        except RunStoppedError as stopped:
            self.stopped = stopped
            return stopped.exit_code
        return run.exit_code


def some(until: float | datetime, *indexes: int) -> Until:
    return lambda batch: until if batch.index in indexes else None


async def progress_of(store: Store, key: str = "s") -> Any:
    status = await read_run_status(store, "r")
    assert status is not None
    return status.parts[(key,)]
