"""Append files in parts: a part that has its size gets no further piece."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import Batch, BatchFailedError, StoreError, run_batches
from trio_ckpt._commit.rotation import Rotation
from trio_ckpt._commit.stream_outputs import MAX_OPEN
from trio_ckpt.abc import RunKey
from trio_ckpt.stores import MemoryStore

LINES = "pages-{part}.jsonl"


def length_in(parts: Mapping[str, int]) -> Callable[[str], int]:
    """How many bytes each part has, whether confirmed or on their way."""
    return lambda path: parts.get(path, 0)


def place_some(rotation: Rotation, parts: dict[str, int], *sizes: int) -> list[str]:
    """Place pieces of these sizes; returns where."""
    placed = list[str]()
    for size in sizes:
        path = rotation.place(length_in(parts))
        parts[path] = parts.get(path, 0) + size
        placed.append(path)
    return placed


@given(
    rotate_bytes=st.integers(1, 50),
    sizes=st.lists(st.integers(1, 60), max_size=40),
    kept=st.integers(0, 40),
)
def test_parts_are_filled_in_order(rotate_bytes: int, sizes: list[int], kept: int) -> None:
    """A later session, or one after a rewind, goes on where the confirmed bytes end."""
    whole, confirmed = dict[str, int](), dict[str, int]()
    for target in (whole, confirmed):
        rotation = Rotation("x-{part}", rotate_bytes)
        for number, size in enumerate(sizes):
            if target is confirmed and number == kept:
                rotation = Rotation("x-{part}", rotate_bytes)
            path = rotation.place(length_in(target))
            target[path] = target.get(path, 0) + size
    assert confirmed == whole
    assert list(whole) == [f"x-{number:05d}" for number in range(len(whole))]
    assert all(size >= rotate_bytes for size in list(whole.values())[:-1])


def test_pieces_that_are_on_their_way_count() -> None:
    placed = place_some(Rotation("x-{part}", 10), {}, 4, 4, 4, 4, 4)
    assert placed == ["x-00000"] * 3 + ["x-00001"] * 2


def test_a_piece_that_is_given_up_leaves_full_parts_as_they_are() -> None:
    """Also those whose pieces are still on their way."""
    rotation, parts = Rotation("x-{part}", 1), dict[str, int]()
    assert place_some(rotation, parts, 1, 1, 1) == ["x-00000", "x-00001", "x-00002"]
    del parts["x-00002"]
    assert place_some(rotation, parts, 1, 1) == ["x-00002", "x-00003"]


def test_a_part_that_was_left_out_is_filled_and_full_ones_are_not() -> None:
    """A process was killed when the later one of two parts was saved."""
    parts = {"x-00000": 1, "x-00002": 1, "x-00003": 1}
    placed = place_some(Rotation("x-{part}", 1), parts, 1, 1, 1)
    assert placed == ["x-00001", "x-00004", "x-00005"]


def test_a_rewind_takes_parts_back() -> None:
    rotation = Rotation("x-{part}", 10)
    parts = {"x-00000": 10, "x-00001": 10, "x-00002": 3}
    assert rotation.place(length_in(parts)) == "x-00002"
    parts |= {"x-00001": 4, "x-00002": 0}
    assert rotation.place(length_in(parts)) == "x-00001"


def parts_of(folder: Path, pattern: str = "pages-*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


async def work(store: MemoryStore, folder: Path, until: int) -> None:
    """Append a line by each batch until so many are done, which ends the session."""
    async with begin(store, output_dir=folder) as run, run.open_stream("s", retry=None) as stream:
        async for batch in stream.batches(range(40)):
            batch.append_json(LINES, batch.index, rotate_bytes=10)
            batch.complete()
            if batch.index + 1 == until:
                break


async def test_sessions_that_were_cut_leave_the_parts_of_one(tmp_path: Path) -> None:
    await work(MemoryStore(), tmp_path / "one", 40)
    expected = parts_of(tmp_path / "one")
    assert list(expected)[:2] == ["pages-00000.jsonl", "pages-00001.jsonl"]
    assert expected["pages-00000.jsonl"] == b"0\n1\n2\n3\n4\n"
    assert b"".join(expected.values()) == b"".join(b"%d\n" % n for n in range(40))
    store = MemoryStore()
    for until in range(1, 41):
        await work(store, tmp_path / "two", until)
        for path in (tmp_path / "two").glob("pages-*"):
            path.write_bytes(path.read_bytes() + b"an append that was not confirmed")
    await work(store, tmp_path / "two", 40)
    assert parts_of(tmp_path / "two") == expected


async def test_a_rewind_cuts_parts(tmp_path: Path) -> None:
    store = MemoryStore()
    await work(store, tmp_path, 40)
    expected = parts_of(tmp_path)
    async with begin(store, output_dir=tmp_path) as run:
        await run.rewind(("s",), to=7, reason="x")
    await work(store, tmp_path, 40)
    assert parts_of(tmp_path) == expected


async def test_workers_share_the_parts(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(batch.index % 7)
        batch.append_json(LINES, batch.index, rotate_bytes=100)
        batch.complete()

    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(500), handle, concurrency=16)
    parts = parts_of(tmp_path)
    lines = [json.loads(line) for data in parts.values() for line in data.splitlines()]
    assert sorted(lines) == list(range(500))
    assert all(100 <= len(data) < 104 for data in list(parts.values())[:-1])


class BloblessStore(MemoryStore):
    """A store that refuses some blobs."""

    refusals = 0

    async def put_blob(self, run: RunKey, payload: Any) -> str:
        if self.refusals:
            self.refusals -= 1
            raise StoreError("no room for a blob")
        return await super().put_blob(run, payload)


async def test_what_was_not_saved_is_not_on_its_way(tmp_path: Path) -> None:
    """The record of each batch cannot be written at first, so its line is given up."""
    store = BloblessStore(inline_limit_bytes=1)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        for store.refusals in [1, 0] * 9:
            with suppress(StoreError):
                async for batch in stream.batches(range(9)):
                    batch.append_json(LINES, batch.index, rotate_bytes=6)
                    batch.complete()
                    await batch.confirm()
                    break
    assert list(parts_of(tmp_path).values()) == [b"0\n1\n2\n", b"3\n4\n5\n", b"6\n7\n8\n"]


def open_descriptors() -> int:
    """How many descriptors this process has; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


