"""Whatever ends a background task of a run wakes who waits for it."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.hangs import HANG_S
from tests.opening import begin
from tests.watched import WatchedStore
from trio_ckpt import (
    CheckpointFailedError,
    CheckpointToken,
    Run,
    RunStoppedError,
    SaveOutcomeUnknownError,
    TrioCkptError,
)
from trio_ckpt.abc import BlobPayload, Checkpoint, Fold, HistoryPage, RunKey
from trio_ckpt.stores import MemoryStore


class BugError(Exception):
    """Not an error that any contract has."""


class End(BaseException):
    """Not even an `Exception`."""


class BuggyStore(WatchedStore):
    """Raises what no store may raise, from one of its saves on."""

    def __init__(self, error: type[BaseException], *, bad_save: int, lands: bool = False) -> None:
        super().__init__()
        self.error, self.bad_save, self.lands = error, bad_save, lands
        self.saves = 0

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self.saves += bool(group)
        if not self.lands:
            self._check(group)

    async def after_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self._check(group)

    def _check(self, group: Sequence[Checkpoint]) -> None:
        if group and self.saves == self.bad_save:
            raise self.error("a bug")


async def waits(token: CheckpointToken[Any], told: list[object]) -> None:
    try:
        told.append(await token.wait())
    except CheckpointFailedError as error:
        told.append(error)


async def wait_for_all(run: Run, told: list[object]) -> None:
    try:
        await run.wait_confirmed(("s",), range(3))
    except TrioCkptError as error:
        told.append(error)


async def snap(run: Run, nursery: trio.Nursery, told: list[object]) -> None:
    async with run.open_stream("s", state={"n": 0}) as stream:
        nursery.start_soon(wait_for_all, run, told)
        async for batch in stream.batches(range(3)):
            nursery.start_soon(waits, batch.token, told)
            async with stream.snapshots(every_s=0) as snapshots:
                stream.state["n"] += 1
                await snapshots.point("here")
                await snapshots.wait()
            batch.complete()
            await batch.confirm()


@pytest.mark.parametrize("bad_save", range(1, 8))
@pytest.mark.parametrize("lands", [False, True], ids=["nothing saved", "saved"])
@pytest.mark.parametrize("error", [BugError, End])
async def test_a_bug_of_a_store_wakes_everyone_and_loses_nothing(
    error: type[BaseException], lands: bool, bad_save: int
) -> None:
    """Whether it was saved is not known then: the next start reads it."""
    store, told = BuggyStore(error, bad_save=bad_save, lands=lands), list[object]()
    began = 0
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            with pytest.raises(error, match="a bug"):
                async with begin(store) as run:
                    began = 1
                    await snap(run, nursery, told)
    assert len(told) >= began
    async with trio.open_nursery() as nursery:
        async with begin(store.after_crash()) as run:
            await snap(run, nursery, [])
            assert run.exit_code == 0


async def test_what_a_verification_beside_the_run_raises_ends_the_run(tmp_path: Path) -> None:
    class Unreadable(MemoryStore):
        is_bad = False

        async def history(self, *args: Any, **options: Any) -> HistoryPage:
            if self.is_bad and options.get("cursor"):
                await trio.lowlevel.checkpoint()
                raise BugError("a bug")
            return await super().history(*args, **options)

    async def write(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(1_010)):
                await batch.write_bytes(f"{batch.index}", b"")
                batch.complete()

    store = Unreadable()
    async with begin(store, output_dir=tmp_path) as run:
        await write(run)
    store.is_bad = True
    with trio.fail_after(HANG_S), pytest.raises(BugError):
        async with begin(store, output_dir=tmp_path) as run:
            await write(run)


@pytest.mark.parametrize("every_s", [None, "10", float("nan"), -1, True])
async def test_an_interval_that_is_none_is_refused(every_s: Any) -> None:
    async with begin("memory:") as run, run.open_stream("s", state={"n": 0}) as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises((TypeError, ValueError), match="every_s must be a number of sec"):
                async with stream.snapshots(every_s=every_s):
                    pass
            batch.complete()


# -- a process that was stopped -----------------------------------------------------------------


class SlowStore(WatchedStore):
    """A save, or a blob, takes its time, and then a moment."""

    takes_s = 0.0

    async def _take(self) -> None:
        await trio.sleep(self.takes_s)
        if self.takes_s:
            await trio.sleep(0.5)

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        await self._take()

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        await self._take()
        return await super().put_blob(run, payload)


async def work(store: SlowStore, takes_s: float, metadata: str = "") -> None:
    async with begin(store, save_timeout_s=60) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            store.takes_s = takes_s
            batch.complete(metadata={"text": metadata})
            await batch.confirm()
            store.takes_s = 0


texts = pytest.mark.parametrize("text", ["", "x" * 2**21], ids=["record", "blob"])


@texts
async def test_a_process_that_was_stopped_looks_once_more(
    autojump_clock: trio.testing.MockClock, text: str
) -> None:
    """SIGSTOP, or a container that was paused: the save ends soon after, late as it is."""

    async def be_stopped(hours: int) -> None:
        await trio.sleep(10)
        autojump_clock.jump(hours * 3_600)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_stopped, 2)
        await work(SlowStore(), 30, text)


@texts
async def test_a_store_that_hangs_is_given_up_after_its_time(
    autojump_clock: trio.testing.MockClock, text: str
) -> None:
    with pytest.raises(RunStoppedError) as caught:
        await work(SlowStore(), 10_000, text)
    assert isinstance(caught.value.__cause__, SaveOutcomeUnknownError)
    assert trio.current_time() == pytest.approx(60, abs=1)
