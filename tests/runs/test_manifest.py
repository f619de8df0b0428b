"""The manifest: what a complete run left behind, and never half of it."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import OutputClaimedError, Run, StoreError, open_maintenance
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Status
from trio_ckpt._journal.store import RunKey
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt._runs.config import canonical_config, config_digest
from trio_ckpt._runs.manifest import MAX_MANIFEST_HEAD_BYTES, RunContents, manifest_owner
from trio_ckpt._util.plain import StreamKey
from trio_ckpt.outputs import OutputDir
from trio_ckpt.outputs._tree import temp_name
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore


async def work(run: Run, *key: str, count: int = 2, text: str = "x") -> None:
    async with run.open_stream(*key) as stream:
        async for batch in stream.batches(range(count)):
            await batch.write_text(f"{key[0]}-{batch.index}.txt", f"{text} {batch.index}")
            batch.spend(cost=0.5)
            batch.complete(records=2, totals={"words": 3})
        await stream.finish(metadata={"model": "m"})


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_manifest_of_a_complete_run_has_every_output_and_its_hash(
    kind: str, tmp_path: Path
) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    folder = tmp_path / "out"
    async with begin(store, output_dir=folder, config={"n": 1}) as run:
        await run.add_streams([("b", "y"), ("a", "x")])
        async with run.phase("p"):
            await work(run, "a", "x")
            async with run.open_stream("b", "y") as stream:
                async for batch in stream.batches(range(3)):
                    if batch.index == 1:
                        batch.skip("no")
                    else:
                        batch.append_json("lines.jsonl", batch.index)
                        batch.complete(records=1)
        assert not (folder / "manifest.json").exists()
    found = read(folder)
    streams = found.pop("streams")
    completed_at = found.pop("completed_at")
    assert isinstance(completed_at, float)
    assert found == {
        "format": 1,
        "run": "r",
        "generation": 0,
        "checkpoints": 12,
        "config": {"n": 1},
        "config_digest": config_digest(canonical_config({"n": 1})),
        "batches": 4,
        "skipped": 1,
        "records": 6,
        "totals": {"words": 6},
        "spent": {"cost": 1},
        "adopted": 0,
        "phases": {"p": "complete"},
    }
    lines, pages = streams
    assert (lines["stream"], pages["stream"]) == (["b", "y"], ["a", "x"])
    assert (lines["batches"], lines["skipped"], lines["outputs"]) == (2, [1], [])
    (sink,) = lines["append_files"]
    data = (folder / "lines.jsonl").read_bytes()
    assert (sink["path"], sink["size"]) == ("lines.jsonl", len(data))
    assert (pages["status"], pages["records"], pages["metadata"]) == ("complete", 4, {"model": "m"})
    assert (pages["totals"], pages["spent"], pages["append_files"]) == (
        {"words": 6},
        {"cost": 1},
        [],
    )
    assert [output["batch"] for output in pages["outputs"]] == [1, 0]
    for output in pages["outputs"]:
        data = (folder / output["path"]).read_bytes()
        assert output["size"] == len(data)
        assert output["sha256"] == hashlib.sha256(data).hexdigest()


async def test_a_run_that_is_not_complete_leaves_none(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path):
        pass  # nothing was begun
    async with begin(store, output_dir=tmp_path) as run:
        await run.add_streams([("a",), ("b",)])
        await work(run, "a")
    with pytest.raises(KeyError):
        async with begin(store, output_dir=tmp_path) as run:
            await work(run, "b")
            raise KeyError
    with pytest.raises(KeyError):
        async with begin(store, output_dir=tmp_path) as run:
            async with run.phase("p"):
                raise KeyError
    async with begin(store, output_dir=tmp_path):
        pass  # a phase is left
    assert not (tmp_path / "manifest.json").exists()
    async with begin(store, output_dir=tmp_path) as run, run.phase("p"):
        pass
    assert len(read(tmp_path)["streams"]) == 2


async def test_without_a_folder_there_is_nowhere_to_leave_it(tmp_path: Path) -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()


async def test_it_is_written_again_after_a_redo(tmp_path: Path) -> None:
    store = MemoryStore()
    for text in ("first", "second"):
        async with begin(store, output_dir=tmp_path) as run:
            if text == "second":
                await run.rewind(("a",), to=0, reason="x")
            await work(run, "a", text=text)
        (stream,) = read(tmp_path)["streams"]
        hashes = {output["batch"]: output["sha256"] for output in stream["outputs"]}
        for index in range(2):
            data = (tmp_path / f"a-{index}.txt").read_bytes()
            assert hashes.pop(index) == hashlib.sha256(data).hexdigest()
        assert not hashes
        assert stream["spent"] == {"cost": 1 if text == "first" else 1.5}


def outdated(folder: Path) -> int:
    """How many were moved aside."""
    return len(list((folder / ".archive").rglob("manifest.json*")))


def identity(path: Path) -> tuple[int, ...]:
    """What a write changes of a file, and a read does not."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


