"""The ten points in which seed 002, "Checkpointing Patterns", sums itself up; a test for each.

Pages of a book are worked on by stages; here each test is a small stage of a few pages.
"""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from tests.opening import begin
from trio_ckpt import Batch, RetryRule, RetryTable, Status, open_run, run_batches
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore

PAGES = 6


@attrs.frozen
class Page:
    """What the stage writes for each page."""

    page: int
    text: str


SCHEMA = {
    "type": "object",
    "required": ["page", "text"],
    "properties": {"page": {"type": "integer"}, "text": {"type": "string"}},
}


def refuse_placeholders(value: Any) -> None:
    text = value.text if isinstance(value, Page) else value["text"]
    if text == "TODO":
        raise ValueError("a placeholder")


def name_of(page: int) -> str:
    return f"page-{page}.json"


def pages_in(folder: Path) -> list[str]:
    """Whatever is there: pages, and what should not be; not the manifest of a complete run."""
    return sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")


async def write_page(batch: Batch[Any], **settings: Any) -> None:
    """A good page."""
    path = await batch.write_json(name_of(batch.index), {"page": batch.index, "text": "text"})
    batch.complete(outputs=[path], **settings)


async def run_stage(
    store: Store,
    folder: Path,
    work: Callable[[Batch[Any]], Any] = write_page,
    *,
    end: int | None = None,
    **settings: Any,
) -> list[int]:
    """One session of the stage; returns the pages that were begun."""
    begun = []

    async def handle(batch: Batch[Any]) -> None:
        begun.append(batch.index)
        await work(batch)

    async with begin(store, "book", output_dir=folder) as run:
        async with run.open_stream("stage", first_index=1, **settings) as stream:
            await run_batches(stream, range(1, PAGES + 1), handle, end=end)
    return begun


async def progress_of(store: Store) -> trio_ckpt.Progress:
    view = await store.load_run("book")
    assert view is not None
    return view.streams["stage",].progress


@pytest.mark.parametrize("validate", [Page, SCHEMA], ids=["attrs class", "JSON Schema"])
@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"page": 3}, "text"),
        ({"page": "three", "text": "text"}, "page"),
        ({"page": 3, "text": None}, "text"),
        ({"page": 3, "text": "TODO"}, "a placeholder"),
    ],
)
async def test_summary_01_validates_outputs_using_schemas(
    validate: Any, bad: dict[str, Any], field: str, tmp_path: Path
) -> None:
    """What does not fit the schema, or stands for something that is not there, is never done."""
    store = MemoryStore()
    wrong = True

    async def work(batch: Batch[Any]) -> None:
        if batch.index == 3 and wrong:
            batch.complete(outputs=[await batch.write_json(name_of(3), bad)])
        else:
            await write_page(batch)

    checks = (validate, refuse_placeholders)
    with pytest.raises(trio_ckpt.BatchFailedError, match=field) as caught:
        await run_stage(store, tmp_path, work, validate=checks)
    assert isinstance(caught.value.__cause__, trio_ckpt.OutputInvalidError)
    assert caught.value.batch_index == 3
    assert list((await progress_of(store.after_crash())).confirmed) == [1, 2]

    wrong = False
    assert await run_stage(store, tmp_path, work, validate=checks) == [3, 4, 5, 6]


async def test_summary_01_also_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    """Broken JSON and invalid UTF-8 are refused, too, and the retry table may ask again."""
    tries: dict[int, int] = {}
    broken = [b'{"page": 3, "te', b'\xff{"page": 3, "text": "text"}', b""]

    async def work(batch: Batch[Any]) -> None:
        tries[batch.index] = batch.attempt
        if batch.index == 3 and batch.attempt <= len(broken):
            data = broken[batch.attempt - 1]
            batch.complete(outputs=[await batch.write_bytes(name_of(3), data)])
        else:
            await write_page(batch)

    retry = RetryTable((RetryRule((trio_ckpt.OutputInvalidError,), attempts=4, backoff_s=0),))
    await run_stage(MemoryStore(), tmp_path, work, validate=Page, retry=retry)
    assert tries == {1: 1, 2: 1, 3: 4, 4: 1, 5: 1, 6: 1}
    assert json.loads((tmp_path / name_of(3)).read_text()) == {"page": 3, "text": "text"}


