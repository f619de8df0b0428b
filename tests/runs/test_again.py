"""A run that is done again leaves what a fresh run leaves, and does only what has changed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin, begin_blocking
from tests.outputs.faulty import files_in
from trio_ckpt import (
    CannotRunAgainError,
    Frontier,
    OutputsMissingError,
    Stream,
    export_run,
    find_drift,
    import_run,
    run_batches,
)
from trio_ckpt._journal.changes import AGAIN, again_of, iter_changes
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt.abc import Store
from trio_ckpt.outputs import OutputDir
from trio_ckpt.stores import MemoryStore, open_store

Items = Mapping[str, str]
"""The content of each item, by its key."""


async def do(
    store: Store, folder: Path, items: Items, *, order: list[str] | None = None, **options: Any
) -> list[str]:
    """Work on items, in an order; which ones were written."""
    written: list[str] = []
    async with (
        begin(store, output_dir=folder, **options) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(order or sorted(items)):
            value, was = items[batch.item], batch.previous
            if was is not None and was.metadata["etag"] == value:
                batch.unchanged()
                continue
            written.append(batch.item)
            await batch.write_text(f"{batch.item}/{value}.txt", value)
            await batch.write_text(f"{batch.item}/page.txt", value)
            batch.complete(metadata={"etag": value}, records=len(value), totals={"bytes": 1})
    return written


def standing(folder: Path) -> dict[str, bytes]:
    """The outputs, without what is in the archive and the manifest."""
    found = files_in(folder)
    return {
        name: data
        for name, data in found.items()
        if not name.startswith(".archive/") and name != "manifest.json"
    }


def listed(folder: Path) -> dict[str, str]:
    """The outputs in the manifest, and their hashes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {
        output["path"]: output["sha256"]
        for stream in manifest["streams"]
        for output in stream["outputs"]
    }


async def counts_of(store: Store) -> dict[str, int]:
    """What the newest generation says has changed."""
    view = await store.load_run("r")
    assert view is not None
    found = again_of(session_metadata_of(view), view.generation)
    assert found is not None
    return dict(found.counts)


async def listed_changes(store: Store) -> Counter[str]:
    """What the records say has changed."""
    view = await store.load_run("r")
    assert view is not None
    base = await store.load_run("r", session_metadata_of(view)[AGAIN]["base"])
    assert base is not None
    found: Counter[str] = Counter()
    async for page in iter_changes(store, view, base, is_complete=True):
        found.update(item.change.value for item in page)
    return found


async def problems_of(store: Store, folder: Path) -> tuple[Any, ...]:
    """How the outputs differ from the records."""
    view = await store.load_run("r")
    assert view is not None
    with closing(OutputDir.open(folder)) as outputs:
        return (await find_drift(store, view, outputs, mode="sha256")).problems


def expected_counts(old: Items, new: Items) -> dict[str, int]:
    return {
        "new": len(new.keys() - old.keys()),
        "changed": sum(old[key] != new[key] for key in old.keys() & new.keys()),
        "unchanged": sum(old[key] == new[key] for key in old.keys() & new.keys()),
        "gone": len(old.keys() - new.keys()),
        "skipped": 0,
    }


def change(chance: random.Random, items: Items) -> dict[str, str]:
    """Items of which some are new, changed or gone."""
    kept = {key: value for key, value in items.items() if chance.random() > 0.2}
    changed = {key: f"{value}+" if chance.random() < 0.3 else value for key, value in kept.items()}
    return changed | {f"n{chance.randrange(10**6)}": "1" for _ in range(chance.randrange(4))}


