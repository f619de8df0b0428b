"""Runs whose outputs are in a bucket: killed at any request, resumed, begun again, adopted."""

from __future__ import annotations

import importlib.util
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

if importlib.util.find_spec("obstore") is None:
    pytest.skip("obstore is missing: pip install 'trio-ckpt[objects]'", allow_module_level=True)

from tests.opening import begin
from tests.outputs.buckets import URL
from tests.stores.objects.buckets import ClockedBucket, HandClock, killed_before, nothing
from trio_ckpt import (
    CannotRedoError,
    OutputError,
    OutputExistsError,
    OutputsMissingError,
    Run,
    RunStoppedError,
    export_run,
    find_drift,
    import_run,
    open_maintenance,
)
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.abc import Store
from trio_ckpt.outputs import open_outputs
from trio_ckpt.outputs._objects import OutputBucket
from trio_ckpt.stores import MemoryStore
from trio_ckpt.stores._objects.store import ObjectsStore

BATCHES = 5


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> ClockedBucket:
    """The bucket of all outputs of a test, in memory."""
    bucket = ClockedBucket(HandClock())
    monkeypatch.setattr("trio_ckpt.outputs._objects.open_bucket", lambda _address: bucket)
    monkeypatch.setattr("trio_ckpt._buckets.requests.FIRST_PAUSE_S", 0.0)
    return bucket


def objects(
    bucket: ClockedBucket, *, without: tuple[str, ...] = ("manifest.json",)
) -> dict[str, bytes]:
    """The outputs in a bucket by their names, without what says when."""
    bucket.before = nothing
    found = {one.key.removeprefix("out/"): bucket.get(one.key) for one in bucket.list("out")}
    return {name: data or b"" for name, data in found.items() if name not in without}


WANTED = {f"pages/{index}.json": b'{"page":%d}\n' % index for index in range(BATCHES)}


async def work(run: Run, *, total: int = BATCHES, stop_at: int | None = None) -> list[int]:
    """Write an output for each batch; returns which batches were worked on."""
    done = list[int]()
    async with run.open_stream("pages") as stream:
        async for batch in stream.batches(range(total)):
            if batch.index == stop_at:
                raise KeyError("it stops here")
            await batch.write_json(f"pages/{batch.index}.json", {"page": batch.index})
            batch.complete(records=1)
            await batch.confirm()
            done.append(batch.index)
    return done


# -- killed ------------------------------------------------------------------------------------


async def test_a_run_killed_at_any_request_leaves_the_same_objects(bucket: ClockedBucket) -> None:
    """Store and outputs are in one bucket; before each of its requests everything stops."""
    at = 0
    while await _killed_at(bucket, at):
        at += 1
        for entry in list(bucket.list("")):
            bucket.delete([entry.key])
    assert at > 30


async def _killed_at(bucket: ClockedBucket, at: int) -> bool:
    with killed_before(bucket, at) as kill:
        async with begin(await _open_store(bucket), output_dir=URL) as run:
            await work(run)
    bucket.clock.now += 1_000  # type: ignore[attr-defined]
    async with begin(await _open_store(bucket), output_dir=URL) as run:
        await work(run)
        assert run.exit_code == 0
    assert objects(bucket) == WANTED, at
    manifest = json.loads(bucket.get("out/manifest.json") or b"")
    assert manifest["records"] == BATCHES
    return kill.is_done


async def _open_store(bucket: ClockedBucket) -> Store:
    requests = Requests(bucket, pause=lambda _: None)
    return await ObjectsStore.open("s3://bucket/ckpt", requests=requests)


