"""Executors as engines: each item has one result, whatever the executor does with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.engines import items
from tests.engines.drivers import TwiceExecutor, pool, sum_to, work
from tests.engines.items import durable_again, hold, steps_in
from tests.engines.kills import kill_one
from tests.hangs import HANG_S, PROGRAM_S
from trio_ckpt import RunLockedError, StoreError, remote
from trio_ckpt.engines import (
    EngineLostError,
    OtherStoreError,
    Resources,
    _item,
    _job,
    _store_host,
    map_tasks,
    open_map,
)
from trio_ckpt.engines._item_store import open_shared_store
from trio_ckpt.remote import TaskFailedError
from trio_ckpt.remote._wire.task_messages import AssignTask
from trio_ckpt.stores import MemoryStore, open_store

N, INTERVAL_S = 20, 0.1


SUM = sum_to(N)


async def test_results_come_in_order_from_other_processes() -> None:
    with pool() as executor:
        found: list[list[int]] = await map_tasks(items.where, list(range(20)), engine=executor)
        assert [item for item, _pid in found] == list(range(20))
        assert os.getpid() not in {pid for _item, pid in found}
        assert executor.submit(os.getpid).result(), "an executor of the caller stays open"


async def test_results_are_given_out_as_they_come(threads: Executor) -> None:
    found: dict[int, Any] = {}
    async with open_map(items.double, range(50), engine=threads) as outcomes:
        async for index, outcome in outcomes:
            found[index] = outcome
    assert found == {index: 2 * index for index in range(50)}


async def test_the_local_engine_gives_them_out_too(tmp_path: Path) -> None:
    found: dict[int, Any] = {}
    async with open_map(items.double, [1, 2, 3], workers=1, store=tmp_path / "s") as outcomes:
        async for index, outcome in outcomes:
            found[index] = outcome
    assert found == {0: 2, 1: 4, 2: 6}


async def test_a_block_that_is_left_early_goes_on_next_time(
    tmp_path: Path, threads: Executor
) -> None:
    call = partial(open_map, items.double, range(2_500), engine=threads)
    async with call(store=tmp_path / "s", job_id="job-early") as outcomes:
        async for _ in outcomes:
            break
    async with aclosing(await open_store(tmp_path / "s")) as store:
        view = await remote.read_job(store, "job-early", limit=1)
    assert view.status is remote.TaskStatus.PENDING
    assert 0 < view.completed_tasks < 2_500
    async with call(store=tmp_path / "s", job_id="job-early") as outcomes:
        found = dict([pair async for pair in outcomes])
    assert found == {index: 2 * index for index in range(2_500)}


async def test_async_functions_and_points_work_too(tmp_path: Path, threads: Executor) -> None:
    call = partial(map_tasks, items.double_later, [1, 2], engine=threads)
    assert await call() == [2, 4]
    assert await call(store=tmp_path / "s", checkpoint_interval_s=0.0) == [2, 4]


async def test_an_item_that_fails_is_an_outcome(tmp_path: Path, threads: Executor) -> None:
    call = partial(
        map_tasks,
        items.exit_on_odd,
        [0, 1, 2],
        engine=threads,
        store=tmp_path / "s",
        job_id="job-odd",
        errors="collect",
    )
    first, again = await call(), await call()
    for found in (first, again):
        assert found[0] == 0
        assert found[2] == 2
        error = found[1]
        assert isinstance(error, TaskFailedError)
        assert str(error) == "work item 1 failed: SystemExit: 1 is odd"
        assert "exit_on_odd" in error.remote_traceback


async def test_an_item_that_fails_ends_the_job(threads: Executor) -> None:
    with pytest.raises(TaskFailedError, match="work item 1 failed: SystemExit: 1 is odd"):
        await map_tasks(items.exit_on_odd, [0, 1, 2], engine=threads)


async def test_an_item_is_tried_again(tmp_path: Path, threads: Executor) -> None:
    found = await map_tasks(
        items.fail_until, [[str(tmp_path / "tries"), 2]], engine=threads, attempts=2
    )
    assert found == [2]


async def test_items_that_save_nothing_touch_no_store(tmp_path: Path, threads: Executor) -> None:
    """Their results go into the job's run by groups: no item has a run, or a save, of its own."""
    store = await open_store(tmp_path / "s")
    saves, save = 0, store.save

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal saves
        saves += 1
        return await save(*args, **kwargs)

    store.save = counted  # type: ignore[method-assign]
    async with aclosing(store):
        found = await map_tasks(items.double, range(1_000), engine=threads, store=store)
        assert found == [2 * item for item in range(1_000)]
        assert len(await store.list_runs()) == 1
    assert saves < 500


