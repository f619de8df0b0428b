"""A run enters a store whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import trio_ckpt
from tests.maintenance.export_tools import (
    KINDS,
    everything,
    export_all,
    forge,
    make_store,
    outputs_in,
    save_many,
    unpack,
    write_run,
)
from tests.outputs.faulty import files_in
from trio_ckpt import (
    ArchiveError,
    OutputError,
    RunLockedError,
    SaveOutcomeUnknownError,
    StoreDamagedError,
    StoreError,
    read_sessions,
)
from trio_ckpt._journal.history import run_runtime_s, session_metadata_of
from trio_ckpt._journal.record import Record, RecordKind, encode_record
from trio_ckpt._maintenance import import_
from trio_ckpt._maintenance.archive_file import FRAME, PIECE_BYTES
from trio_ckpt._maintenance.export import export_run
from trio_ckpt._maintenance.import_ import import_run
from trio_ckpt._maintenance.verify_states import check_states
from trio_ckpt._runs.session import left_to_archive, report_of
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.outputs import NewFile
from trio_ckpt.state import NO_ARRAYS, StateFrame, encode_frame
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import CommitThenError, Fail, FaultyStore, Hang, Reject


async def make_archive(tmp_path: Path) -> dict[Any, Any]:
    """An archive of a run in three streams; returns what must come out of it."""
    store = MemoryStore(inline_limit_bytes=2_000)
    await write_run(store, tmp_path / "out")
    await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    return await everything(store, "r")


async def is_half(store: Store) -> bool:
    try:
        await store.load_run("r")
    except StoreDamagedError:
        return True
    return False


# ---------------------------------------------------------------------------------------
# Crashes
# ---------------------------------------------------------------------------------------

FAULTS = [Fail(), CommitThenError(), Reject("[]"), Reject('["lines"]')]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
async def test_whichever_save_fails_the_run_is_whole_or_none(
    tmp_path: Path, kind: str, fault: Any
) -> None:
    """No process opens half a run, and importing again makes it whole."""
    wanted = await make_archive(tmp_path)
    halves, saves, k = 0, 0, 0
    while saves >= k:  # until it is one more than there are
        k += 1
        store = await make_store(kind, tmp_path / f"store{k}")
        faulty = FaultyStore(store, {k: fault})
        with suppress(StoreError):
            await import_run(faulty, tmp_path / "r.zip")
        saves = faulty.saves
        if await is_half(store):
            halves += 1
            with pytest.raises(StoreDamagedError, match="half imported: import it again"):
                await trio_ckpt.open_run("r", store=store, fresh=True).__aenter__()
            await import_run(store, tmp_path / "r.zip", output_dir=tmp_path / f"new{k}")
            assert outputs_in(tmp_path / f"new{k}") == outputs_in(tmp_path / "out")
        elif await everything(store, "r") == {}:  # it was locked, and that is all
            await import_run(store, tmp_path / "r.zip")
        assert await everything(store, "r", as_exported=True) == wanted
        await store.aclose()
    assert halves >= 1


async def test_a_killed_import_is_begun_afresh_also_from_another_archive(
    tmp_path: Path, autojump_clock: object
) -> None:
    await make_archive(tmp_path)
    small = MemoryStore()
    await save_many(small, "small", {("other",): 3})
    await export_run(small, "small", tmp_path / "small.zip")
    store = MemoryStore()
    with pytest.raises(SaveOutcomeUnknownError, match="import again in a new process"):
        await import_run(FaultyStore(store, {4: Hang()}), tmp_path / "r.zip")
    killed = store.after_crash()
    assert await is_half(killed)
    await import_run(killed, tmp_path / "small.zip", run_id="r")
    assert await everything(killed, "r") == await everything(small, "small")
    async with trio_ckpt.open_run("r", store=killed) as run, run.open_stream("other") as stream:
        assert len(stream.progress.confirmed) == 3


async def test_a_cancelled_import_finishes_its_save_and_leaves(
    tmp_path: Path, autojump_clock: object
) -> None:
    wanted = await make_archive(tmp_path)

    class Cancelling(MemoryStore):
        saves = 0

        async def save(self, *args: Any, **kwargs: Any) -> list[Exception | None]:
            self.saves += 1
            if self.saves == 3:
                scope.cancel()
            return await super().save(*args, **kwargs)

    store = Cancelling()
    with trio.CancelScope() as scope:
        await import_run(store, tmp_path / "r.zip")
    assert scope.cancelled_caught
    assert store.saves == 3
    assert await is_half(store)
    await import_run(store, tmp_path / "r.zip")  # the lock was given back
    assert await everything(store, "r", as_exported=True) == wanted


async def test_the_run_is_one_only_after_its_last_save(tmp_path: Path) -> None:
    """Each save is followed by a look from outside; outputs are there before the run is."""
    await make_archive(tmp_path)
    seen: list[tuple[bool, bool]] = []

    class Watched(MemoryStore):
        async def save(self, *args: Any, **kwargs: Any) -> list[Exception | None]:
            outcomes = await super().save(*args, **kwargs)
            are_there = outputs_in(tmp_path / "new") == outputs_in(tmp_path / "out")
            seen.append((await is_half(self), are_there))
            return outcomes

    await import_run(Watched(), tmp_path / "r.zip", output_dir=tmp_path / "new")
    assert len(seen) > 3
    assert seen == [(True, True)] * (len(seen) - 1) + [(False, True)]


async def test_an_import_that_cannot_write_an_output_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await make_archive(tmp_path)
    store = MemoryStore()
    commit, commits = NewFile.commit, list[str]()

    def failing(self: NewFile) -> Any:
        commits.append(self.path)
        if len(commits) == 3:
            raise OutputError(self.path, "as planned")
        return commit(self)

    monkeypatch.setattr(NewFile, "commit", failing)
    with pytest.raises(OutputError, match="as planned"):
        await import_run(store, tmp_path / "r.zip", output_dir=tmp_path / "new")
    assert len(outputs_in(tmp_path / "new")) == 2
    assert await everything(store, "r") == {}
    await import_run(store, tmp_path / "r.zip", output_dir=tmp_path / "new")
    assert outputs_in(tmp_path / "new") == outputs_in(tmp_path / "out")
    assert await everything(store, "r", as_exported=True) == wanted


# ---------------------------------------------------------------------------------------
# What is there already
# ---------------------------------------------------------------------------------------


async def test_a_run_of_that_name_is_left_alone(tmp_path: Path) -> None:
    wanted = await make_archive(tmp_path)
    store = MemoryStore()
    await save_many(store, "r", {("mine",): 2})
    before = await everything(store, "r")
    with pytest.raises(ArchiveError, match=r"has a run 'r' already; .* run_id=") as caught:
        await import_run(store, tmp_path / "r.zip", output_dir=tmp_path / "new")
    assert caught.value.run_id == "r"
    assert await everything(store, "r") == before
    assert outputs_in(tmp_path / "new") == {}
    await import_run(store, tmp_path / "r.zip", run_id="r2")
    assert await everything(store, "r2", as_exported=True) == wanted
    async with store.lock_run("r3"):
        with pytest.raises(RunLockedError):
            await import_run(store, tmp_path / "r.zip", run_id="r3")
    with pytest.raises(ValueError, match="path separators"):
        await import_run(store, tmp_path / "r.zip", run_id="../r")


async def test_a_pruned_run_leaves_its_name_free(tmp_path: Path) -> None:
    wanted = await make_archive(tmp_path)
    store = MemoryStore()
    await save_many(store, "r", {("old",): 2})
    async with store.lock_run("r") as owner:
        await store.prune(RunKey("r", 0, owner), keep=0)
    assert (await import_run(store, tmp_path / "r.zip")).generation == 1
    assert await everything(store, "r", as_exported=True) == wanted


async def test_a_file_that_is_the_same_stays_and_another_is_never_replaced(tmp_path: Path) -> None:
    await make_archive(tmp_path)
    new, store = tmp_path / "new", MemoryStore()
    (new / "pages").mkdir(parents=True)
    same = (tmp_path / "out/pages/2.json").read_bytes()
    (new / "pages/2.json").write_bytes(same)
    before = (new / "pages/2.json").stat()
    (new / "pages/3.json").write_bytes(b"another")
    with pytest.raises(ArchiveError, match=r"'pages/3\.json' is in .* already and is another"):
        await import_run(store, tmp_path / "r.zip", output_dir=new)
    assert sorted(outputs_in(new)) == ["pages/2.json", "pages/3.json"]
    assert await everything(store, "r") == {}
    (new / "pages/3.json").unlink()
    assert (await import_run(store, tmp_path / "r.zip", output_dir=new)).outputs == 5
    assert outputs_in(new) == outputs_in(tmp_path / "out")
    after = (new / "pages/2.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_links_below_the_output_folder_are_not_followed(tmp_path: Path) -> None:
    await make_archive(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for number, link in enumerate(("pages", "lines.jsonl")):
        new = tmp_path / f"new{number}"
        new.mkdir()
        (new / link).symlink_to(tmp_path / "elsewhere")
        with pytest.raises((ArchiveError, OutputError)):
            await import_run(MemoryStore(), tmp_path / "r.zip", output_dir=new)
        assert files_in(tmp_path / "elsewhere") == {}


async def test_without_an_output_folder_the_outputs_stay_in_the_archive(tmp_path: Path) -> None:
    wanted = await make_archive(tmp_path)
    store = MemoryStore()
    assert (await import_run(store, tmp_path / "r.zip")).outputs == 0
    assert await everything(store, "r", as_exported=True) == wanted


# ---------------------------------------------------------------------------------------
# What is refused before the store is asked
# ---------------------------------------------------------------------------------------

CHUNK = "streams/000001/000000000001"
Edit = Callable[[dict[str, bytes], dict[str, Any]], object]


def set_record(payload: bytes) -> Edit:
    def edit(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[CHUNK] = FRAME.pack(1, len(payload)) + payload
        manifest["streams"][1].update(records=1, chunks=[1])
        for name in [name for name in files if name.startswith("outputs/pages")]:
            del files[name]

    return edit


def batch(**fields: Any) -> bytes:
    return encode_record(Record(kind=RecordKind.BATCH, at=1.0, **fields))


LIES: dict[str, tuple[Edit, str]] = {
    "a record that is none": (set_record(b"nonsense"), "an invalid record"),
    "a record of no batch": (set_record(batch(index=None)), "names no batch"),
    "a record of a negative batch": (set_record(batch(index=-1)), "names no batch"),
    "an output that no record names": (
        lambda files, _: files.update({"outputs/x": b"x"}),
        "no record speaks of output 'x'",
    ),
    "an output that a record names otherwise": (
        lambda files, _: files.update({"outputs/pages/2.json": b'{"page":3}'}),
        r"no record speaks of output 'pages/2\.json'",
    ),
    "an append file of another length": (
        lambda files, _: files.update({"outputs/lines.jsonl": b"{}\n"}),
        r"no record speaks of output 'lines\.jsonl'",
    ),
}


@pytest.mark.parametrize(("edit", "reason"), LIES.values(), ids=LIES.keys())
async def test_an_archive_that_lies_leaves_no_trace(
    tmp_path: Path, edit: Edit, reason: str
) -> None:
    await make_archive(tmp_path)
    bad = forge(tmp_path / "r.zip", tmp_path / "lie.zip", edit, update_members=True)
    store = MemoryStore()
    with pytest.raises(ArchiveError, match=reason):
        await import_run(store, bad, output_dir=tmp_path / "new")
    assert await store.list_runs() == ()
    assert not (tmp_path / "new").exists()


async def test_outputs_are_looked_at_also_where_they_are_not_wanted(tmp_path: Path) -> None:
    await make_archive(tmp_path)
    name = "outputs/pages/2.json"
    bad = forge(
        tmp_path / "r.zip",
        tmp_path / "lie.zip",
        lambda files, _: files.update({name: files[name].replace(b"2", b"3")}),
    )
    store = MemoryStore()
    with pytest.raises(ArchiveError, match=r"2\.json is not what its manifest says"):
        await import_run(store, bad)
    assert await store.list_runs() == ()


async def test_large_records_are_blobs_again(tmp_path: Path) -> None:
    await make_archive(tmp_path)
    put: list[int] = []

    class Watched(MemoryStore):
        async def put_blob(self, run: RunKey, payload: Any) -> str:
            put.append(len(payload))
            return await super().put_blob(run, payload)

    for limit, count in ((2_000, 5), (2**20, 0)):
        put.clear()
        await import_run(Watched(inline_limit_bytes=limit), tmp_path / "r.zip")
        assert len(put) == count
        assert all(size > 5_000 for size in put)


async def test_a_good_forgery_passes_so_the_others_fail_by_their_content(
    tmp_path: Path,
) -> None:
    await make_archive(tmp_path)
    for edit in (lambda *_: None, set_record(batch(index=0))):
        good = forge(tmp_path / "r.zip", tmp_path / "x.zip", edit, update_members=True)
        await import_run(MemoryStore(), good, output_dir=tmp_path / f"new{id(edit)}")


async def test_damage_after_the_look_leaves_half_a_run_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes into the archive between the two readings of it."""
    await make_archive(tmp_path)
    bad = forge(tmp_path / "r.zip", tmp_path / "x.zip", lambda *_: None)  # stored, so it is simple

    class Late(MemoryStore):
        async def read_run(self, *args: Any, **kwargs: Any) -> Any:
            data = bad.read_bytes()
            bad.write_bytes(data.replace(b"is blank", b"is blanK"))
            return await super().read_run(*args, **kwargs)

    store = Late()
    with pytest.raises(ArchiveError, match="Bad CRC"):
        await import_run(store, bad)
    assert await is_half(store)


