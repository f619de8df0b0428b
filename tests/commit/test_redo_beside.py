"""Batches are re-queued while others read them, or in a stream that is opened again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import Batch, CannotRedoError, Run, Status, Stream, run_batches
from trio_ckpt._maintenance.offline import open_maintenance
from trio_ckpt._runs import verify
from trio_ckpt._runs.run import open_run_of
from trio_ckpt.abc import HistoryPage, Store
from trio_ckpt.stores import MemoryStore


async def test_reopened_after_a_rewind_in_one_session(tmp_path: Path) -> None:
    worked = []

    async def work(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                worked.append(batch.index)
                batch.append_json("l.jsonl", "x" * (batch.index + 1))
                batch.complete()

    async with begin("memory:", output_dir=tmp_path, verify="sha256") as run:
        await work(run)
        await run.rewind(("s",), to=0, reason="x")
        await work(run)
        await work(run)
    assert worked == [0, 1, 2, 1, 2]


async def test_redone_outputs_are_verified_when_reopened_in_the_session(tmp_path: Path) -> None:
    worked = []

    async def work(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                worked.append(batch.index)
                await batch.write_text(f"{batch.index}", "x")
                batch.complete()

    async with begin("memory:", output_dir=tmp_path) as run:
        await work(run)
        await run.rewind(("s",), to=0, reason="x")
        await work(run)
        (tmp_path / "1").unlink()
        await work(run)
    assert worked == [0, 1, 2, 1, 2, 1]


class GatedHistory(MemoryStore):
    gate: Any = None

    async def history(self, run_id: str, stream: str, **kw: Any) -> HistoryPage:
        if self.gate is not None:
            gate, self.gate = self.gate, None
            await gate.wait()
        return await super().history(run_id, stream, **kw)


def hold_verification(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Hold a verification that has found damage: one event says so, the other lets it go on."""
    real, seen, go = verify.find_damages, trio.Event(), trio.Event()

    async def slow(*args: Any, **kw: Any) -> Any:
        found = await real(*args, **kw)
        if found:
            seen.set()
            await go.wait()
        return found

    monkeypatch.setattr(verify, "find_damages", slow)
    return seen, go


async def test_redo_in_flight_while_the_verification_takes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GatedHistory()

    async def handle(batch: Batch[Any]) -> None:
        if batch.index < 5:
            await batch.write_text(f"{batch.index}", "x")
        batch.complete(records=1)

    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(1500), handle)
    (tmp_path / "3").unlink()
    seen, go = hold_verification(monkeypatch)
    async with (
        begin(store, output_dir=tmp_path) as run,
        run.open_stream("s") as stream,
        trio.open_nursery() as nursery,
    ):
        await seen.wait()
        store.gate = gate = trio.Event()

        async def conduct() -> None:
            await trio.testing.wait_all_tasks_blocked(0.05)
            go.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            gate.set()

        nursery.start_soon(conduct)
        await stream.redo([3], reason="x")
    assert len(stream.progress.confirmed) == 1499
    assert stream.progress.records == 1499


class GatedThird(MemoryStore):
    gate: Any = None
    skip = 0

    async def history(self, run_id: str, stream: str, **kw: Any) -> HistoryPage:
        if self.gate is not None:
            if self.skip:
                self.skip -= 1
            else:
                gate, self.gate = self.gate, None
                await gate.wait()
        return await super().history(run_id, stream, **kw)


async def test_redo_over_pages_while_the_verification_takes_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GatedThird()

    async def handle(batch: Batch[Any]) -> None:
        if batch.index in (3, 1000):
            await batch.write_text(f"{batch.index}", "x")
        batch.complete(records=1)

    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(2600), handle)
    (tmp_path / "1000").unlink()
    seen, go = hold_verification(monkeypatch)
    async with (
        begin(store, output_dir=tmp_path) as run,
        run.open_stream("s") as stream,
        trio.open_nursery() as nursery,
    ):
        await seen.wait()
        gate = trio.Event()
        store.gate, store.skip = gate, 2

        async def conduct() -> None:
            await trio.testing.wait_all_tasks_blocked(0.1)
            go.set()
            await trio.testing.wait_all_tasks_blocked(0.1)
            gate.set()

        nursery.start_soon(conduct)
        await stream.redo([3, 1000], reason="x")
    assert len(stream.progress.confirmed) == 2598
    assert stream.progress.records == 2598