@pytest.mark.parametrize("seed", range(100))
async def test_random_changes_leave_what_a_fresh_run_leaves(tmp_path: Path, seed: int) -> None:
    chance, store = random.Random(seed), MemoryStore()
    old = {f"i{number}": "1" for number in range(chance.randrange(1, 9))}
    await do(store, tmp_path / "again", old)
    for generation in (1, 2):
        new = change(chance, old) or {"last": "1"}
        order = chance.sample(sorted(new), len(new))  # items move, too
        written = await do(store, tmp_path / "again", new, order=order, again=True)
        fresh = tmp_path / f"fresh{generation}"
        await do(MemoryStore(), fresh, new, order=order)
        assert standing(tmp_path / "again") == standing(fresh)
        assert listed(tmp_path / "again") == listed(fresh)
        assert await counts_of(store) == expected_counts(old, new)
        assert await listed_changes(store) == Counter(expected_counts(old, new))
        assert set(written) == {key for key in new if old.get(key) != new[key]}
        assert await problems_of(store, tmp_path / "again") == ()
        old = new


@pytest.mark.parametrize("address", ["memory:", "sqlite", "json:"])
async def test_it_works_on_each_store(tmp_path: Path, address: str) -> None:
    names = {"memory:": "memory:", "sqlite": str(tmp_path / "s"), "json:": f"json:{tmp_path}/j"}
    store = await open_store(names[address])
    old, new = {"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}
    await do(store, tmp_path / "out", old)
    assert await do(store, tmp_path / "out", new, again=True) == ["b", "d"]
    assert standing(tmp_path / "out").keys() == {
        "a/1.txt", "a/page.txt", "b/2.txt", "b/page.txt", "d/1.txt", "d/page.txt",
    }  # fmt: skip
    assert await counts_of(store) == expected_counts(old, new)
    assert files_in(tmp_path / "out" / ".archive" / "r-0").keys() == {
        "b/1.txt", "b/page.txt", "c/1.txt", "c/page.txt",
    }  # fmt: skip
    await store.aclose()


SITE = {"/": ["/a", "/b"], "/a": ["/b", "/c"], "/b": [], "/c": []}


async def crawl(
    store: Store, folder: Path, links: Mapping[str, list[str]], **options: Any
) -> list[str]:
    """Crawl pages by their links; which ones were read."""
    read: list[str] = []

    async def visit(batch: Any) -> None:
        found, was = links[batch.item], batch.previous
        batch.add(found)
        if was is not None and was.metadata["links"] == found:
            batch.unchanged()
            return
        read.append(batch.item)
        await batch.write_text(f"{batch.item.strip('/') or 'root'}.txt", " ".join(found))
        batch.complete(metadata={"links": found})

    async with (
        begin(store, output_dir=folder, **options) as run,
        run.open_stream("crawl", state=Frontier(["/"])) as stream,
    ):
        await run_batches(stream, None, visit, concurrency=3)
    return read


async def test_a_frontier_is_compared_by_its_keys(tmp_path: Path) -> None:
    store = MemoryStore()
    assert sorted(await crawl(store, tmp_path, SITE)) == ["/", "/a", "/b", "/c"]
    changed = {"/": ["/b", "/a", "/d"], "/a": ["/b"], "/b": [], "/d": []}  # in another order
    assert sorted(await crawl(store, tmp_path, changed, again=True)) == ["/", "/a", "/d"]
    assert await counts_of(store) == {
        "new": 1, "changed": 2, "unchanged": 1, "gone": 1, "skipped": 0,
    }  # fmt: skip
    assert standing(tmp_path).keys() == {"root.txt", "a.txt", "b.txt", "d.txt"}


async def collect(
    store: Store, folder: Path, rows: list[int], *, lag: Any = None, **options: Any
) -> list[int]:
    """Collect rows from a cursor on, two a page; where each page began."""
    began: list[int] = []
    async with (
        begin(store, output_dir=folder, **options) as run,
        run.open_stream("rows", lag=lag) as stream,
    ):
        async for batch in stream.batches():
            since = stream.cursor or 0
            assert isinstance(since, int)
            page = [row for row in rows if row > since][:2]
            began.append(since)
            await batch.write_json(f"{batch.index}.json", page)
            batch.append_json("rows.jsonl", *page)
            batch.complete(cursor=page[-1] if page else since, last=len(page) < 2)
    return began


async def test_a_cursor_goes_on_and_its_pages_are_carried_over(tmp_path: Path) -> None:
    store = MemoryStore()
    await collect(store, tmp_path, [1, 2, 3])
    assert await collect(store, tmp_path, [1, 2, 3, 4, 5, 6], again=True) == [3, 5]
    assert (tmp_path / "rows.jsonl").read_text().split() == list("123456")
    assert listed(tmp_path).keys() == {"0.json", "1.json", "2.json", "3.json"}
    assert await counts_of(store) == {
        "new": 2, "changed": 0, "unchanged": 2, "gone": 0, "skipped": 0,
    }  # fmt: skip
    assert await collect(store, tmp_path, [1, 2, 3, 4, 5, 6], again=True, lag=2) == [4, 6]
    assert await collect(store, tmp_path, [1, 2], again=True, lag=lambda old: old - 6) == [0, 2]
    assert await problems_of(store, tmp_path) == ()


async def test_an_open_end_without_a_cursor_is_compared_by_index(tmp_path: Path) -> None:
    async def pages(texts: list[str], **options: Any) -> list[int]:
        written: list[int] = []
        async with (
            begin(store, output_dir=tmp_path, **options) as run,
            run.open_stream("pages") as stream,
        ):
            async for batch in stream.batches():
                if batch.index == len(texts):
                    batch.withdraw()
                elif batch.previous and batch.previous.metadata["text"] == texts[batch.index]:
                    batch.unchanged()
                else:
                    written.append(batch.index)
                    await batch.write_text(f"{batch.index}.txt", texts[batch.index])
                    batch.complete(metadata={"text": texts[batch.index]})
        return written

    store = MemoryStore()
    assert await pages(["a", "b", "c"]) == [0, 1, 2]
    assert await pages(["a", "B"], again=True) == [1]
    assert standing(tmp_path) == {"0.txt": b"a", "1.txt": b"B"}
    assert await counts_of(store) == {
        "new": 0, "changed": 1, "unchanged": 1, "gone": 1, "skipped": 0,
    }  # fmt: skip


# -- which generation -----------------------------------------------------------------------------


async def message_of(store: Store, folder: Path, **options: Any) -> str:
    with pytest.raises(CannotRunAgainError) as caught:
        await do(store, folder, {"a": "1"}, again=True, **options)
    return str(caught.value)


async def test_there_has_to_be_a_complete_generation(tmp_path: Path) -> None:
    store = MemoryStore()
    assert await message_of(store, tmp_path) == (
        "run 'r' cannot be done again: it has no generation yet; start it once without again=True"
    )
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "b"]):
            batch.complete(metadata={"etag": "1"})
            break
    assert await message_of(store, tmp_path) == (
        "run 'r' cannot be done again: generation 0 is not complete; start it without again=True "
        "until it is"
    )
    with pytest.raises(ValueError, match="fresh=True starts from the beginning, and again=True"):
        await do(store, tmp_path, {"a": "1"}, again=True, fresh=True)


