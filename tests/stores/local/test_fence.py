"""A store that is removed, replaced or put back while a run goes on is noticed by its owner."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.stores.tools import A, chain, heads, make, owned
from trio_ckpt._util.errors import StoreConflictError, StoreError
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import SqliteStore, open_store
from trio_ckpt.stores._local.blobs import Blobs
from trio_ckpt.stores._local.watermark import read_watermark, watermark_path

Deed = Callable[[Path], None]

NO_SOCKET = shutil.ignore_patterns("live")


def remove(store: Path) -> None:
    shutil.rmtree(store)


def rename(store: Path) -> None:
    store.rename(store.with_name("elsewhere"))


def put_back(store: Path) -> None:
    """As rm and cp do, or a tool that syncs folders."""
    shutil.copytree(store, store.with_name("copy"), ignore=NO_SOCKET)
    shutil.rmtree(store)
    store.with_name("copy").rename(store)


def put_older_over(store: Path) -> None:
    """As cp does with files that are there: each keeps its identity."""
    shutil.copytree(store.with_name("older"), store, dirs_exist_ok=True)


def put_closed_one_over(store: Path) -> None:
    """A copy that was made while no process had it open: the log stays the newer one."""
    without_log = shutil.ignore_patterns("state.db-*")
    shutil.copytree(store.with_name("older"), store, dirs_exist_ok=True, ignore=without_log)


def replace_records(store: Path) -> None:
    """The one file that has them; the rest stays."""
    for path in [store / "state.db", *store.glob("runs/run/journal.*")]:
        if path.exists():
            shutil.copy(path, path.with_name("copy"))
            path.with_name("copy").replace(path)


def remove_journals(store: Path) -> None:
    for path in [*store.glob("*-wal"), *store.glob("runs/run/journal.*")]:
        path.unlink()


DEEDS = [
    remove,
    rename,
    put_back,
    put_older_over,
    put_closed_one_over,
    replace_records,
    remove_journals,
]


@pytest.fixture(params=["sqlite", "json"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("deed", DEEDS)
async def test_save_after_it_is_refused(folder: Path, scheme: str, deed: Deed) -> None:
    """And so is each later one, so that nothing is called saved that is not."""
    store = await open_store(f"{scheme}:{folder}")

    async def own() -> None:
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            assert await store.save(run, chain(A, 1, 2)) == [None, None]
            shutil.copytree(folder, folder.with_name("older"))
            assert await store.save(run, chain(A, 3, 4)) == [None, None]
            deed(folder)
            saved = await until_refused(store, run, 5)
            assert saved <= 1, "of two files one is looked at each time"
            await store.save(run, chain(A, 5 + saved, 5 + saved))

    with pytest.raises(StoreError):
        await own()
    await store.aclose()


async def until_refused(store: Store, run: RunKey, sequence: int) -> int:
    """Save until it is refused; how often it was not."""
    for saved in range(5):
        try:
            await store.save(run, chain(A, sequence + saved, sequence + saved))
        except StoreConflictError:
            return saved
    raise AssertionError("it is not noticed")


@pytest.mark.parametrize("deed", DEEDS)
async def test_run_that_saves_no_more_is_given_back_with_an_error(
    folder: Path, scheme: str, deed: Deed
) -> None:
    """What was done to the store after the last save is noticed at the end."""
    store = await open_store(f"{scheme}:{folder}")

    async def own() -> None:
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            await store.save(run, chain(A, 1, 2))
            shutil.copytree(folder, folder.with_name("older"))
            await store.save(run, chain(A, 3, 4))
            deed(folder)

    with pytest.raises(StoreConflictError):
        await own()
    await store.aclose()


async def test_error_of_the_owner_says_more(folder: Path, scheme: str) -> None:
    store = await open_store(f"{scheme}:{folder}")

    async def own() -> None:
        async with store.lock_run("run") as owner:
            await store.save(RunKey("run", 0, owner), chain(A, 1, 2))
            put_back(folder)
            raise LookupError("of the owner")

    with pytest.raises(LookupError, match="of the owner"):
        await own()
    await store.aclose()


@pytest.mark.parametrize("call", ["prune", "drop_blobs", "fence"])
@pytest.mark.parametrize("deed", [remove, put_back])
async def test_other_changes_after_it_are_refused(
    folder: Path, scheme: str, deed: Deed, call: str
) -> None:
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 4))
        deed(folder)
        with pytest.raises(StoreError):
            await {
                "prune": lambda: store.prune(run, keep=0),
                "drop_blobs": lambda: store.drop_blobs(run, A, [1]),
                "fence": lambda: store.save(run, []),
            }[call]()
    await store.aclose()


async def test_store_that_was_put_back_keeps_what_it_has(folder: Path, scheme: str) -> None:
    """Its log, too: SQLite would remove it by its name when the last connection is closed."""
    store = await open_store(f"{scheme}:{folder}")
    before: dict[Path, bytes] = {}

    async def own() -> None:
        async with store.lock_run("run") as owner:
            await store.save(RunKey("run", 0, owner), chain(A, 1, 4))
            put_back(folder)
            before.update({path: path.read_bytes() for path in folder.rglob("*.*")})

    with pytest.raises(StoreConflictError):
        await own()
    await store.aclose()
    assert {path.name for path in before} & {"state.db-wal", "journal.1.jsonl"}
    assert {path: path.read_bytes() for path in before} == before
    again = await open_store(f"{scheme}:{folder}")
    assert await heads(again) == {A: 4}
    await again.aclose()


async def test_log_without_a_name_is_brought_into_the_database(folder: Path) -> None:
    store = await open_store(f"sqlite:{folder}")
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 4))
        remove_journals(folder)
        with pytest.raises(StoreConflictError):
            await store.save(RunKey("run", 0, owner), chain(A, 5, 5))
    await store.aclose()
    again = await open_store(f"sqlite:{folder}")
    assert await heads(again) == {A: 5}
    await again.aclose()


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_log_of_another_is_not_removed_with_the_last_connection(
    folder: Path, is_replaced: bool
) -> None:
    """The database stands where it stood, so SQLite itself would take the log for its own."""
    store = await open_store(f"sqlite:{folder}")
    log, other = folder / "state.db-wal", folder.with_name("other")

    async def own() -> None:
        async with store.lock_run("run") as owner:
            await store.save(RunKey("run", 0, owner), chain(A, 1, 4))
            shutil.copy(log, other)
            log.unlink()
            if is_replaced:
                shutil.copy(other, log)

    with pytest.raises(StoreConflictError):
        await own()
    await store.aclose()
    assert log.exists() == is_replaced
    if is_replaced:
        assert log.read_bytes() == other.read_bytes()
    again = await open_store(f"sqlite:{folder}")
    assert await heads(again) == {A: 4}
    await again.aclose()


async def test_owner_in_a_folder_that_was_put_back_is_left_alone(folder: Path, scheme: str) -> None:
    """The old owner, which has the lock of a file without a name, writes nothing to its run."""
    first = await open_store(f"{scheme}:{folder}")
    async with first.lock_run("run") as owner:
        await first.save(RunKey("run", 0, owner), chain(A, 1, 2))
        put_back(folder)
        second = await open_store(f"{scheme}:{folder}")
        async with second.lock_run("run") as other:
            run = RunKey("run", 0, other)
            assert await second.save(run, chain(A, 3, 4)) == [None, None]
            with pytest.raises(StoreConflictError):
                await first.save(RunKey("run", 0, owner), chain(A, 3, 3))
            assert await second.save(run, chain(A, 5, 6)) == [None, None]
    await first.aclose()
    assert await heads(second) == {A: 6}
    await second.aclose()


async def test_reader_goes_on_beside_a_repair(folder: Path, scheme: str) -> None:
    """A reader has nothing to lose, and reads what stands there."""
    await make(folder, *chain(A, 1, 2), scheme=scheme)
    reader = await open_store(f"{scheme}:{folder}")
    assert await heads(reader) == {A: 2}
    put_back(folder)
    assert await heads(reader) == {A: 2}
    await reader.aclose()
    assert os.listdir(folder)


@pytest.mark.parametrize("deed", DEEDS)
async def test_run_never_ends_well(folder: Path, scheme: str, deed: Deed, tmp_path: Path) -> None:
    """It ends with an error at the next batch, not with exit code 0."""
    begun: list[int] = []

    async def work() -> None:
        async with (
            trio_ckpt.open_run("run", store=f"{scheme}:{folder}") as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(20)):
                begun.append(batch.index)
                if batch.index == 1:
                    shutil.copytree(folder, tmp_path / "older", ignore=NO_SOCKET)
                if batch.index == 3:
                    deed(folder)
                batch.complete()

    with pytest.raises(StoreConflictError):
        await work()
    assert begun[-1] in (3, 4)


@pytest.mark.parametrize("verb", ["prune", "drop_blobs"])
async def test_a_run_that_is_given_back_meanwhile_is_not_changed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, scheme: str, verb: str
) -> None:
    """Its lock is compared after the checkpoint of the call, where other tasks run."""
    store = await open_store(f"{scheme}:{folder}", durability="process")
    lock = store.lock_run("run")
    run = RunKey("run", 0, await lock.__aenter__())

    async def give_back() -> None:
        monkeypatch.undo()
        await lock.__aexit__(None, None, None)

    monkeypatch.setattr(trio.lowlevel, "checkpoint", give_back)
    with pytest.raises(StoreConflictError, match="without its lock"):
        await (store.prune(run, keep=0) if verb == "prune" else store.drop_blobs(run, "s", [1]))
    assert [summary.run_id for summary in await store.list_runs()] == ["run"]
    await store.aclose()


# -- blobs ---------------------------------------------------------------------------------


def unlock(store: Path) -> None:
    """Remove the locks of an owner that lives: of the JSON store, its journal's, too."""
    for path in (store / "lock").iterdir():
        path.unlink()
    for path in store.glob("runs/run/journal.*"):
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").replace(path)


