"""The files of a stream: checked before they are confirmed, in its folder, and its own."""

# ruff: noqa: ASYNC240, PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchFailedError,
    OutputClaimedError,
    OutputError,
    OutputInvalidError,
    RetryRule,
    RetryTable,
    RunStoppedError,
    Status,
    StoreConflictError,
    Then,
    open_run,
    run_batches,
)
from trio_ckpt._commit.stream_outputs import OWNER_AGE_S
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import RecordKind
from trio_ckpt.outputs import AppendFile, OutputDir, RawCheck
from trio_ckpt.stores import MemoryStore, open_store


@attrs.frozen
class Page:
    """What an output must hold."""

    page: int
    lines: list[str]


SCHEMA = {
    "type": "object",
    "properties": {"page": {"type": "integer"}, "lines": {"type": "array"}},
    "required": ["page", "lines"],
}


def refuse_placeholders(page: Any) -> None:
    lines = page["lines"] if isinstance(page, dict) else page.lines
    if "TODO" in lines:
        raise ValueError("a placeholder is no text")


GOOD = {"page": 1, "lines": ["a"]}


# ---------------------------------------------------------------------------------------
# Validation at the gate
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validate", "bad", "message"),
    [
        (Page, {"page": "1", "lines": []}, "page"),
        (Page, {"page": 1}, "lines"),
        (SCHEMA, {"page": 1.5, "lines": []}, "page"),
        (refuse_placeholders, {"page": 1, "lines": ["TODO"]}, "a placeholder is no text"),
        ([Page, refuse_placeholders], {"page": 1, "lines": ["TODO"]}, "a placeholder is no text"),
    ],
)
async def test_what_is_not_valid_is_not_confirmed(
    validate: Any, bad: Any, message: str, tmp_path: Path
) -> None:
    store = MemoryStore()
    with pytest.raises(BatchFailedError, match=message) as info:
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s", validate=validate) as stream:
                async for batch in stream.batches(range(2)):
                    await batch.write_json(f"{batch.index}.json", bad if batch.index else GOOD)
                    batch.complete()
    assert isinstance(info.value.__cause__, OutputInvalidError)
    assert info.value.__cause__.path == "1.json"
    assert list(stream.progress.confirmed) == [0]
    error = stream.progress.failures[1].error
    assert error is not None
    assert error.type == "OutputInvalidError"
    assert message in error.message


async def test_an_invalid_output_fails_the_attempt_and_the_table_decides(tmp_path: Path) -> None:
    retry = RetryTable((RetryRule((OutputInvalidError,), attempts=2, backoff_s=0.0),))
    texts = iter([{"page": "?", "lines": []}, GOOD])
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", validate=Page, retry=retry) as stream:
            async for batch in stream.batches(range(1)):
                await batch.write_json("0.json", next(texts))
                batch.spend(cost=1)
                batch.complete(records=1)
        assert stream.status is Status.COMPLETE
        assert stream.progress.spent["cost"].value == 2
        assert stream.progress.spent_confirmed["cost"].value == 1
        assert stream.statistics().session_retries == 1
    assert json.loads((tmp_path / "0.json").read_text()) == GOOD