async def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    """Of parts, and of files of other names, in a session and on its resume."""
    store, many = MemoryStore(), 3 * MAX_OPEN
    before = open_descriptors()
    for session in range(2):
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range((session + 1) * many)):
                batch.append_json(LINES, batch.index, rotate_bytes=1)
                batch.append_json(f"{batch.index % many}.jsonl", batch.index)
                batch.complete()
                assert open_descriptors() < before + MAX_OPEN + 40
    assert len(parts_of(tmp_path)) == 2 * many
    for index in range(many):
        assert (tmp_path / f"{index}.jsonl").read_text() == f"{index}\n{index + many}\n"


class AskedStore(MemoryStore):
    """A store that counts how often it was asked who owns the run, or anything else was saved."""

    asked = 0

    async def save(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return await super().save(*args, **kwargs)


async def test_parts_that_are_as_they_were_cost_no_request(tmp_path: Path) -> None:
    """On resume and at the end of the stream; one that is not is cut."""
    store, asked = AskedStore(), list[int]()

    async def extend(parts: int) -> None:
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(parts)):
                batch.append_json(LINES, batch.index, rotate_bytes=1)
                batch.complete()

    for parts in (MAX_OPEN, 4 * MAX_OPEN):
        await extend(parts)
        expected = parts_of(tmp_path)
        for name in list(expected)[:1]:
            (tmp_path / name).write_bytes(expected[name] + b"a tail")
        store.asked = 0
        await extend(parts)
        asked.append(store.asked)
        assert parts_of(tmp_path) == expected
    assert asked[1] <= asked[0] + 1