# ---------------------------------------------------------------------------------------
# Whose outputs these are
# ---------------------------------------------------------------------------------------


async def facts_of(store: Store, run_id: str) -> dict[str, Any]:
    view = await store.load_run(run_id)
    assert view is not None
    return session_metadata_of(view)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_command_on_the_imported_run_touches_the_others_files(
    tmp_path: Path, kind: str
) -> None:
    store = await make_store(kind, tmp_path / "s")
    await write_run(store, tmp_path / "out")
    before = files_in(tmp_path / "out")
    await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    await import_run(store, tmp_path / "r.zip", run_id="copy", output_dir=tmp_path / "new")
    await import_run(store, tmp_path / "r.zip", run_id="bare")
    assert (await facts_of(store, "copy"))["output_dir"] == str(tmp_path / "new")
    assert (await facts_of(store, "bare"))["output_dir"] is None
    for run_id in ("copy", "bare"):
        async with trio_ckpt.open_maintenance(store, run_id) as maintenance:
            await maintenance.redo(("päge", "a/b"), [2], "x")
            await maintenance.reset("x")
    assert files_in(tmp_path / "out") == before
    assert outputs_in(tmp_path / "new").keys() == {
        ".archive/copy-0-redo/pages/2.json",
        *(f".archive/copy-0/pages/{n}.json" for n in (0, 1, 3)),
        ".archive/copy-0/lines.jsonl",
    }
    await store.aclose()


