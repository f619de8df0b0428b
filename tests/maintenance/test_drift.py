"""Drift is found before anything changes, and a resume redoes exactly what it names."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Drift, Run, find_drift
from trio_ckpt._util.plain import StreamKey
from trio_ckpt.abc import RunView
from trio_ckpt.outputs import OutputDir, Outputs
from trio_ckpt.stores import MemoryStore, open_store

PAGES = 30


@pytest.fixture(autouse=True, params=["small", "large"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are checked by one thread, large ones by several."""
    if request.param == "large":
        monkeypatch.setattr(Outputs, "large_bytes", 0)


async def write_pages(
    run: Run, name: str = "s", count: int = PAGES, worked: list[int] | None = None
) -> None:
    """Pages of different sizes; what is in one depends on nothing but its number."""
    async with run.open_stream(name) as stream:
        async for batch in stream.batches(range(count)):
            if worked is not None:
                worked.append(batch.index)
            text = f"{batch.index:03} " * (1 + batch.index % 3)
            await batch.write_text(f"{name}/{batch.index}.txt", text)
            batch.complete(records=1)
        assert stream.progress.records == count


async def look(
    store: Any, folder: Path, mode: Any = "sha256", keys: Collection[StreamKey] | None = None
) -> Drift:
    view = await store.load_run("r")
    assert view is not None
    outputs = OutputDir.open(folder)
    try:
        return await find_drift(store, view, outputs, mode=mode, keys=keys)
    finally:
        outputs.close()


# ---------------------------------------------------------------------------------------
# 200 cases
# ---------------------------------------------------------------------------------------


def keep_times(path: Path, before: os.stat_result) -> None:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def damage(folder: Path, rng: random.Random, index: int, other: int) -> set[int]:
    """Delete, truncate, alter or swap; returns which batches that hits."""
    path, twin = folder / f"{index}.txt", folder / f"{other}.txt"
    before = path.stat()
    match rng.randrange(4):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(path.read_bytes()[: rng.randrange(before.st_size)])
        case 2:
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        case _:
            one, two = path.read_bytes(), twin.read_bytes()
            path.write_bytes(two)
            twin.write_bytes(one)
            return {index, other}
    if path.exists() and rng.random() < 0.5:
        keep_times(path, before)
    return {index}


async def test_each_of_200_damages_is_found_and_exactly_those_are_redone(
    tmp_path: Path,
) -> None:
    rng, store, folder = random.Random(3), MemoryStore(), tmp_path / "s"
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run)
    whole = {index: (folder / f"{index}.txt").read_bytes() for index in range(PAGES)}
    cases = 0
    while cases < 200:
        order = rng.sample(range(PAGES), PAGES)
        hit = set[int]()
        for _ in range(10):
            hit |= damage(folder, rng, order.pop(), order.pop())
            cases += 1
        drift = await look(store, tmp_path)
        assert {problem.batch_index for problem in drift.problems} == hit
        assert len(drift.problems) == len(hit)
        worked: list[int] = []
        async with begin(store, output_dir=tmp_path, verify="sha256") as run:
            await write_pages(run, worked=worked)
        assert sorted(worked) == sorted(hit)
        found = {index: (folder / f"{index}.txt").read_bytes() for index in range(PAGES)}
        assert found == whole
        assert not (await look(store, tmp_path)).problems


# ---------------------------------------------------------------------------------------
# What it says
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_each_problem_is_named_with_its_place_and_its_reason(
    kind: str, tmp_path: Path
) -> None:
    store = MemoryStore() if kind == "memory" else await open_store(tmp_path / "r.ckpt")
    folder = tmp_path / "out"
    async with begin(store, output_dir=folder) as run:
        await run.add_streams([("t",), ("s",)])
        await write_pages(run, "s", 4)
        await write_pages(run, "t", 2)
    drift = await look(store, folder)
    assert (drift.files, drift.problems) == (6, ())
    assert drift.bytes == 4 + 8 + 12 + 4 + 4 + 8
    (folder / "s" / "1.txt").unlink()
    (folder / "s" / "2.txt").write_text("00")
    (folder / "s" / "3.txt").write_text("00000000")
    (folder / "t" / "0.txt").write_text("999 ")
    before = sorted(path for path in folder.rglob("*"))
    drift = await look(store, folder)
    found = [(p.key, p.batch_index, p.path, p.what.split(" ")[0]) for p in drift.problems]
    assert found == [
        (("t",), 0, "t/0.txt", "altered:"),
        (("s",), 3, "s/3.txt", "altered:"),
        (("s",), 2, "s/2.txt", "truncated:"),
        (("s",), 1, "s/1.txt", "missing"),
    ]
    assert drift.problems[1].what == "altered: 8 bytes instead of 4"
    assert (drift.files, drift.bytes) == (6, 40)
    only = await look(store, folder, keys=[("t",)])
    assert (only.files, [p.path for p in only.problems]) == (2, ["t/0.txt"])
    assert sorted(path for path in folder.rglob("*")) == before  # it reads, and moves nothing
    await store.aclose()


