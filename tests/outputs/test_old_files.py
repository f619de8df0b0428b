"""A file that no record of the run names is never written over in silence."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trio_ckpt import (
    Batch,
    BatchFailedError,
    OutputExistsError,
    RetryRule,
    RetryTable,
    open_run,
    run_batches,
)
from trio_ckpt._commit.stream_outputs import MAX_COUNTED

LONG_AGO = (1_000.0, 1_000.0)


def old(path: Path, text: str) -> Path:
    """A file that is older than every run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, LONG_AGO)
    return path


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


async def work(tmp_path: Path, text: str = "new", count: int = 2, **options: Any) -> None:
    options = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"} | options
    async with open_run("r", **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            await batch.write_text(f"{batch.index}.txt", text)
            batch.complete()


async def die(tmp_path: Path, text: str, name: str = "0.txt") -> None:
    """A session that leaves a file without a record."""
    options: Any = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"}
    with pytest.raises(ZeroDivisionError):
        async with open_run("r", **options) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                await batch.write_text(name, text)
                raise ZeroDivisionError


async def test_a_new_store_over_old_outputs_is_refused(tmp_path: Path) -> None:
    old(tmp_path / "out" / "0.txt", "paid for")
    with pytest.raises(OutputExistsError) as caught:
        await work(tmp_path)
    with pytest.raises(OutputExistsError):  # the second start knows of the first
        await work(tmp_path)
    assert files(tmp_path / "out") == {"0.txt": "paid for"}
    message = str(caught.value)
    for part in (f"The folder {tmp_path}/out holds 1 file", "rescan", "fresh=True", "run 'r'"):
        assert part in message
    assert (caught.value.path, caught.value.stream) == ("0.txt", ("s",))


async def test_a_file_of_just_now_is_refused_in_the_first_session(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.txt").write_text("paid for")
    with pytest.raises(OutputExistsError):
        await work(tmp_path)
    assert files(tmp_path / "out") == {"0.txt": "paid for"}


async def test_a_hole_in_the_old_outputs_is_filled_and_no_more(tmp_path: Path) -> None:
    old(tmp_path / "out" / "1.txt", "paid for")
    for _ in range(2):
        with pytest.raises(OutputExistsError):
            await work(tmp_path)
        assert files(tmp_path / "out") == {"0.txt": "new", "1.txt": "paid for"}


async def test_a_retry_does_not_write_over_what_was_refused(tmp_path: Path) -> None:
    old(tmp_path / "out" / "0.txt", "paid for")
    attempts = []

    async def body(batch: Batch[int]) -> None:
        attempts.append(batch.attempt)
        await batch.write_text("0.txt", "new")
        batch.complete()

    table = RetryTable((RetryRule((Exception,), attempts=3, backoff_s=0),))
    options: Any = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"}
    with pytest.raises(OutputExistsError):
        async with open_run("r", **options) as run, run.open_stream("s", retry=table) as stream:
            await run_batches(stream, range(1), body)
    assert attempts == [1, 2, 3]
    assert files(tmp_path / "out") == {"0.txt": "paid for"}


async def test_fresh_archives_what_it_replaces(tmp_path: Path) -> None:
    for index in range(3):
        old(tmp_path / "out" / f"{index}.txt", "paid for")
    await work(tmp_path, count=2, fresh=True)
    await work(tmp_path, count=3)  # the word holds for the run, not for one session
    found = files(tmp_path / "out")
    assert [found.pop(f"{index}.txt") for index in range(3)] == ["new"] * 3
    assert {n: t for n, t in found.items() if n.endswith(".txt")} == {
        f".archive/r-unconfirmed/{index}.txt": "paid for" for index in range(3)
    }


async def test_what_a_killed_session_left_is_archived_if_it_differs(tmp_path: Path) -> None:
    await die(tmp_path, "first try")
    await work(tmp_path, count=1)
    found = files(tmp_path / "out")
    assert (found["0.txt"], found[".archive/r-unconfirmed/0.txt"]) == ("new", "first try")


async def test_what_a_killed_session_left_is_replaced_if_it_is_alike(tmp_path: Path) -> None:
    await die(tmp_path, "new")
    await work(tmp_path, count=1)
    assert not (tmp_path / "out" / ".archive").exists()


async def test_an_attempt_replaces_what_it_has_written_itself(tmp_path: Path) -> None:
    options: Any = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"}
    async with open_run("r", **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            for text in ("one", "two"):
                await batch.write_text("0.txt", text)
            batch.complete()
    assert files(tmp_path / "out")["0.txt"] == "two"
    assert not (tmp_path / "out" / ".archive").exists()


async def test_an_old_append_file_is_refused(tmp_path: Path) -> None:
    old(tmp_path / "out" / "all.jsonl", "1\n2\n")
    options: Any = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"}
    for _ in range(2):
        with pytest.raises(BatchFailedError, match="older than run 'r'"):
            async with open_run("r", **options) as run, run.open_stream("s") as stream:
                async for batch in stream.batches(range(1)):
                    batch.append_json("all.jsonl", 3)
                    batch.complete()
        assert files(tmp_path / "out") == {"all.jsonl": "1\n2\n"}


async def test_the_younger_of_two_runs_in_one_folder_is_refused(tmp_path: Path) -> None:
    await work(tmp_path, "of the first")
    with pytest.raises(OutputExistsError, match="older than run 'other'"):
        async with (
            open_run("other", store=tmp_path / "new.ckpt", output_dir=tmp_path / "out") as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(1)):
                await batch.write_text("0.txt", "of the other")
                batch.complete()
    assert files(tmp_path / "out")["0.txt"] == "of the first"


async def test_files_of_other_names_are_in_the_way_of_none(tmp_path: Path) -> None:
    old(tmp_path / "out" / "readme.txt", "mine")
    await work(tmp_path)
    assert files(tmp_path / "out")["readme.txt"] == "mine"


async def test_what_a_rescan_left_out_may_be_replaced(tmp_path: Path) -> None:
    old(tmp_path / "out" / "0.txt", "paid for")
    old(tmp_path / "out" / "1.txt", "")
    options: Any = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"}
    async with open_run("r", **options) as run, run.open_stream("s") as stream:
        found = await stream.rescan(lambda i: f"{i}.txt", total=2, adopt_outputs=True)
        assert found == [0]
        async for batch in stream.batches(range(2)):
            await batch.write_text(f"{batch.index}.txt", "new")
            batch.complete()
    found_files = files(tmp_path / "out")
    assert (found_files["0.txt"], found_files["1.txt"]) == ("paid for", "new")


async def test_a_rescan_decides_for_the_sessions_after_it(tmp_path: Path) -> None:
    old(tmp_path / "out" / "0.txt", "paid for")
    old(tmp_path / "out" / "1.txt", "")
    options: Any = {"store": tmp_path / "new.ckpt", "output_dir": tmp_path / "out"}
    async with open_run("r", **options) as run, run.open_stream("s") as stream:
        assert await stream.rescan(lambda i: f"{i}.txt", total=2, adopt_outputs=True) == [0]
    await work(tmp_path)
    found = files(tmp_path / "out")
    assert (found["0.txt"], found["1.txt"]) == ("paid for", "new")


async def test_with_a_store_in_memory_old_files_are_archived(tmp_path: Path) -> None:
    old(tmp_path / "out" / "0.txt", "of the last start")
    await work(tmp_path, store="memory:")
    found = files(tmp_path / "out")
    assert (found["0.txt"], found[".archive/r-unconfirmed/0.txt"]) == ("new", "of the last start")


async def test_the_message_counts_no_more_files_than_it_may(tmp_path: Path) -> None:
    old(tmp_path / "out" / "0.txt", "paid for")
    (tmp_path / "out" / "many").mkdir()
    for index in range(MAX_COUNTED):
        (tmp_path / "out" / "many" / str(index)).touch()
    with pytest.raises(OutputExistsError, match="holds 1,000 or more files"):
        await work(tmp_path)