async def test_a_process_opens_one_store_for_all_items(tmp_path: Path) -> None:
    with pool(1) as executor:
        found = await map_tasks(
            items.stores_open,
            range(20),
            engine=executor,
            store=tmp_path / "s",
            checkpoint_interval_s=0.0,
        )
    assert {count for _pid, count in found} == {1}


async def test_a_job_is_shown_as_that_of_a_foreman(tmp_path: Path, threads: Executor) -> None:
    async with aclosing(await open_store(tmp_path / "s")) as store:
        side = tmp_path / "side"
        await map_tasks(
            items.count_up,
            work(side, 2, N),
            engine=threads,
            store=store,
            job_id="job-shown",
            checkpoint_interval_s=0.0,
        )
        view = await remote.read_job(store, "job-shown")
        assert view.status is remote.TaskStatus.COMPLETED
        assert (view.total_tasks, view.completed_tasks, view.tasks_with_checkpoints) == (2, 2, 2)
        assert view.tasks[0].checkpoint_count > 1
        assert view.tasks[0].worker == f"{os.uname().nodename}:{os.getpid()}"
        assert [run.run_id for run in await store.list_runs()] == ["job-shown"]


# -- lost workers, and executors that do what they want --------------------------------------------


async def test_a_killed_process_costs_one_interval_of_its_items(tmp_path: Path) -> None:
    """A pool that is broken fails all items that it has; the next one resumes them."""
    side = tmp_path / "side"
    async with trio.open_nursery() as nursery:
        hold(side, N - 2)
        nursery.start_soon(trio.to_thread.run_sync, kill_one, side, N - 2)
        with trio.fail_after(PROGRAM_S):
            found = await map_tasks(
                items.count_up,
                work(side, 4, N),
                engine=pool,
                store=tmp_path / "s",
                checkpoint_interval_s=INTERVAL_S,
            )
    assert found == [SUM] * 4
    assert len({step.pid for step in steps_in(side)}) > 2, "no process was killed"
    assert durable_again(side) == []


async def test_a_broken_executor_ends_the_call_and_not_the_job(tmp_path: Path) -> None:
    side = tmp_path / "side"
    call = partial(
        map_tasks,
        items.count_up,
        work(side, 4, N),
        store=tmp_path / "s",
        checkpoint_interval_s=INTERVAL_S,
        job_id="job-broken",
    )
    with pool() as executor:
        async with trio.open_nursery() as nursery:
            hold(side, N - 2)
            nursery.start_soon(trio.to_thread.run_sync, kill_one, side, N - 2)
            with trio.fail_after(PROGRAM_S), pytest.raises(EngineLostError, match="same job_id"):
                await call(engine=executor)
    with pool() as executor:
        assert await call(engine=executor) == [SUM] * 4
    assert durable_again(side) == []


async def test_an_item_that_is_started_twice_runs_once(tmp_path: Path) -> None:
    side = tmp_path / "side"
    with TwiceExecutor(8) as executor:
        found = await map_tasks(
            items.count_up,
            work(side, 4, N),
            engine=executor,
            store=tmp_path / "s",
            job_id="job-twice",
            checkpoint_interval_s=INTERVAL_S,
        )
    assert found == [SUM] * 4
    assert len(steps_in(side)) == 4 * N, "a step was made twice"
    async with aclosing(await open_store(tmp_path / "s")) as store:
        assert [run.run_id for run in await store.list_runs()] == ["job-twice"]