async def test_what_was_interrupted_goes_on_whether_asked_again_or_not(tmp_path: Path) -> None:
    store, old = MemoryStore(), {"a": "1", "b": "1", "c": "1", "d": "1"}
    await do(store, tmp_path, old)
    new = {"a": "1", "b": "2", "c": "2", "d": "1"}
    for is_asked in (True, False):
        with pytest.raises(RuntimeError, match="a crash"):
            await _interrupted(store, tmp_path, new, again=is_asked or store is None)
    assert await do(store, tmp_path, new, again=True) == ["c"]
    view = await store.load_run("r")
    assert view is not None
    assert view.generation == 1
    assert await counts_of(store) == expected_counts(old, new)
    assert await do(store, tmp_path, new) == []  # complete: nothing is left to do
    assert await do(store, tmp_path, new, again=True) == []
    view = await store.load_run("r")
    assert view is not None
    assert view.generation == 2
    assert await counts_of(store) == expected_counts(new, new)


async def _ended_by_an_error(store: Store, folder: Path) -> None:
    """Confirm all batches, then end with an error."""
    async with begin(store, output_dir=folder, again=True) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(["a"]):
                batch.unchanged()
        raise RuntimeError("after all batches")


async def test_a_generation_is_complete_when_its_changes_are_counted(tmp_path: Path) -> None:
    store = MemoryStore()
    await do(store, tmp_path, {"a": "1", "b": "1"})
    with pytest.raises(RuntimeError, match="after all batches"):
        await _ended_by_an_error(store, tmp_path)
    assert "b/page.txt" in standing(tmp_path)
    assert await do(store, tmp_path, {"a": "1"}, again=True) == []
    view = await store.load_run("r")
    assert view is not None
    assert view.generation == 1
    assert standing(tmp_path).keys() == {"a/1.txt", "a/page.txt"}


