"""Bytes that batches append to files: as they are, or each batch's as a member of its own."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import zstandard

from tests.hangs import PROGRAM_S
from tests.opening import begin, begin_blocking
from trio_ckpt import Batch, BatchFailedError, OutputClaimedError, OutputError, Status
from trio_ckpt.stores import MemoryStore

Append = Callable[[Batch[Any]], None]
Compression = Literal["gzip", "zstd"]

READERS: dict[Compression, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda data: (
        zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    ),
}


async def work(store: MemoryStore, folder: Path, until: int, *appends: Append) -> None:
    """Append by each batch up to one, which ends its session."""
    async with begin(store, output_dir=folder) as run, run.open_stream("s", retry=None) as stream:
        async for batch in stream.batches(range(10)):
            if batch.index == until:
                batch.skip("the session ends here")
                return
            for append in appends:
                append(batch)
            batch.complete()


async def test_appended_bytes_are_there_once_in_order(tmp_path: Path) -> None:
    store, parts = MemoryStore(), [b"a\x00", bytearray(b""), memoryview(b"b\xff")]

    def append(batch: Batch[Any]) -> None:
        for part in parts:
            batch.append_bytes("log.bin", part)

    await work(store, tmp_path, 2, append)
    with (tmp_path / "log.bin").open("ab") as file:
        file.write(b"an append that was not confirmed")
    await work(store, tmp_path, 10, append)
    assert (tmp_path / "log.bin").read_bytes() == b"a\x00b\xff" * 9


@pytest.mark.parametrize("kind", READERS)
async def test_each_batch_is_a_member_of_its_own(kind: Compression, tmp_path: Path) -> None:
    """So the file is readable at any moment, and after an unconfirmed tail is cut off."""
    store, path = MemoryStore(), tmp_path / "log"
    lengths: list[int] = []

    def append(batch: Batch[Any]) -> None:
        if lengths or batch.index:
            data = path.read_bytes()
            lengths.append(len(data))
            assert READERS[kind](data) == b"some text, " * len(lengths)
        batch.append_bytes("log", b"some ", compress=kind)
        batch.append_bytes("log", b"text, ", compress=kind)

    await work(store, tmp_path, 3, append)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:9])  # a member that is cut
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(10)):
            batch.append_bytes("log", b"the rest", compress=kind)
            batch.complete()
        assert stream.status is Status.COMPLETE
    text = READERS[kind](path.read_bytes())
    assert text == b"some text, " * 3 + b"the rest" * 6


async def test_lines_of_json_can_be_compressed(tmp_path: Path) -> None:
    await work(
        MemoryStore(),
        tmp_path,
        2,
        lambda batch: batch.append_json("a.jsonl.gz", {"n": batch.index}, compress="gzip"),
        lambda batch: batch.append_json("a.jsonl.gz", compress="gzip"),
        lambda batch: batch.append_json("b.jsonl"),
    )
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b'{"n":0}\n{"n":1}\n'
    assert (tmp_path / "b.jsonl").read_bytes() == b""


async def test_a_repeated_attempt_leaves_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        await work(
            MemoryStore(),
            tmp_path / name,
            3,
            lambda batch: batch.append_bytes("g", bytes(9_000), compress="gzip"),
            lambda batch: batch.append_bytes("z", bytes(9_000), compress="zstd"),
        )
    for name in ("g", "z"):
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        assert len(data) < 900


@pytest.mark.parametrize(
    ("first", "then"), [(None, "gzip"), ("gzip", "zstd"), ("zstd", "gzip"), ("gzip", None)]
)
async def test_a_file_keeps_its_compression_in_a_session(
    first: Compression | None, then: Compression | None, tmp_path: Path
) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.append_bytes("log", b"x", compress=first)
            with pytest.raises(ValueError, match=f"'log' has compress={first!r} in this session"):
                batch.append_json("log", 1, compress=then)
            batch.complete()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (lambda batch: batch.append_bytes("log", b"x", compress="gzip"), "zstd"),
        (lambda batch: batch.append_bytes("log", b"x"), "gzip"),
        (lambda batch: batch.append_json("log", 1, compress="zstd"), None),
    ],
)
async def test_a_file_keeps_its_compression_over_sessions(
    first: Append, then: Compression | None, tmp_path: Path
) -> None:
    """Else no tool could read it to its end."""
    store = MemoryStore()
    await work(store, tmp_path, 2, first)
    before = (tmp_path / "log").read_bytes()
    with pytest.raises(BatchFailedError, match=r"was begun with compress=.* another name") as info:
        await work(store, tmp_path, 9, lambda batch: batch.append_json("log", 1, compress=then))
    assert isinstance(info.value.__cause__, OutputError)
    assert (tmp_path / "log").read_bytes() == before


async def test_bytes_that_are_compressed_already_may_go_on(tmp_path: Path) -> None:
    """Such as the members of a WARC writer, or the chunks of a download."""
    store = MemoryStore()
    for until in (2, 10):
        await work(
            store,
            tmp_path,
            until,
            lambda batch: batch.append_bytes("a.warc.gz", gzip.compress(b"record")),
        )
    assert gzip.decompress((tmp_path / "a.warc.gz").read_bytes()) == b"record" * 9


async def test_what_cannot_be_appended_is_refused_at_once(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(ValueError, match="compress must be one of 'gzip', 'zstd', not"):
                batch.append_bytes("log", b"x", compress="lz4")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="bytes or a buffer"):
                batch.append_bytes("log", "text")  # type: ignore[arg-type]
            path = await batch.write_bytes("whole", b"x")
            with pytest.raises(OutputClaimedError):
                batch.append_bytes(path, b"x")
            batch.complete()
            with pytest.raises(ValueError, match="compress must be one of"):
                batch.append_bytes("log", b"x", compress=True)  # type: ignore[arg-type]
        assert not (tmp_path / "log").exists()


def test_a_synchronous_program_appends_bytes(tmp_path: Path) -> None:
    with begin_blocking(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        for batch in stream.batches(range(3)):
            batch.append_bytes("log.gz", b"x", compress="gzip")
            batch.complete()
    assert gzip.decompress((tmp_path / "log.gz").read_bytes()) == b"xxx"


def test_the_usual_tool_reads_the_file(tmp_path: Path) -> None:
    with begin_blocking(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        for batch in stream.batches(range(3)):
            batch.append_json("log.jsonl.gz", batch.index, compress="gzip")
            batch.complete()
    command = [sys.executable, "-m", "gzip", "-d", str(tmp_path / "log.jsonl.gz")]
    subprocess.run(command, check=True, timeout=PROGRAM_S)
    assert (tmp_path / "log.jsonl").read_text() == "0\n1\n2\n"