async def test_summary_02_syncs_with_the_output_directory_on_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is the truth: what was deleted, cut or spoiled there is done again."""
    store = MemoryStore()
    assert await run_stage(store, tmp_path, validate=Page) == [1, 2, 3, 4, 5, 6]
    (tmp_path / name_of(2)).unlink()
    (tmp_path / name_of(4)).write_bytes(b'{"page": 4, ')
    (tmp_path / name_of(5)).write_text('{"page": 5, "text": null}')
    with caplog.at_level(logging.WARNING):
        assert await run_stage(store, tmp_path, validate=Page) == [2, 4, 5]
    for page in (2, 4, 5):
        assert f"batch {page}" in caplog.text
    assert await run_stage(store, tmp_path, validate=Page) == []


async def test_summary_02_finds_outputs_that_no_record_names(tmp_path: Path) -> None:
    """The store was lost, the files are there: valid ones are found, adopted only if asked."""
    await run_stage(MemoryStore(), tmp_path, validate=Page)
    (tmp_path / name_of(3)).write_text('{"page": 3}')
    async with begin(MemoryStore(), "book", output_dir=tmp_path) as run:
        async with run.open_stream("stage", first_index=1, validate=Page) as stream:
            assert await stream.rescan(name_of, total=PAGES) == [1, 2, 4, 5, 6]
            assert stream.remaining(total=PAGES) == [1, 2, 3, 4, 5, 6]
            assert await stream.rescan(name_of, total=PAGES, adopt_outputs=True) == [1, 2, 4, 5, 6]
            assert stream.remaining(total=PAGES) == [3]
            assert stream.statistics().adopted == 5


async def test_summary_03_accumulates_costs_across_runs(tmp_path: Path) -> None:
    """The seed's own figures: 8.50, then 1.20 and 0.50 more; never reset, also not by failures."""
    store = MemoryStore()
    sessions = [(2, 4.25), (4, 0.60), (6, 0.25)]
    shown = []
    for end, price in sessions:
        async with begin(store, "book", output_dir=tmp_path) as run:
            async with run.open_stream("stage", first_index=1) as stream:

                async def handle(batch: Batch[int], price: float = price) -> None:
                    batch.spend(cost_usd=price)
                    await write_page(batch, totals={"cost_usd": price})

                await run_batches(stream, range(1, PAGES + 1), handle, end=end)
                now = stream.statistics()
        shown.append((now.session_spent["cost_usd"], now.spent["cost_usd"]))
    assert [session for session, _ in shown] == pytest.approx([8.50, 1.20, 0.50])
    assert [total for _, total in shown] == pytest.approx([8.50, 9.70, 10.20])
    exact = sum(2 * Fraction(price) for _, price in sessions)
    assert (await progress_of(store)).totals["cost_usd"].value == float(exact)


async def test_summary_03_what_failed_was_spent_too(tmp_path: Path) -> None:
    """Spent counts every attempt; produced counts each page once, also when it is redone."""
    store = MemoryStore()

    async def work(batch: Batch[Any]) -> None:
        batch.spend(cost_usd=1)
        if batch.index == 3 and batch.attempt == 1:
            raise ValueError("not today")
        await write_page(batch, totals={"cost_usd": 1})

    retry = RetryTable((RetryRule((ValueError,), backoff_s=0),))
    await run_stage(store, tmp_path, work, retry=retry)
    progress = await progress_of(store)
    assert progress.spent["cost_usd"].value == 7
    assert progress.totals["cost_usd"].value == 6

    async with begin(store, "book", output_dir=tmp_path) as run:
        async with run.open_stream("stage", first_index=1) as stream:
            await stream.redo([2, 5], reason="they look odd")
            await run_batches(stream, range(1, PAGES + 1), work)
    progress = await progress_of(store)
    assert progress.spent["cost_usd"].value == 9
    assert progress.totals["cost_usd"].value == 6


async def test_summary_04_saves_before_marking(tmp_path: Path) -> None:
    """A page is never marked without its file; a file without its mark is written once more."""
    kept = MemoryStore()
    broken = FaultyStore(kept, dict.fromkeys(range(3, 100), Fail()))
    with pytest.raises(trio_ckpt.StoreError):
        await run_stage(broken, tmp_path)
    written = set(pages_in(tmp_path))
    marked = {name_of(page) for page in (await progress_of(kept.after_crash())).confirmed}
    assert marked == {name_of(1)}
    assert written == {name_of(1), name_of(2)}
    assert await run_stage(kept, tmp_path) == [2, 3, 4, 5, 6]