async def test_a_complete_run_that_is_opened_again_keeps_its_manifest(tmp_path: Path) -> None:
    store = MemoryStore()
    for _ in range(3):
        async with begin(store, output_dir=tmp_path) as run:
            await work(run, "a")
    assert outdated(tmp_path) == 0
    before = identity(tmp_path / "manifest.json")
    with pytest.raises(KeyError):
        async with begin(store, output_dir=tmp_path):
            raise KeyError
    assert identity(tmp_path / "manifest.json") == before


async def test_the_next_start_removes_what_a_kill_leaves_of_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the session is saved after it, so the next one knows that it was killed."""
    store, left = MemoryStore(), list[MemoryStore]()
    half = tmp_path / temp_name("manifest.json")

    async def be_killed(*_args: Any) -> bool:
        half.write_text("{")
        left.append(store.after_crash())
        return True

    with monkeypatch.context() as patch:
        patch.setattr("trio_ckpt._runs.manifest.write_manifest", be_killed)
        async with begin(store, output_dir=tmp_path) as run:
            await work(run, "a")
    assert half.exists()
    async with begin(left[0], output_dir=tmp_path):
        pass
    assert not half.exists()
    assert read(tmp_path)["batches"] == 2


async def test_remains_of_a_failed_manifest_go_when_it_is_written_again(
    tmp_path: Path,
) -> None:
    """The session ended well all the same: a manifest is written as well as may be."""
    store, half = MemoryStore(), tmp_path / temp_name("manifest.json")
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, "a")
    (tmp_path / "manifest.json").rename(half)
    async with begin(store, output_dir=tmp_path):
        pass
    assert not half.exists()
    assert read(tmp_path)["batches"] == 2


async def left_by_rewind(run: Run) -> None:
    await run.rewind(("a",), to=0, reason="x")


async def left_by_redo(run: Run) -> None:
    async with run.open_stream("a") as stream:
        await stream.redo([1], reason="x")


async def left_by_a_new_stream(run: Run) -> None:
    async with run.open_stream("b") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
            break


async def left_by_the_list(run: Run) -> None:
    await run.add_streams([("b",)])


async def left_by_a_phase(run: Run) -> None:
    with contextlib.suppress(KeyError):
        async with run.phase("p"):
            raise KeyError


LEFT = [left_by_rewind, left_by_redo, left_by_a_new_stream, left_by_the_list, left_by_a_phase]


@pytest.mark.parametrize("leave", LEFT)
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_run_that_is_not_complete_any_more_has_no_manifest(
    tmp_path: Path, leave: Any, is_killed: bool
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, "a")
    before = (tmp_path / "manifest.json").read_bytes()
    async with begin(store, output_dir=tmp_path) as run:
        await leave(run)
        killed = store.after_crash()
    assert not (tmp_path / "manifest.json").exists()
    assert outdated(tmp_path) == 1
    if is_killed:  # as if the session had got no further
        (tmp_path / "manifest.json").write_bytes(before)
        async with begin(killed, output_dir=tmp_path):
            assert not (tmp_path / "manifest.json").exists()


async def test_an_outdated_manifest_does_not_pass_when_the_run_is_complete(
    tmp_path: Path,
) -> None:
    """All was done again, and then the session was killed, before it could say so."""
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, "a", text="first")
    before = (tmp_path / "manifest.json").read_bytes()
    async with begin(store, output_dir=tmp_path) as run:
        await run.rewind(("a",), to=0, reason="x")
        await work(run, "a", text="second")
        killed = store.after_crash()
    (tmp_path / "manifest.json").write_bytes(before)
    async with begin(killed, output_dir=tmp_path):
        assert not (tmp_path / "manifest.json").exists()
    (stream,) = read(tmp_path)["streams"]
    assert stream["spent"] == {"cost": 1.5}


@pytest.mark.parametrize("way", ["redo", "rewind", "retry", "none"])
async def test_maintenance_sets_the_manifest_aside_before_any_change(
    tmp_path: Path, way: str
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, "a")
        async with run.open_stream("b") as stream:
            async for batch in stream.batches(range(1)):
                batch.skip("no")
    faulty = FaultyStore(store, {1: Fail()})
    with contextlib.suppress(StoreError):
        async with open_maintenance(faulty, "r") as maintenance:
            if way == "redo":
                await maintenance.redo(("a",), [1], "x")
            elif way == "rewind":
                await maintenance.rewind(("a",), to=0, reason="x")
            else:
                await maintenance.retry([("b" if way == "retry" else "a",)])
    assert (tmp_path / "manifest.json").exists() is (way == "none")
    async with begin(store, output_dir=tmp_path):
        pass
    assert (tmp_path / "manifest.json").exists()  # it had failed, so the run is complete


async def test_the_manifest_of_another_run_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with begin("memory:", "other", output_dir=tmp_path) as run:
        await work(run, "a")
    before = (tmp_path / "manifest.json").read_bytes()
    async with begin("memory:", "mine", output_dir=tmp_path) as run:
        await work(run, "b")
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert "is the manifest of another run: none is written" in caplog.text


STRANGE = ["", "{}", '{"format":2,"run":"r"}', '{"a": "' + "x" * 2**17]
STRANGE += ['{"format":1,"run":' + end for end in ("", '"r', "[" * 30_000, "5}", "nul", "\udcff")]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
async def test_a_file_that_is_no_manifest_is_left_alone(text: str, tmp_path: Path) -> None:
    data = text.encode(errors="surrogateescape")
    (tmp_path / "manifest.json").write_bytes(data)
    store = MemoryStore()
    for fresh in (False, True):
        async with begin(store, output_dir=tmp_path, fresh=fresh) as run:
            await work(run, "a")
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.reset("x")
    assert (tmp_path / "manifest.json").read_bytes() == data


@pytest.mark.parametrize("kind", ["folder", "link"])
async def test_what_is_no_file_is_left_alone(kind: str, tmp_path: Path) -> None:
    store, out = MemoryStore(), tmp_path / "out"
    out.mkdir()
    if kind == "folder":
        (out / "manifest.json").mkdir()
    else:
        (out / "manifest.json").symlink_to(tmp_path / "elsewhere")
    for fresh in (False, True):
        async with begin(store, output_dir=out, fresh=fresh) as run:
            await work(run, "a")
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.redo(("a",), [1], "x")
    assert (out / "manifest.json").is_dir() is (kind == "folder")
    assert not (tmp_path / "elsewhere").exists()


async def test_its_name_is_reserved(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(OutputClaimedError):
                await batch.write_text("manifest.json", "{}")
            with pytest.raises(OutputClaimedError):
                batch.append_json("./manifest.json", 1)
            await batch.write_text("pages/manifest.json", "{}")
            batch.complete()
    assert read(tmp_path)["streams"][0]["outputs"][0]["path"] == "pages/manifest.json"


async def test_a_fresh_run_archives_its_own(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, "a")
    async with begin(store, output_dir=tmp_path, fresh=True) as run:
        assert not (tmp_path / "manifest.json").exists()
        await work(run, "b", count=1)
    assert read(tmp_path)["generation"] == 1
    assert len(list((tmp_path / ".archive").rglob("manifest.json"))) == 1


async def test_whose_it_is_is_seen_in_its_head(tmp_path: Path) -> None:
    outputs = OutputDir.open(tmp_path)
    assert manifest_owner(outputs) is None
    name = 'a "quoted" run é'
    async with begin("memory:", name, output_dir=tmp_path) as run:
        await work(run, "a")
    assert manifest_owner(outputs) == name
    with (tmp_path / "manifest.json").open("a") as file:
        file.write(" " * 2 * MAX_MANIFEST_HEAD_BYTES)
    assert manifest_owner(outputs) == name
    outputs.close()


async def test_thousands_of_outputs_are_written_page_by_page(tmp_path: Path) -> None:
    count = 1_050
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            if batch.index in (0, 20, 1_049):
                await batch.write_text(f"{batch.index}", "x")
            batch.complete()
    (entry,) = read(tmp_path)["streams"]
    assert [output["batch"] for output in entry["outputs"]] == [1_049, 20, 0]


class SlowStore(MemoryStore):
    """Each save takes `delay_s` seconds of trio's clock."""

    delay_s = 0.0

    async def save(self, *args: Any, **named: Any) -> Any:
        await trio.sleep(self.delay_s)
        return await super().save(*args, **named)


