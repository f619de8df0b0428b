"""Ray as an engine: workers, drivers and results may be lost, and each item runs once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engines import items
from tests.engines.drivers import ROOT, DriverProgram, cancel_after, sum_to, work
from tests.engines.items import durable_again, steps_in
from tests.engines.kills import Killer
from tests.hangs import HANG_S, PROGRAM_S
from trio_ckpt.engines import EngineLostError, Resources, _job, map_tasks, open_map

ray: Any = pytest.importorskip("ray", reason="the extra ray is not installed")

KILLS, KILLED_ITEMS, KILLED_STEPS = 20, 12, 60

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, at import and at its end


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    former = signal.getsignal(signal.SIGTERM)  # Ray takes it, and does not give it back
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    signal.signal(signal.SIGTERM, former)
    try:
        yield
    finally:
        ray.shutdown()


async def test_ray_without_an_address_is_a_cluster_here(tmp_path: Path) -> None:
    found = await map_tasks(
        items.count_up,
        work(tmp_path / "side", 4, 5),
        engine="ray",
        workers=2,
        store=tmp_path / "s",
        checkpoint_interval_s=0.0,
    )
    assert found == [sum_to(5)] * 4
    assert not ray.is_initialized()


@pytest.mark.usefixtures("ray_here")
async def test_results_come_in_order_from_ray_workers() -> None:
    found = await map_tasks(items.where, range(100), engine="ray")
    assert [item for item, _pid in found] == list(range(100))
    assert os.getpid() not in {pid for _item, pid in found}
    assert ray.is_initialized(), "a connection of the caller stays"


@pytest.mark.usefixtures("ray_here")
async def test_options_of_ray_go_to_its_function() -> None:
    options = {"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "OF_A_TEST": "1"}}}
    assert await map_tasks(
        items.environment, ["OF_A_TEST"], engine="ray", engine_options=options
    ) == ["1"]


@pytest.mark.usefixtures("ray_here")
async def test_resources_that_ray_does_not_have_are_said(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        open_map(items.double, [1], engine="ray", resources=Resources(gpus=1)),
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(HANG_S):
            while "1 of GPU, of which it has 0" not in caplog.text:  # noqa: ASYNC110
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("ray_here")
async def test_a_cancelled_call_ends_functions_of_ray_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "WATCH_S", 0.2)
    side = tmp_path / "side"
    call = partial(
        map_tasks,
        items.count_up,
        work(side, 4, 200),
        engine="ray",
        store=tmp_path / "s",
        job_id="job-cancelled",
        checkpoint_interval_s=0.0,
    )
    await cancel_after(20, side, call)
    assert await call() == [sum_to(200)] * 4
    assert durable_again(side) == []


@pytest.mark.usefixtures("ray_here")
async def test_many_kills_of_ray_workers_lose_nothing(tmp_path: Path) -> None:
    side, total = tmp_path / "side", KILLED_ITEMS * KILLED_STEPS
    with Killer(side, total, KILLS) as killer, trio.fail_after(2 * PROGRAM_S):
        results = await map_tasks(
            items.count_up,
            work(side, KILLED_ITEMS, KILLED_STEPS),
            engine="ray",
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


async def test_ray_is_told_to_leave_the_logging_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would give the handlers of the root logger a format of its own."""
    told: dict[str, Any] = {}

    def refuse(**options: Any) -> None:
        told.update(options)
        assert threading.current_thread() is not threading.main_thread()  # it takes SIGTERM there
        raise RuntimeError("refused, as planned")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(EngineLostError, match="refused, as planned"):
        await map_tasks(items.double, [1], engine="ray")
    assert told["configure_logging"] is False


@pytest.mark.usefixtures("ray_here")
async def test_an_address_is_refused_where_ray_is_connected() -> None:
    with pytest.raises(ValueError, match=r"address must be left out, not '127\.0\.0\.1:9'"):
        await map_tasks(items.double, [1], engine="ray", address="127.0.0.1:9")


def test_a_killed_driver_of_ray_is_started_again(tmp_path: Path) -> None:
    side = tmp_path / "side"
    program = DriverProgram(
        side,
        str(tmp_path / "s"),
        {"engine": "ray", "workers": 4, "checkpoint_interval_s": 0.0},
    )
    program.kill_when(lambda steps: len(steps) >= 100)
    program.finish()
    assert durable_again(side) == []