MANY = 1_100  # the records of the first batches are on the second page: looked at beside the run


class HeldSecondPage(MemoryStore):
    """Older records come only once nothing is left to do."""

    held: trio.Event | None = None

    async def history(self, run_id: str, stream: str, **kw: Any) -> HistoryPage:
        if self.held is not None and kw["cursor"] is not None:
            await self.held.wait()
        return await super().history(run_id, stream, **kw)


async def produce(run: Run, each: int, worked: list[int] | None = None) -> Stream[None]:
    """Every batch that is left; the first few leave a file, whose size is what they produce."""
    store = open_run_of(run).store

    async def handle(batch: Batch[Any]) -> None:
        if worked is not None:
            worked.append(batch.index)
        if batch.index < 5:
            await batch.write_text(f"{batch.index}", "x" * each)
        batch.complete(records=each, totals={"t": each})
        await batch.confirm()
        held = store.held if isinstance(store, HeldSecondPage) else None
        if held is not None and stream.progress.covers(0, MANY):
            held.set()

    async with run.open_stream("s") as stream:
        await run_batches(stream, range(MANY), handle)
    return stream


async def redo_by_command(store: Store, _folder: Path) -> None:
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.redo(("s",), [1, 3], reason="x")


async def rewind_by_command(store: Store, _folder: Path) -> None:
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.rewind(("s",), to=1, reason="x")


async def redo_in_a_session_that_ends_before_the_work(store: Store, folder: Path) -> None:
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        await stream.redo([1, 3], reason="x")


async def damage_found_in_a_session_that_ends_before_the_work(store: Store, folder: Path) -> None:
    (folder / "1").write_text("damaged")
    (folder / "3").unlink()
    found = set[int]()

    async def leave(batch: Batch[Any]) -> None:
        found.add(batch.index)
        if len(found) == 2:
            scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
            await run_batches(stream, range(MANY), leave, concurrency=2)
    assert found == {1, 3}


@pytest.mark.parametrize(
    "put_back",
    [
        redo_by_command,
        rewind_by_command,
        redo_in_a_session_that_ends_before_the_work,
        damage_found_in_a_session_that_ends_before_the_work,
    ],
)
async def test_what_was_redone_is_not_taken_back_by_old_records(
    put_back: Callable[[Store, Path], Awaitable[None]], tmp_path: Path
) -> None:
    store, folder = HeldSecondPage(), tmp_path / "out"
    async with begin(store, output_dir=folder) as run:
        await produce(run, 1)
    await put_back(store, folder)
    async with begin(store, output_dir=folder) as run:
        store.held, worked = trio.Event(), list[int]()
        stream = await produce(run, 100, worked)
        store.held = None
        await run.rewind(("s",), to=MANY - 2, reason="so that the next session has work")
    again = sorted(worked)
    assert again in ([1, 3], list(range(2, MANY)))
    for _ in range(2):
        async with begin(store, output_dir=folder) as run:
            stream = await produce(run, 1, worked)
        assert sorted(worked) == sorted([*again, MANY - 1])
        assert stream.progress.records == MANY + 99 * len(set(again) - {MANY - 1})
        assert stream.progress.totals["t"].value == stream.progress.records
    assert len((folder / "3").read_bytes()) == 100


class SmallPages(MemoryStore):
    """Gives two records at a time, so that older ones are looked at beside the run."""

    held: trio.Event | None = None  # until then they do not come

    async def history(self, run_id: str, stream: str, **kw: Any) -> HistoryPage:
        if self.held is not None and kw["cursor"] is not None:
            await self.held.wait()
        return await super().history(run_id, stream, **{**kw, "limit": 2})


@pytest.mark.parametrize("repetition", range(10))
async def test_a_damaged_batch_is_handed_out_once_to_several_workers(
    repetition: int, tmp_path: Path
) -> None:
    """One worker may take it at the instant at which it is re-queued."""
    store, worked = SmallPages(), list[int]()

    async def handle(batch: Batch[Any]) -> None:
        worked.append(batch.index)
        await batch.write_text(f"{batch.index}", "x")
        batch.complete()

    for count in (12, 40):
        worked.clear()
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            await run_batches(stream, range(count), handle, concurrency=4)
        for index in range(8):
            (tmp_path / f"{index}").write_text("damaged")
    assert sorted(worked) == [*range(8), *range(12, 40)]