async def _interrupted(store: Store, folder: Path, items: Items, **options: Any) -> None:
    """Confirm one more batch, then end with an error."""
    async with begin(store, output_dir=folder, **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(sorted(items)):
            was = batch.previous
            assert was is not None
            if was.metadata["etag"] == items[batch.item]:
                batch.unchanged()
            else:
                await batch.write_text(f"{batch.item}/page.txt", items[batch.item])
                batch.complete(metadata={"etag": items[batch.item]})
            await batch.confirm()
            raise RuntimeError("a crash")


async def test_a_fresh_start_archives_what_both_generations_have(tmp_path: Path) -> None:
    store, old = MemoryStore(), {"a": "1", "b": "1", "c": "1"}
    await do(store, tmp_path, old)
    with pytest.raises(RuntimeError, match="a crash"):
        await _interrupted(store, tmp_path, {"a": "2", "b": "1", "c": "1"}, again=True)
    await do(store, tmp_path, {"z": "1"}, fresh=True)
    assert standing(tmp_path).keys() == {"z/1.txt", "z/page.txt"}
    assert (tmp_path / ".archive/r-1/a/page.txt").read_text() == "2"
    assert (tmp_path / ".archive/r-0/a/page.txt").read_text() == "1"


async def test_an_imported_run_is_one_that_began_from_nothing(tmp_path: Path) -> None:
    store, items = await open_store(tmp_path / "s"), {"a": "1", "b": "1"}
    await do(store, tmp_path / "out", items)
    await do(store, tmp_path / "out", items, again=True)
    with pytest.raises(RuntimeError, match="a crash"):
        await _interrupted(store, tmp_path / "out", items, again=True)
    with closing(OutputDir.open(tmp_path / "out")) as outputs:
        await export_run(store, "r", tmp_path / "x", outputs=outputs)
    other = await open_store(tmp_path / "other")
    await import_run(other, tmp_path / "x", output_dir=tmp_path / "there")
    assert await do(other, tmp_path / "there", items) == ["b"]  # no generation to compare with
    assert await do(other, tmp_path / "there", items, again=True) == []
    for one in (store, other):
        await one.aclose()


# -- what an item is ------------------------------------------------------------------------------


async def test_items_need_keys_that_tell_them_apart(tmp_path: Path) -> None:
    store = MemoryStore()

    async def go(work: Any, **options: Any) -> None:
        async with begin(store, **options) as run, run.open_stream("s") as stream:
            async for batch in work(stream):
                batch.complete(last=work is open_end)

    def open_end(stream: Stream[None]) -> Any:
        return stream.batches()

    await go(lambda stream: stream.batches(["a", "b", "a"]))
    with pytest.raises(CannotRunAgainError) as caught:
        await go(lambda stream: stream.batches(["a", "b"]), again=True)
    assert str(caught.value) == (
        "run 'r', stream 's' has one key for batches 0 and 2 of generation 0, so they cannot be "
        "told apart: give key= that tells them apart, and start once with fresh=True"
    )
    await go(lambda stream: stream.batches(["a", "b"]), fresh=True)
    with pytest.raises(CannotRunAgainError) as caught:
        await go(open_end, again=True)
    assert str(caught.value) == (
        "run 'r', stream 's' cannot be compared with generation 2: its batches came from a list, "
        "whose items have keys, and now they come from an open end, whose batches have no keys; "
        "give it the source that it had, or start once with fresh=True"
    )


async def test_unchanged_needs_something_that_was_before(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a"]):
            assert batch.previous is None
            with pytest.raises(RuntimeError, match="was not begun with again=True"):
                batch.unchanged()
            await batch.write_text("a", "1")
            batch.complete()
    async with begin(store, output_dir=tmp_path, again=True) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "b"]):
            if batch.item == "b":
                with pytest.raises(RuntimeError, match="generation 0 has no such item"):
                    batch.unchanged()
                batch.complete()
                continue
            await batch.write_text("other", "1")
            with pytest.raises(RuntimeError, match="has written outputs, so it is not unchanged"):
                batch.unchanged()
            batch.complete()


