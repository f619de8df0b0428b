"""Seed 003 over the wire: its protocol messages, its three examples, its ten edge cases.

A foreman, workers and clients are in one process here, connected in memory, on a mock clock; what
one process does by itself is in `test_seed_003.py`, real processes and sockets are in
`tests/remote` and `tests/engines`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from tests.remote import functions
from tests.remote.functions import STEPS, gates, seen, trained
from tests.remote.site import F, Site, open_site, until
from trio_ckpt import remote
from trio_ckpt._commit import state_capture, state_manager
from trio_ckpt._journal.record import TROUBLE
from trio_ckpt.abc import Store
from trio_ckpt.remote import TaskStatus
from trio_ckpt.remote._wire import protocol
from trio_ckpt.remote._wire.message import MessageKind
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Delay, FaultyStore

TASK = "job-t.000000"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


@asynccontextmanager
async def mapping(site: Site, function: str, items: list[Any], **settings: Any) -> Any:
    """A job under way; yields where its results will be, and ends when the block does."""
    found: list[Any] = []

    async def map_it() -> None:
        async with site.client() as client:
            options = {"checkpoint_interval_s": 3.0, "job_id": "job-t", **settings}
            found.extend(await client.map(F + function, items, **options))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(map_it)
        yield found


async def notes(store: Store, index: int = 0) -> list[str]:
    """What the job's history says of an item."""
    view = await store.load_run("job-t")
    assert view is not None
    found: list[str] = []
    async for record in remote_history(store):
        if TROUBLE in record.metadata and record.batch_index == index:
            found.append(record.metadata[TROUBLE])
    return found


def remote_history(store: Store) -> Any:
    return trio_ckpt.read_history(store, "job-t", ("items",))


def sent_kinds(monkeypatch: pytest.MonkeyPatch) -> list[MessageKind]:
    """The kinds of all messages from now on."""
    kinds: list[MessageKind] = []
    whole = protocol.Connection._queue

    def queue(self: Any, message: Any, body: bytes) -> None:
        kinds.append(message.KIND)
        whole(self, message, body)

    monkeypatch.setattr(protocol.Connection, "_queue", queue)
    return kinds


# -- protocol messages -------------------------------------------------------------------------


async def test_protocol_messages_task_checkpoint_checkpoint_ack_resume_task(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is TASK_CHECKPOINT and its answer CHECKPOINT_ACK; an item that has some goes to
    its next worker with RESUME_TASK."""
    kinds = sent_kinds(monkeypatch)
    async with open_site(MemoryStore(), grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]) as found:
            await trio.sleep(8)
            assert MessageKind.RESUME_TASK not in kinds
            assert (
                kinds.count(MessageKind.TASK_CHECKPOINT)
                == kinds.count(MessageKind.CHECKPOINT_ACK)
                > 2
            )
            site.kill_worker("a")
            await site.start_worker("b")
        assert found == [trained(1)]
    assert kinds.count(MessageKind.ASSIGN_TASK) == kinds.count(MessageKind.RESUME_TASK) == 1
    assert kinds.count(MessageKind.SUBMIT_JOB) == kinds.count(MessageKind.JOB_DONE) == 1


async def test_checkpoint_ack_comes_only_after_the_store_made_it_durable(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save of the store takes ten seconds: no acknowledgement is earlier."""
    kinds = sent_kinds(monkeypatch)
    store = FaultyStore(MemoryStore(), {n: Delay(10.0) for n in range(1, 500)})
    async with open_site(store) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]):
            await until(lambda: MessageKind.TASK_CHECKPOINT in kinds)
            for _ in range(19):
                await trio.sleep(0.5)
                assert MessageKind.CHECKPOINT_ACK not in kinds
            await until(lambda: MessageKind.CHECKPOINT_ACK in kinds)


# -- examples ----------------------------------------------------------------------------------


