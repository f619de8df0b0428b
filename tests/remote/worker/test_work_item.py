"""One work item on a worker: whatever its function does ends that item, and no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.cli.test_pending import text_of
from tests.remote import misbehaving
from tests.remote.misbehaving import RAISED, RETURNED
from tests.remote.site import Site, open_site
from trio_ckpt import open_run, remote
from trio_ckpt._commit.snapshots import Snapshots
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.cli._explain import explain, show_checkpoints
from trio_ckpt.remote import TaskFailedError, TaskStatus
from trio_ckpt.remote._foreman.dispatch import prune_task
from trio_ckpt.remote._foreman.task_checkpoints import read_task_checkpoints
from trio_ckpt.remote._wire.names import task_id_of
from trio_ckpt.remote._wire.task_messages import AnyCall
from trio_ckpt.remote._worker.calls import RpcClient
from trio_ckpt.remote._worker.remote_store import RemoteStore
from trio_ckpt.stores import MemoryStore

ALLOW = ("tests.remote.misbehaving",)
F = "tests.remote.misbehaving:"
INTERVALS = pytest.mark.parametrize("interval_s", [None, 1.0], ids=["plain", "saving"])


async def collect(site: Site, function: str, items: list[Any], **options: Any) -> list[Any]:
    """Results and failures, from a worker that is still there when all is done."""
    await site.start_worker("a", slots=3, allow=ALLOW)
    async with site.client() as client:
        with trio.fail_after(600):
            found = await client.map(F + function, items, errors="collect", **options)
    assert site.foreman is not None
    assert [worker.name for worker in site.foreman.pool.workers.values()] == ["a"]
    return found


def said(found: Any) -> str:
    """Class and text of a failure, as a person reads it."""
    assert isinstance(found, TaskFailedError), found
    return f"{found.error_type}: {found.error_message}" if found.error_message else found.error_type


async def test_an_item_that_saves_once_costs_three_saves_and_no_read(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session begins with its first state, and ends with its stream."""
    sent: list[object] = []
    call, save = RpcClient.call, RemoteStore.save

    async def noted_call(self: RpcClient, verb: AnyCall) -> bytes:
        sent.append(verb)
        return await call(self, verb)

    async def noted_save(
        self: RemoteStore,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        sent.append(([one.stream for one in group], len(folds)))
        return await save(self, run, group, folds, summary=summary)

    monkeypatch.setattr(RpcClient, "call", noted_call)
    monkeypatch.setattr(RemoteStore, "save", noted_save)
    async with open_site(MemoryStore()) as site:
        assert await collect(site, "save_once", ["a"], checkpoint_interval_s=0) == ["A"]
    task = '["task"]'
    assert sent == [(["[]", task], 0), ([task], 0), ([task, "[]"], 0)]


async def test_an_item_asked_for_during_a_point_runs_no_step_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that saves nothing, as none is due, has begun when the worker is stopped."""
    point = Snapshots.point

    async def asked_for(self: Snapshots, label: str = "") -> bool:
        taken = await point(self, label)
        work, done = misbehaving.NOTED[-1]
        if done == len(misbehaving.NOTED) == 2:
            work._control.release_reason = "the worker stops"
        return taken

    monkeypatch.setattr(Snapshots, "point", asked_for)
    monkeypatch.setattr(misbehaving, "NOTED", [])
    async with open_site(MemoryStore()) as site:
        assert await collect(site, "note_steps", [4], checkpoint_interval_s=60) == [4]
    assert [done for _, done in misbehaving.NOTED] == [1, 2, 3, 4]


@pytest.mark.parametrize("is_pruned", [False, True])
async def test_a_run_that_had_records_is_read_before_it_goes_on(
    autojump_clock: MockClock, *, is_pruned: bool
) -> None:
    """A former worker was released before its first state, or the states were removed."""
    store, job_id, task_id = MemoryStore(), "job-t", task_id_of("job-t", 0)
    async with open_run(task_id, store=store):
        pass
    if is_pruned:
        assert await prune_task(store, task_id)
    options = {"job_id": job_id, "checkpoint_interval_s": 0, "keep_checkpoints": True}
    async with open_site(store) as site:
        assert await collect(site, "save_once", ["a"], **options) == ["A"]
    view = await store.load_run(task_id)
    assert view is not None
    assert view.generation == is_pruned
    assert session_metadata_of(view)["session"] == 2 - is_pruned


@INTERVALS
@pytest.mark.parametrize("function", ["misbehave", "misbehave_async"])
async def test_whatever_a_function_raises_fails_its_own_item(
    autojump_clock: MockClock, function: str, interval_s: float | None
) -> None:
    items = ["a", *RAISED, "RecursionError", "b"]
    async with open_site(MemoryStore()) as site:
        found = await collect(site, function, items, checkpoint_interval_s=interval_s)
    assert (found[0], found[-1]) == ("A", "B")
    for what, failure in zip([*RAISED, "RecursionError"], found[1:-1], strict=True):
        words = said(failure)
        if function == "misbehave_async" and what.startswith(("StopIter", "StopAsync")):
            assert words.startswith(("RuntimeError: coroutine raised Stop", "StopAsync")), words
        else:
            assert what in words, words


@INTERVALS
async def test_a_result_that_cannot_travel_fails_its_own_item(
    autojump_clock: MockClock, interval_s: float | None
) -> None:
    async with open_site(MemoryStore()) as site:
        found = await collect(site, "give", ["a", *RETURNED, "b"], checkpoint_interval_s=interval_s)
    assert (found[0], found[-1]) == ("A", "B")
    for what, failure in zip(RETURNED, found[1:-1], strict=True):
        assert what in said(failure)


@INTERVALS
async def test_a_result_that_a_worker_lets_pass_is_stored(
    autojump_clock: MockClock, interval_s: float | None
) -> None:
    """However deep it is nested: the limit is of what is stored, with the result in it."""
    async with open_site(MemoryStore()) as site:
        depths = list(range(90, 103))
        found = await collect(site, "give_nested", depths, checkpoint_interval_s=interval_s)
    passed = [not isinstance(one, TaskFailedError) for one in found]
    assert passed == [depth <= 98 for depth in depths]
    assert found[0] == misbehaving.deep(90)


@INTERVALS
async def test_a_state_that_cannot_be_made_fails_its_item(
    autojump_clock: MockClock, interval_s: float | None
) -> None:
    async with open_site(MemoryStore()) as site:
        (found,) = await collect(site, "without_state", ["x"], checkpoint_interval_s=interval_s)
    assert said(found) == "SystemExit: no state for x"


async def test_a_module_that_exits_fails_its_item(
    autojump_clock: MockClock, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_when_imported.py").write_text("import sys\nsys.exit('not here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=2, allow=("exits_when_imported", *ALLOW))
        async with site.client() as client:
            (found,) = await client.map("exits_when_imported:f", [1], errors="collect")
            assert said(found) == "SystemExit: not here"
            assert await client.map(F + "one_argument", [3]) == [9]


@pytest.mark.parametrize("keep", [False, True])
async def test_a_last_state_that_cannot_be_saved_loses_no_result(
    autojump_clock: MockClock, keep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with open_site(MemoryStore()) as site:
        found = await collect(
            site,
            "end_unencodable",
            ["a", "b"],
            checkpoint_interval_s=0.5,
            keep_checkpoints=keep,
            job_id="job-e",
        )
        view = await remote.read_job(site.store, "job-e")
    assert found == ["A", "B"]
    assert view.status is TaskStatus.COMPLETED
    assert "its last state cannot be saved; its result is kept without" in caplog.text


async def test_a_result_without_its_last_state_is_not_worked_twice(
    autojump_clock: MockClock,
) -> None:
    """It is in the item's run, for the next foreman."""
    async with open_site(MemoryStore()) as site:
        await collect(
            site,
            "end_unencodable",
            ["a"],
            checkpoint_interval_s=0.5,
            keep_checkpoints=True,
            job_id="job-e",
        )
        saved = await read_task_checkpoints(site.store, task_id_of("job-e", 0))
    assert (saved.is_done, saved.result) == (True, "A")


@INTERVALS
@pytest.mark.parametrize(
    ("function", "results"),
    [
        ("one_argument", [1, 4]),
        ("one_argument_async", [1, 4]),
        ("with_default", [3, 6]),
        ("with_optional_work", [True, True]),
        ("any_arguments", [2, 2]),
    ],
)
async def test_work_is_given_to_who_has_a_parameter_for_it(
    autojump_clock: MockClock, function: str, results: list[Any], interval_s: float | None
) -> None:
    async with open_site(MemoryStore()) as site:
        assert await collect(site, function, [1, 2], checkpoint_interval_s=interval_s) == results


@INTERVALS
async def test_no_virtual_time_passes_while_a_function_takes_real_time(
    autojump_clock: MockClock, interval_s: float | None
) -> None:
    """A machine that is slow to run the thread is no reason for 600 s of timeouts to fire."""
    async with open_site(MemoryStore()) as site:
        found = await collect(site, "take_real_time", [0.3, 0.3], checkpoint_interval_s=interval_s)
        assert trio.current_time() < 60
    assert found == [0.3, 0.3]


async def test_a_point_in_a_thread_may_wait_for_the_foreman(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        site.latency_s = 0.2
        found = await collect(site, "hand_back_once", ["a", "b"], checkpoint_interval_s=1.0)
    assert found == ["A", "B"]


async def test_a_function_without_a_parameter_says_so(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        (found,) = await collect(site, "no_argument", [1])
    assert "takes 0 positional arguments but 1 was given" in said(found)


async def test_a_state_that_cannot_be_saved_is_told_where_a_person_looks(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """In the logs of worker and foreman, in the job's history, and with the item; once."""
    functions = "tests.remote.functions"
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", allow=(functions,))
        async with site.client() as client:
            job_id = await client.submit(
                f"{functions}:unencodable", [1], checkpoint_interval_s=1.0, job_id="job-u"
            )
            await trio.sleep(12)
            running = await remote.read_task(site.store, task_id_of(job_id, 0))
            why = "a snapshot is left out: state.hook cannot be stored: "
            assert running.status is TaskStatus.RUNNING
            assert running.problem.startswith(why)
            text = text_of(
                await explain(site.store, job_id, stream=None, show_all=False, now=time.time())
            )
            assert f"item 0: {why}" in text
            assert await client.attach(job_id) == [1]
    said = [one for one in caplog.records if why in one.getMessage()]
    assert {one.name for one in said} == {
        "trio_ckpt.remote._worker.work_item",
        "trio_ckpt.remote._foreman.dispatch",
    }
    assert len(said) == 2
    done = await remote.read_task(site.store, task_id_of(job_id, 0))
    assert (done.status, done.problem) == (TaskStatus.COMPLETED, running.problem)
    history = await show_checkpoints(site.store, job_id, stream="items", limit=20)
    assert f"item 0: {why}" in text_of(history)


@INTERVALS
@pytest.mark.parametrize("function", ["forget_awaits", "forget_awaits_sync"])
@pytest.mark.filterwarnings("error")
async def test_a_point_without_await_fails_its_item(
    autojump_clock: MockClock, function: str, interval_s: float | None
) -> None:
    async with open_site(MemoryStore()) as site:
        found = await collect(site, function, [0, 1, 2, 3], checkpoint_interval_s=interval_s)
    assert found[::2] == [0, 2]
    for failure in found[1::2]:
        assert said(failure).startswith("NeverAwaitedError: point() was called without await")
