"""A source that changed under what is done is noticed, whenever it is given."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Batch, SourceChangedError, Status, StoreError, Stream, run_batches
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.history import PAGE, LiveRecords, read_pages
from trio_ckpt._journal.item_marks import item_mark
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record
from trio_ckpt._runs.loop_bounds import ITEMS_PER_STEP, check_source
from trio_ckpt._runs.source import Source, default_key
from trio_ckpt._util.plain import item_digest
from trio_ckpt.stores import MemoryStore

Form = Callable[[Any], Any]


def as_list(items: Any) -> Any:
    return list(items)


def as_factory(items: Any) -> Any:
    return lambda: iter(items)


BOTH = pytest.mark.parametrize("form", [as_list, as_factory])


async def loop(stream: Stream[Any], items: Any, done: list[Any], **part: int) -> None:
    async for batch in stream.batches(items, **part):
        done.append(batch.item)
        batch.complete()


async def several(stream: Stream[Any], items: Any, done: list[Any], **part: int) -> None:
    async def handle(batch: Batch[Any]) -> None:
        done.append(batch.item)
        batch.complete()

    await run_batches(stream, items, handle, concurrency=2, **part)


WAYS = pytest.mark.parametrize("way", [loop, several])


class Read(MemoryStore):
    """Counts how often records are read, and fails if it is told to."""

    reads = 0
    is_broken = False

    async def history(self, *args: Any, **settings: Any) -> Any:
        self.reads += 1
        if self.is_broken:
            raise StoreError("the disk is gone")
        return await super().history(*args, **settings)


# -- in one session ------------------------------------------------------------------------


@WAYS
@BOTH
@pytest.mark.parametrize(
    "second", [[4, 5, 6], [1, 2, 9], [9, 2, 3], [1, 3, 2], [1, 2], [], [4, 5, 6, 7], [0, 1, 2, 3]]
)
async def test_a_second_source_in_a_session_is_compared_as_in_the_next(
    way: Any, form: Form, second: list[int]
) -> None:
    store, errors = MemoryStore(), []
    async with begin(store) as run:
        with pytest.raises(SourceChangedError) as caught:
            async with run.open_stream("rows") as stream:
                await way(stream, form([1, 2, 3]), done := [])
                await way(stream, form(second), done)
        errors.append(caught.value)
        assert sorted(done) == [1, 2, 3]
        assert stream.status is Status.FAILED  # and not COMPLETE: the program wanted more
        assert run.exit_code == 75
    async with begin(store) as run:
        with pytest.raises(SourceChangedError) as caught:
            async with run.open_stream("rows") as stream:
                await way(stream, form(second), [])
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert "chained into one" in str(errors[0])
    async with begin(store) as run, run.open_stream("rows") as stream:
        await way(stream, form([1, 2, 3]), [])
        assert stream.status is Status.COMPLETE


@WAYS
@BOTH
async def test_a_second_source_that_goes_on_is_gone_on_with(way: Any, form: Form) -> None:
    async with begin("memory:") as run, run.open_stream("rows") as stream:
        for count in (2, 2, 5, 3 + 4):
            done: list[int] = []
            await way(stream, form(range(count)), done)
            assert stream.status is Status.COMPLETE
        assert sorted(done) == [5, 6]
        assert (len(stream.progress.done), stream.statistics().left) == (7, 0)


async def test_a_loop_that_was_left_is_compared_with_the_next_one() -> None:
    async with begin("memory:") as run:
        with pytest.raises(SourceChangedError) as caught:
            async with run.open_stream("rows") as stream:
                async for batch in stream.batches(["a", "b", "c"]):
                    batch.complete()
                    if batch.index == 1:
                        break
                await loop(stream, ["b", "c"], [])
    assert caught.value.batch_index == 0


# -- far back ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("has_folder", [False, True])
async def test_a_change_before_the_newest_records_is_noticed(
    tmp_path: Path, form: Form, has_folder: bool
) -> None:
    store, count = MemoryStore(), PAGE + 300
    settings = {"output_dir": tmp_path} if has_folder else {}
    async with begin(store, **settings) as run, run.open_stream("s") as stream:
        await several(stream, range(count), [])
    for at in (0, 3, PAGE // 2, count - 1):
        changed = [*range(count), "one more"]
        changed[at] = "another"
        async with begin(store, **settings) as run:
            with pytest.raises(SourceChangedError) as caught:
                async with run.open_stream("s") as stream:
                    await loop(stream, form(changed), [])
        assert caught.value.batch_index == at
        assert caught.value.was == item_digest(str(at)).hex()
        assert '"another"' in caught.value.now


async def test_two_items_that_changed_places_are_noticed() -> None:
    store, items = MemoryStore(), [0, 1] * 20
    async with begin(store) as run, run.open_stream("s") as stream:
        await several(stream, items, [])
    swapped = [1, 0, 0, 1, *items[4:]]  # the sum of what each index times its item gives stays
    async with begin(store) as run:
        with pytest.raises(SourceChangedError) as caught:
            async with run.open_stream("s") as stream:
                await several(stream, swapped, [])
    assert caught.value.batch_index == 0


async def test_no_record_is_read_where_the_source_is_the_same() -> None:
    store = Read()
    async with begin(store) as run, run.open_stream("s") as stream:
        await several(stream, range(30), [])
    async with begin(store) as run, run.open_stream("s") as stream:
        await loop(stream, range(30), [])
    assert store.reads == 0


async def test_other_tasks_go_on_while_a_long_source_is_compared() -> None:
    count, steps = 10 * ITEMS_PER_STEP, 0
    progress = Progress()
    for index in range(count):
        item = item_digest(default_key(index))
        apply(progress, index + 1, Record(at=0.0, index=index, item=item))

    async def count_steps() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    source = Source(range(count), first_index=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_steps)
        await check_source(source, progress, _no_pages, ("r", ("s",)))
        nursery.cancel_scope.cancel()
    assert steps >= 5


def _no_pages() -> Any:
    raise AssertionError("no record is needed")


# -- what is re-queued ---------------------------------------------------------------------


async def test_what_went_back_to_work_may_have_another_item() -> None:
    store = MemoryStore()
    items = list("abcdef")

    async def some(batch: Batch[str]) -> None:
        if batch.item in "be":
            batch.skip("not today")
        else:
            batch.complete()

    async with begin(store) as run:
        async with run.open_stream("s") as stream:
            await run_batches(stream, items, some)
            await stream.redo([2, 4], reason="c was wrong, and e too")
            await stream.redo([1], reason="b was skipped")
        for source in (list("aBCdEf"), list("aBCdEfgh")):
            async with run.open_stream("s") as stream:
                await loop(stream, source, [])
        await run.rewind(("s",), to=5, reason="g and h were none")
    async with begin(store) as run, run.open_stream("s") as stream:
        await loop(stream, list("aBCdEfxy"), done := [])
    assert done == ["x", "y"]


async def test_what_is_retried_may_have_another_item() -> None:
    store = MemoryStore()

    async def odd(batch: Batch[int]) -> None:
        if batch.index % 2:
            batch.skip("odd")
        else:
            batch.complete()

    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(6), odd)
    async with begin(store) as run:
        with pytest.raises(SourceChangedError):  # a skipped one is done, too
            async with run.open_stream("s") as stream:
                await loop(stream, [0, 99, 2, 3, 4, 5], [])
    async with begin(store, retry_failed=True) as run, run.open_stream("s") as stream:
        await loop(stream, [0, 99, 2, 98, 4, 97], done := [])
    assert done == [99, 98, 97]


async def test_the_sum_of_items_is_that_of_what_stands() -> None:
    """Whatever is re-queued, the fast way still answers."""
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("s") as stream:
            await several(stream, range(10), [])
            await stream.redo([3, 7], reason="x")
            await several(stream, range(10), [])
        await run.rewind(("s",), to=4, reason="x")
    async with begin(store) as run, run.open_stream("s") as stream:
        await several(stream, range(12), [])
        progress = stream.progress
    live = LiveRecords(progress)
    async for records in read_pages(store, "r", 0, ("s",)):
        for entry in live.of(records):
            progress.items -= item_mark(entry.index, entry.record.item)
    assert progress.items % 2**128 == 0


async def test_batches_without_an_item_are_no_change(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        (tmp_path / "3").write_text("found")
        await stream.rescan(str, total=4, adopt_outputs=True)
        async for batch in stream.batches():  # an open end
            batch.complete()
            if batch.index == 1:
                break
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await loop(stream, list("abcde"), done := [])
    assert done == ["c", "e"]
    async with begin(store, output_dir=tmp_path) as run:
        with pytest.raises(SourceChangedError) as caught:
            async with run.open_stream("s") as stream:
                await loop(stream, list("XYZde"), [])
    assert caught.value.batch_index == 2


async def test_records_that_cannot_be_read_are_an_error_of_the_store() -> None:
    store = Read()
    async with begin(store) as run, run.open_stream("s") as stream:
        await several(stream, range(5), [])
    store.is_broken = True
    async with begin(store) as run:
        with pytest.raises(StoreError, match="the disk is gone"):
            async with run.open_stream("s") as stream:
                await loop(stream, list("abcde"), [])
