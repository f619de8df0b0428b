"""Batches of a run that is done again are re-queued: their work is done, and nothing is lost."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import (
    CannotRunAgainError,
    OutputError,
    OutputsMissingError,
    RetryRule,
    RetryTable,
    find_drift,
    open_maintenance,
)
from trio_ckpt._commit.saves import save_records
from trio_ckpt._journal.changes import again_of
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt._runs import again_stream
from trio_ckpt.abc import Store
from trio_ckpt.outputs import OutputDir
from trio_ckpt.stores import MemoryStore

ITEMS = {"a": "1", "b": "1", "c": "1"}


async def do(
    store: Store, folder: Path, items: dict[str, str], *, until: str = "", **options: Any
) -> list[str]:
    """Work on items, up to a crash at one; which ones were written."""
    written: list[str] = []
    async with begin(store, output_dir=folder, **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(sorted(items)):
            if batch.item == until:
                raise RuntimeError("a crash")
            was, value = batch.previous, items[batch.item]
            if was is not None and was.metadata["v"] == value:
                batch.unchanged()
                continue
            written.append(batch.item)
            await batch.write_text(f"{batch.item}.txt", value)
            batch.complete(metadata={"v": value})
    return written


async def interrupted(store: Store, folder: Path, items: dict[str, str], until: str) -> None:
    with pytest.raises(RuntimeError, match="a crash"):
        await do(store, folder, items, until=until, again=True)


async def counts_of(store: Store) -> dict[str, int]:
    """What the newest generation says has changed, without what is zero."""
    view = await store.load_run("r")
    assert view is not None
    found = again_of(session_metadata_of(view), view.generation)
    assert found is not None
    return {name: count for name, count in found.counts.items() if count}


async def problems_of(store: Store, folder: Path) -> tuple[Any, ...]:
    view = await store.load_run("r")
    assert view is not None
    with closing(OutputDir.open(folder)) as outputs:
        return (await find_drift(store, view, outputs, mode="sha256")).problems


async def test_a_complete_one_counts_a_lost_output_as_changed(tmp_path: Path) -> None:
    store = MemoryStore()
    await do(store, tmp_path, ITEMS)
    await do(store, tmp_path, ITEMS | {"b": "2"}, again=True)
    (tmp_path / "a.txt").unlink()
    assert await do(store, tmp_path, ITEMS | {"b": "2"}) == ["a"]
    assert await counts_of(store) == {"changed": 2, "unchanged": 1}
    assert await problems_of(store, tmp_path) == ()


async def test_a_carried_output_that_is_lost_is_made_by_one_start(tmp_path: Path) -> None:
    store = MemoryStore()
    await do(store, tmp_path, ITEMS)
    await interrupted(store, tmp_path, ITEMS, until="c")
    (tmp_path / "a.txt").unlink()
    assert await do(store, tmp_path, ITEMS, again=True) == ["a"]
    assert (tmp_path / "a.txt").read_text() == "1"
    assert await counts_of(store) == {"changed": 1, "unchanged": 2}


async def test_the_next_attempt_makes_what_was_lost_meanwhile(tmp_path: Path) -> None:
    store, attempts = MemoryStore(), list[bool]()
    await do(store, tmp_path, {"a": "1"})
    async with (
        begin(store, output_dir=tmp_path, again=True) as run,
        run.open_stream(
            "s", retry=RetryTable((RetryRule((OutputError,), backoff_s=0.0),))
        ) as stream,
    ):
        async for batch in stream.batches(["a"]):
            attempts.append(batch.previous is not None)
            if batch.previous is not None:
                (tmp_path / "a.txt").unlink()
                batch.unchanged()
                continue
            await batch.write_text("a.txt", "1")
            batch.complete(metadata={"v": "1"})
    assert attempts == [True, False]


async def test_many_batches_that_are_rewound_do_their_work_again(tmp_path: Path) -> None:
    store, items = MemoryStore(), {f"i{number:02}": "1" for number in range(30)}
    await do(store, tmp_path, items)
    await interrupted(store, tmp_path, items, until="i29")
    async with open_maintenance(store, "r", output_dir=tmp_path) as maintenance:
        await maintenance.rewind(("s",), to=-1, reason="for a test")
    assert await do(store, tmp_path, items) == sorted(items)[:29]
    assert await counts_of(store) == {"changed": 29, "unchanged": 1}
    assert await problems_of(store, tmp_path) == ()


async def test_a_prune_leaves_what_is_needed_and_no_more(tmp_path: Path) -> None:
    store = MemoryStore()
    await do(store, tmp_path, ITEMS)
    await interrupted(store, tmp_path, ITEMS, until="b")
    async with open_maintenance(store, "r", output_dir=tmp_path) as maintenance:
        with pytest.raises(CannotRunAgainError, match="prune it then, or keep 2"):
            await maintenance.prune(keep=1)
        assert (await maintenance.prune(keep=2)).generations == 0
    assert await do(store, tmp_path, ITEMS, again=True) == []
    async with open_maintenance(store, "r", output_dir=tmp_path) as maintenance:
        assert (await maintenance.prune(keep=1)).generations == 1
        await maintenance.rewind(("s",), to=1, reason="for a test")
    assert await do(store, tmp_path, ITEMS) == ["c"]  # nothing is left to compare it with
    assert await do(store, tmp_path, ITEMS, again=True) == []


# -- cursors --------------------------------------------------------------------------------------


async def follow(store: Store, folder: Path, rows: int, *, until: int = -1, **options: Any) -> Any:
    """Collect numbers from a cursor on, two a page; where each page began."""
    began: list[tuple[int, int]] = []
    async with (
        begin(store, output_dir=folder, **options) as run,
        run.open_stream("s", lag=1) as stream,
    ):
        async for batch in stream.batches():
            if batch.index == until:
                raise RuntimeError("a crash")
            since = stream.cursor or 0
            assert isinstance(since, int)
            page = list(range(since + 1, min(since + 3, rows + 1)))
            began.append((batch.index, since))
            await batch.write_json(f"{batch.index}.json", page)
            batch.append_json("rows.jsonl", *page)
            batch.complete(cursor=page[-1] if page else since, last=len(page) < 2)
    return began


@pytest.mark.parametrize("is_interrupted", [True, False])
async def test_a_lost_page_goes_on_from_the_cursor_before_it(
    tmp_path: Path, is_interrupted: bool
) -> None:
    store = MemoryStore()
    assert await follow(store, tmp_path, 5) == [(0, 0), (1, 2), (2, 4)]
    if is_interrupted:
        with pytest.raises(RuntimeError, match="a crash"):
            await follow(store, tmp_path, 9, until=4, again=True)
    else:
        assert await follow(store, tmp_path, 9, again=True) == [(3, 4), (4, 6), (5, 8)]
    (tmp_path / "1.json").unlink()
    for until in (2, -1):  # what was re-queued is not carried over once more by the next start
        if until == 2:
            with pytest.raises(RuntimeError, match="a crash"):
                await follow(store, tmp_path, 9, until=until)
        else:
            assert await follow(store, tmp_path, 9) == [(2, 4), (3, 6), (4, 8)]
    assert (tmp_path / "rows.jsonl").read_text().split() == list("123456789")
    assert await problems_of(store, tmp_path) == ()


async def test_what_was_carried_over_in_part_is_carried_over_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, groups = MemoryStore(), list[int]()
    await follow(store, tmp_path, 5)

    async def save_two(*args: Any) -> None:
        groups.append(0)
        if len(groups) == 3:
            raise RuntimeError("a crash")
        await save_records(*args)

    with monkeypatch.context() as patch:
        patch.setattr(again_stream, "SAVED_AT_ONCE", 1)
        patch.setattr(again_stream, "save_records", save_two)
        with pytest.raises(RuntimeError, match="a crash"):
            await follow(store, tmp_path, 5, again=True)
    assert await follow(store, tmp_path, 9) == [(3, 4), (4, 6), (5, 8)]
    assert await counts_of(store) == {"new": 3, "unchanged": 3}
    assert await problems_of(store, tmp_path) == ()


async def test_what_is_rewound_is_not_carried_over_once_more() -> None:
    async def count(until: int, **options: Any) -> list[int]:
        began: list[int] = []
        async with begin(store, **options) as run, run.open_stream("s") as stream:
            async for batch in stream.batches():
                if batch.index == until:
                    raise RuntimeError("a crash")
                began.append(batch.index)
                batch.complete(cursor=batch.index, last=batch.index % 3 == 2)
        return began

    store = MemoryStore()
    assert await count(-1) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="a crash"):
        await count(4, again=True)
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.rewind(("s",), to=0, reason="for a test")
    assert await count(-1) == [1, 2]


async def test_a_rewind_behind_what_is_carried_keeps_the_lag(tmp_path: Path) -> None:
    store = MemoryStore()
    await follow(store, tmp_path, 5)
    await follow(store, tmp_path, 9, again=True)
    async with open_maintenance(store, "r", output_dir=tmp_path) as maintenance:
        await maintenance.rewind(("s",), to=2, reason="for a test")
    assert await follow(store, tmp_path, 9) == [(3, 4), (4, 6), (5, 8)]


# -- what is not compared -------------------------------------------------------------------------


async def test_a_list_that_was_adopted_is_done_again(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "0.txt").write_text("1")
    for again in (False, True):
        async with (
            begin(store, output_dir=tmp_path, again=again) as run,
            run.open_stream("s") as stream,
        ):
            if not again:
                await stream.rescan(lambda index: [f"{index}.txt"], total=1, adopt_outputs=True)
            async for batch in stream.batches(["a"]):
                assert again
                assert batch.previous is None  # nothing says which item it was
                await batch.write_text("0.txt", "2")
                batch.complete()
    assert (tmp_path / "0.txt").read_text() == "2"
    assert (tmp_path / ".archive/r-0/0.txt").read_text() == "1"


class WatchedStore(MemoryStore):
    """Notes which generations are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    async def history(self, run_id: str, stream: str, **options: Any) -> Any:
        if stream != "[]":
            self.read.add(options["generation"])
        return await super().history(run_id, stream, **options)


