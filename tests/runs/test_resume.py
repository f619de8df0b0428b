"""Resuming: outputs are the truth, sinks are cut, frontiers come back whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trio_ckpt
from trio_ckpt import Frontier, Status
from trio_ckpt.stores import MemoryStore

PAGES = 30


async def write_pages(
    store: MemoryStore, folder: Path, count: int = PAGES, **options: Any
) -> list[int]:
    """Write one file per page that is left; returns the pages that were worked on."""
    worked = []
    async with (
        trio_ckpt.open_run("r", store=store, output_dir=folder, **options) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(count)):
            worked.append(batch.index)
            path = await batch.write_json(f"{batch.index}.json", {"page": batch.index})
            batch.complete(outputs=[path], records=2, totals={"cost": 0.1})
        assert stream.status is Status.COMPLETE
        assert stream.progress.records == 2 * count
        assert stream.progress.totals["cost"].value == sum_exactly(0.1, count)
    return worked


def sum_exactly(amount: float, count: int) -> float:
    top, bottom = amount.as_integer_ratio()
    return top * count / bottom


def damage_delete(path: Path) -> None:
    path.unlink()


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3])


def damage_alter(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"page", b"pagE"))


@pytest.mark.parametrize("damage", [damage_delete, damage_truncate, damage_alter])
async def test_exactly_the_damaged_batches_are_done_again(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    assert await write_pages(store, tmp_path) == list(range(PAGES))
    damage(tmp_path / "7.json")
    damage(tmp_path / "11.json")
    with caplog.at_level(logging.WARNING):
        assert await write_pages(store, tmp_path) == [7, 11]
    assert "batch 7" in caplog.text
    assert "batch 11" in caplog.text
    assert json.loads((tmp_path / "7.json").read_text()) == {"page": 7}
    assert await write_pages(store, tmp_path) == []


async def test_what_keeps_size_and_time_is_found_by_hash_only(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path)
    path = tmp_path / "7.json"
    before = path.stat()
    damage_alter(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await write_pages(store, tmp_path) == []
    assert await write_pages(store, tmp_path, verify="sha256") == [7]


async def test_verification_can_be_switched_off(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path)
    (tmp_path / "7.json").unlink()
    assert await write_pages(store, tmp_path, verify="off") == []


async def test_a_mass_of_missing_outputs_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path / "here")
    with pytest.raises(trio_ckpt.OutputsMissingError, match="right output folder"):
        await write_pages(store, tmp_path / "elsewhere")
    again = await write_pages(store, tmp_path / "elsewhere", redo_missing=True)
    assert again == list(range(PAGES))


async def test_moved_outputs_are_no_damage(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert await write_pages(store, tmp_path / "there") == []


async def test_older_records_are_verified_beside_the_run(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path, 1_500)
    (tmp_path / "3.json").unlink()  # its record is not among the newest thousand
    assert await write_pages(store, tmp_path, 1_500) == [3]


async def test_with_a_cursor_the_stream_rewinds_before_the_damaged_batch(
    tmp_path: Path,
) -> None:
    store = MemoryStore()
    with pytest.raises(trio_ckpt.RunStoppedError):
        await follow_cursor(store, tmp_path, stop_at=4)
    (tmp_path / "2.txt").unlink()
    again: list[int] = []
    with pytest.raises(trio_ckpt.RunStoppedError):
        await follow_cursor(store, tmp_path, stop_at=5, begun=again)
    assert again == [2, 3, 4, 5]


async def follow_cursor(
    store: MemoryStore, folder: Path, stop_at: int, begun: list[int] | None = None
) -> None:
    async with (
        trio_ckpt.open_run("r", store=store, output_dir=folder) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches():
            if begun is not None:
                begun.append(batch.index)
            assert stream.cursor == (batch.index - 1 if batch.index else None)
            path = await batch.write_text(f"{batch.index}.txt", "text")
            batch.complete(outputs=[path], cursor=batch.index)
            if batch.index == stop_at:
                run.request_stop()


async def test_two_batches_cannot_write_one_file(tmp_path: Path) -> None:
    async with (
        trio_ckpt.open_run("r", store=MemoryStore(), output_dir=tmp_path) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(2)):
            if batch.index == 1:
                with pytest.raises(trio_ckpt.OutputClaimedError, match="batch 0"):
                    await batch.write_text("same.txt", "1")
            else:
                await batch.write_text("same.txt", "0")
            batch.complete()
    assert (tmp_path / "same.txt").read_text() == "0"


async def test_a_claim_is_remembered_over_sessions(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path, 3)
    async with (
        trio_ckpt.open_run("r", store=store, output_dir=tmp_path) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(4)):
            with pytest.raises(trio_ckpt.OutputClaimedError):
                await batch.write_text("1.json", "mine")
            batch.complete()


# ---------------------------------------------------------------------------------------
# Sinks
# ---------------------------------------------------------------------------------------


async def append_lines(store: MemoryStore, folder: Path, count: int) -> None:
    async with (
        trio_ckpt.open_run("r", store=store, output_dir=folder) as run,
        run.open_stream("s") as stream,
    ):

        async def handle(batch: trio_ckpt.Batch[int]) -> None:
            for part in range(3):
                batch.append_json("lines.jsonl", {"i": batch.index, "part": part})
            batch.complete(records=3)

        await trio_ckpt.run_batches(stream, range(count), handle, concurrency=8)


def read_lines(folder: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


async def test_lines_of_a_batch_stay_together_whatever_runs_beside_it(tmp_path: Path) -> None:
    await append_lines(MemoryStore(), tmp_path, 40)
    lines = read_lines(tmp_path)
    assert [line["part"] for line in lines] == [0, 1, 2] * 40
    assert [line["i"] for line in lines[::3]] == [line["i"] for line in lines[2::3]]
    assert sorted(line["i"] for line in lines[::3]) == list(range(40))


async def test_an_unconfirmed_tail_is_cut_off_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    await append_lines(store, tmp_path, 4)
    whole = (tmp_path / "lines.jsonl").read_bytes()
    with (tmp_path / "lines.jsonl").open("ab") as file:
        file.write(b'{"i": 4, "part"')
    await append_lines(store, tmp_path, 4)
    assert (tmp_path / "lines.jsonl").read_bytes() == whole
    assert "tail of 15 bytes" in caplog.text
    await append_lines(store, tmp_path, 6)
    assert len(read_lines(tmp_path)) == 18


async def test_a_sink_that_lost_confirmed_lines_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    await append_lines(store, tmp_path, 4)
    (tmp_path / "lines.jsonl").write_bytes(b"")
    with pytest.raises(trio_ckpt.OutputsMissingError, match=r"lines\.jsonl"):
        await append_lines(store, tmp_path, 4)


async def test_a_sink_belongs_to_one_stream(tmp_path: Path) -> None:
    store = MemoryStore()
    await append_lines(store, tmp_path, 2)
    async with (
        trio_ckpt.open_run("r", store=store, output_dir=tmp_path) as run,
        run.open_stream("s"),
        run.open_stream("other") as other,
    ):
        async for batch in other.batches(range(1)):
            with pytest.raises(trio_ckpt.OutputClaimedError):
                batch.append_json("lines.jsonl", {"mine": True})
            batch.complete()


# ---------------------------------------------------------------------------------------
# Frontiers
# ---------------------------------------------------------------------------------------


async def test_a_frontier_comes_back_with_each_item_once(tmp_path: Path) -> None:
    store = MemoryStore()
    worked: list[int] = []

    async def session(seeds: list[int], limit: int) -> Status:
        async with (
            trio_ckpt.open_run("r", store=store) as run,
            run.open_stream("f", state=Frontier(seeds)) as stream,
        ):

            async def handle(batch: trio_ckpt.Batch[int]) -> None:
                if len(worked) >= limit:
                    run.request_stop()
                    raise ValueError("killed here")
                worked.append(batch.item)
                batch.add([child for child in (2 * batch.item, 2 * batch.item + 1) if child < 100])
                batch.complete()

            await trio_ckpt.run_batches(stream, None, handle, concurrency=3)
            return stream.status

    for limit in (10, 37, 80):
        with pytest.raises(ValueError, match="killed here"):
            await session([1], limit)
    assert await session([1], 1_000) is Status.COMPLETE
    assert sorted(worked) == list(range(1, 100))
    assert await session([1, 200], 1_000) is Status.COMPLETE, "a new seed goes on"
    assert sorted(worked) == [*range(1, 100), 200]


async def test_a_frontier_redoes_what_lost_its_output(tmp_path: Path) -> None:
    store = MemoryStore()
    worked: list[str] = []

    async def session() -> None:
        async with (
            trio_ckpt.open_run("r", store=store, output_dir=tmp_path) as run,
            run.open_stream("f", state=Frontier(["a", "b", "c"])) as stream,
        ):

            async def handle(batch: trio_ckpt.Batch[str]) -> None:
                worked.append(batch.item)
                await batch.write_text(batch.item, "text")
                batch.complete()

            await trio_ckpt.run_batches(stream, None, handle, concurrency=2)

    await session()
    assert sorted(worked) == ["a", "b", "c"]
    (tmp_path / "b").unlink()
    await session()
    assert worked[3:] == ["b"]


async def test_outputs_without_a_folder_are_said_to_be_unverified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path, 3)
    async with trio_ckpt.open_run("r", store=store) as run, run.open_stream("pages") as stream:
        assert stream.status is Status.COMPLETE
    assert "not verified" in caplog.text


async def test_a_killed_session_leaves_no_half_written_files(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path, 3)
    orphan = tmp_path / "below" / ".3.json.ckpt-tmp-0123456789abcdef"
    orphan.parent.mkdir()
    orphan.write_text("half")
    await write_pages(store, tmp_path, 4)
    assert orphan.exists(), "the last session ended in good order: there is nothing to look for"
    async with trio_ckpt.open_run("r", store=store, output_dir=tmp_path):
        killed = store.after_crash()
    await write_pages(killed, tmp_path, 5)
    assert not orphan.exists()


async def test_the_exit_code_is_never_0_with_work_left() -> None:
    async with trio_ckpt.open_run("r", store="memory:") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                break
        assert run.exit_code == 75
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
        assert run.exit_code == 0
