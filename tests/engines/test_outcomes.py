"""Outcomes of a job with an engine: each item has one, or the call fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.engines import items
from tests.hangs import HANG_S
from trio_ckpt import StoreDamagedError
from trio_ckpt._journal.history import iter_records
from trio_ckpt._journal.record import Status
from trio_ckpt.engines import _job, _map, _open_map, map_tasks, open_map
from trio_ckpt.remote._foreman.job_reader import items_progress
from trio_ckpt.stores import open_store


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


async def test_failures_that_wait_for_their_taker_all_come(
    tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is over before the caller takes the first one."""
    monkeypatch.setattr(_open_map, "BUFFER", 5)
    with trio.fail_after(HANG_S):
        async with (
            aclosing(await open_store(tmp_path / "s")) as store,
            open_map(
                items.exit_on_odd,
                [1] * 40,
                engine=threads,
                store=store,
                job_id="job-full",
                errors="collect",
            ) as outcomes,
        ):
            status = None
            while status is not Status.COMPLETE:
                await trio.sleep(0.01)
                view = await store.load_run("job-full")
                status = None if view is None else items_progress(view).status
            await trio.testing.wait_all_tasks_blocked(0.05)
            found = [index async for index, _error in outcomes]
    assert sorted(found) == list(range(40))


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_history_that_lacks_a_result_is_damaged(
    tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """A shorter list would give items the results of others.

    With two attempts the job has work left: its failed item is tried again.
    """
    call = partial(
        map_tasks,
        items.fail_until,
        [[str(tmp_path / f"tries-{index}"), count] for index, count in enumerate((1, 1, 1, 2))],
        engine=threads,
        store=tmp_path / "s",
        job_id="job-lacks",
        errors="collect",
    )
    await call()

    async def lacking(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with aclosing(iter_records(*args, **kwargs)) as records:
            async for sequence, record in records:
                if record.index != 1:
                    yield sequence, record

    monkeypatch.setattr(_job, "iter_records", lacking)
    with pytest.raises(StoreDamagedError, match="1 results of job-lacks are not in its history"):
        await call(attempts=attempts)


async def test_a_skip_without_an_error_is_a_failure_too(
    tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = partial(
        map_tasks,
        items.exit_on_odd,
        [0, 1],
        engine=threads,
        store=tmp_path / "s",
        job_id="job-mute",
        errors="collect",
    )
    await call()

    async def mute(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with aclosing(iter_records(*args, **kwargs)) as records:
            async for sequence, record in records:
                yield sequence, msgspec.structs.replace(record, error=None)

    monkeypatch.setattr(_job, "iter_records", mute)
    found = await call()
    assert found[0] == 0
    assert str(found[1]) == "work item 1 failed: Error: its record does not say why"


async def test_map_tasks_returns_a_result_for_each_item(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def lacking(*_args: object, **_options: object) -> AsyncGenerator[AsyncIterator[Any]]:
        async def outcomes() -> AsyncIterator[Any]:
            yield 0, 2

        yield outcomes()

    monkeypatch.setattr(_map, "open_map", lacking)
    with pytest.raises(StoreDamagedError, match="1 of 2 results are missing"):
        await map_tasks(items.double, (item for item in (1, 2)))