class ForgetfulExecutor(ThreadPoolExecutor):
    """Drops each first result, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(4)
        self.asked: list[tuple[Callable[..., Any], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append((fn, args[0]))
        is_first = len(self.asked) <= 4

        def call() -> Any:
            result = fn(*args)
            if is_first:
                raise OSError("the connection to the worker is lost")
            return result

        return super().submit(call)


async def test_a_result_that_the_engine_forgets_is_found(tmp_path: Path) -> None:
    side = tmp_path / "side"
    with ForgetfulExecutor() as executor:
        found = await map_tasks(
            items.count_up,
            work(side, 4, N),
            engine=executor,
            store=tmp_path / "s",
            job_id="job-late",
            checkpoint_interval_s=INTERVAL_S,
        )
        assert found == [SUM] * 4
        assert len(steps_in(side)) == 4 * N
        # And an attempt that comes when all is over finds that it is not wanted.
        run_item, spec = executor.asked[0]
        end = _item.decode_end(await trio.to_thread.run_sync(run_item, spec))
    assert (end.how, end.reason) == ("released", "the job has its result already")
    assert len(steps_in(side)) == 4 * N
    async with aclosing(await open_store(tmp_path / "s")) as store:
        assert [run.run_id for run in await store.list_runs()] == ["job-late"]


class MixedUpExecutor(ThreadPoolExecutor):
    """Returns the end of the first item for the second one, once."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append(args[0])
        return super().submit(fn, self.asked[0] if len(self.asked) == 2 else args[0])


async def test_the_end_of_another_item_is_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    with MixedUpExecutor() as executor:
        assert await map_tasks(items.double, [1, 2], engine=executor, job_id="job-mixed") == [2, 4]
    assert "the engine returned the end of attempt 1 at job-mixed.00000" in caplog.text


class DeadExecutor(ThreadPoolExecutor):
    """Loses everything."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(OSError("the worker is gone"))
        return future


async def test_an_item_that_is_lost_too_often_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_job, "AGAIN_AFTER_S", 0.0)
    with DeadExecutor() as executor:
        (error,) = await map_tasks(items.double, [1], engine=executor, losses=3, errors="collect")
    assert isinstance(error, TaskFailedError)
    assert error.error_type == "TaskLostError"
    assert "lost by 3 workers, the last time because OSError: the worker is gone" in str(error)


# -- what is refused -------------------------------------------------------------------------------


class ElsewhereExecutor(ThreadPoolExecutor):
    """Runs items where the name of the store means another one."""

    def __init__(self, address: str) -> None:
        super().__init__(1)
        self.address = address

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        spec = msgspec.msgpack.decode(args[0], type=_item.ItemSpec)
        other = msgspec.structs.replace(spec, store=self.address)
        return super().submit(fn, _item.encode_spec(other))


async def test_a_process_that_reaches_another_store_says_so(
    tmp_path: Path, threads: Executor
) -> None:
    async with aclosing(await open_store(tmp_path / "other")) as store:
        await map_tasks(
            items.double, [1], engine=ThreadPoolExecutor(1), store=store, job_id="job-s"
        )
        address = store.address
    call = partial(
        map_tasks,
        items.count_up,
        work(tmp_path / "side", 1, N),
        store=tmp_path / "s",
        job_id="job-s",
        checkpoint_interval_s=0.0,
    )
    with (
        ElsewhereExecutor(address) as executor,
        pytest.raises(OtherStoreError, match="no job 'job-s' of this driver in it"),
    ):
        await call(engine=executor)
    assert steps_in(tmp_path / "side") == []
    assert await call(engine=threads) == [SUM]


async def test_an_item_that_saves_nothing_is_not_ended_by_another_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The job is not there, which does not say that it was stopped."""
    async with aclosing(await open_store(tmp_path / "other")) as store:
        async with store.lock_run("r"):
            pass
        address = store.address
    file, ends = tmp_path / "go", list[_item.ItemEnd]()
    assigned = AssignTask(
        "job-x.000000", 1, "job-x", 0, "tests.engines.items:wait_with_points", str(file)
    )
    spec = _item.encode_spec(_item.ItemSpec(assigned, address, "full", 1.0, 0.05))

    async def run() -> None:
        ends.append(_item.decode_end(await trio.to_thread.run_sync(_item.run_item, spec)))

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while not ends and "job-x.000000 cannot be stopped" not in caplog.text:  # noqa: ASYNC110
                await trio.sleep(0.01)
            file.touch()
    assert (ends[0].how, ends[0].value) == ("returned", str(file))