async def test_a_run_left_during_a_rewind_leaves_no_manifest(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The rewind ends first; the manifest would count what it takes back."""
    store = SlowStore()
    async with trio.open_nursery() as outside:
        async with begin(store, output_dir=tmp_path) as run:
            await work(run, "a", count=3)
            store.delay_s = 5
            outside.start_soon(partial(run.rewind, ("a",), to=0, reason="again"))
            await trio.sleep(1)
    assert not (tmp_path / "manifest.json").exists()
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("a") as stream:
            left = [batch.index async for batch in stream.batches(range(3)) if batch.complete()]
    assert left == [1, 2]


def test_complete_is_all_that_has_begun() -> None:
    done, left = (Progress(sequence=1, status=s) for s in (Status.COMPLETE, Status.PENDING))

    def is_complete(parts: dict[StreamKey, Progress]) -> bool:
        return RunContents(RunKey("r", 0, 1), parts, {}).is_complete

    assert not is_complete({})
    assert not is_complete({(): done})
    assert is_complete({("a",): done, (): left})
    assert is_complete({("a",): done, ("b",): Progress()})
    assert not is_complete({("a",): done, ("b",): left})
    assert not is_complete({("a",): done, ("@phase", "p"): left})


async def test_nan_in_metadata_is_null_in_a_manifest_that_is_json(tmp_path: Path) -> None:
    store = MemoryStore()
    note = {"loss": float("nan"), "name": "NaN", "worst": [float("inf"), -1.5]}
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
            await stream.finish(metadata=note)
    found = read(tmp_path)["streams"][0]["metadata"]
    assert found == {"loss": None, "name": "NaN", "worst": [None, -1.5]}
    assert [finding async for finding in check_all(store, "r", output_dir=tmp_path)] == []
