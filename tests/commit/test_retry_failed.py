"""retry_failed puts back what stands alone; what later batches build on is refused."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import CannotRedoError, Run, Status
from trio_ckpt._commit.redo import retry_record
from trio_ckpt._journal.progress import Progress
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import MemoryStore

PAGES: dict[Any, tuple[str, Any]] = {None: ("A", 1), 1: ("B", 2), 2: ("C", 3), 3: ("D", None)}


async def by_cursor(run: Run, skip: Iterable[int] = (), **settings: Any) -> list[tuple[int, str]]:
    """Each page says where the next one is."""
    got: list[tuple[int, str]] = []
    async with run.open_stream("s", **settings) as stream:
        async for batch in stream.batches():
            page, following = PAGES[stream.cursor]
            if batch.index in skip:
                batch.skip("a bad page")
                continue
            got.append((batch.index, page))
            batch.complete(cursor=following, last=following is None)
    return got


async def by_state(run: Run, skip: Iterable[int] = (), **settings: Any) -> list[int]:
    async with run.open_stream("s", state={"seen": []}, **settings) as stream:
        async for batch in stream.batches(range(4)):
            if batch.index in skip:
                batch.skip("a bad page")
                continue
            stream.state["seen"].append(batch.index)
            batch.complete()
        return list(stream.state["seen"])


@pytest.mark.parametrize("work", [by_cursor, by_state])
@pytest.mark.parametrize("of", ["run", "stream"])
async def test_a_skip_that_later_batches_build_over_is_not_retried(work: Any, of: str) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        first = await work(run, skip=[1])
    for_run = {"retry_failed": True} if of == "run" else {}
    for_stream = {"retry_failed": True} if of == "stream" else {}
    async with begin(store, **for_run) as run:
        assert run.streams_to_process(retry_failed=True) == []
        with pytest.raises(CannotRedoError, match="rewind the stream to batch 0") as caught:
            await work(run, **for_stream)
        assert (caught.value.batch_index, caught.value.stream) == (1, ("s",))
        assert list(run.view().streams["s",].progress.skipped) == [1]  # nothing has changed
        assert run.group("s").status is Status.COMPLETE
        await work(run, retry_failed=False)
        assert run.exit_code == 3
        await run.rewind(("s",), to=0, reason="the page is good now")
        again = await work(run)
        assert run.exit_code == 0
    if work is by_cursor:
        assert first == [(0, "A"), (2, "B"), (3, "C"), (4, "D")]
        assert again == [(1, "B"), (2, "C"), (3, "D")]
    else:
        assert (first, again) == ([0, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("work", [by_cursor, by_state])
async def test_a_skip_at_the_end_is_retried_in_its_order(work: Any) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("s", state={"seen": []} if work is by_state else None) as s:
            async for batch in s.batches():
                if batch.index == 2:
                    batch.skip("a bad page")
                    break
                if work is by_state:
                    s.state["seen"].append(batch.index)
                    batch.complete()
                else:
                    batch.complete(cursor=PAGES[s.cursor][1])
    async with begin(store, retry_failed=True) as run:
        if work is by_cursor:
            assert await work(run) == [(2, "C"), (3, "D")]
        else:
            assert await work(run) == [0, 1, 2, 3]
        assert run.exit_code == 0


async def test_what_stands_alone_is_retried_whatever_came_later(tmp_path: Path) -> None:
    """Pages by number, files and lines: nothing builds on a page."""
    store = MemoryStore()
    for retry in (False, True):
        async with begin(store, output_dir=tmp_path, retry_failed=retry) as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(4)):
                    if batch.index in (0, 2) and not retry:
                        batch.skip("a bad page")
                        continue
                    batch.append_json("lines.jsonl", batch.index)
                    batch.complete()
    assert run.exit_code == 0
    assert (tmp_path / "lines.jsonl").read_text().split() == ["1", "3", "0", "2"]


def test_intervals_of_skipped_batches_are_put_back_as_intervals() -> None:
    """However long they are: a store may say that all batches there can be were skipped."""
    most = IndexSet.from_steps([0, 2**62])
    record = retry_record("r", ("s",), Progress(skipped=most))
    assert record is not None
    assert IndexSet.from_steps(record.steps) == most