@pytest.mark.parametrize("texts", [["one"], ["one", "two"], ["killed", "one"]])
async def test_an_owner_that_lost_its_run_replaces_nothing(
    texts: list[str], bucket: ClockedBucket
) -> None:
    """It is paused before its last PUT; meanwhile another owner confirms the batch.

    It writes the object first, or again, or in place of what a killed attempt has left.
    """

    def pause(verb: str, key: str) -> None:
        if verb in ("create", "replace") and key == "out/pages/0.json":
            bucket.before = nothing
            clock = bucket.clock
            assert isinstance(clock, HandClock)
            clock.now += 1_000
            trio.from_thread.run(take_over, trio_token=token)

    async def take_over() -> None:
        with trio.CancelScope(shield=True):
            async with begin(await _open_store(bucket), output_dir=URL) as heir:
                await work(heir)

    async def write_late() -> None:
        async with (
            begin(await _open_store(bucket), output_dir=URL) as run,
            run.open_stream("pages") as stream,
        ):
            async for batch in stream.batches(range(1)):
                for text in texts[:-1]:
                    if text == "killed":
                        bucket.put("out/pages/0.json", b"of a killed attempt")
                        bucket._stamp("out/pages/0.json")
                    else:
                        await batch.write_text("pages/0.json", text)
                bucket.before = pause_after_copy if "killed" in texts else pause
                await batch.write_text("pages/0.json", texts[-1])
                batch.complete()

    def pause_after_copy(verb: str, _key: str) -> None:
        if verb == "copy":  # what is in the way was found, and the owner is asked
            bucket.before = pause

    token = trio.lowlevel.current_trio_token()
    with pytest.raises((RunStoppedError, OutputError)):
        await write_late()
    found = objects(bucket)
    assert {name: data for name, data in found.items() if ".archive" not in name} == WANTED


# -- verified ----------------------------------------------------------------------------------


async def test_what_is_missing_or_altered_is_done_again(bucket: ClockedBucket) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=URL) as run:
        await work(run)
    bucket.delete(["out/pages/1.json"])
    bucket.put("out/pages/3.json", b'{"page":9}\n')  # the same size
    async with begin(store, output_dir=URL) as run:
        assert await work(run) == [1, 3]
    found = objects(bucket)
    archived = {name for name in found if name.startswith(".archive/")}
    assert {name: found[name] for name in found.keys() - archived} == WANTED
    assert [found[name] for name in archived if "-redo/" in name] == [b'{"page":9}\n']


async def test_unchanged_objects_are_not_read(bucket: ClockedBucket) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=URL) as run:
        await work(run)
    verbs = list[tuple[str, str]]()
    for mode, is_read in (("size", False), ("sha256", True)):
        verbs.clear()
        bucket.before = lambda verb, key: verbs.append((verb, key))
        async with begin(store, output_dir=URL, verify=mode) as run:
            assert await work(run) == []
        looked = [verb for verb, key in verbs if key.startswith("out/pages/")]
        assert looked.count("find") == BATCHES
        assert looked.count("get") == (BATCHES if is_read else 0)


async def test_a_wrong_prefix_is_in_doubt(bucket: ClockedBucket) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=URL) as run:
        await work(run, total=20)
    with pytest.raises(OutputsMissingError):
        async with begin(store, output_dir="s3://bucket/another") as run:
            await work(run, total=20)


# -- begun again, adopted, handed over ---------------------------------------------------------


async def test_older_objects_are_not_overwritten(bucket: ClockedBucket) -> None:
    bucket.put("out/pages/2.json", b"mine")
    bucket.clock.now += 10  # type: ignore[attr-defined]
    store = MemoryStore()
    with pytest.raises(OutputExistsError, match=r"older than run 'r'"):
        async with begin(await _open_store(bucket), output_dir=URL) as run:
            await work(run)
    assert objects(bucket)["pages/2.json"] == b"mine"
    async with begin(store, output_dir=URL, fresh=True) as run:
        await work(run)
    found = objects(bucket)
    assert found.pop(".archive/r-unconfirmed/pages/2.json") == b"mine"
    assert found == WANTED


async def test_a_leftover_of_a_killed_attempt_is_kept_and_replaced(bucket: ClockedBucket) -> None:
    store = await _open_store(bucket)
    with pytest.raises(KeyError):
        async with begin(store, output_dir=URL) as run:
            await work(run, stop_at=2)
    bucket.clock.now += 5  # type: ignore[attr-defined]
    bucket.create("out/pages/2.json", b"half of it")
    bucket._stamp("out/pages/2.json")
    async with begin(store, output_dir=URL) as run:
        await work(run)
    found = objects(bucket)
    assert found.pop(".archive/r-unconfirmed/pages/2.json") == b"half of it"
    assert found == WANTED