async def test_two_drivers_of_one_job_are_refused(tmp_path: Path, threads: Executor) -> None:
    side = tmp_path / "side"
    call = partial(
        map_tasks,
        items.count_up,
        work(side, 1, N),
        engine=threads,
        store=tmp_path / "s",
        job_id="job-d",
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        while not steps_in(side):  # noqa: ASYNC110  # a thread tells nothing
            await trio.sleep(0.01)
        with pytest.raises(RunLockedError, match="job-d"):
            await call()


async def test_another_job_of_the_same_name_is_refused(tmp_path: Path, threads: Executor) -> None:
    call = partial(map_tasks, items.double, engine=threads, store=tmp_path / "s", job_id="job-n")
    assert await call([1]) == [2]
    with pytest.raises(remote.JobRefusedError, match="another function or other items"):
        await call([2])


async def test_items_that_save_need_a_store_that_others_reach(threads: Executor) -> None:
    call = partial(map_tasks, items.double, [1], engine=threads, checkpoint_interval_s=1.0)
    with pytest.raises(ValueError, match="no other process reaches a store in memory"):
        await call()
    store = MemoryStore(mac_key=b"k" * 16)
    store.address = "sqlite:somewhere"
    with pytest.raises(ValueError, match="MAC key does not travel"):
        await call(store=store)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"engine": "slurm"}, "engine must be 'local'"),
        ({"engine": 5}, "engine must be 'local'"),
        ({"engine": lambda: 5}, "engine must make an Executor"),
        ({"engine": pool, "workers": 2}, "workers does not go with"),
        ({"engine": pool, "slots": 2}, "slots does not go with"),
        ({"engine": pool, "address": "x"}, "address does not go with"),
        ({"engine": pool, "resources": Resources(cpus=1)}, "resources does not go with"),
        ({"engine": pool, "engine_options": {"a": 1}}, "engine_options does not go with"),
        ({"engine": "local", "resources": Resources(gpus=1)}, "resources does not go with"),
        ({"engine": "dask", "address": "tcp://h:1", "workers": 2}, "workers does not go with"),
        ({"resources": {"cpus": 1}}, "resources must be a Resources"),
    ],
    ids=str,
)
async def test_what_does_not_go_with_an_engine_is_refused(
    options: dict[str, Any], match: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        await map_tasks(items.double, [1], **options)


@pytest.mark.parametrize("value", [-1, "1", float("nan"), True])
def test_a_resource_is_an_amount(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="cpus must be a number >= 0"):
        Resources(cpus=value)


def test_the_address_of_a_store_is_not_logged_with_a_call() -> None:
    spec = _item.SpecBytes(b"postgresql://user:password@host/db")
    assert "password" not in repr(spec)
    assert "password" not in repr((spec,))
    seat = _job.JobSeat(1, 0.0, "postgresql://user:password@host/db", "full")
    assert "password" not in repr(seat)


def test_threads_that_open_a_store_at_once_share_it(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    async def use(found: list[object]) -> None:
        async with _store_host.open_in_host(address, "full") as (_host, store):
            found.append(store)
            await trio.to_thread.run_sync(barrier.wait)

    async def make() -> str:
        async with aclosing(await open_store(tmp_path / "s")) as store:
            return store.address

    address, found = trio.run(make), list[object]()
    threads = [threading.Thread(target=trio.run, args=(use, found)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    trio.run(_store_host.close_host)
    assert not _store_host._hosts


async def test_a_host_that_cannot_begin_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aclosing(await open_store(tmp_path / "s")) as store:
        address = store.address
    monkeypatch.setattr(_store_host, "_hosts", {})
    with monkeypatch.context() as patch:

        def no_descriptor(*_args: object) -> None:
            raise OSError(24, "Too many open files")

        patch.setattr(trio, "run", no_descriptor)
        with pytest.raises(StoreError, match=r"cannot begin: OSError:.*Too many open files"):
            async with _store_host.open_in_host(address, "full"):
                raise AssertionError("it is open")
    async with _store_host.open_in_host(address, "full"):
        pass
    await _store_host.close_host()


async def test_a_lock_in_the_host_is_taken_and_given_back(tmp_path: Path) -> None:
    async with (
        aclosing(await open_store(tmp_path / "s")) as store,
        open_shared_store(store.address, "full") as shared,
    ):
        async with store.lock_run("r"):
            with pytest.raises(RunLockedError):
                async with shared.lock_run("r"):
                    raise AssertionError("it is locked twice")
        with trio.CancelScope() as scope:
            scope.cancel()
            async with shared.lock_run("r"):
                raise AssertionError("a cancelled task has the lock")
        async with shared.lock_run("r") as owner:
            with pytest.raises(RunLockedError):
                async with store.lock_run("r"):
                    raise AssertionError("it is locked twice")
        async with store.lock_run("r") as later:
            assert later > owner > 1