class HeldStore(MemoryStore):
    """A store that saves nothing about a batch before a number of files are there."""

    def __init__(self, folder: Path, files: int) -> None:
        super().__init__()
        self.folder = folder
        self.files = files

    async def save(self, run: Any, group: Any, *more: Any, **kwargs: Any) -> Any:
        while group and 0 < len(parts_of(self.folder, "*.jsonl")) < self.files:  # noqa: ASYNC110
            await trio.sleep(0.01)
        return await super().save(run, group, *more, **kwargs)


async def test_files_that_are_written_to_stay_open(tmp_path: Path) -> None:
    many = 2 * MAX_OPEN

    async def handle(batch: Batch[int]) -> None:
        batch.append_json(f"{batch.index}.jsonl", batch.index)
        batch.complete()

    store = HeldStore(tmp_path, many)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(many), handle, concurrency=many, retry=None)
    for index in range(many):
        assert (tmp_path / f"{index}.jsonl").read_text() == f"{index}\n"


async def test_each_part_can_be_read_alone(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(50)):
            batch.append_bytes("pages-{part}.gz", b"x" * 9, compress="gzip", rotate_bytes=200)
            batch.complete()
    texts = [gzip.decompress(data) for data in parts_of(tmp_path).values()]
    assert len(texts) > 2
    assert b"".join(texts) == b"x" * 450


@pytest.mark.parametrize("rotate_bytes", [1, 10_000])
async def test_all_parts_are_compressed_in_one_way(rotate_bytes: int, tmp_path: Path) -> None:
    """Also in a later session, whether the newest part is full or not."""
    store = MemoryStore()

    async def append(total: int, compress: Literal["gzip"] | None) -> None:
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(total)):
                batch.append_json(LINES, 1, compress=compress, rotate_bytes=rotate_bytes)
                batch.complete()

    await append(3, "gzip")
    with pytest.raises(BatchFailedError, match="was begun with compress='gzip'"):
        await append(4, None)
    await append(4, "gzip")
    assert b"".join(map(gzip.decompress, parts_of(tmp_path).values())) == b"1\n" * 4


async def test_a_part_that_another_stream_owns_is_refused(tmp_path: Path) -> None:
    async def both() -> None:
        async with begin(output_dir=tmp_path) as run:
            async with run.open_stream("first") as stream:
                async for batch in stream.batches(range(1)):
                    batch.append_json("pages-00001.jsonl", 1)
                    batch.complete()
            async with run.open_stream("second") as stream:
                async for batch in stream.batches(range(9)):
                    batch.append_json(LINES, batch.index, rotate_bytes=2)
                    batch.complete()

    with pytest.raises(BatchFailedError, match=r"'pages-00001\.jsonl': it belongs to"):
        await both()
    assert parts_of(tmp_path) == {"pages-00000.jsonl": b"0\n", "pages-00001.jsonl": b"1\n"}


@pytest.mark.parametrize(
    ("path", "rotate_bytes", "message"),
    [
        ("pages.jsonl", 10, "'pages.jsonl': with rotate_bytes= the path of an append file has"),
        ("{part}/{part}.jsonl", 10, "has {part} once"),
        (LINES, 0, "rotate_bytes must be an int from 1 on"),
        (LINES, 1.5, "rotate_bytes must be an int from 1 on"),
    ],
)
async def test_bad_arguments_are_named(
    path: str, rotate_bytes: Any, message: str, tmp_path: Path
) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises((ValueError, TypeError), match=message):
                batch.append_json(path, 1, rotate_bytes=rotate_bytes)
            batch.complete()
    assert not parts_of(tmp_path)


async def test_a_folder_has_no_number_of_a_part(tmp_path: Path) -> None:
    async with (
        begin(output_dir=tmp_path) as run,
        run.open_stream("s", output_dir="x-{part}") as stream,
    ):
        async for batch in stream.batches(range(1)):
            with pytest.raises(ValueError, match=r"has \{part\} once"):
                batch.append_json(LINES, 1, rotate_bytes=10)
            batch.complete()


async def test_a_file_keeps_its_size_in_a_session(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.append_json(LINES, 1, rotate_bytes=10)
            with pytest.raises(ValueError, match="has rotate_bytes=10 in this session, not 20"):
                batch.append_json(LINES, 1, rotate_bytes=20)
            batch.complete()