async def test_objects_are_adopted_and_handed_over(bucket: ClockedBucket) -> None:
    for index in range(3):
        bucket.put(f"out/pages/{index}.json", b'{"page":%d}\n' % index)
    async with begin(MemoryStore(), output_dir=URL) as run, run.open_stream("pages") as stream:
        found = await stream.rescan(
            lambda index: f"pages/{index}.json", total=BATCHES, adopt_outputs=True
        )
        assert found == [0, 1, 2]
        async for batch in stream.batches(range(BATCHES)):
            bucket.put(f"out/pages/{batch.index}.json", b'{"page":%d}\n' % batch.index)
            batch.complete(outputs=[f"pages/{batch.index}.json"])
    assert objects(bucket) == WANTED


async def test_a_redo_moves_and_a_fresh_start_archives(bucket: ClockedBucket) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=URL) as run:
        await work(run)
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.redo(("pages",), [1], "as a test")
    found = objects(bucket)
    assert "pages/1.json" not in found
    assert found[".archive/r-0-redo/pages/1.json"] == WANTED["pages/1.json"]
    async with begin(store, output_dir=URL) as run:
        assert await work(run) == [1]
    async with begin(store, output_dir=URL, fresh=True) as run:
        assert "pages/1.json" not in objects(bucket)
        await work(run)
    found = objects(bucket)
    assert {name: data for name, data in found.items() if ".archive" not in name} == WANTED
    assert found[".archive/r-0/pages/4.json"] == WANTED["pages/4.json"]


# -- append files ------------------------------------------------------------------------------


async def test_an_append_is_refused_at_the_call(bucket: ClockedBucket) -> None:
    async with begin(MemoryStore(), output_dir=URL) as run, run.open_stream("pages") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(OutputError, match="cannot grow, so append files need a folder"):
                batch.append_json("lines.jsonl", {})
            with pytest.raises(OutputError, match="cannot grow, so append files need a folder"):
                batch.append_bytes("lines.jsonl", b"")
            await batch.write_json("pages/0.json", {"page": 0})
            batch.complete()  # nothing was staged
    assert objects(bucket) == {"pages/0.json": WANTED["pages/0.json"]}


async def test_a_run_with_append_files_stays_in_its_folder(
    bucket: ClockedBucket, tmp_path: Path
) -> None:
    store = MemoryStore()

    async def append(place: str | Path, total: int) -> None:
        async with begin(store, output_dir=place) as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(total)):
                batch.append_json("lines.jsonl", {})
                batch.complete()

    await append(tmp_path / "out", 2)
    with pytest.raises((OutputError, CannotRedoError), match=r"lines\.jsonl"):
        await append(URL, 3)
    await append(tmp_path / "out", 3)
    assert (tmp_path / "out" / "lines.jsonl").read_text() == "{}\n" * 3


# -- archives, drift ---------------------------------------------------------------------------


async def test_a_run_is_exported_and_imported(bucket: ClockedBucket, tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=URL) as run:
        await work(run)
    view = await store.load_run("r")
    assert view is not None
    drift = await find_drift(store, view, open_outputs(URL), mode="sha256")
    assert (drift.files, drift.problems) == (BATCHES, ())
    await export_run(store, "r", tmp_path / "r.run", outputs=open_outputs(URL))
    other = MemoryStore()
    await import_run(other, tmp_path / "r.run", output_dir="s3://bucket/copy")
    async with begin(other, output_dir="s3://bucket/copy") as run:
        assert await work(run) == []
        assert run.exit_code == 0
    bucket.delete(["out/pages/3.json"])
    (problem,) = (await find_drift(store, view, open_outputs(URL))).problems
    assert (problem.path, problem.what) == ("pages/3.json", "missing")


def test_the_time_of_outputs_is_that_of_the_bucket(bucket: ClockedBucket) -> None:
    bucket.clock.now += 7_200  # type: ignore[attr-defined]
    ahead = open_outputs(URL).now() - time.time()
    assert 7_190 < ahead <= 7_200
    assert isinstance(open_outputs(URL), OutputBucket)
    assert datetime.fromtimestamp(open_outputs(URL).now(), UTC).microsecond == 0
