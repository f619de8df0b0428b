"""Old states are moved into another store instead of being deleted, and can be read there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import trio_ckpt
from tests.opening import begin
from trio_ckpt import Retention, open_maintenance, read_arrays
from trio_ckpt._maintenance.verify_states import check_states
from trio_ckpt.abc import Store
from trio_ckpt.cli import main
from trio_ckpt.stores import MemoryStore, open_store

KEY = ("s", "t/u")


def new() -> dict[str, Any]:
    return {"a": np.random.default_rng(99).normal(size=60_000), "n": 0}


def step(state: dict[str, Any], index: int) -> None:
    """Every fourth batch all of it is new, the others change a little: chains of several."""
    if index % 4 == 0:
        state["a"] = np.random.default_rng(index).normal(size=60_000)
    state["a"][index * 1_000] = index
    state["n"] += 1


def expected(batch: int) -> bytes:
    state = new()
    for index in range(batch + 1):
        step(state, index)
    array: Any = state["a"]
    return array.tobytes()


async def work(
    store: Any, archive: Any, batches: int = 24, *, last: int = 1, stop_after: int | None = None
) -> None:
    retention = Retention(last=last, archive=archive)
    async with (
        begin(store) as run,
        run.open_stream(*KEY, state=new(), retention=retention) as stream,
    ):
        async for batch in stream.batches(range(batches)):
            step(stream.state, batch.index)
            batch.complete()
            if batch.index == stop_after:
                await batch.confirm()
                break


async def kept(store: Store, run_id: str, batches: int = 24) -> set[int]:
    """The batches whose states can be read, all of which are what they were."""
    found: set[int] = set()
    for batch in range(batches):
        try:
            arrays = await read_arrays(store, run_id, KEY, batch=batch)
        except (trio_ckpt.StoreDamagedError, trio_ckpt.UnknownRunError, ValueError):
            continue
        assert arrays["state.a"].tobytes() == expected(batch), batch
        found.add(batch)
    return found


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_what_is_let_go_is_in_the_archive_and_what_is_kept_is_not(
    kind: str, tmp_path: Path
) -> None:
    store = await open_store(f"{kind}:{tmp_path / 'store'}")
    await work(store, tmp_path / "attic")
    attic = await open_store(tmp_path / "attic")
    here, there = await kept(store, "r"), await kept(attic, "r-0")
    assert here | there == set(range(24))
    assert 23 in here
    assert len(there) > 15
    view = await attic.load_run("r-0")
    assert view is not None
    check = await check_states(attic, view)
    assert (check.problems, check.states > 15) == ((), True)
    for each in (store, attic):
        await each.aclose()


async def test_what_was_let_go_before_keeps_nothing_from_being_archived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A session knows of states that an earlier one has dropped, which is not damage."""
    store = MemoryStore()
    await work(store, None, stop_after=9)
    before = await kept(store, "r")
    await work(store, tmp_path / "attic", stop_after=20)
    attic = await open_store(tmp_path / "attic")
    assert await kept(attic, "r-0") | await kept(store, "r") == before | set(range(10, 21))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    await attic.aclose()


async def test_one_chain_that_is_damaged_keeps_the_others_from_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(tmp_path / "store")
    await work(store, None, last=1_000, stop_after=22)
    assert await kept(store, "r") == set(range(23))
    (blob,) = [path for path in (tmp_path / "store/blobs").rglob("*") if path.is_file()][:1]
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[::-1])
    whole = await kept(store, "r")
    assert len(whole) < 23
    async with open_maintenance(store, "r") as maintenance:
        done = await maintenance.compact(retention=Retention(last=1, archive=tmp_path / "attic"))
    assert done.dropped > 3
    assert "is not archived" in caplog.text
    attic = await open_store(tmp_path / "attic")
    assert await kept(attic, "r-0") | await kept(store, "r") >= whole
    for each in (store, attic):
        await each.aclose()


async def test_a_run_that_is_resumed_and_begun_again_archives_each_time(tmp_path: Path) -> None:
    store, attic_folder = MemoryStore(), tmp_path / "attic"
    for batches in (9, 24):
        await work(store, attic_folder, batches)
    async with begin(store, fresh=True):
        pass
    await work(store, attic_folder, 24)
    attic = await open_store(attic_folder)
    assert [run.run_id for run in await attic.list_runs()] == ["r-0", "r-1"]
    for run_id in ("r-0", "r-1"):
        assert len(await kept(attic, run_id)) > 15
    await attic.aclose()