async def test_by_size_and_time_what_keeps_both_is_not_found(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run, count=2)
    path = tmp_path / "s" / "1.txt"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    assert len((await look(store, tmp_path, "size")).problems) == 1  # its time is another
    keep_times(path, before)
    assert (await look(store, tmp_path, "size")).problems == ()
    assert len((await look(store, tmp_path)).problems) == 1


async def test_what_was_requeued_is_no_drift(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run, count=4)
        await run.rewind(("s",), to=1, reason="x")
        assert (await look(store, tmp_path)).files == 2
        await write_pages(run, count=4)
        drift = await look(store, tmp_path)
    assert (drift.files, drift.problems) == (4, ())


async def test_records_newer_than_the_view_are_left_out(tmp_path: Path) -> None:
    """A run that goes on while another process looks."""
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run, count=2)
        view = await store.load_run("r")
        assert isinstance(view, RunView)
        await write_pages(run, count=4)
        async with run.open_stream("s") as stream:
            await stream.redo([3], reason="x")
    outputs = OutputDir.open(tmp_path)
    drift = await find_drift(store, view, outputs, mode="sha256")
    outputs.close()
    assert (drift.files, drift.problems) == (2, ())


async def test_more_records_than_fit_on_a_page(tmp_path: Path) -> None:
    store, count = MemoryStore(), 1_100
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            if batch.index in (0, 5, 1_099):
                await batch.write_text(f"{batch.index}", "x")
            batch.append_json("lines.jsonl", batch.index)
            batch.complete()
    drift = await look(store, tmp_path)
    assert (drift.files, drift.problems) == (4, ())
    (tmp_path / "0").unlink()
    (tmp_path / "1099").write_text("yy")
    text = (tmp_path / "lines.jsonl").read_text()
    (tmp_path / "lines.jsonl").write_text(text.replace("\n7\n", "\n8\n"))
    found = [(p.batch_index, p.path) for p in (await look(store, tmp_path)).problems]
    assert sorted(found) == [(0, "0"), (7, "lines.jsonl"), (1_099, "1099")]


# ---------------------------------------------------------------------------------------
# Append files
# ---------------------------------------------------------------------------------------


async def append(store: Any, folder: Path, count: int = 4) -> list[bytes]:
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            batch.append_json("a.jsonl", f"{batch.index}" * (batch.index + 1))
            if batch.index % 2:
                batch.append_json("b.jsonl", batch.index)
            batch.complete()
    return (folder / "a.jsonl").read_bytes().splitlines(keepends=True)


async def problems(store: Any, folder: Path, mode: Any = "sha256") -> list[tuple[Any, str, str]]:
    drift = await look(store, folder, mode)
    return [(p.batch_index, p.path, p.what) for p in drift.problems]


async def test_lines_are_compared_batch_by_batch(tmp_path: Path) -> None:
    store = MemoryStore()
    lines = await append(store, tmp_path)
    sink = tmp_path / "a.jsonl"
    drift = await look(store, tmp_path)
    assert (drift.files, drift.problems) == (2, ())
    assert drift.bytes == sum(map(len, lines)) + 4
    sink.write_bytes(b"".join([*lines, b"an unconfirmed tail"]))
    assert await problems(store, tmp_path) == []
    sink.write_bytes(b"".join([lines[0], b'"xx"\n', *lines[2:]]))
    assert await problems(store, tmp_path) == [(1, "a.jsonl", "altered: 5 bytes at 4")]
    assert await problems(store, tmp_path, "size") == []
    sink.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    assert [p[0] for p in await problems(store, tmp_path)] == [1, 0]
    sink.write_bytes(b"".join(lines)[:-9])
    assert [p[0] for p in await problems(store, tmp_path)] == [3, 2]
    assert await problems(store, tmp_path, "size") == [
        (3, "a.jsonl", "truncated: 7 missing of 7 bytes at 15"),
        (2, "a.jsonl", "truncated: 2 missing of 6 bytes at 9"),
    ]
    sink.unlink()
    (tmp_path / "b.jsonl").write_text("1\n2\n")
    assert await problems(store, tmp_path) == [
        (3, "a.jsonl", "missing"),
        (3, "b.jsonl", "altered: 2 bytes at 2"),
        (2, "a.jsonl", "missing"),
        (1, "a.jsonl", "missing"),
        (0, "a.jsonl", "missing"),
    ]


async def test_lines_after_a_rewind_are_where_the_records_say(tmp_path: Path) -> None:
    store = MemoryStore()
    await append(store, tmp_path)
    async with begin(store, output_dir=tmp_path) as run:
        await run.rewind(("s",), to=0, reason="x")
    assert await problems(store, tmp_path) == []
    await append(store, tmp_path)
    assert await problems(store, tmp_path) == []


async def test_looking_can_be_cancelled(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run, count=2)
    with trio.CancelScope() as scope:
        scope.cancel()
        await look(store, tmp_path)
    assert scope.cancelled_caught