@pytest.mark.parametrize("was_killed", [False, True])
async def test_sessions_are_told_as_they_were(tmp_path: Path, was_killed: bool) -> None:
    store, other = MemoryStore(), MemoryStore()
    async with trio_ckpt.open_run("r", store=store, output_dir=tmp_path) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                batch.complete()
        killed = store.after_crash()
    source = killed if was_killed else store
    await export_run(source, "r", tmp_path / "r.zip")
    await import_run(other, tmp_path / "r.zip")
    (told,), (was,) = await read_sessions(other, "r"), await read_sessions(source, "r")
    assert (told.how, told.output_dir, told.began) == (was.how, was.output_dir, was.began)
    views = [await handle.load_run("r") for handle in (source, other)]
    looks = [report_of(view) for view in views]
    assert looks[0] == looks[1]
    assert looks[0].was_killed is was_killed
    runtimes = [run_runtime_s(view) for view in views if view is not None]
    assert runtimes[0] == runtimes[1]


async def test_a_move_that_is_left_to_a_start_is_not_imported(tmp_path: Path) -> None:
    store, other = MemoryStore(), MemoryStore()
    await write_run(store, tmp_path / "out")
    async with trio_ckpt.open_maintenance(store, "r") as maintenance:
        maintenance.outputs = None  # it is not there just now
        await maintenance.reset("x")
    await export_run(store, "r", tmp_path / "r.zip")
    await save_many(other, "r", {("mine",): 1})
    async with other.lock_run("r") as owner:
        await other.prune(RunKey("r", 0, owner), keep=0)
    assert (await import_run(other, tmp_path / "r.zip")).generation == 1
    view = await other.load_run("r")
    assert view is not None
    assert await left_to_archive(other, view) == []
    async with trio_ckpt.open_run("r", store=store, fresh=True):
        pass  # without a folder, so it is left still
    await export_run(store, "r", tmp_path / "r2.zip")
    await import_run(other, tmp_path / "r2.zip", run_id="r2")
    assert "archiving" not in await facts_of(other, "r2")