async def test_confirm_raises_what_the_validation_found(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", validate=Page) as stream:
            async for batch in stream.batches(range(1)):
                await batch.write_json("0.json", {})
                batch.complete()
                with pytest.raises(BatchFailedError, match="page"):
                    await batch.confirm()
                break
            assert not stream.progress.confirmed


async def test_an_empty_batch_does_not_slip_by(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        with pytest.raises(BatchFailedError, match="no JSON output to validate"):
            async with run.open_stream("s", validate=Page) as stream:
                async for batch in stream.batches(range(1)):
                    await batch.write_text("0.txt", "{}")
                    batch.complete()


async def test_a_file_that_the_user_wrote_is_validated_too(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        with pytest.raises(BatchFailedError, match="UTF-8"):
            async with run.open_stream("s", validate=Page) as stream:
                async for batch in stream.batches(range(1)):
                    (tmp_path / "0.json").write_bytes(b'{"page": 1, "lines": ["\xff"]}')
                    batch.complete(outputs=["0.json"])


def is_a_picture(_path: str, content: bytes) -> bool:
    return content.startswith(b"\x89PNG")


async def save_pictures(store: Any, folder: Path, content: bytes, way: str) -> list[int]:
    worked = []
    check = RawCheck(is_a_picture)
    async with begin(store, output_dir=folder) as run:
        async with run.open_stream("s", validate=check) as stream:
            async for batch in stream.batches(range(2)):
                worked.append(batch.index)
                name = f"{batch.index}.png"
                if way == "bytes":
                    await batch.write_bytes(name, content)
                elif way == "text":
                    await batch.write_text(name, content.decode("latin-1"))
                else:
                    (folder / name).write_bytes(content)
                batch.complete(outputs=[name])
    return worked


@pytest.mark.parametrize("way", ["bytes", "text", "file"])
async def test_an_output_that_is_not_json_is_validated(way: str, tmp_path: Path) -> None:
    store = MemoryStore()
    with pytest.raises(BatchFailedError, match="is_a_picture refuses it"):
        await save_pictures(store, tmp_path, b"<html>", way)
    good = b"\x89PNG" if way != "text" else b""
    if good:
        assert await save_pictures(store, tmp_path, good, way) == [0, 1]


async def test_a_picture_that_was_replaced_goes_back_to_work(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):  # nothing was validated then
            content = b"<html>" if batch.index == 1 else b"\x89PNG"
            await batch.write_bytes(f"{batch.index}.png", content)
            batch.complete()
    assert await save_pictures(store, tmp_path, b"\x89PNG", "bytes") == [1]


async def test_run_batches_has_a_validation_of_its_own(tmp_path: Path) -> None:
    async def handle(batch: Batch[int]) -> None:
        await batch.write_json(f"{batch.index}.json", GOOD if batch.index % 2 else {})
        batch.complete()

    skip = RetryTable((RetryRule((OutputInvalidError,), attempts=1, then=Then.SKIP),))
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(6), handle, concurrency=3, retry=skip, validate=Page)
        assert list(stream.progress.skipped) == [0, 2, 4]
        async for batch in stream.batches(range(7)):
            await batch.write_json("6.json", {})
            batch.complete()
        assert list(stream.progress.confirmed) == [1, 3, 5, 6]  # it was for that loop only


async def test_a_bad_validation_is_refused_when_the_stream_is_opened(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        wrong: Any
        for wrong in (3, "x"):
            with pytest.raises(TypeError):
                async with run.open_stream("s", validate=wrong):
                    pass
        async with run.open_stream("s"):
            pass


# -- on resume ----------------------------------------------------------------------------


async def write_pages(
    store: Any, folder: Path, count: int = 3, validate: Any = None, **options: Any
) -> list[int]:
    worked = []
    async with begin(store, output_dir=folder) as run:
        async with run.open_stream("s", validate=validate, **options) as stream:
            async for batch in stream.batches(range(count)):
                worked.append(batch.index)
                await batch.write_json(
                    f"{batch.index}.json", {"page": batch.index, "lines": [f"{batch.attempt}"]}
                )
                batch.complete(records=1)
        assert stream.progress.records == count
    return worked


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_a_stricter_validation_refuses_goes_back_to_work(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    folder, odd = tmp_path / "out", True

    def no_odd_pages(page: Page) -> bool:
        return not (odd and page.page == 1)

    await write_pages(store, folder)
    assert await write_pages(store, folder, validate=[Page]) == []
    with caplog.at_level(logging.WARNING):
        async with begin(store, output_dir=folder) as run:
            async with run.open_stream("s", validate=[Page, no_odd_pages]) as stream:
                assert list(stream.progress.confirmed) == [0, 2]
                assert stream.progress.records == 2
    assert "batch 1 of run 'r', stream 's' is re-queued: 1.json is " in caplog.text
    assert (folder / ".archive").is_dir()
    odd = False
    assert await write_pages(store, folder, validate=[Page, no_odd_pages]) == [1]


async def test_why_it_went_back_is_kept_in_the_history(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path)
    (tmp_path / "0.json").unlink()
    schema = {"properties": {"page": {"maximum": 1}}}
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", validate=schema):
            pass
    found = [r async for p in read_pages(store, "r", 0, ("s",)) for _, r in p]
    redone = {r.metadata["path"]: r.metadata["reason"] for r in found if r.kind is RecordKind.REDO}
    assert redone.keys() == {"0.json", "2.json"}
    assert redone["0.json"] == "missing"
    assert redone["2.json"].startswith("invalid: page: ")


async def test_verify_off_leaves_the_validation_out(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path)
    async with begin(store, output_dir=tmp_path, verify="off") as run:
        async with run.open_stream("s", validate={"type": "string"}) as stream:
            assert len(stream.progress.confirmed) == 3


# ---------------------------------------------------------------------------------------
# The folder of a stream
# ---------------------------------------------------------------------------------------


async def test_outputs_are_named_relative_to_the_folder_of_the_stream(tmp_path: Path) -> None:
    store, worked = MemoryStore(), list[int]()
    for _ in range(2):
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s", output_dir="a/b") as stream:
                async for batch in stream.batches(range(1)):
                    worked.append(batch.index)
                    assert await batch.write_text("x/1.txt", "1") == "x/1.txt"
                    (tmp_path / "a" / "b" / "2.txt").write_text("2")
                    batch.append_json("lines.jsonl", batch.index)
                    batch.complete(outputs=["x/1.txt", "2.txt"])
                    await batch.confirm()
                    result = await batch.token.wait()
                    assert [o.path for o in result.outputs] == ["a/b/x/1.txt", "a/b/2.txt"]
                    break
    assert worked == [0]
    assert stream.progress.sinks == {"a/b/lines.jsonl": 2}
    assert (tmp_path / "a" / "b" / "x" / "1.txt").read_text() == "1"


async def test_the_folder_of_a_stream_is_in_that_of_the_run(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        for bad in ("..", "/", "a/../.."):
            with pytest.raises(OutputError):
                async with run.open_stream("s", output_dir=bad):
                    pass
        async with run.open_stream("s", output_dir="a") as stream:
            async for batch in stream.batches(range(1)):
                with pytest.raises(OutputError):
                    await batch.write_text("../../1.txt", "1")
                batch.complete()
    async with begin("memory:") as run:
        with pytest.raises(ValueError, match="below that of the run"):
            async with run.open_stream("s", output_dir="a"):
                pass
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                with pytest.raises(RuntimeError, match="no folder for outputs"):
                    await batch.write_text("1.txt", "1")
                batch.complete()


async def test_damage_in_the_folder_of_a_stream_is_found(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(store, tmp_path, output_dir="pages")
    (tmp_path / "pages" / "1.json").unlink()
    assert await write_pages(store, tmp_path, output_dir="pages") == [1]
    assert await write_pages(store, tmp_path) == []  # where they are is in the records


# ---------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------


async def test_batches_of_two_streams_share_no_files(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("a") as a, run.open_stream("b") as b:
            one, other = await anext(a.batches()), await anext(b.batches())
            await one.write_text("1.txt", "a")
            with pytest.raises(OutputClaimedError, match="batch 0 of stream"):
                await other.write_text("./1.txt", "b")
            with pytest.raises(OutputClaimedError):
                other.append_json("1.txt", 1)
            one.append_json("lines.jsonl", 1)
            with pytest.raises(OutputClaimedError, match="the append files of stream"):
                await other.write_text("lines.jsonl", "b")
            one.complete(last=True)
            other.complete(last=True)
    assert (tmp_path / "1.txt").read_text() == "a"


async def test_an_attempt_that_is_over_lets_go_of_its_names(tmp_path: Path) -> None:
    retry = RetryTable((RetryRule((ValueError,), attempts=2, backoff_s=0.0, then=Then.SKIP),))
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", retry=retry) as stream:
            async for batch in stream.batches(range(3)):
                await batch.write_text("same.txt", f"{batch.index}")
                if batch.index < 2:
                    batch.fail(ValueError("no"))
                else:
                    batch.complete()
        assert list(stream.progress.skipped) == [0, 1]
        async with run.open_stream("t") as stream:
            async for batch in stream.batches(range(1)):
                with pytest.raises(OutputClaimedError, match="batch 2"):
                    await batch.write_text("same.txt", "t")
                batch.complete()
    assert (tmp_path / "same.txt").read_text() == "2"


async def test_names_of_a_failed_attempt_alone_are_free_after_its_batch(
    tmp_path: Path,
) -> None:
    retry = RetryTable((RetryRule((ValueError,), attempts=2, backoff_s=0.0),))
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", retry=retry) as stream:
            async for batch in stream.batches(range(2)):
                if batch.index == 0 and batch.attempt == 1:
                    await batch.write_text("draft.txt", "0")
                    batch.fail(ValueError("no"))
                else:
                    await batch.write_text(f"{batch.index}.txt", "x")
                    if batch.index == 1:
                        await batch.write_text("draft.txt", "1")
                    batch.complete()
    assert (tmp_path / "draft.txt").read_text() == "1"


async def test_the_names_of_a_redone_batch_are_free_once_its_files_are_kept(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            await batch.write_text(f"{batch.index}.txt", "x")
            batch.complete()
        await stream.redo([0, 1], reason="x")
        async for batch in stream.batches(range(2)):
            await batch.write_text(f"{1 - batch.index}.txt", "y")
            batch.complete()
    assert [(tmp_path / name).read_text() for name in ("0.txt", "1.txt")] == ["y", "y"]


async def test_a_file_unknown_to_records_is_moved_aside_before_appending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lines.jsonl").write_text("precious\n")
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.append_json("lines.jsonl", batch.index)
            batch.complete()
    assert (tmp_path / "lines.jsonl").read_text() == "0\n1\n"
    (kept,) = (tmp_path / ".archive").rglob("lines.jsonl")
    assert kept.read_text() == "precious\n"
    assert f"it was moved to {kept.relative_to(tmp_path)}" in caplog.text


# -- an owner that has slept through a takeover ---------------------------------------------


@asynccontextmanager
async def taken_over(folder: Path) -> AsyncGenerator[None]:
    """Own a run that another process owns, as is possible if its lock was removed."""
    for path in folder.glob("lock/" + "?" * 32):
        path.unlink()
    async with aclosing(await open_store(folder)) as store, store.lock_run("run"):
        yield


async def append(folder: Path, *, end: int, then: Callable[[], Awaitable[None]]) -> None:
    """Append lines up to a batch, and do something when all but the last are confirmed."""
    async with open_run("run", store=folder / "s", output_dir=folder / "out") as run:
        if run.found.sessions:
            await then()
        async with run.open_stream("a") as stream:
            async for batch in stream.batches(range(3), end=end):
                batch.append_json("lines", batch.index)
                batch.complete()
                if batch.index and not run.found.sessions:
                    await then()
                await batch.confirm()


@pytest.mark.parametrize("confirmed", [0, 1])
async def test_who_has_lost_the_run_opens_no_append_file(tmp_path: Path, confirmed: int) -> None:
    """It neither cuts off what its successor has confirmed, nor moves it out of the way."""
    path = tmp_path / "out" / "lines"

    async def lose() -> None:
        async with taken_over(tmp_path / "s"):
            with path.open("a") as lines:
                lines.write("of the next owner\n")

    if confirmed:
        with suppress(RunStoppedError):
            await append(tmp_path, end=0, then=nothing)
        with pytest.raises(StoreConflictError):
            await append(tmp_path, end=2, then=lose)
    else:
        with pytest.raises(StoreConflictError):
            async with (
                open_run("run", store=tmp_path / "s", output_dir=tmp_path / "out") as run,
                run.open_stream("a") as stream,
                stream.open_batch() as batch,
            ):
                batch.append_json("lines", 0)
                batch.complete()
                await lose()
    assert path.read_text() == "0\n" * confirmed + "of the next owner\n"
    assert not (tmp_path / "out" / ".archive").exists()


async def nothing() -> None:
    """Do nothing: no other process comes."""


async def test_an_owner_that_lost_the_run_still_locks_its_append_files(
    tmp_path: Path,
) -> None:
    """What it appends then is not confirmed, and the next start cuts it off."""

    async def lose() -> None:
        async with taken_over(tmp_path / "s"):
            outdir = OutputDir.open(tmp_path / "out")
            with pytest.raises(OutputError, match="another process has it open"):
                AppendFile.open(outdir, "lines", 2)
            outdir.close()

    with pytest.raises(StoreConflictError):
        await append(tmp_path, end=1, then=lose)
    assert (tmp_path / "out" / "lines").read_text() == "0\n1\n"
    await append(tmp_path, end=2, then=nothing)
    assert (tmp_path / "out" / "lines").read_text() == "0\n1\n2\n"


async def test_who_has_slept_and_lost_the_run_replaces_no_output(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "out" / "page"
    with pytest.raises(StoreConflictError):
        async with (
            open_run("run", store=tmp_path / "s", output_dir=tmp_path / "out") as run,
            run.open_stream("a") as stream,
        ):
            async for batch in stream.batches(range(2)):
                if batch.index == 1:
                    async with taken_over(tmp_path / "s"):
                        path.write_text("of the next owner")
                        await trio.sleep(OWNER_AGE_S)
                        await batch.write_text("page", "of the one before")
                batch.complete()
    assert path.read_text() == "of the next owner"


async def test_who_works_fast_is_not_asked_again_and_again_who_owns_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved lately says it, too: a file costs no transaction of its own."""
    store = MemoryStore()
    asked: list[int] = []

    async def save(
        self: MemoryStore, run: Any, group: Any, folds: Any = (), *, summary: Any = None
    ) -> Any:
        asked.append(len(group) + len(folds))
        return await real_save(self, run, group, folds, summary=summary)

    real_save = MemoryStore.save
    monkeypatch.setattr(MemoryStore, "save", save)
    async with (
        open_run("run", store=store, output_dir=tmp_path) as run,
        run.open_stream("a") as stream,
    ):
        async for batch in stream.batches(range(20)):
            await batch.write_text(f"page-{batch.index}", "text")
            batch.complete()
    assert asked.count(0) == 0


async def test_who_has_lost_the_run_leaves_the_manifest_of_the_next_owner(tmp_path: Path) -> None:
    manifest = tmp_path / "out" / "manifest.json"

    async def work(*, loses: bool) -> None:
        async with (
            open_run("run", store=tmp_path / "s", output_dir=tmp_path / "out") as run,
            run.open_stream("a") as stream,
        ):
            async for batch in stream.batches(range(2)):
                batch.complete()
                if loses:
                    for path in (tmp_path / "s").glob("lock/" + "?" * 32):
                        path.unlink()
                    await work(loses=False)

    with pytest.raises(StoreConflictError):
        await work(loses=True)
    assert manifest.exists()
    assert not (tmp_path / "out" / ".archive").exists()


async def test_a_file_without_a_line_is_not_kept_aside(tmp_path: Path) -> None:
    """A session that is killed before its first append leaves one."""
    (tmp_path / "lines.jsonl").touch()
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.append_json("lines.jsonl", batch.index)
            batch.complete()
    assert (tmp_path / "lines.jsonl").read_text() == "0\n1\n"
    assert not (tmp_path / ".archive").exists()