async def test_what_cannot_be_archived_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    blocked = tmp_path / "attic"
    blocked.write_text("no folder")
    await work(store, blocked)
    assert "are not archived" in caplog.text
    assert await kept(store, "r") == set(range(24))


class Altered(MemoryStore):
    """Gives other bytes back than it was given."""

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        return bytes(reversed(await super().read_blob(run_id, digest, offset, size)))


async def test_what_was_altered_is_not_archived_as_if_it_were_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Altered()
    await work(store, tmp_path / "attic")
    assert "is not what was saved" in caplog.text
    attic = await open_store(tmp_path / "attic")
    assert await kept(attic, "r-0") == set()
    await attic.aclose()


async def test_the_loop_does_not_wait_for_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run does, when it ends."""
    may_go_on, archived = trio.Event(), list[str]()
    real = trio_ckpt._commit.archive_states.archive_chains  # type: ignore[attr-defined]  # what is put in place of

    async def slow(*args: Any) -> Any:
        await may_go_on.wait()
        archived.append(str(args[-1]))
        return await real(*args)

    monkeypatch.setattr("trio_ckpt._commit.archive_states.archive_chains", slow)
    store = MemoryStore()
    async with begin(store) as run:
        retention = Retention(last=1, archive=tmp_path / "attic")
        async with run.open_stream(*KEY, state=new(), retention=retention) as stream:
            async for batch in stream.batches(range(24)):
                step(stream.state, batch.index)
                batch.complete()
        assert archived == []
        assert await kept(store, "r") == set(range(24))
        may_go_on.set()
    assert archived
    assert len(await kept(store, "r")) < 8


async def test_streams_of_one_run_archive_one_after_the_other(tmp_path: Path) -> None:
    """They share a run of the archive, which one has at a time."""
    store, folder = MemoryStore(), tmp_path / "attic"

    async def one(run: trio_ckpt.Run, name: str) -> None:
        retention = Retention(last=1, archive=folder)
        async with run.open_stream(name, state=new(), retention=retention) as stream:
            async for batch in stream.batches(range(24)):
                step(stream.state, batch.index)
                batch.complete()

    async with begin(store) as run, trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(one, run, name)
    attic = await open_store(folder)
    for name in "abc":
        arrays = await read_arrays(attic, "r-0", (name,), batch=10)
        assert arrays["state.a"].tobytes() == expected(10)
    await attic.aclose()


async def test_a_rewind_may_have_begun_a_chain_twice(tmp_path: Path) -> None:
    store = MemoryStore()
    await work(store, tmp_path / "attic", last=50, stop_after=5)
    async with begin(store) as run:
        await run.rewind(KEY, to=4, reason="x")
        await run.rewind(KEY, to=0, reason="x")
    await work(store, tmp_path / "attic", 24)
    attic = await open_store(tmp_path / "attic")
    assert await kept(attic, "r-0") | await kept(store, "r") == set(range(24))
    await attic.aclose()


def test_the_command_archives_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, attic = tmp_path / "store", tmp_path / "attic"

    async def found() -> set[int]:
        store = await open_store(attic)
        batches = await kept(store, "r-0")
        await store.aclose()
        return batches

    trio.run(partial(work, folder, None, last=1_000, stop_after=22))
    assert not attic.exists()
    options = ["--keep", "1", "--archive", str(attic), "--yes"]
    assert main(["compact", str(folder), "r", *options]) == 0
    assert "moved to" in capsys.readouterr().out
    assert len(trio.run(found)) > 15


async def test_maintenance_refuses_where_the_archive_cannot_be_written(tmp_path: Path) -> None:
    store = MemoryStore()
    await work(store, None, last=1_000, stop_after=22)
    (tmp_path / "attic").write_text("no folder")
    before = await kept(store, "r")
    async with open_maintenance(store, "r") as maintenance:
        with pytest.raises(trio_ckpt.StoreError):
            await maintenance.compact(retention=Retention(last=1, archive=tmp_path / "attic"))
    assert await kept(store, "r") == before
