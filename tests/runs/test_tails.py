"""An append file of a complete stream ends where its records say, whatever was appended in vain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import (
    RetryRule,
    RetryTable,
    Run,
    SinkClosedError,
    Status,
    StoreError,
    Stream,
    Then,
)
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore

SKIPS = RetryTable([RetryRule([StoreError, OSError], attempts=1, then=Then.SKIP)])
SAVES_BEFORE = 2  # the beginning of the session, and the first batch


async def append(
    run: Run, *, skipped: Callable[[int], bool] = lambda _index: False, name: str = "lines"
) -> Status:
    """One line for each of three batches, but for those that are skipped."""
    async with run.open_stream("s", retry=SKIPS) as stream:
        async for batch in stream.batches(range(3)):
            if skipped(batch.index):
                batch.skip("no line")
            else:
                batch.append_json(name, batch.index)
                batch.complete()
    return stream.status


async def take_all(stream: Stream[None], **part: int) -> None:
    async for batch in stream.batches(range(3), **part):
        batch.append_json("lines", batch.index)
        batch.complete()


async def check_ends(store: Any, folder: Path, lines: str, name: str = "lines") -> None:
    assert (folder / name).read_text() == lines
    async with begin(store, output_dir=folder):
        pass
    assert (folder / name).read_text() == lines
    assert [finding async for finding in check_all(store) if finding.is_damage] == []


@pytest.mark.parametrize("to", [-1, 0, 1])
@pytest.mark.parametrize("in_between", ["nothing", "a kill", "a session"])
async def test_lines_of_batches_that_were_rewound_and_then_skipped(
    to: int, in_between: str, tmp_path: Path
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await append(run)
        await run.rewind(("s",), to=to, reason="x")
        if in_between == "nothing":
            await append(run, skipped=lambda index: index > to)
        if in_between == "a kill":
            store = store.after_crash()
    if in_between != "nothing":
        async with begin(store, output_dir=tmp_path) as run:
            assert await append(run, skipped=lambda index: index > to) is Status.COMPLETE
    kept = "".join(f"{index}\n" for index in range(to + 1))
    if kept or in_between == "nothing":
        await check_ends(store, tmp_path, kept)
    archived = [path.read_text() for path in (tmp_path / ".archive").rglob("lines*")]
    assert "".join(f"{index}\n" for index in range(to + 1, 3)) in archived


async def test_lines_of_batches_that_go_into_another_file_now(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await append(run)
        await run.rewind(("s",), to=0, reason="x")
        await append(run, name="other")
    await check_ends(store, tmp_path, "0\n")
    await check_ends(store, tmp_path, "1\n2\n", "other")


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 2])
async def test_lines_of_a_batch_whose_save_failed_and_that_is_skipped_then(
    batch: int, has_end: bool, tmp_path: Path
) -> None:
    store = FaultyStore(MemoryStore(), {SAVES_BEFORE + batch: Fail()})
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        with suppress(StoreError):
            await take_all(stream)
        async for again in stream.batches(range(3) if has_end else None):
            if again.index == batch:
                again.skip("its save failed")
            else:
                again.append_json("lines", again.index)
                again.complete()
            if again.index == 2 and not has_end:
                await stream.finish()
                break
    assert stream.status is Status.COMPLETE
    await check_ends(store, tmp_path, "".join(f"{n}\n" for n in range(3) if n != batch))


async def test_a_file_that_could_not_be_written_completes_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its failed append has left is not known: the next start cuts it off."""
    store = MemoryStore()

    def run_full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", retry=SKIPS) as stream:
            await take_all(stream, end=0)
            monkeypatch.setattr("os.fdatasync", run_full)
            with pytest.raises(SinkClosedError):
                await take_all(stream)
        assert stream.status is not Status.COMPLETE
    monkeypatch.undo()
    async with begin(store, output_dir=tmp_path, retry_failed=True) as run:
        assert await append(run) is Status.COMPLETE
    await check_ends(store, tmp_path, "0\n1\n2\n")
