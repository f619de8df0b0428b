"""A header is the beginning of an append file and of each of its parts, once, whatever ends it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.commit.test_rotation import BloblessStore, parts_of
from tests.opening import begin
from trio_ckpt import Batch, StoreError, run_batches
from trio_ckpt.stores import MemoryStore

HEADER = b"number\n"
PARTS = "rows-{part}.csv"


async def work(store: MemoryStore, folder: Path, until: int, **how: Any) -> None:
    """Append a row by each batch until so many are done, which ends the session."""
    async with begin(store, output_dir=folder) as run, run.open_stream("s", retry=None) as stream:
        async for batch in stream.batches(range(40)):
            batch.append_bytes(PARTS, b"%d\n" % batch.index, header=HEADER, **how)
            batch.complete()
            if batch.index + 1 == until:
                break


def rows_of(data: bytes) -> list[int]:
    """The rows of a file that has its header, once."""
    header, _, rows = data.partition(b"\n")
    assert header + b"\n" == HEADER
    return [int(row) for row in rows.splitlines()]


def read_rows(folder: Path) -> list[int]:
    return [row for data in parts_of(folder, "rows-*").values() for row in rows_of(data)]


async def test_each_part_begins_with_the_header(tmp_path: Path) -> None:
    """Also over sessions that were cut, to the byte."""
    await work(MemoryStore(), tmp_path / "one", 40, rotate_bytes=20)
    expected = parts_of(tmp_path / "one", "rows-*")
    assert len(expected) > 5
    assert read_rows(tmp_path / "one") == list(range(40))
    store = MemoryStore()
    for until in range(1, 41):
        await work(store, tmp_path / "two", until, rotate_bytes=20)
        for path in (tmp_path / "two").glob("rows-*"):
            path.write_bytes(path.read_bytes() + b"an append that was not confirmed")
    await work(store, tmp_path / "two", 40, rotate_bytes=20)
    assert parts_of(tmp_path / "two", "rows-*") == expected


async def test_a_rewind_to_the_beginning_leaves_one_header(tmp_path: Path) -> None:
    store = MemoryStore()
    await work(store, tmp_path, 40, rotate_bytes=20)
    expected = parts_of(tmp_path, "rows-*")
    for to in (0, 5):
        async with begin(store, output_dir=tmp_path) as run:
            await run.rewind(("s",), to=to, reason="x")
        await work(store, tmp_path, 40, rotate_bytes=20)
        assert parts_of(tmp_path, "rows-*") == expected


async def test_a_header_is_compressed_as_the_rest(tmp_path: Path) -> None:
    await work(MemoryStore(), tmp_path, 40, rotate_bytes=200, compress="gzip")
    parts = parts_of(tmp_path, "rows-*")
    assert len(parts) > 2
    rows = [row for data in parts.values() for row in rows_of(gzip.decompress(data))]
    assert rows == list(range(40))


async def test_several_appends_of_a_batch_have_one_header(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.append_bytes("rows.csv", b"1\n")
            batch.append_bytes("rows.csv", b"2\n", header=HEADER)
            batch.append_bytes("rows.csv", b"3\n", header=b"another\n")
            batch.append_bytes("none.csv", b"", header=HEADER)  # nothing needs no header
            batch.complete()
    assert (tmp_path / "rows.csv").read_bytes() == HEADER + b"1\n2\n3\n" * 2
    assert (tmp_path / "none.csv").read_bytes() == b""


async def test_a_header_is_bytes(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(TypeError, match="header must be bytes or a buffer of them"):
                batch.append_bytes("rows.csv", b"", header="number")  # type: ignore[arg-type]
            batch.append_bytes("rows.csv", b"1\n", header=memoryview(HEADER))
            batch.complete()
    assert rows_of((tmp_path / "rows.csv").read_bytes()) == [1]


async def test_workers_share_a_header(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Two files, named in both orders: no two batches wait for each other."""

    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(batch.index % 7)
        names = [PARTS, "all.csv"][:: 1 if batch.index % 2 else -1]
        for name in names:
            how: Any = {"rotate_bytes": 30} if name == PARTS else {}
            batch.append_bytes(name, b"%d\n" % batch.index, header=HEADER, **how)
        batch.complete()

    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        with trio.fail_after(1_000_000):  # of the mock clock, which jumps where all wait
            await run_batches(stream, range(200), handle, concurrency=16)
    assert sorted(read_rows(tmp_path)) == list(range(200))
    assert sorted(rows_of((tmp_path / "all.csv").read_bytes())) == list(range(200))


@pytest.mark.parametrize("names", [(PARTS, "rows-00003.csv"), ("rows-00003.csv", PARTS)])
async def test_a_part_has_one_name(names: tuple[str, str], tmp_path: Path) -> None:
    """Two names of one file are in no order: batches could wait for each other."""
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            for name in ("rows-3.csv", "rows-000003.csv", "rows-0000x.csv", names[0]):
                how: Any = {"rotate_bytes": 9} if name == PARTS else {}
                batch.append_bytes(name, b"1\n", header=HEADER, **how)
            how = {"rotate_bytes": 9} if names[1] == PARTS else {}
            with pytest.raises(ValueError, match=r"'rows-00003.csv' is a part of 'rows-{part}"):
                batch.append_bytes(names[1], b"1\n", **how)
            batch.complete()


async def test_one_that_fails_leaves_the_header_to_the_next(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The records of three batches cannot be written, while five more wait for them."""
    failed = list[int]()

    async def handle(batch: Batch[int]) -> None:
        batch.append_bytes(PARTS, b"%d\n" % batch.index, header=HEADER, rotate_bytes=30)
        batch.complete()
        try:
            await batch.confirm()
        except StoreError:
            failed.append(batch.index)

    store = BloblessStore(inline_limit_bytes=1)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        store.refusals = 3
        await run_batches(stream, range(20), handle, concurrency=8)
    assert len(failed) == 3
    assert sorted(read_rows(tmp_path) + failed) == list(range(20))
