"""Dask as an engine: workers, drivers and results may be lost, and each item runs once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engines import items
from tests.engines.drivers import COUNTS, DriverProgram, cancel_after, sum_to, work
from tests.engines.items import Step, durable_again, hold, steps_in
from tests.engines.kills import Killer, kill_one
from tests.engines.test_local import children
from tests.hangs import HANG_S, PROGRAM_S
from trio_ckpt.engines import EngineLostError, Resources, _job, map_tasks, open_map

distributed: Any = pytest.importorskip("distributed", reason="the extra dask is not installed")
dask: Any = pytest.importorskip("dask", reason="the extra dask is not installed")

WORKERS, THREADS = 2, 2
KILLS, KILLED_ITEMS, KILLED_STEPS = 100, 60, 60

pytestmark = pytest.mark.filterwarnings("ignore:::(distributed|tornado|dask|asyncio)")


@contextmanager
def cluster(workers: int, threads: int) -> Iterator[Any]:
    """A cluster on this machine, whose processes are forked from one that has all imports.

    Dask gives a worker up that is found dead 15 s after it was lost before.
    """
    settings = {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.deploy.lost-worker-timeout": "1 hour",
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
        ) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with cluster(WORKERS, THREADS) as found, distributed.Client(found) as client:
        yield client


async def test_results_come_in_order_from_dask_workers(client: Any) -> None:
    found = await map_tasks(items.where, range(200), engine=client)
    assert [item for item, _pid in found] == list(range(200))
    assert {pid for _item, pid in found} <= set(client.run(os.getpid).values())
    assert client.status == "running", "a client of the caller stays connected"


async def test_dask_knows_items_by_their_ids(client: Any, tmp_path: Path) -> None:
    side = tmp_path / "side"
    async with open_map(
        items.count_up, work(side, 2, 100), engine=client, store=tmp_path / "s", job_id="job-names"
    ):
        while not steps_in(side):  # noqa: ASYNC110  # another process tells nothing
            await trio.sleep(0.01)
        keys = await trio.to_thread.run_sync(client.run_on_scheduler, names_of_tasks)
    assert sorted(key.partition("-1.")[0] for key in keys) == [
        "job-names.000000",
        "job-names.000001",
    ]


async def test_jobs_of_one_name_share_a_cluster(client: Any, tmp_path: Path) -> None:
    """Dask takes two tasks of one key for one task, whatever client they come from."""
    file = tmp_path / "go"
    address = client.scheduler.address
    call = partial(map_tasks, engine="dask", address=address, job_id="job-same")
    with trio.fail_after(HANG_S):
        async with open_map(
            items.wait_for_file, [str(file)], engine=client, job_id="job-same"
        ) as outcomes:
            keys: list[str] = []
            while not any("job-same" in key for key in keys):
                keys = await trio.to_thread.run_sync(client.run_on_scheduler, names_of_all_tasks)
            assert await call(items.double, [1]) == [2]
            file.touch()
            assert [pair async for pair in outcomes] == [(0, str(file))]


def names_of_all_tasks(dask_scheduler: Any) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks]


def names_of_tasks(dask_scheduler: Any) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks if "job-names" in str(key)]


async def test_dask_without_an_address_is_a_cluster_here(tmp_path: Path) -> None:
    before = children()
    found = await map_tasks(
        items.count_up,
        work(tmp_path / "side", 4, 5),
        engine="dask",
        workers=2,
        store=tmp_path / "s",
        checkpoint_interval_s=0.0,
    )
    assert found == [sum_to(5)] * 4
    assert not {step.pid for step in steps_in(tmp_path / "side")} & children() - before


async def test_a_scheduler_is_found_by_its_address(client: Any) -> None:
    address = client.scheduler.address
    assert await map_tasks(items.double, [1, 2], engine="dask", address=address) == [2, 4]


async def test_a_scheduler_that_does_not_answer_is_said() -> None:
    with pytest.raises(EngineLostError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        await map_tasks(items.double, [1], engine="dask", address="tcp://127.0.0.1:9")


async def test_options_of_dask_go_to_client_map(client: Any) -> None:
    (first, *_) = client.run(os.getpid)
    found = await map_tasks(
        items.where, range(20), engine=client, engine_options={"workers": [first]}
    )
    assert {pid for _item, pid in found} == {client.run(os.getpid)[first]}


async def test_resources_that_no_worker_has_are_said(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_map(items.double, [1], engine=client, resources=Resources(gpus=1)),
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(HANG_S):
            while "--resources 'GPU=1' or more" not in caplog.text:  # noqa: ASYNC110
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


async def test_a_cluster_here_has_the_resources_that_items_need() -> None:
    resources = Resources(cpus=1, memory_bytes=1_000_000)
    assert await map_tasks(items.double, [1], engine="dask", workers=1, resources=resources) == [2]


async def test_a_cancelled_call_ends_functions_of_dask_workers(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "WATCH_S", 0.2)
    side = tmp_path / "side"
    call = partial(
        map_tasks,
        items.count_up,
        work(side, 6, 150),
        engine=client,
        store=tmp_path / "s",
        job_id="job-cancelled",
        checkpoint_interval_s=1_000.0,
    )
    await cancel_after(20, side, call)
    assert await call() == [sum_to(150)] * 6
    assert len(steps_in(side)) == 6 * 150, "a state was not saved at the end of its function"


async def test_many_kills_of_dask_workers_lose_nothing(tmp_path: Path) -> None:
    """No step is repeated that was saved."""
    side, total = tmp_path / "side", KILLED_ITEMS * KILLED_STEPS
    with (
        cluster(4, 1) as found,
        distributed.Client(found) as client,
        Killer(side, total, KILLS) as killer,
    ):
        with trio.fail_after(2 * PROGRAM_S):
            results = await map_tasks(
                items.count_up,
                work(side, KILLED_ITEMS, KILLED_STEPS),
                engine=client,
                store=tmp_path / "s",
                checkpoint_interval_s=0.0,
                losses=KILLS,
            )
    assert results == [sum_to(KILLED_STEPS)] * KILLED_ITEMS
    assert len(killer.killed) == KILLS
    steps = steps_in(side)
    assert any(step.durable for step in steps)
    assert durable_again(side) == []
    print(f"{len(steps) - total} of {total} steps again, {len(killer.killed)} kills")


async def test_items_of_a_killed_dask_worker_go_on_in_postgresql(
    client: Any, url: str, tmp_path: Path
) -> None:
    """The session of the worker has ended, so its leases need not."""
    side = tmp_path / "side"
    async with trio.open_nursery() as nursery:
        hold(side, 30)
        nursery.start_soon(trio.to_thread.run_sync, kill_one, side, 30)
        with trio.fail_after(PROGRAM_S):
            found = await map_tasks(
                items.count_up,
                work(side, 6, 40),
                engine=client,
                store=f"{url}&lease_s=6",
                checkpoint_interval_s=0.1,
            )
    assert found == [sum_to(40)] * 6
    assert len({step.pid for step in steps_in(side)}) > WORKERS, "no worker was killed"
    assert durable_again(side) == []


def test_items_go_on_on_dask_while_their_driver_is_dead(client: Any, tmp_path: Path) -> None:
    side = tmp_path / "side"
    program = DriverProgram(
        side,
        str(tmp_path / "s"),
        {
            "engine": "dask",
            "address": client.scheduler.address,
            "checkpoint_interval_s": 0.0,
        },
    )

    def have_all_begun(steps: list[Step]) -> bool:  # what has not begun ends with its driver
        return len(steps) >= 100 and len({step.item for step in steps}) == len(COUNTS)

    killed_at = program.kill_when(have_all_begun)
    deadline = time.monotonic() + PROGRAM_S
    while time.monotonic() < deadline and len(steps_in(side)) < sum(COUNTS):
        time.sleep(0.05)
    assert max(step.at for step in steps_in(side)) > killed_at, "the items ended with the driver"
    program.finish()
    assert len(steps_in(side)) == sum(COUNTS), "a step was made again"