async def test_a_batch_with_a_state_is_not_unchanged(tmp_path: Path) -> None:
    store = MemoryStore()
    for again in (False, True):
        async with (
            begin(store, again=again) as run,
            run.open_stream("s", state={"sum": 0}) as stream,
        ):
            async for batch in stream.batches([1, 2]):
                if again:
                    with pytest.raises(TypeError, match="its stream has a state"):
                        batch.unchanged()
                stream.state["sum"] += batch.item
                batch.complete()
            assert stream.state["sum"] == 3  # it begins as it is given


async def test_metadata_replace_those_of_the_same_names(tmp_path: Path) -> None:
    store = MemoryStore()
    for again, metadata in ((False, {}), (True, {"seen": 2}), (True, {})):
        async with begin(store, again=again) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(["a"]):
                if not again:
                    batch.complete(metadata={"etag": "x", "seen": 1})
                    continue
                was = batch.previous
                assert was is not None
                was.metadata["etag"] = "changed by the body"  # type: ignore[index]  # a copy
                assert batch.previous.metadata["etag"] == "x"
                assert batch.unchanged(metadata=metadata)
                assert not batch.unchanged()
    async with begin(store, again=True) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a"]):
            assert batch.previous is not None
            assert batch.previous.metadata == {"etag": "x", "seen": 2}
            batch.unchanged()


async def test_an_output_that_is_damaged_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, items = MemoryStore(), {"a": "1", "b": "1"}
    await do(store, tmp_path, items)
    (tmp_path / "a/page.txt").write_text("altered")
    assert await do(store, tmp_path, items, again=True) == ["a"]
    assert "of generation 0 is done again: a/page.txt is " in caplog.text
    assert (tmp_path / "a/page.txt").read_text() == "1"
    assert await counts_of(store) == expected_counts({"a": "0", "b": "1"}, items)


async def test_very_many_missing_outputs_are_refused(tmp_path: Path) -> None:
    store, items = MemoryStore(), {f"i{number}": "1" for number in range(20)}
    await do(store, tmp_path / "out", items)
    with pytest.raises(OutputsMissingError, match="of the last generation are missing"):
        await do(store, tmp_path / "other", items, again=True)


async def test_a_skipped_item_is_not_gone_and_keeps_no_output(tmp_path: Path) -> None:
    store, items = MemoryStore(), {"a": "1", "b": "1"}
    await do(store, tmp_path, items)
    async with begin(store, output_dir=tmp_path, again=True) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(sorted(items)):
            batch.unchanged() if batch.item == "a" else batch.skip("it cannot be read")
    assert standing(tmp_path).keys() == {"a/1.txt", "a/page.txt"}
    assert await counts_of(store) == {
        "new": 0, "changed": 0, "unchanged": 1, "gone": 0, "skipped": 1,
    }  # fmt: skip