async def test_example_1_over_the_wire_simple_stateless_function(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an interval no checkpoint is taken, and items have no runs."""
    kinds = sent_kinds(monkeypatch)
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "square", [1, 2, 3, 4, 5], checkpoint_interval_s=None) as found:
            pass
        assert found == [1, 4, 9, 16, 25]
        assert [run.run_id for run in await site.store.list_runs()] == ["job-t"]
    assert MessageKind.TASK_CHECKPOINT not in kinds
    assert MessageKind.STORE_CALL not in kinds


async def test_example_2_over_the_wire_long_running_ml_training(
    autojump_clock: MockClock,
) -> None:
    """Its worker fails in the middle; training recovers from the last checkpoint, to the same
    weights and losses, and at most an interval of steps is done twice."""
    async with open_site(MemoryStore(), grace_s=2) as site:
        await site.start_worker("a", slots=3)
        async with mapping(site, "train", [1, 2, 3], checkpoint_interval_s=5.0) as found:
            await trio.sleep(13)
            site.kill_worker("a")
            await site.start_worker("b", slots=3)
        assert found == [trained(n) for n in (1, 2, 3)]
    for item in (1, 2, 3):
        steps = [entry for entry in seen if entry[:2] == ("step", item)]
        assert STEPS <= len(steps) <= STEPS + 6


async def test_example_3_over_the_wire_monitoring_checkpoint_progress(
    autojump_clock: MockClock,
) -> None:
    """All fields of the seed's answer, of a job that is running."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=2)
        async with mapping(site, "train", [1, 2, 3]):
            await trio.sleep(11)
            assert site.foreman is not None
            view = await remote.read_job(site.store, "job-t", live=site.foreman.live)
            assert (view.job_id, view.status) == ("job-t", TaskStatus.RUNNING)
            assert (view.total_tasks, view.tasks_with_checkpoints) == (3, 2)
            assert 30 <= view.average_progress_percent <= 40
            assert view.total_checkpoints_taken >= 4
            first, _, third = view.tasks
            assert (first.status, third.status) == (TaskStatus.RUNNING, TaskStatus.PENDING)
            assert first.progress_percent >= 45
            assert first.checkpoint_count >= 2
            assert first.last_checkpoint_at is not None
            assert first.base_checkpoint_size > 0
            assert [delta.sequence for delta in first.delta_checkpoints] == sorted(
                delta.sequence for delta in first.delta_checkpoints
            )
            assert third.checkpoint_count == 0


# -- edge cases --------------------------------------------------------------------------------


async def test_edge_case_1_over_the_wire_serialization_failure(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its path and left out; the function goes on, and later ones are saved."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "unencodable", [7]) as found:
            pass
    assert found == [7]
    assert seen == [True, False, True, True]
    assert "state.hook" in caplog.text


async def test_edge_case_2_over_the_wire_large_checkpoints(
    tmp_path: Any,
) -> None:
    """Arrays of some MiB go in parts, are files at the foreman, and are gone with the item."""
    store = await open_store(tmp_path / "s")
    folder = tmp_path / "s" / "blobs"
    async with open_site(store, grace_s=0.1) as site:
        await site.start_worker("a")
        async with mapping(site, "large", [0], checkpoint_interval_s=0.0) as found:
            with trio.fail_after(30):
                await until(lambda: gates.get("large") is not None)
                while (  # noqa: ASYNC110  # it is begun, and lands beside the function
                    view := await remote.read_task(store, TASK)
                ).file_bytes <= 2 * 2**20:
                    await trio.sleep(0.02)
            assert view.checkpoint_storage_path is not None
            assert (tmp_path / "s" / view.checkpoint_storage_path).is_file()
            site.kill_worker("a")
            await site.start_worker("b")
            gates["large"].set()
        assert found == [float(functions.large_array().sum())]
        assert not (tmp_path / "s" / view.checkpoint_storage_path).exists()
    await store.aclose()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("max_age_s", "goes_on"), [(3_600.0, True), (60.0, False)])
async def test_edge_case_3_over_the_wire_stale_checkpoints(
    max_age_s: float, goes_on: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that was too old when its worker was lost is set aside: the item begins again, and
    the job's history says so."""
    now = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    async with open_site(MemoryStore(), grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1], max_age_s=max_age_s) as found:
            await trio.sleep(8)
            now[0] += 1_000
            site.kill_worker("a")
            await trio.sleep(0.5)
            now[0] += 100_000  # waiting for a worker does not make it older
            await trio.sleep(2)
            await site.start_worker("b")
        said = await notes(site.store)
    assert found == [trained(1)]
    begun = [entry[1] for entry in seen if entry[0] == 1]
    assert (begun[1] > 0) is goes_on
    assert any("it starts from the beginning" in note for note in said) is not goes_on


async def test_edge_case_4_over_the_wire_missing_delta_files(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest saved state is damaged: the newest whole one is gone on from, never a guess."""
    monkeypatch.setattr(state_capture, "INLINE_BYTES", 1_000)  # so that arrays are in blobs
    store = MemoryStore()
    async with open_site(store, grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]) as found:
            await trio.sleep(11)
            before = await remote.read_task(store, TASK)
            site.kill_worker("a")
            damage_newest_blob(store)
            await site.start_worker("b")
            await trio.sleep(2)
        assert found == [trained(1)]
    begun = [entry[1] for entry in seen if entry[0] == 1]
    assert 0 < begun[1] < before.progress_percent * STEPS / 100
    assert "goes on from sequence" in caplog.text


def damage_newest_blob(store: MemoryStore) -> None:
    run = store._memory.runs[TASK]
    log = run.generations[run.generation]['["task"]'].log
    newest = next(record.blobs[0] for record in reversed(log) if record.blobs)
    run.blobs[newest] = bytes(len(run.blobs[newest]))


async def test_edge_case_4_over_the_wire_nothing_is_whole(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the item begins again, and the job's history says so."""
    monkeypatch.setattr(state_capture, "INLINE_BYTES", 1_000)
    store = MemoryStore()
    async with open_site(store, grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]) as found:
            await trio.sleep(11)
            site.kill_worker("a")
            blobs = store._memory.runs[TASK].blobs
            for name, blob in blobs.items():
                blobs[name] = bytes(len(blob))
            await site.start_worker("b")
        assert found == [trained(1)]
        said = await notes(store)
    assert [entry[1] for entry in seen if entry[0] == 1] == [0, 0]
    assert any("starts from the beginning" in note for note in said)


async def test_edge_case_4_over_the_wire_damaged_records(autojump_clock: MockClock) -> None:
    """Records that are not what was saved: the foreman sets them aside and says so."""
    store = MemoryStore()
    async with open_site(store, grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]) as found:
            await trio.sleep(11)
            site.kill_worker("a")
            run = store._memory.runs[TASK]
            log = run.generations[run.generation]['["task"]'].log
            msgspec.structs.force_setattr(log[-1], "payload", b"x" * 50)
            await site.start_worker("b")
        assert found == [trained(1)]
        said = await notes(store)
    assert any("damaged" in note for note in said)


