"""Rewind: a stream goes back to an earlier batch, with its state, cursor and lines."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.commit.redone import (
    Gated,
    archived,
    exact,
    follow,
    sums,
    write_pages,
)
from tests.opening import begin
from trio_ckpt import (
    CannotRedoError,
    Run,
    Status,
    Stream,
    StreamBusyError,
    UnknownStreamError,
)
from trio_ckpt.stores import MemoryStore


async def test_a_plain_rewind_puts_all_later_batches_back(tmp_path: Path) -> None:
    worked: list[int] = []
    async with begin("memory:", output_dir=tmp_path) as run:
        await write_pages(run, 5)
        taken = await run.rewind(("s",), to=1, reason="x")
        assert list(taken) == [2, 3, 4]
        assert run.group("s").status is Status.INTERRUPTED
        assert not await run.rewind(("s",), to=1, reason="x")
        assert archived(tmp_path) == ["first 2", "first 3", "first 4"]
        stream = await write_pages(run, 5, worked, "second")
        assert worked == [2, 3, 4]
        assert sums(stream) == (10, exact(*[0.3] * 5), exact(*[0.1] * 8), exact(*[0.1] * 5))
        assert list(await run.rewind(("s",), to=-5, reason="x")) == [0, 1, 2, 3, 4]
        assert stream.progress.records == 0
        assert stream.progress.totals["words"].value == 0


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize(("to", "cursor"), [(2, "0.1.2."), (0, "0."), (-1, None)])
async def test_a_rewind_brings_back_the_cursor(
    to: int, cursor: str | None, is_restarted: bool
) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await follow(run, 5)
        assert list(await run.rewind(("s",), to=to, reason="x")) == list(range(to + 1, 5))
        if is_restarted:
            store = store.after_crash()
    async with begin(store) as run, run.open_stream("s") as stream:
        assert stream.cursor == cursor
    async with begin(store) as run:
        stream = await follow(run, 5)
    assert (stream.cursor, stream.progress.records) == ("0.1.2.3.4.", 5)


@pytest.mark.parametrize(("to", "trail"), [(2, "0.1.2."), (0, "0."), (-1, "new:")])
async def test_a_rewind_brings_back_state_and_lines(to: int, trail: str, tmp_path: Path) -> None:
    store, sink = MemoryStore(), tmp_path / "lines.jsonl"
    async with begin(store, output_dir=tmp_path) as run:
        await follow(run, 5, state={"trail": ""})
        whole = sink.read_bytes()
        await run.rewind(("s",), to=to, reason="x")
    kept = b"".join(whole.splitlines(keepends=True)[: to + 1])
    assert archived(tmp_path) == [whole[len(kept) :].decode()]
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", state={"trail": "new:"}) as stream:
            assert stream.state == {"trail": trail}
            if kept:
                assert sink.read_bytes() == kept
        stream = await follow(run, 5, state={"trail": ""})
    assert stream.progress.records == 5
    assert stream.state == {"trail": "0.1.2.3.4."}
    assert sink.read_bytes() == whole
    assert stream.progress.sinks == {"lines.jsonl": len(whole)}


async def test_a_rewind_counts_a_state_saved_between_batches() -> None:
    async def trail_after(to: int) -> Any:
        async with begin("memory:") as run:
            async with run.open_stream("s", state={"n": 0}) as stream:
                async for batch in stream.batches(range(3)):
                    stream.state["n"] += 1
                    batch.complete()
                    stream.state["n"] += 10
                    await stream.save()
                    stream.state["n"] += 100
                    await stream.save()
            await run.rewind(("s",), to=to, reason="x")
            async with run.open_stream("s", state={"n": 5}) as stream:
                return stream.state["n"]

    assert [await trail_after(to) for to in (-1, 0, 1, 2)] == [5, 111, 222, 333]


async def test_rewinds_after_rewinds_find_the_state_that_stands(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        for to in (2, 0, 1, -1, 3):
            await follow(run, 5, state={"trail": ""})
            await run.rewind(("s",), to=to, reason="x")
            async with run.open_stream("s", state={"trail": ""}) as stream:
                assert stream.state["trail"] == "".join(f"{n}." for n in range(to + 1))
                assert list(stream.progress.confirmed) == list(range(to + 1))


async def test_a_rewind_takes_what_was_saved_after_the_first_of_them(tmp_path: Path) -> None:
    """Ranges had batch 2 and 3 done before 0: what is after batch 2 in the sequence goes back."""
    store = MemoryStore()
    state = {"trail": ""}
    async with begin(store, output_dir=tmp_path) as run:
        await follow(run, 4, state=state, start=2)
    async with begin(store, output_dir=tmp_path) as run:
        stream = await follow(run, 4, state=state)
        assert stream.state == {"trail": "2.3.0.1."}
        assert list(await run.rewind(("s",), to=2, reason="x")) == [0, 1, 3]
        async with run.open_stream("s", state=state) as stream:
            assert stream.state == {"trail": "2."}
    async with begin(store, output_dir=tmp_path) as run:
        stream = await follow(run, 4, state=state)
        assert stream.state == {"trail": "2.0.1.3."}
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ["2.", "2.0.", "2.0.1.", "2.0.1.3."]


@pytest.mark.parametrize("way", ["last", "withdraw", "finish"])
async def test_a_rewind_forgets_a_last_batch_that_went_back(way: str) -> None:
    async def work(run: Run) -> Stream[None]:
        async with run.open_stream("s", first_index=1) as stream:
            async for batch in stream.batches():
                if way == "withdraw" and batch.index == 4:
                    batch.withdraw()
                else:
                    batch.complete(last=way == "last" and batch.index == 3)
                if way == "finish" and batch.index == 3:
                    await stream.finish()
        return stream

    async with begin("memory:") as run:
        stream = await work(run)
        assert (stream.status, stream.progress.last_index) == (Status.COMPLETE, 3)
        assert not await run.rewind(("s",), to=3, reason="x")
        assert stream.progress.last_index == 3
        await run.rewind(("s",), to=2, reason="x")
        assert stream.progress.last_index is None
        assert stream.progress.completed_at is None
        assert run.exit_code == 75
        stream = await work(run)
        assert list(stream.progress.confirmed) == [1, 2, 3]
        async with run.open_stream("s", first_index=1) as stream:
            await stream.redo([2], reason="it only opens a hole")
            assert stream.progress.last_index == 3
            assert stream.progress.left == 1
            assert [batch.index async for batch in settled(stream)] == [2]
            assert stream.status is Status.COMPLETE


async def settled(stream: Stream[Any]) -> Any:
    async for batch in stream.batches():
        batch.complete()
        yield batch


async def test_a_rewind_is_refused_while_the_stream_is_open_or_unknown() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                batch.complete()
            with pytest.raises(StreamBusyError, match="is open already"):
                await run.rewind(("s",), to=0, reason="x")
        for key in (("t",), (), ("s", "t")):
            with pytest.raises(UnknownStreamError, match="has no stream"):
                await run.rewind(key, to=0, reason="x")
        wrong: Any = "s"
        with pytest.raises(TypeError, match="tuple of its parts"):
            await run.rewind(wrong, to=0, reason="x")
        assert len(stream.progress.confirmed) == 2


async def test_a_stream_that_is_being_rewound_is_not_opened_or_rewound() -> None:
    store = Gated()
    async with begin(store) as run:
        await follow(run, 3)
        store.gate = gate = trio.Event()
        async with trio.open_nursery() as nursery:

            async def rewind() -> None:
                assert list(await run.rewind(("s",), to=0, reason="x")) == [1, 2]

            nursery.start_soon(rewind)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(StreamBusyError):
                await run.rewind(("s",), to=1, reason="x")
            with pytest.raises(StreamBusyError):
                async with run.open_stream("s"):
                    pass
            gate.set()
        stream = await follow(run, 3)
        assert (stream.progress.records, stream.cursor) == (3, "0.1.2.")


async def test_every_tail_that_a_rewind_cuts_off_is_kept(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        for text in ("one", "two", "three"):
            await run.add_streams([("s",)])
            await run.rewind(("s",), to=0, reason="x")
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    batch.append_json("lines.jsonl", text if batch.index else "head")
                    batch.complete()
    assert archived(tmp_path) == ['"one"\n', '"two"\n']
    assert (tmp_path / "lines.jsonl").read_text() == '"head"\n"three"\n'


async def follow_to_the_end(store: Any, folder: Path) -> list[tuple[int, int]]:
    """Pages by a cursor whose last one is None; returns batches and the pages asked for."""
    asked = []
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        async for batch in stream.batches():
            page = stream.cursor or 0
            asked.append((batch.index, page))
            await batch.write_json(f"{batch.index}.json", {"page": page})
            batch.complete(cursor=page + 1 if page < 3 else None, last=page == 3)
    assert stream.status is Status.COMPLETE
    return asked


@pytest.mark.parametrize("by", ["damage", "rewind"])
async def test_a_cursor_that_has_come_to_its_end_is_brought_back(by: str, tmp_path: Path) -> None:
    store = MemoryStore()
    assert await follow_to_the_end(store, tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    async with begin(store, output_dir=tmp_path) as run:
        if by == "rewind":
            await run.rewind(("s",), to=1, reason="x")
        else:
            (tmp_path / "2.json").unlink()
            async with run.open_stream("s") as stream:
                assert stream.cursor == 2
                with pytest.raises(CannotRedoError):
                    await stream.redo([0], reason="x")
    assert await follow_to_the_end(store, tmp_path) == [(2, 2), (3, 3)]


# ---------------------------------------------------------------------------------------
# One stream begins again
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["alone", "state"])
async def test_a_stream_that_is_rewound_to_its_beginning_begins_again(
    order: str, tmp_path: Path
) -> None:
    """With another list, a shorter one, and another first index; the other stage stays."""
    state: Any = None if order == "alone" else {"seen": []}
    store = MemoryStore()

    async def work(run: Run, name: str, first: int, items: str) -> Stream[Any]:
        async with run.open_stream(name, first_index=first, state=state) as stream:
            async for batch in stream.batches(list(items)):
                if batch.index == first:
                    await batch.write_text(f"{name}-{batch.index}", batch.item)
                batch.spend(usd=1)
                if state is not None:
                    stream.state["seen"].append(batch.item)
                batch.complete(records=1, totals={"words": 1})
            await stream.finish(metadata={"model": "m"})
        return stream

    async with begin(store, output_dir=tmp_path) as run:
        for name in ("ocr", "fix"):
            await work(run, name, 1, "abcdef")
        assert len(await run.rewind(("ocr",), to=0, reason="the scans were bad")) == 6
        progress = run.view().streams["ocr",].progress
        assert (progress.expected, progress.last_index, progress.metadata) == (None, None, {})
        assert run.exit_code == 75
        assert (tmp_path / "fix-1").exists()
        assert not (tmp_path / "ocr-1").exists()
        assert archived(tmp_path) == ["a"]
    async with begin(store, output_dir=tmp_path) as run:
        stream = await work(run, "ocr", 5, "gh")
        assert list(stream.progress.confirmed) == [5, 6]
        if state is not None:
            assert stream.state == {"seen": ["g", "h"]}
        assert run.group("ocr").totals == {"words": 2}
        assert run.group("ocr").spent == {"usd": 8}  # what was spent stays spent
        assert run.group("fix").confirmed == 6
        assert run.exit_code == 0


async def test_a_stream_that_has_nothing_done_begins_again_too() -> None:
    store = MemoryStore()
    with pytest.raises(RuntimeError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for _ in stream.batches(list("abc")):
                raise RuntimeError
    async with begin(store) as run:
        assert run.group("s").status is Status.FAILED
        assert len(await run.rewind(("s",), to=-1, reason="x")) == 0
        summary, progress = run.group("s"), run.view().streams["s",].progress
        assert (summary.status, summary.error, progress.failures) == (Status.INTERRUPTED, None, {})
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(["z"]):
                assert batch.attempt == 1
                batch.complete()
        assert run.exit_code == 0