async def test_an_append_file_goes_on_growing(tmp_path: Path) -> None:
    store = MemoryStore()
    for again, text in ((False, "1"), (True, "2"), (True, "2")):
        async with (
            begin(store, output_dir=tmp_path, again=again) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(["a", "b"]):
                was = batch.previous
                if was is not None and (batch.item == "b" or was.metadata["text"] == text):
                    batch.unchanged()
                else:
                    batch.append_json("lines.jsonl", batch.item + text)
                    batch.complete(metadata={"text": text})
    assert (tmp_path / "lines.jsonl").read_text().split() == ['"a1"', '"b1"', '"a2"']
    assert await problems_of(store, tmp_path) == ()


async def test_a_stream_that_is_not_opened_any_more_is_gone(tmp_path: Path) -> None:
    store = MemoryStore()
    for again, keys in ((False, "xy"), (True, "x")):
        async with begin(store, output_dir=tmp_path, again=again) as run:
            for key in keys:
                async with run.open_stream(key) as stream:
                    async for batch in stream.batches(["a"]):
                        await batch.write_text(f"{key}.txt", key)
                        batch.append_json(f"{key}.jsonl", key)
                        batch.complete()
    assert standing(tmp_path).keys() == {"x.txt", "x.jsonl"}
    assert files_in(tmp_path / ".archive/r-0").keys() == {"y.txt", "y.jsonl"}
    assert (await counts_of(store))["gone"] == 1


def test_a_synchronous_program_is_done_again(tmp_path: Path) -> None:
    for again, value in ((False, "1"), (True, "1"), (True, "2")):
        with (
            begin_blocking(tmp_path / "s", output_dir=tmp_path / "out", again=again) as run,
            run.open_stream("s") as stream,
        ):
            written = 0
            for batch in stream.batches(["a", "b"]):
                was = batch.previous
                if was is not None and (was.metadata["v"] == value or batch.item == "b"):
                    assert batch.unchanged(metadata={"v": value})
                    continue
                written += 1
                batch.write_text(f"{batch.item}.txt", value)
                batch.complete(metadata={"v": value})
        assert written == {(False, "1"): 2, (True, "1"): 0, (True, "2"): 1}[again, value]


@pytest.mark.parametrize(
    ("old", "lag", "new"),
    [
        (10, 3, 7),
        (1.5, 0.5, 1.0),
        ("2026-11-30", timedelta(days=2), "2026-11-28"),
        ("2026-11-30T10:00:00Z", timedelta(hours=1), "2026-11-30T09:00:00Z"),
        ("2026-11-30 10:00:00.500+02:00", timedelta(seconds=1), "2026-11-30 09:59:59.500+02:00"),
        ({"page": 3}, lambda old: {"page": old["page"] - 1}, {"page": 2}),
        (10, None, 10),
        (None, 3, None),
    ],
)
async def test_the_lag_is_subtracted_in_the_form_of_the_cursor(
    old: Any, lag: Any, new: Any
) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches():
            batch.complete(cursor=old, last=True)
    async with begin(store, again=True) as run, run.open_stream("s", lag=lag) as stream:
        assert stream.cursor == new
        await stream.finish()


@pytest.mark.parametrize(
    ("lag", "problem"),
    [
        (-1, "lag must not be negative: it is -1"),
        (timedelta(days=-1), "lag must not be negative"),
        (
            "1 day",
            "lag must be a timedelta, a number, or a function of the old cursor, not '1 day'",
        ),
        (timedelta(days=1), "a timedelta is for ISO 8601 text, a number for a number"),
    ],
)
async def test_a_bad_lag_is_refused(lag: Any, problem: str) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches():
            batch.complete(cursor=10, last=True)
    with pytest.raises((TypeError, ValueError), match=problem):
        async with begin(store, again=True) as run, run.open_stream("s", lag=lag):
            await trio.lowlevel.checkpoint()