async def leave_by_break(stream: Stream[None], held: trio.Event) -> None:
    async for batch in stream.batches():
        if batch.index >= 9:
            batch.withdraw()
            held.set()
            break
        await batch.write_text(f"{batch.index}", "x")
        batch.complete()


async def leave_by_finish(stream: Stream[None], held: trio.Event) -> None:
    async for batch in stream.batches():
        await batch.write_text(f"{batch.index}", "x")
        batch.complete()
        if batch.index == 9:
            held.set()
            await stream.finish()
            break


async def leave_at_once(_stream: Stream[None], held: trio.Event) -> None:
    """What is complete has nothing to do."""
    held.set()


@pytest.mark.parametrize("way", [leave_by_break, leave_by_finish, leave_at_once])
async def test_a_stream_with_damage_does_not_end_complete(
    way: Callable[[Stream[None], trio.Event], Awaitable[None]], tmp_path: Path
) -> None:
    """The older outputs are looked at before it is said that nothing is left."""
    store = SmallPages()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        if way is leave_at_once:
            await leave_by_break(stream, trio.Event())
        async for batch in stream.batches(end=8):
            await batch.write_text(f"{batch.index}", "x")
            batch.complete()
    (tmp_path / "1").unlink()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        store.held = trio.Event()
        if way is leave_by_finish:
            with pytest.raises(RuntimeError, match="work left: batch 1"):
                await way(stream, store.held)
        else:
            await way(stream, store.held)
    assert stream.status is Status.INTERRUPTED
    assert not (tmp_path / "manifest.json").exists()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await leave_by_break(stream, store.held)
    assert stream.status is Status.COMPLETE
    assert (tmp_path / "1").exists()


async def test_a_redo_of_many_in_flight_is_no_mass_of_missing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = MemoryStore(), verify.find_damages

    async def handle(batch: Batch[Any]) -> None:
        await batch.write_text(f"{batch.index}", "x")
        batch.complete(records=1)

    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(1300), handle)
    begun, go, ended = trio.Event(), trio.Event(), trio.Event()

    async def slow(_outputs: Any, entries: Sequence[Any], *args: Any) -> Any:
        if entries[0].sequence < 500:  # the page beside the run
            begun.set()
            await go.wait()
            trio.lowlevel.current_trio_token().run_sync_soon(ended.set)
        return await real(_outputs, entries, *args)

    monkeypatch.setattr(verify, "find_damages", slow)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await begun.wait()
        await stream.redo(range(200), reason="x")
        go.set()
        await ended.wait()
        await run_batches(stream, range(1300), handle)
    assert stream.status is Status.COMPLETE
    assert stream.progress.records == 1300


