"""Jobs from a client over a foreman to workers and back, in memory, on a mock clock."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.remote import functions
from tests.remote.functions import STEPS, gates, seen, trained
from tests.remote.site import SECRET, F, Site, open_site, until
from trio_ckpt import remote
from trio_ckpt._util.errors import NotEncodableError
from trio_ckpt.remote import (
    HandshakeRefusedError,
    JobCancelledError,
    JobRefusedError,
    NotAllowedError,
    TaskFailedError,
    TaskStatus,
)
from trio_ckpt.remote._client import open_client
from trio_ckpt.remote._wire.link import Link
from trio_ckpt.remote._wire.message import TaskMessage
from trio_ckpt.remote._wire.task_messages import TaskResult
from trio_ckpt.remote._worker.work_item import Item
from trio_ckpt.remote._worker.worker import Worker
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Delay, FaultyStore


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


async def test_map_gives_results_in_order(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        for name in "ab":
            await site.start_worker(name, slots=2)
        async with site.client() as client:
            assert await client.map(F + "square", range(20)) == [n * n for n in range(20)]
            assert await client.map(F + "square", []) == []
    assert sorted(seen) == list(range(20))


async def test_a_sync_function_runs_in_a_thread(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            assert await client.map(F + "square_sync", [3]) == [9]
    assert seen == [(3, False)]


async def test_results_come_as_they_are_done(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=3)
        async with site.client() as client:
            results = await client.map_unordered(F + "wait", ["x", "y", "z"])
            await until(lambda: len(gates) == 3)
            for item in ("z", "x", "y"):
                gates[item].set()
                result = await anext(results)
                assert (result.value, result.error) == (item, None)
            with pytest.raises(StopAsyncIteration):
                await anext(results)


async def test_errors_are_raised_with_their_item(autojump_clock: MockClock) -> None:
    """The job fails with the first of them, and the others are cancelled at their workers."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=4)
        async with site.client() as client:
            with pytest.raises(
                TaskFailedError, match="work item 1 failed: ValueError: 3 is odd"
            ) as caught:
                await client.map(F + "fail_odd", [2, 3, 4], job_id="job-f")
            assert (caught.value.index, caught.value.error_type) == (1, "ValueError")
            with pytest.raises(TaskFailedError):
                await client.attach("job-f")
        view = await remote.read_job(site.store, "job-f")
        assert view.status is TaskStatus.FAILED
        assert view.tasks[1].status is TaskStatus.FAILED
        await until(lambda: not site.workers["a"].items)