async def test_summary_04_a_page_that_cannot_be_written_is_not_marked(tmp_path: Path) -> None:
    (tmp_path / name_of(2)).mkdir()  # in the way of the file
    store = MemoryStore()
    with pytest.raises(trio_ckpt.OutputError):
        await run_stage(store, tmp_path)
    assert list((await progress_of(store)).confirmed) == [1]


async def test_summary_05_thread_safe_for_parallel_workers(tmp_path: Path) -> None:
    """Pages are written and completed from threads, many at once; nothing is lost or doubled."""
    pages = 200
    store, workers = MemoryStore(), set[int]()

    def work_in_thread(batch: Batch[int]) -> None:
        workers.add(threading.get_ident())
        value = {"page": batch.index, "text": "text"}
        path = trio.from_thread.run(batch.write_json, name_of(batch.index), value)
        complete = partial(batch.complete, outputs=[path], records=1, totals={"cost": 0.1})
        assert trio.from_thread.run_sync(complete)

    async def handle(batch: Batch[int]) -> None:
        await trio.to_thread.run_sync(work_in_thread, batch)

    async with begin(store, "book", output_dir=tmp_path) as run:
        async with run.open_stream("stage", first_index=1, validate=Page) as stream:
            await run_batches(stream, range(1, pages + 1), handle, concurrency=8)
    progress = await progress_of(store)
    assert threading.get_ident() not in workers
    assert list(progress.confirmed) == list(range(1, pages + 1))
    assert progress.records == pages
    assert progress.totals["cost"].value == float(pages * Fraction(0.1))
    assert len(pages_in(tmp_path)) == pages


async def test_summary_06_saves_on_every_completion(tmp_path: Path) -> None:
    """Whenever a page was completed, a crash in the next one finds it saved."""
    store, found = MemoryStore(), list[list[int]]()

    async def work(batch: Batch[Any]) -> None:
        view = await store.after_crash().load_run("book")
        known = view.streams.get(("stage",)) if view is not None else None
        found.append(list(known.progress.confirmed) if known is not None else [])
        await write_page(batch)

    await run_stage(store, tmp_path, work)
    assert found == [list(range(1, page)) for page in range(1, PAGES + 1)]


async def test_summary_07_preserves_partial_progress_on_failures(tmp_path: Path) -> None:
    """What was done stays done; the error is recorded with its time, and raised as it was."""
    store = MemoryStore()
    problem = RuntimeError("the scanner is on fire")

    async def stage() -> list[int]:
        begun = []
        async with begin(store, "book", output_dir=tmp_path) as run:
            async with run.open_stream("stage", first_index=1) as stream:
                async for batch in stream.batches(range(1, PAGES + 1)):
                    begun.append(batch.index)
                    if batch.index == 4 and not is_mended:
                        raise problem
                    await write_page(batch)
        return begun

    is_mended = False
    with pytest.raises(RuntimeError) as caught:
        await stage()
    assert caught.value is problem
    progress = await progress_of(store)
    assert progress.status is Status.FAILED
    assert list(progress.confirmed) == [1, 2, 3]
    assert progress.error is not None
    assert (progress.error.type, progress.error.message) == ("RuntimeError", str(problem))
    assert progress.error.batch_index == 4
    assert progress.failed_at is not None

    is_mended = True
    assert await stage() == [4, 5, 6]
    assert (await progress_of(store)).status is Status.COMPLETE


async def test_summary_08_uses_atomic_updates(tmp_path: Path) -> None:
    """Temporary file, then rename: a page is there whole or not at all, also while it is replaced.

    What a killed session left of temporary files is cleaned up; what cannot be, does no harm.
    """
    store, seen = MemoryStore(), list[str]()

    async def work(batch: Batch[Any]) -> None:
        path = tmp_path / name_of(batch.index)
        await batch.write_json(path, {"page": batch.index, "text": "draft"})
        seen.append(path.read_text())
        with pytest.raises(trio_ckpt.NotEncodableError):
            await batch.write_json(path, {"page": batch.index, "text": object()})
        seen.append(path.read_text())  # as it was
        await write_page(batch)

    await run_stage(store, tmp_path, work, end=2)
    assert seen == [f'{{"page":{page},"text":"draft"}}\n' for page in (1, 1, 2, 2)]
    assert pages_in(tmp_path) == [name_of(1), name_of(2)]

    async with begin(store, "book", output_dir=tmp_path):
        killed = store.after_crash()
    orphan = tmp_path / f".{name_of(3)}.ckpt-tmp-0123456789abcdef"
    orphan.write_bytes(b'{"page": 3, "te')
    assert await run_stage(killed, tmp_path) == [3, 4, 5, 6]
    assert not orphan.exists()