async def test_a_stream_that_is_over_reads_nothing_of_the_last_one(tmp_path: Path) -> None:
    store = WatchedStore()
    for again in (False, True, False):
        store.read.clear()
        async with begin(store, again=again) as run, run.open_stream("s") as stream:
            async for batch in stream.batches([1, 2, 3]):
                batch.complete()
    assert 0 not in store.read


# -- files that are not as they were --------------------------------------------------------------


async def log_of(store: Store, folder: Path, value: str, until: str = "", **options: Any) -> None:
    """Append a line for each of three items."""
    async with begin(store, output_dir=folder, **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "b", "c"]):
            if batch.item == until:
                raise RuntimeError("a crash")
            batch.append_json("log.jsonl", batch.item + value)
            batch.complete()


@pytest.mark.parametrize(("until", "left"), [("a", 5), ("c", 5), ("c", 0)])
async def test_a_log_that_lost_old_lines_is_refused_once(
    tmp_path: Path, until: str, left: int
) -> None:
    store, log = MemoryStore(), tmp_path / "log.jsonl"
    await log_of(store, tmp_path, "1")
    with pytest.raises(RuntimeError, match="a crash"):
        await log_of(store, tmp_path, "2", until=until, again=True)
    log.write_bytes(log.read_bytes()[:left])
    with pytest.raises(OutputsMissingError, match="redo_missing=True"):
        await log_of(store, tmp_path, "2")
    await log_of(store, tmp_path, "2", redo_missing=True)
    assert log.read_text().split() == ['"a2"', '"b2"', '"c2"']
    assert await problems_of(store, tmp_path) == ()