async def test_edge_case_5_over_the_wire_states_of_any_type(autojump_clock: MockClock) -> None:
    """A class of attrs, a dict, arrays: the worker's state is what a local stream's is."""
    async with open_site(MemoryStore(), grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "mixed", [4]) as found:
            await trio.sleep(5)
            site.kill_worker("a")
            await site.start_worker("b")
        assert found == [["dict", "ndarray", "set", 6]]


async def test_edge_case_6_over_the_wire_delta_compaction(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain begins again by itself, here after five; no peer on the way has to know."""
    monkeypatch.setattr(state_manager.StateManager, "max_deltas", 5)
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1], checkpoint_interval_s=0.5) as found:
            await trio.sleep(15.5)
            view = await remote.read_task(site.store, TASK)
            assert view.checkpoint_count >= 14
            assert view.chain_length <= 7
        assert found == [trained(1)]


async def test_edge_case_7_over_the_wire_disconnect_during_checkpoint_send(
    autojump_clock: MockClock,
) -> None:
    """The worker dies while a checkpoint is on its way: the next one goes on from the last that
    was acknowledged."""
    store = FaultyStore(MemoryStore(), {8: Delay(1_000.0)})  # one of the later checkpoints
    async with open_site(store, grace_s=1) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]) as found:
            await until(lambda: store.saves >= 8)
            site.kill_worker("a")
            await site.start_worker("b")
        assert found == [trained(1)]
    begun = [entry for entry in seen if entry[0] == 1]
    assert begun[1][1] > 0


async def test_edge_case_8_over_the_wire_task_reassignment(autojump_clock: MockClock) -> None:
    """Worker after worker is killed; each goes on where the one before had saved."""
    async with open_site(MemoryStore(), grace_s=1) as site:
        async with mapping(site, "train", [1], checkpoint_interval_s=2.0) as found:
            for name in "abcd":
                await site.start_worker(name)
                await trio.sleep(4.5)
                site.kill_worker(name)
            await site.start_worker("e")
        assert found == [trained(1)]
        view = await remote.read_task(site.store, TASK)
        assert view.worker == "e"
    begun = [entry[1] for entry in seen if entry[0] == 1]
    assert begun == sorted(begun)
    assert len(begun) == 5


async def test_edge_case_9_over_the_wire_concurrent_checkpoint_calls(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captures never overlap, and at most two sends of an item wait for an answer."""
    worst = 0
    whole = protocol.Connection._note_call

    def note(self: Any, message: Any) -> None:
        nonlocal worst
        whole(self, message)
        worst = max(worst, sum(call.is_save for call in self.calls.values()))

    monkeypatch.setattr(protocol.Connection, "_note_call", note)
    store = FaultyStore(MemoryStore(), {n: Delay(0.7) for n in range(1, 500)})
    async with open_site(store) as site:
        await site.start_worker("a")
        async with mapping(site, "eager", [9], checkpoint_interval_s=0.0) as found:
            pass
    assert found == [9]
    assert 1 <= worst <= 2


async def test_edge_case_10_over_the_wire_out_of_memory_checkpoints(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A capture that fails for want of memory is logged and left out; the function goes on."""
    whole, calls = state_manager.StateManager.capture, 0

    async def capture(self: Any) -> Any:
        nonlocal calls
        calls += 1
        if 2 <= calls <= 4:
            raise MemoryError
        return await whole(self)

    monkeypatch.setattr(state_manager.StateManager, "capture", capture)
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1]) as found:
            pass
    assert found == [trained(1)]
    assert "is left out: MemoryError" in caplog.text


# -- future enhancements and actions -----------------------------------------------------------


async def test_cross_worker_sharing_a_running_item_moves_mid_way(
    autojump_clock: MockClock,
) -> None:
    """RELEASE_TASK: the worker saves where it is and hands the item back; nothing is done twice."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1], checkpoint_interval_s=1_000.0) as found:
            await trio.sleep(8.5)
            await site.start_worker("b")
            async with site.client("admin") as admin:
                code, _ = await admin.control("release", TASK)
                assert code == 202
        assert found == [trained(1)]
        assert (await remote.read_task(site.store, TASK)).worker in ("a", "b")
    assert len([entry for entry in seen if entry[0] == "step"]) == STEPS
    assert len([entry for entry in seen if entry[0] == 1]) == 2


async def test_load_balancing_when_another_worker_is_idle(autojump_clock: MockClock) -> None:
    """Opt-in: of two items of one worker one moves to a worker that comes later."""
    async with open_site(MemoryStore(), is_rebalancing=True) as site:
        await site.start_worker("a", slots=4)
        async with mapping(site, "train", [1, 2, 3]) as found:
            await trio.sleep(5.5)
            await site.start_worker("b", slots=4)
            await trio.sleep(3)
            assert site.foreman is not None
            workers = {live.worker for live in site.foreman.live.values()}
            assert workers == {"a", "b"}
        assert found == [trained(n) for n in (1, 2, 3)]
    assert len([entry for entry in seen if entry[0] == "step"]) == 3 * STEPS


async def test_force_checkpoint_saves_at_the_next_point(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1], checkpoint_interval_s=1_000.0):
            await trio.sleep(8.5)
            before = await remote.read_task(site.store, TASK)
            async with site.client("admin") as admin:
                assert (await admin.control("force-checkpoint", TASK))[0] == 202
                assert (await admin.control("cleanup", TASK))[0] == 409
                assert (await admin.control("force-checkpoint", "job-t.000007"))[0] == 404
                assert (await admin.control("force-checkpoint", "job-x.000000"))[0] == 404
                assert (await admin.control("force-checkpoint", "../x"))[0] == 404
            await trio.sleep(2)
            after = await remote.read_task(site.store, TASK)
            assert after.checkpoint_count == before.checkpoint_count + 1
            assert after.progress_percent >= 45


async def test_cleanup_frees_what_a_finished_item_has_kept(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "train", [1], keep_checkpoints=True):
            pass
        assert await site.store.read_run(TASK) is not None
        async with site.client("admin") as admin:
            assert (await admin.control("cleanup", TASK))[0] == 202
        assert await site.store.read_run(TASK) is None


async def test_a_worker_that_is_stopped_saves_and_hands_back(autojump_clock: MockClock) -> None:
    """What SIGTERM does: nothing is done twice, and the worker leaves."""
    async with open_site(MemoryStore()) as site:
        worker = await site.start_worker("a", slots=2)
        async with mapping(site, "train", [1, 2], checkpoint_interval_s=1_000.0) as found:
            await trio.sleep(8.5)
            await worker.stop("it is SIGTERM", 30.0)
            assert worker.items == {}
            await site.start_worker("b", slots=2)
        assert found == [trained(1), trained(2)]
    assert len([entry for entry in seen if entry[0] == "step"]) == 2 * STEPS


async def test_an_item_that_takes_workers_down_is_given_up(autojump_clock: MockClock) -> None:
    """Five workers, then no more: it is the item."""
    async with open_site(MemoryStore(), grace_s=1) as site:
        job: dict[str, Any] = {"checkpoint_interval_s": None, "errors": "collect"}
        async with mapping(site, "wait", ["poison"], **job) as found:
            for number in range(5):
                await site.start_worker(f"w{number}")
                await until(lambda n=number: seen.count(("begun", "poison")) > n)  # type: ignore[misc]
                site.kill_worker(f"w{number}")
                await trio.sleep(2)
        assert found[0].error_type == "TaskLostError"


async def test_the_trace_of_a_job_travels_to_its_items(autojump_clock: MockClock) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with mapping(site, "tell_trace", [1], trace=trace) as found:
            pass
    assert found == [trace]


# -- schedules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_random_losses_of_anything_change_no_result(
    seed: int, autojump_clock: MockClock
) -> None:
    """Workers, connections and foremen are killed in a random order (a seed is an order): no item
    is lost, none counted twice, results are those of an uninterrupted run."""
    rng = random.Random(seed)
    items = list(range(1, 7))
    async with open_site(MemoryStore(), grace_s=3) as site:
        alive = {f"w{n}": await site.start_worker(f"w{n}", slots=2) for n in range(3)}
        born = itertools.count(3)
        async with mapping(site, "train", items, losses=1_000) as found:
            for _ in range(15):
                await trio.sleep(rng.uniform(0.3, 5))
                match rng.randrange(4):
                    case 0:
                        name = rng.choice(sorted(alive))
                        site.kill_worker(name)
                        del alive[name]
                        name = f"w{next(born)}"
                        alive[name] = await site.start_worker(name, slots=2)
                    case 1:
                        site.cut(rng.choice(sorted(alive)))
                    case 2:
                        site.cut("client")
                    case _:
                        store: Any = site.store
                        await site.kill_foreman(store.after_crash())
                        await trio.sleep(rng.uniform(0, 4))
                        await site.start_foreman()
        assert found == [trained(item) for item in items]
        view = await remote.read_job(site.store, "job-t")
        assert (view.status, view.completed_tasks) == (TaskStatus.COMPLETED, 6)


def test_the_array_of_the_large_example_is_large() -> None:
    assert functions.large_array().nbytes == 4 * 2**20
    assert isinstance(functions.large_array(), np.ndarray)