async def test_summary_09_logs_resume_information(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is skipped, what that saves, and what is left."""
    store = MemoryStore()

    async def work(batch: Batch[Any]) -> None:
        batch.spend(cost_usd=2.0)
        await write_page(batch)

    await run_stage(store, tmp_path, work, end=4)
    with caplog.at_level(logging.INFO):
        await run_stage(store, tmp_path, work)
    assert "resuming: 4 of 6 batches done, 8 cost_usd saved, 2 left" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        await run_stage(store, tmp_path, work)
    assert "resuming: 6 of 6 batches done, 12 cost_usd saved, 0 left" in caplog.text


async def test_summary_10_records_metadata(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What the stage says of itself, and what is added: duration, counts, when."""
    store = MemoryStore()
    for end, minutes in ((2, 5), (None, 10)):
        async with begin(store, "book", output_dir=tmp_path) as run:
            async with run.open_stream("stage", first_index=1) as stream:

                async def handle(batch: Batch[int], minutes: int = minutes) -> None:
                    await trio.sleep(60 * minutes)
                    await write_page(batch, records=1)

                await run_batches(stream, range(1, PAGES + 1), handle, end=end)
                now = stream.statistics()
                if not stream.remaining(total=PAGES):
                    await stream.finish(metadata={"model": "small-1", "pages": now.session_records})
        await trio.sleep(86_400)  # downtime is no runtime
    progress = await progress_of(store)
    assert progress.metadata == {"model": "small-1", "pages": 4}
    assert progress.status is Status.COMPLETE
    assert progress.completed_at is not None
    assert progress.records == 6
    assert now.session_s == pytest.approx(4 * 600)
    # Of earlier sessions the records tell, by the time of day, which no mock clock moves.
    assert now.session_s <= now.runtime_s < now.session_s + 60
    assert (now.session_confirmed, now.confirmed) == (4, 6)


# ---------------------------------------------------------------- principles beside the summary


async def test_a_fresh_start_begins_again_and_keeps_the_old(tmp_path: Path) -> None:
    """The seed's `reset()` when a resume is not wanted; nothing is deleted."""
    store = MemoryStore()
    await run_stage(store, tmp_path)
    async with begin(store, "book", output_dir=tmp_path, fresh=True) as run:
        async with run.open_stream("stage", first_index=1) as stream:
            assert stream.remaining(total=PAGES) == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / ".archive").rglob("page-*.json"))) == PAGES


async def test_remaining_pages_of_a_range(tmp_path: Path) -> None:
    """The seed's `get_remaining_pages(total_pages, start_page, end_page)`."""
    store = MemoryStore()
    assert await run_stage(store, tmp_path, end=2) == [1, 2]
    async with begin(store, "book", output_dir=tmp_path) as run:
        async with run.open_stream("stage", first_index=1) as stream:
            assert stream.remaining(total=PAGES) == [3, 4, 5, 6]
            assert stream.remaining(total=PAGES, start=2, end=4) == [3, 4]
            await run_batches(stream, range(1, PAGES + 1), write_page, start=4, end=5)
            assert stream.remaining(total=PAGES) == [3, 6]
            assert stream.status is not Status.COMPLETE, "a range is not the whole"
            await run_batches(stream, range(1, PAGES + 1), write_page)
            assert stream.status is Status.COMPLETE


async def test_no_checkpoints_wanted(tmp_path: Path) -> None:
    """The seed's `enable_checkpoints=False`: the same program with a store that ends with it."""
    for _ in range(2):
        async with open_run("book", store="memory:", output_dir=tmp_path) as run:
            async with run.open_stream("stage", first_index=1) as stream:
                assert stream.remaining(total=PAGES) == [1, 2, 3, 4, 5, 6]
                await run_batches(stream, range(1, PAGES + 1), write_page)