async def test_errors_are_collected(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            found = await client.map(F + "fail_odd", range(4), errors="collect", job_id="job-c")
            assert [type(value) for value in found] == [int, TaskFailedError, int, TaskFailedError]
            assert (found[3].index, found[3].error_message) == (3, "3 is odd")
        view = await remote.read_job(site.store, "job-c")
        assert view.status is TaskStatus.COMPLETED
        assert (view.completed_tasks, view.failed_tasks) == (2, 2)


async def test_attempts_are_counted_and_capped(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            assert await client.map(F + "fail_once", [5], attempts=2) == [5]
            assert seen == [(5, 1), (5, 2)]
            with pytest.raises(TaskFailedError):
                await client.map(F + "fail_odd", [7], attempts=3)
            assert seen[2:] == [(7, 1), (7, 2), (7, 3)]


async def test_cancelling_map_cancels_the_functions(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=2)
        async with site.client() as client:
            with trio.move_on_after(30) as scope:
                await client.map(F + "wait", ["x", "y"], job_id="job-x")
            assert scope.cancelled_caught
            await until(lambda: ("cancelled", "x") in seen and ("cancelled", "y") in seen)
            await until(lambda: not site.workers["a"].items)
            view = await remote.read_job(site.store, "job-x")
            assert view.status is TaskStatus.CANCELLED
            assert {task.status for task in view.tasks} == {TaskStatus.CANCELLED}
            with pytest.raises(JobCancelledError):
                await client.attach("job-x")


async def test_cancelling_the_client_with_its_map_ends_the_job_at_once(
    autojump_clock: MockClock,
) -> None:
    """The connection is in the cancelled block, too: it lasts until the foreman has answered."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        with trio.move_on_after(30) as scope:
            async with site.client() as client:
                await client.map(F + "wait", ["x"], job_id="job-x")
        assert scope.cancelled_caught
        assert trio.current_time() == scope.deadline
        assert ("cancelled", "x") in seen
        view = await remote.read_job(site.store, "job-x")
        assert view.status is TaskStatus.CANCELLED


async def test_cancelling_a_map_without_a_connection_waits_for_no_answer(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        with trio.move_on_after(30) as scope:
            async with site.client() as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.map, F + "wait", ["x"])
                await trio.sleep(10)
                site.cut("client", for_good=True)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() == scope.deadline


async def test_ctrl_c_in_the_farewell_of_a_client_ends_it_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The foreman does not hear the farewell, so it does not close the connection."""

    async def interrupted(_link: Link) -> None:
        raise KeyboardInterrupt

    async def leave(site: Site) -> None:
        async with site.client():
            site.sockets["client"].is_mute = True
            monkeypatch.setattr(Link, "flush", interrupted)

    async with open_site(MemoryStore()) as site:
        began, flush = trio.current_time(), Link.flush
        with pytest.raises(KeyboardInterrupt):
            await leave(site)
        monkeypatch.setattr(Link, "flush", flush)
        assert trio.current_time() == began


async def test_a_client_that_died_is_followed_by_another(autojump_clock: MockClock) -> None:
    """A job goes on without its client; who attaches later gets all results."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=2)
        async with site.client("first") as client:
            job_id = await client.submit(F + "wait", ["x", "y"])
            await until(lambda: len(gates) == 2)
            gates["x"].set()
            await anext(client.results(job_id))
        async with site.client("second") as client:
            results = client.results(job_id)
            assert (await anext(results)).value == "x"
            gates["y"].set()
            assert (await anext(results)).value == "y"
            assert await client.attach(job_id) == ["x", "y"]


async def test_the_same_job_again_goes_on_and_another_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        for _ in range(2):
            async with site.client() as client:
                assert await client.map(F + "square", [2, 3], job_id="job-s") == [4, 9]
        assert seen == [2, 3]
        async with site.client() as client:
            for function, items in ((F + "square", [2]), (F + "wait", [2, 3])):
                with pytest.raises(JobRefusedError, match="is there already"):
                    await client.map(function, items, job_id="job-s")


async def test_items_and_results_are_values_and_a_result_may_be_nan(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        items: Any = [{"n": np.int64(1), "at": (1, 2)}, {"n": 2}]
        async with site.client() as client:
            job_id = await client.submit(F + "evaluate", items)
            items[0]["n"] = items[1]["n"] = "changed after it was given"
            await site.start_worker("a")
            found = [result.value async for result in client.results(job_id)]
    assert seen == [{"n": 1, "at": [1, 2]}, {"n": 2}]
    wanted = {"loss": "nan", "best": "0.5", "shape": "[2, 3]"}
    assert [{name: str(value[name]) for name in wanted} for value in found] == [wanted] * 2


@pytest.mark.parametrize(
    ("function", "items", "settings", "error"),
    [
        ("no colon", [1], {}, NotAllowedError),
        (F + "square", [{1, 2}], {}, NotEncodableError),
        (F + "square", ["x" * 5_000_000], {}, ValueError),
        (F + "square", [1], {"job_id": "../x"}, ValueError),
        (F + "square", [1], {"attempts": 0}, ValueError),
        (F + "square", [1], {"errors": "ignore"}, ValueError),
        (F + "square", [1], {"checkpoint_interval_s": -1.0}, ValueError),
    ],
)
async def test_a_bad_job_is_refused_before_it_is_sent(
    function: str,
    items: list[Any],
    settings: dict[str, Any],
    error: type[Exception],
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        with pytest.raises(error):
            await client.map(function, items, **settings)
        assert await site.store.list_runs() == ()


@pytest.mark.parametrize(
    "name", ["_private", "system", "Sums", "not_a_function", "missing", "Work", "AnyWork"]
)
async def test_a_worker_runs_public_functions_of_its_modules_only(
    name: str, autojump_clock: MockClock
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            with pytest.raises(TaskFailedError) as caught:
                await client.map(F + name, [1])
            assert caught.value.error_type == "NotAllowedError"


async def test_an_item_waits_for_a_worker_that_allows_its_module(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("other", allow=("tests.remote.functional",))
        async with site.client() as client, trio.open_nursery() as nursery:
            found: list[Any] = []

            async def map_it() -> None:
                found.extend(await client.map(F + "square", [3]))

            nursery.start_soon(map_it)
            await trio.sleep(5)
            why = f"no worker that is connected runs {F}square: they run functions of tests.remote"
            told = [one.name for one in caplog.records if why in one.getMessage()]
            assert sorted(told) == ["trio_ckpt.remote._client", "trio_ckpt.remote._foreman.job"]
            await trio.sleep(600)
            assert found == []
            assert len([one for one in caplog.records if why in one.getMessage()]) == 2
            await site.start_worker("right")
        assert found == [9]


async def test_a_job_without_any_worker_says_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.map, F + "square", [3])
            await trio.sleep(5)
            assert "waits: no worker is connected, so tests.remote.functions:square" in caplog.text
            await site.start_worker("right")
        caplog.clear()
        assert await client.map(F + "square", [4]) == [16]
        assert "no worker" not in caplog.text


async def test_a_job_whose_workers_are_busy_waits_in_silence(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            await client.submit(F + "wait", ["x", "y"])
            await trio.sleep(60)
    assert "no worker" not in caplog.text


async def test_a_wrong_secret_is_refused(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        with pytest.raises(HandshakeRefusedError) as caught:
            async with open_client(site.dial("x"), SECRET + b"!", "x"):
                pass
        assert caught.value.code == "secret"


async def test_jobs_take_turns(autojump_clock: MockClock) -> None:
    """A small job does not wait for a large one that was there before."""
    async with open_site(MemoryStore()) as site, site.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.map, F + "square", range(100, 200))
            await trio.sleep(1)
            nursery.start_soon(client.map, F + "square", range(3))
            await trio.sleep(1)
            await site.start_worker("a")
        assert max(map(seen.index, range(3))) < 10


async def test_a_long_job_is_read_back_in_parts(autojump_clock: MockClock) -> None:
    items = [[n, "x" * 3_000] for n in range(1_500)]  # several messages each way
    async with open_site(MemoryStore()) as site:
        for name in "abc":
            await site.start_worker(name, slots=8)
        async with site.client() as client:
            results = await client.map_unordered(F + "echo", items, job_id="job-l")
            found = {result.index: result.value async for result in results}
    assert [found[n] for n in range(1_500)] == items


# -- checkpoints ----------------------------------------------------------------------------------


async def train(site: Site, items: list[int], **settings: Any) -> list[Any]:
    async with site.client() as client:
        return await client.map(
            F + "train", items, **{"checkpoint_interval_s": 3.0, "job_id": "job-t", **settings}
        )


async def collect(found: list[Any], site: Site, items: list[int]) -> None:
    """Add the results of a training, which may take long, to a list."""
    found += await train(site, items)


async def test_a_function_saves_its_state_while_it_runs(autojump_clock: MockClock) -> None:
    """The foreman knows how far it is, from its memory and from its store; and when it is done,
    how often it was saved, though the states are gone."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with trio.open_nursery() as nursery:
            found: list[Any] = []
            nursery.start_soon(collect, found, site, [1])
            await trio.sleep(10.7)
            foreman = site.foreman
            assert foreman is not None
            view = await remote.read_task(site.store, "job-t.000000")
            live = await remote.read_task(site.store, "job-t.000000", live=foreman.live)
            assert view.status is live.status is TaskStatus.RUNNING
            assert view.checkpoint_count == len(view.delta_checkpoints) + 1 >= 3
            assert 0 < view.progress_percent <= 50
            assert live.progress_percent == 50
            assert live.worker == "a"
            assert view.base_checkpoint_data
            assert view.chain_length >= 3
            assert view.last_checkpoint_at is not None
            job = await remote.read_job(site.store, "job-t")
            assert (job.tasks_with_checkpoints, job.status) == (1, TaskStatus.RUNNING)
        assert found == [trained(1)]
        view = await remote.read_task(site.store, "job-t.000000")
        assert (view.status, view.progress_percent) == (TaskStatus.COMPLETED, 100)
        assert view.checkpoint_count >= 6
        assert await site.store.read_run("job-t.000000") is None, "its states are still there"


async def test_another_worker_goes_on_with_the_last_saved_state(
    autojump_clock: MockClock,
) -> None:
    """Edge cases 7 and 8 of the seed, in memory: the worker is killed, its item goes to another
    one with what was acknowledged; at most an interval of steps is done twice."""
    async with open_site(MemoryStore(), grace_s=5) as site:
        await site.start_worker("a")
        async with trio.open_nursery() as nursery:
            found: list[Any] = []
            nursery.start_soon(collect, found, site, [1])
            await trio.sleep(11)
            site.kill_worker("a")
            await site.start_worker("b")
    assert found == [trained(1)]
    begun = [entry for entry in seen if entry[0] == 1]
    assert begun[0] == (1, 0, None)
    assert len(begun) == 2
    assert begun[1][1] >= 9
    assert begun[1][2] == f"step {begun[1][1]}"
    steps = [entry for entry in seen if entry[0] == "step"]
    assert len(steps) <= STEPS + 3


async def test_states_go_when_their_item_is_done_not_only_with_the_job(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(train, site, [1, 2])
            await trio.sleep(STEPS + 5)
            runs = [run.run_id for run in await site.store.list_runs()]
            assert runs == ["job-t", "job-t.000001"]


async def test_what_waits_for_the_store_keeps_its_credit(autojump_clock: MockClock) -> None:
    """While a save is not done the worker may not send as much more: memory is bounded by the
    window, however slow the store is."""
    store = FaultyStore(MemoryStore(), {n: Delay(1_000.0) for n in range(8, 30)})
    async with open_site(store) as site:
        await site.start_worker("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(train, site, [1])
            await until(lambda: store.saves >= 8)
            await trio.sleep(1)
            assert site.foreman is not None
            (worker,) = site.foreman.pool.workers.values()
            assert worker.link is not None
            connection = worker.link.connection
            before = connection._granted + connection._handled
            assert before < connection.window
            nursery.cancel_scope.cancel()


async def test_a_function_in_a_process_of_its_own() -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            ((item, pid),) = await client.map(F + "in_process", [5])
    assert item == 5
    assert pid != os.getpid()


async def test_a_lost_connection_is_no_lost_work(autojump_clock: MockClock) -> None:
    """The function goes on, the worker comes back, and what was not acknowledged is sent again."""
    async with open_site(MemoryStore(), grace_s=30) as site:
        await site.start_worker("a")
        async with trio.open_nursery() as nursery:
            found: list[Any] = []
            nursery.start_soon(collect, found, site, [1])
            for _ in range(6):
                await trio.sleep(3.3)
                site.cut("a")
    assert found == [trained(1)]
    assert [entry for entry in seen if entry[0] == 1] == [(1, 0, None)]
    assert len(seen) == 1 + STEPS


async def test_a_foreman_that_is_killed_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    """The worker keeps computing and goes on under a new number; the client is followed up."""
    store = MemoryStore()
    async with open_site(store) as site:
        await site.start_worker("a", slots=2)
        async with trio.open_nursery() as nursery:
            found: list[Any] = []
            nursery.start_soon(collect, found, site, [1, 2])
            for _ in range(3):
                await trio.sleep(4.4)
                await site.kill_foreman(site.store.after_crash())  # type: ignore[attr-defined]
                await trio.sleep(2)
                await site.start_foreman()
    assert found == [trained(1), trained(2)]
    begun = [entry for entry in seen if entry[0] in (1, 2)]
    assert sorted(begun) == [(1, 0, None), (2, 0, None)]


async def test_what_is_done_is_not_done_again_by_the_next_foreman(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            job_id = await client.submit(F + "wait", ["x", "y"])
            await until(lambda: "x" in gates)
            gates["x"].set()
            await until(lambda: "y" in gates)
            await site.kill_foreman(site.store.after_crash())  # type: ignore[attr-defined]
            await site.start_foreman()
            gates["y"].set()
            assert await client.attach(job_id) == ["x", "y"]
    assert seen.count(("begun", "x")) == 1


async def test_a_worker_that_saved_its_result_and_died_costs_no_work(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The item is done: its run says so, and no worker begins it again."""
    say, died = Worker._send_final, list[str]()
    async with open_site(MemoryStore()) as site:

        def die_of_a_result(worker: Worker, item: Item[Any], message: TaskMessage | None) -> None:
            if isinstance(message, TaskResult) and not died:
                died.append(worker.name)
                site.kill_worker(worker.name)
            else:
                say(worker, item, message)

        monkeypatch.setattr(Worker, "_send_final", die_of_a_result)
        await site.start_worker("a")
        await site.start_worker("b")
        async with site.client() as client:
            (result,) = await client.map(F + "train_fast", [0], checkpoint_interval_s=0.0)
    assert len(died) == 1
    assert result["steps"] == STEPS


async def test_an_item_that_takes_workers_down_fails_alone(autojump_clock: MockClock) -> None:
    """Its neighbours are lost with it twice; then each is tried where nothing else can fall."""
    async with open_site(MemoryStore()) as site:

        async def keep_workers() -> None:
            """A process that dies when the item begins, and another one in its place."""
            for number in itertools.count():
                name, fell = f"w{number}", seen.count(("begun", "die"))
                await site.start_worker(name, slots=3)
                await until(lambda fell=fell: seen.count(("begun", "die")) > fell, 1e6)
                site.kill_worker(name)

        async with site.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(keep_workers)
            job_id = await client.submit(F + "wait", ["die", "x"], errors="collect")
            await trio.sleep(100)  # it takes longer than the other one takes to fall five times
            gates["x"].set()
            found = await client.attach(job_id)
            nursery.cancel_scope.cancel()
    assert isinstance(found[0], TaskFailedError)
    assert (found[0].error_type, found[1]) == ("TaskLostError", "x")
    assert seen.count(("begun", "die")) == 5


async def test_a_suspect_is_tried_soon_while_others_wait(autojump_clock: MockClock) -> None:
    """It waits for what one worker has at that time, and not for the end of the other job."""
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(F + "nap", list(range(100)), job_id="job-n")  # 7 s for each item
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.map, F + "wait", ["die"], errors="collect"))
            for number in range(2):
                name = f"w{number}"
                await site.start_worker(name, slots=2)
                await until(lambda n=number: seen.count(("begun", "die")) > n, 1e6)
                if number:
                    await client.submit(F + "wait", ["y"], job_id="job-y")
                    await site.start_worker("steady", slots=2)
                    await trio.sleep(3)
                    gates["y"].set()  # its two slots become free at different times
                site.kill_worker(name)
            fell = trio.current_time()
            await until(lambda: seen.count(("begun", "die")) == 3, 1e6)
            waited_s = trio.current_time() - fell
            nursery.cancel_scope.cancel()
    assert waited_s < 30