async def test_without_a_check_what_is_lost_is_made_again(tmp_path: Path) -> None:
    store = MemoryStore()
    await do(store, tmp_path, ITEMS)
    (tmp_path / "a.txt").unlink()
    assert await do(store, tmp_path, ITEMS, again=True, verify="off") == ["a"]


async def test_what_was_before_is_known_while_the_stream_is_open(tmp_path: Path) -> None:
    store, batches = MemoryStore(), list[Any]()
    await do(store, tmp_path, {"a": "1"})
    async with begin(store, output_dir=tmp_path, again=True) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a"]):
            batches.append(batch)
            batch.unchanged()
    with pytest.raises(RuntimeError, match="while the stream is open"):
        _ = batches[0].previous


async def test_a_session_has_not_produced_what_it_carries_over() -> None:
    store, made = MemoryStore(), list[tuple[int, int, Any]]()
    for again in (False, True):
        async with begin(store, again=again) as run, run.open_stream("s") as stream:
            async for batch in stream.batches():
                is_last = batch.index % 3 == 2
                batch.complete(cursor=batch.index, last=is_last, records=5, totals={"n": 1})
            found = run.statistics()
            made.append((found.records, found.session_records, dict(found.session_totals)))
    assert made == [(15, 15, {"n": 3}), (30, 15, {"n": 3})]