async def test_a_program_that_saves_the_words_of_the_marker_has_a_run(tmp_path: Path) -> None:
    await make_archive(tmp_path)
    store = MemoryStore()
    async with trio_ckpt.open_run("r", store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete(cursor=import_.HALF)
    with pytest.raises(ArchiveError, match="has a run 'r' already"):
        await import_run(store, tmp_path / "r.zip")


# ---------------------------------------------------------------------------------------
# States with arrays
# ---------------------------------------------------------------------------------------

SHAPE = (300, 200)  # 480,000 bytes: a blob


async def train(store: Store, count: int) -> np.ndarray[Any, Any]:
    """A state that is an array, other in each row with each batch."""
    state: dict[str, Any] = {"weights": np.zeros(SHAPE), "step": 0}
    async with (
        trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
        run.open_stream("s", state=state) as stream,
    ):
        async for batch in stream.batches(range(count)):
            rng = np.random.default_rng(batch.index)
            stream.state["weights"] += rng.random(SHAPE)
            batch.complete()
        weights: np.ndarray[Any, Any] = stream.state["weights"]
        return weights.copy()


@pytest.mark.parametrize("target", KINDS)
async def test_large_states_go_on_where_they_are_imported(tmp_path: Path, target: str) -> None:
    store = await make_store("sqlite:", tmp_path / "a")
    other = await make_store(target, tmp_path / "b")
    await train(store, 3)
    summary = await export_run(store, "r", tmp_path / "r.zip")
    blobs = [name for name in unpack(tmp_path / "r.zip") if name.startswith("blobs/")]
    assert blobs
    assert summary.size_bytes > 480_000
    await store.aclose()
    (tmp_path / "a").rename(tmp_path / "gone")
    await import_run(other, tmp_path / "r.zip")
    view = await other.load_run("r")
    assert view is not None
    check = await check_states(other, view)
    assert (check.problems, check.states > 0, check.bytes >= 480_000) == ((), True, True)
    assert (await train(other, 6) == await train(MemoryStore(), 6)).all()
    await other.aclose()


async def test_an_import_of_states_that_is_interrupted_begins_afresh(tmp_path: Path) -> None:
    source = MemoryStore()
    await train(source, 3)
    await export_run(source, "r", tmp_path / "r.zip")
    k, saves = 0, 0
    while saves >= k:
        k += 1
        store = await make_store("sqlite:", tmp_path / f"{k}")
        faulty = FaultyStore(store, {k: Fail()})
        with suppress(StoreError):
            await import_run(faulty, tmp_path / "r.zip")
        saves = faulty.saves
        with suppress(ArchiveError):  # it is whole
            await import_run(store, tmp_path / "r.zip")
        assert (await train(store, 4) == await train(MemoryStore(), 4)).all()
        await store.aclose()


def blob_of(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.startswith("blobs/"))


def drop(manifest: dict[str, Any]) -> None:
    for part in manifest["streams"]:
        part["blobs"] = {}


BLOB_LIES: dict[str, Edit] = {
    "one is gone": lambda files, _: files.pop(blob_of(files)),
    "one is another": lambda files, _: files.update({blob_of(files): b"x"}),
    "one too many": lambda files, _: files.update({f"blobs/{64 * '0'}": b"x"}),
    "no record names them": lambda _, manifest: drop(manifest),
    "a record that is not there": lambda _, manifest: manifest["streams"][0].update(
        blobs={"99": [64 * "0"]}
    ),
}


@pytest.mark.parametrize("edit", BLOB_LIES.values(), ids=BLOB_LIES.keys())
async def test_blobs_that_lie_leave_no_trace(tmp_path: Path, edit: Edit) -> None:
    source, store = MemoryStore(), MemoryStore()
    await train(source, 2)
    await export_run(source, "r", tmp_path / "r.zip")
    bad = forge(tmp_path / "r.zip", tmp_path / "lie.zip", edit, update_members=True)
    with pytest.raises(ArchiveError, match="blobs"):
        await import_run(store, bad)
    assert await store.list_runs() == ()


async def test_a_blob_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out in pieces, and goes in as a view of a file."""
    size, asked, put = 2**24, list[int](), list[Any]()
    blob = os.urandom(2**20) * 16
    digest = hashlib.sha256(blob).hexdigest()
    frame = StateFrame(
        lineage=bytes(8),
        number=0,
        parent=b"",
        tree=b"x",
        layout=NO_ARRAYS,
        blob=digest,
        data_bytes=size,
    )

    class Watched(MemoryStore):
        async def read_blob(
            self, run_id: str, digest: str, offset: int = 0, size: int | None = None
        ) -> bytes:
            assert size is not None
            asked.append(size)
            return await super().read_blob(run_id, digest, offset, size)

        async def put_blob(self, run: RunKey, payload: Any) -> str:
            pieces = list(payload)
            put.append(list(map(len, pieces)))
            return await super().put_blob(run, pieces)

    store, other = Watched(), Watched()
    record = encode_record(Record(kind=RecordKind.SAVE, at=1.0, state=encode_frame(frame)))
    async with store.lock_run("r") as owner:
        await store.put_blob(RunKey("r", 0, owner), [blob])
        sealed = store.seal("r", 0, ("s",)).close(1, record)
        saved = Checkpoint('["s"]', 1, sealed, blobs=(digest,))
        assert await store.save(RunKey("r", 0, owner), [saved]) == [None]
    put.clear()
    tracemalloc.start()
    await export_run(store, "r", tmp_path / "r.zip")
    assert tracemalloc.get_traced_memory()[1] < size // 2
    tracemalloc.stop()
    assert max(asked) <= PIECE_BYTES
    await import_run(other, tmp_path / "r.zip")
    (lengths,) = put
    assert max(lengths) <= PIECE_BYTES
    assert await other.read_blob("r", digest, 0, size) == blob