def naming(sequence: int, digest: str) -> Checkpoint:
    return Checkpoint(A, sequence, b"", blobs=(digest,))


async def test_former_owner_leaves_the_blobs_of_the_next(folder: Path, scheme: str) -> None:
    """They are no orphans: the next owner is about to name them."""
    former, store = await open_store(f"{scheme}:{folder}"), await open_store(f"{scheme}:{folder}")
    lock = former.lock_run("run")
    old = RunKey("run", 0, await lock.__aenter__())
    await former.save(old, chain(A, 1, 1))
    await former.put_blob(old, b"never named")
    unlock(folder)
    async with owned(store) as run:
        digest = await store.put_blob(run, b"about to be named")
        with pytest.raises(StoreConflictError):
            await lock.__aexit__(None, None, None)
        assert await store.read_blob("run", digest) == b"about to be named"
        assert await store.save(run, [naming(2, digest)]) == [None]
    async with owned(store):
        assert len(list(folder.glob("blobs/*/*"))) == 1, "what the former owner put is left"
    await former.aclose()
    await store.aclose()


@pytest.mark.parametrize("verb", ["lock_run", "count", "drop_blobs", "prune"])
async def test_owner_that_was_paused_leaves_the_blobs_of_the_next(
    monkeypatch: pytest.MonkeyPatch, folder: Path, verb: str
) -> None:
    """The next owner comes between the change of the former and the removal of its blobs."""
    former, store = await open_store(f"sqlite:{folder}"), await open_store(f"sqlite:{folder}")
    assert isinstance(former, SqliteStore)
    token = trio.lowlevel.current_trio_token()
    locks = [former.lock_run("run"), former.lock_run("run"), store.lock_run("run")]
    place, name = (former._writer, verb)
    if verb == "lock_run":  # after its watermark; "count" is before it
        place, name = former, "_remove_orphans"
    change = getattr(place, name)
    is_locking = verb in ("lock_run", "count")
    digests: list[str] = []

    async def own() -> None:
        unlock(folder)
        run = RunKey("run", 1, await locks[2].__aenter__())
        digests.append(await store.put_blob(run, b"blob"))

    def change_and_pause(*args: object) -> object:
        if verb == "lock_run":
            trio.from_thread.run(own, trio_token=token)
            return change(*args)
        result = change(*args)
        trio.from_thread.run(own, trio_token=token)
        return result

    old = RunKey("run", 0, await locks[0].__aenter__())
    digest = await former.put_blob(old, b"blob")
    await former.save(old, [naming(1, digest)])
    if is_locking:
        await former.drop_blobs(old, A, [1])
        await former.put_blob(old, b"never named")
        with monkeypatch.context() as kill:
            kill.setattr(Blobs, "remove_orphans", lambda *_: None)
            await locks[0].__aexit__(None, None, None)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, change_and_pause)
        if is_locking:
            with pytest.raises(StoreConflictError):
                await locks[1].__aenter__()
        elif verb == "drop_blobs":
            await former.drop_blobs(old, A, [1])
        else:
            await former.prune(old, keep=0)
    assert digests == [digest]
    assert await store.read_blob("run", digest) == b"blob"
    seen = read_watermark(watermark_path(folder, "run"))
    assert seen is not None
    assert seen.owner == (3 if is_locking else 2), "it is that of the next owner"
    await locks[2].__aexit__(None, None, None)
    if not is_locking:
        await locks[0].__aexit__(None, None, None)
    await former.aclose()
    await store.aclose()


async def test_no_owner_comes_while_blobs_lose_their_names(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """So a save of the next owner finds its blobs there until it has landed."""
    store = await open_store(f"sqlite:{folder}")
    refused: list[str] = []

    def remove_orphans(*args: object) -> None:
        with closing(sqlite3.connect(folder / "state.db", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                refused.append(str(error))

    async with owned(store) as run:
        await store.put_blob(run, b"never named")
        monkeypatch.setattr(Blobs, "remove_orphans", remove_orphans)
    assert refused == ["database is locked"]
    await store.aclose()