async def test_damage_found_under_lines_that_build_on_it_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream has an order since this session only: one batch cannot be done again alone."""
    store, real, appended = MemoryStore(), verify.find_damages, trio.Event()
    async with begin(store, output_dir=tmp_path) as run:
        await produce(run, 1)
    (tmp_path / "3").write_text("damaged")

    async def late(_outputs: Any, entries: Sequence[Any], *args: Any) -> Any:
        if entries and entries[0].sequence < 500:  # those beside the run
            await appended.wait()
        return await real(_outputs, entries, *args)

    async def append(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(MANY + 3)):
                batch.append_json("lines.jsonl", batch.index)
                batch.complete()
                await batch.confirm()
                appended.set()

    monkeypatch.setattr(verify, "find_damages", late)
    with pytest.raises(CannotRedoError, match="restart the program"):
        async with begin(store, output_dir=tmp_path) as run:
            await append(run)
    async with begin(store, output_dir=tmp_path) as run:
        await append(run)
    lines = (tmp_path / "lines.jsonl").read_text().split()
    assert {"3", *map(str, range(5, MANY + 3))} <= set(lines)
    assert len(set(lines)) == len(lines)


async def test_a_new_run_that_is_fresh_is_generation_0() -> None:
    store = MemoryStore()
    async with begin(store, fresh=True):
        pass
    assert [s.generation for s in await store.list_runs()] == [0]


async def test_the_folder_of_a_stream_may_be_that_of_the_run(tmp_path: Path) -> None:
    async with (
        begin("memory:", output_dir=tmp_path) as run,
        run.open_stream("s", output_dir=".") as stream,
    ):
        async for batch in stream.batches(range(1)):
            assert await batch.write_text("x", "") == "x"
            batch.complete()


async def test_calls_on_a_closed_run_say_the_same() -> None:
    async with begin("memory:") as run:
        pass
    for call in (
        lambda: run.add_streams([("a",)]),
        lambda: run.phase("p").__aenter__(),
        lambda: run.open_stream("s").__aenter__(),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await call()


async def test_mass_missing_is_counted_over_the_stream_not_the_page(tmp_path: Path) -> None:
    """11 of 1,040 outputs are missing (1 %), but they are on the last page, of 41 records."""
    store, worked = MemoryStore(), []

    async def handle(batch: Batch[Any]) -> None:
        worked.append(batch.index)
        await batch.write_text(f"{batch.index}", "x")
        batch.complete()

    for _ in range(2):
        worked.clear()
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            await run_batches(stream, range(1040), handle, concurrency=1)
        for n in range(11):
            (tmp_path / f"{n}").unlink(missing_ok=True)
    assert sorted(worked) == list(range(11))


async def test_a_range_beyond_the_end_of_a_function_completes_run_batches() -> None:
    async def handle(batch: Batch[Any]) -> None:
        batch.complete()

    async with begin("memory:") as run, run.open_stream("s") as stream:
        await run_batches(stream, lambda: iter(range(3)), handle, end=99)
    assert stream.status is Status.COMPLETE  # as `stream.batches(lambda: ..., end=99)` does


class HeldSave(HeldSecondPage):
    """A save comes to its end only when it may."""

    may_end: trio.Event | None = None
    has_come: trio.Event

    async def save(self, *args: Any, **kw: Any) -> Any:
        if self.may_end is not None:
            self.has_come.set()
            await self.may_end.wait()
        return await super().save(*args, **kw)


@pytest.mark.parametrize("wanted", [[3], [3, 7], [MANY - 1, 3], [3, MANY]])
@pytest.mark.parametrize("is_open", [True, False])
async def test_a_redo_that_the_verification_forestalls_is_no_error(
    is_open: bool, wanted: list[int], tmp_path: Path
) -> None:
    """All were confirmed when the program asked; one went back while the call waited."""
    store = HeldSave()
    async with begin(store, output_dir=tmp_path) as run:
        await produce(run, each=1)
    (tmp_path / "3").unlink()
    store.held = trio.Event()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(MANY + 1)):
            batch.complete(records=1)
            if not is_open:
                await batch.confirm()
            break
        store.may_end, store.has_come = trio.Event(), trio.Event()
        store.held.set()
        await store.has_come.wait()  # the verification saves that 3 goes back
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def let_it_end() -> None:
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert store.may_end is not None
                store.may_end.set()

            await stream.redo(wanted, reason="x")
        assert stream.remaining() == sorted(wanted)
        assert stream.progress.records == MANY + 1 - len(wanted)
        redos = 1 if wanted == [3] else 2  # a record that takes nothing back is not saved
        assert stream.progress.sequence == MANY + 2 + redos  # one says that it was complete
        with pytest.raises(ValueError, match=r"neither confirmed nor skipped.*\[3\]"):
            await stream.redo([3], reason="it is back already")


async def test_a_batch_done_again_after_its_damage_was_found_stays_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is of the old record; the new one is not taken back, nor its file moved."""
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await produce(run, each=1)
    (tmp_path / "3").unlink()
    real, go, seen = verify.find_damages, trio.Event(), trio.Event()

    async def slow(*args: Any, **kw: Any) -> Any:
        found = await real(*args, **kw)
        if found:
            seen.set()
            await go.wait()
        return found

    monkeypatch.setattr(verify, "find_damages", slow)
    worked = []
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await seen.wait()
        await stream.redo([3], reason="x")
        async for batch in stream.batches(range(MANY)):
            worked.append(batch.index)
            await batch.write_text(f"{batch.index}", "xx")
            batch.complete(records=2)
            await batch.confirm()
            go.set()
    assert worked == [3]
    assert stream.progress.records == MANY + 1
    assert (tmp_path / "3").read_text() == "xx"
