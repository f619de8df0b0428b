"""Damaged outputs: their batches are re-queued, in the order that the stream needs."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commit.redone import (
    archived,
    read_records,
)
from tests.opening import begin
from trio_ckpt import (
    Batch,
    Frontier,
    OutputsMissingError,
    Status,
    run_batches,
)
from trio_ckpt._journal.record import RecordKind
from trio_ckpt.stores import MemoryStore


async def count_up(
    store: Any, folder: Path, count: int, *, state: Any = None, **options: Any
) -> list[int]:
    """One file for each batch; with a state, batches build on each other."""
    worked = []
    async with begin(store, output_dir=folder, **options) as run:
        async with run.open_stream("s", state=state) as stream:
            async for batch in stream.batches(range(count)):
                worked.append(batch.index)
                if state is not None:
                    stream.state["n"] += batch.index
                    await batch.write_text(f"{batch.index}", f"{stream.state['n']}")
                else:
                    await batch.write_text(f"{batch.index}", "text")
                batch.complete(records=1)
        assert stream.status is Status.COMPLETE
        assert stream.progress.records == count
        if state is not None:
            assert stream.state["n"] == sum(range(count))
    return worked


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_with_a_state_all_from_the_first_bad_batch_on_are_done_again(
    kind: str, tmp_path: Path
) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    folder = tmp_path / "out"
    assert await count_up(store, folder, 8, state={"n": 0}) == list(range(8))
    before = {n: (folder / f"{n}").read_text() for n in range(8)}
    (folder / "6").write_text("?")
    (folder / "3").unlink()
    assert await count_up(store, folder, 8, state={"n": 0}) == [3, 4, 5, 6, 7]
    assert {n: (folder / f"{n}").read_text() for n in range(8)} == before
    assert archived(folder) == sorted([before[4], before[5], "?", before[7]])
    assert await count_up(store, folder, 8, state={"n": 0}) == []


async def test_damage_older_than_1000_records_rewinds_to_before_batch_0(
    tmp_path: Path,
) -> None:
    async def work(store: MemoryStore) -> list[int]:
        worked = []
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s", state={"n": 0}) as stream:
                async for batch in stream.batches(range(1_060)):
                    worked.append(batch.index)
                    stream.state["n"] += batch.index
                    if batch.index % 100 == 30:
                        await batch.write_text(f"{batch.index}", f"{stream.state['n']}")
                    batch.complete(records=1)
            assert stream.state["n"] == sum(range(1_060))
            assert stream.progress.records == 1_060
        return worked

    store = MemoryStore()
    await work(store)
    (tmp_path / "30").unlink()
    assert await work(store) == list(range(30, 1_060))


async def append(store: Any, folder: Path, count: int = 5, **options: Any) -> list[int]:
    worked = []
    async with begin(store, output_dir=folder, **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            worked.append(batch.index)
            for name in ("a.jsonl", "b.jsonl"):
                if name == "a.jsonl" or batch.index % 2:
                    batch.append_json(name, {"batch": batch.index}, {"more": "x" * batch.index})
            batch.complete(records=2)
        assert stream.progress.records == 2 * count
    return worked


@pytest.mark.parametrize("cut", [1, 20, 60, 120])
async def test_a_shortened_append_file_goes_back_to_before_what_it_lost(
    cut: int, tmp_path: Path
) -> None:
    store = MemoryStore()
    await append(store, tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.jsonl", "b.jsonl")}
    short = whole["a.jsonl"][:-cut]
    (tmp_path / "a.jsonl").write_bytes(short)
    lines = whole["a.jsonl"].splitlines(keepends=True)
    sizes = [sum(map(len, lines[: 2 * n])) for n in range(6)]
    lost = next(n for n in range(5) if sizes[n + 1] > len(short))
    assert await append(store, tmp_path) == list(range(lost, 5))
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
    reasons = [r.metadata["reason"] for r in await read_records(store) if r.kind is RecordKind.REDO]
    assert reasons == [f"a.jsonl was shortened to {len(short)} bytes"]


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_lost_append_file_is_refused_unless_all_is_to_be_done_again(
    is_gone: bool, tmp_path: Path
) -> None:
    store = MemoryStore()
    await append(store, tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.jsonl", "b.jsonl")}
    if is_gone:
        (tmp_path / "b.jsonl").unlink()
    else:
        (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(OutputsMissingError, match=r"b\.jsonl.*all \d+ confirmed bytes"):
        await append(store, tmp_path)
    assert await append(store, tmp_path, redo_missing=True) == [1, 2, 3, 4]
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


@pytest.mark.parametrize("state", [None, "frontier"])
async def test_altered_lines_go_back_to_work_when_they_are_looked_at(
    state: str | None, tmp_path: Path
) -> None:
    worked: list[int] = []

    async def handle(batch: Batch[Any]) -> None:
        worked.append(batch.index)
        batch.append_json("lines.jsonl", batch.index)
        batch.complete()

    async def work(**options: Any) -> None:
        worked.clear()
        frontier: Any = Frontier(list("abcd")) if state is not None else None
        async with begin(store, output_dir=tmp_path, **options) as run:
            async with run.open_stream("s", state=frontier) as stream:
                await run_batches(stream, None if frontier else range(4), handle)

    store = MemoryStore()
    await work()
    (tmp_path / "lines.jsonl").write_text("0\n1\n7\n3\n")
    await work()
    assert worked == []  # by their length they are good
    await work(verify="sha256")
    assert worked == [2, 3]
    assert (tmp_path / "lines.jsonl").read_text() == "0\n1\n2\n3\n"
    await work(verify="sha256")
    assert worked == []


async def test_a_mass_of_missing_outputs_is_refused_of_ordered_streams_too(tmp_path: Path) -> None:
    store = MemoryStore()
    await count_up(store, tmp_path, 12, state={"n": 0})
    for n in range(1, 12):
        (tmp_path / f"{n}").unlink()
    with pytest.raises(OutputsMissingError, match="and 10 more of 12"):
        await count_up(store, tmp_path, 12, state={"n": 0})
    again = await count_up(store, tmp_path, 12, state={"n": 0}, redo_missing=True)
    assert again == list(range(1, 12))
