"""Compacting merges a chain into one saved state and drops old arrays, and that is all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import trio_ckpt
from tests.opening import begin
from trio_ckpt import Retention, Status, UnknownStreamError, open_maintenance
from trio_ckpt._journal.history import read_pages
from trio_ckpt._maintenance.verify_states import check_states
from trio_ckpt._runs.run import open_run_of
from trio_ckpt.abc import Store
from trio_ckpt.cli import main
from trio_ckpt.state._chain import read_chain
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Fail, FaultyStore

KEY = ("s",)


def new() -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(size=(500, 200))  # zeros would pack too well
    return {"a": noise, "b": np.arange(9, dtype=np.int16), "table": {}, "n": 0}


def step(state: dict[str, Any]) -> None:
    state["n"] += 1
    state["a"][state["n"]] += state["n"]
    state["b"] = state["a"][:9, 0].astype(np.int16)
    state["table"] |= {f"key{state['n']}-{n}": n for n in range(2_000)}


def bits(state: dict[str, Any]) -> Any:
    return state["a"].tobytes(), state["b"].tobytes(), state["b"].dtype, state["table"], state["n"]


async def work(
    store: Any, until: int, *, first: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Go on to a batch; the state that there is then."""
    async with begin(store) as run, run.open_stream(*KEY, state=new(), **settings) as stream:
        if first is not None:
            assert bits(stream.state) == bits(first)
        async for batch in stream.batches():
            step(stream.state)
            batch.complete()
            if batch.index == until:
                await batch.confirm()
                break
        return stream.state


async def frames(store: Store) -> int:
    """From how many saved states the newest is read."""
    chain, _ = await read_chain(read_pages(store, "r", 0, KEY))
    return len(chain)


async def compact(store: Store, **settings: Any) -> trio_ckpt.Compacted:
    async with open_maintenance(store, "r") as maintenance:
        return await maintenance.compact(**settings)


@pytest.fixture(params=["memory", "sqlite", "json"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind = request.param
    if kind == "memory":
        return MemoryStore()
    return await open_store(f"{kind}:{tmp_path / 'store'}")


async def test_a_start_reads_one_saved_state_and_goes_on_bit_for_bit(store: Store) -> None:
    state = await work(store, 9)
    before = await frames(store)
    assert before > 5
    done = await compact(store)
    assert (done.merged, done.frames) == (1, before)
    assert await frames(store) == 1
    view = await store.load_run("r")
    assert view is not None
    assert not (await check_states(store, view)).problems
    expected = await work(MemoryStore(), 19)
    assert bits(await work(store, 19, first=state)) == bits(expected)
    await store.aclose()


async def test_what_is_whole_is_left_alone() -> None:
    store = MemoryStore()
    await work(store, 5)
    await compact(store)
    sequence = (await store.load_run("r")).streams[KEY].progress.sequence  # type: ignore[union-attr]
    assert await compact(store) == trio_ckpt.Compacted()
    assert (await store.load_run("r")).streams[KEY].progress.sequence == sequence  # type: ignore[union-attr]


async def test_a_stream_keeps_its_status_its_error_and_its_progress() -> None:
    store = MemoryStore()
    async with (
        begin(store) as run,
        run.open_stream(*KEY, state=new(), on_fail="record") as stream,
    ):
        async for batch in stream.batches(range(9)):
            step(stream.state)
            batch.complete(totals={"n": 1})
            if batch.index == 4:
                await stream.fail("no", retryable=False)
                break
    before = stream.progress
    assert (await compact(store)).merged == 1
    view = await store.load_run("r")
    assert view is not None
    after = view.streams[KEY].progress
    assert (after.status, after.error) == (Status.FAILED, before.error)
    assert (list(after.confirmed), after.totals) == (list(before.confirmed), before.totals)


async def test_a_snapshot_is_merged_as_a_snapshot(autojump_clock: Any) -> None:
    """The batch goes on with it; a failed attempt at it goes back to what is confirmed."""
    store = MemoryStore()

    async def die(until: int) -> None:
        async with begin(store) as run, run.open_stream(*KEY, state=new()) as stream:
            async for batch in stream.batches(range(2)):
                async with stream.snapshots(every_s=0) as snapshot:
                    for _ in range(until):
                        step(stream.state)
                        await snapshot.point(f"at {stream.state['n']}")
                        await snapshot.wait()
                    if batch.index == 1:
                        raise KeyboardInterrupt
                batch.complete()

    with pytest.raises(KeyboardInterrupt):
        await die(4)
    store = store.after_crash()
    assert (await compact(store)).merged == 1
    assert await frames(store) == 1
    seen = list[tuple[int, str | None, int]]()
    retry = trio_ckpt.RetryTable((trio_ckpt.RetryRule((OSError,), backoff_s=0.0),))
    async with begin(store) as run, run.open_stream(*KEY, state=new(), retry=retry) as stream:
        async for batch in stream.batches(range(2)):
            seen.append((batch.index, batch.resumed_from, stream.state["n"]))
            if len(seen) == 1:
                batch.fail(OSError("once more"))
            else:
                batch.complete()
    assert seen == [(1, "at 8", 8), (1, None, 4)]


async def test_old_arrays_go_as_asked_and_pinned_ones_stay(tmp_path: Path) -> None:
    """Those, too, that are so old that no session looked at them: the program kept all."""
    store = await open_store(f"sqlite:{tmp_path / 'store'}")
    async with (
        begin(store) as run,
        run.open_stream(*KEY, state=new(), retention=Retention(last=1_000)) as stream,
    ):
        async for batch in stream.batches():
            stream.state["a"] = np.random.default_rng(batch.index).normal(size=100_000)
            batch.complete()
            await batch.confirm()
            if batch.index == 1:
                await stream.pin("early")
            if batch.index == 9:
                break
    blobs = tmp_path / "store" / "blobs"
    before = sum(path.stat().st_size for path in blobs.rglob("*") if path.is_file())
    done = await compact(store, keys=[KEY], retention=Retention(last=1))
    after = sum(path.stat().st_size for path in blobs.rglob("*") if path.is_file())
    assert done.dropped > 5
    merged_bytes = 800_000 * done.merged  # it was saved again
    assert abs(before + merged_bytes - after - done.freed_bytes) < 10_000
    async with begin(store) as run:
        with pytest.raises(trio_ckpt.CannotRedoError):
            await run.rewind(KEY, to=5, reason="x")
        pin = open_run_of(run).stream_table.progress[KEY].pins["early"]
        await run.rewind(KEY, to=pin.batch_index, reason="x")
        async with run.open_stream(*KEY, state=new()) as stream:
            assert stream.state["a"][0] == np.random.default_rng(1).normal(size=1)[0]
    await store.aclose()


async def test_a_save_that_fails_leaves_the_chain_that_there_was() -> None:
    store = MemoryStore()
    state = await work(store, 5)
    before = await frames(store)
    with pytest.raises(trio_ckpt.StoreError):
        await compact(FaultyStore(store, {1: Fail()}))
    assert await frames(store.after_crash()) == before
    await work(store.after_crash(), 6, first=state)


async def test_a_damaged_chain_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = await open_store(f"sqlite:{folder}")
    async with begin(store) as run, run.open_stream(*KEY, state=new()) as stream:
        for _ in range(2):
            stream.state["a"] = np.random.default_rng(1).normal(size=100_000)
            stream.state["n"] += 1
            await stream.save()
    for path in (folder / "blobs").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(trio_ckpt.StoreDamagedError):
        await compact(store)
    await store.aclose()


async def test_streams_without_a_state_have_nothing_to_merge() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("plain") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()
    assert await compact(store) == trio_ckpt.Compacted()
    with pytest.raises(UnknownStreamError):
        await compact(store, keys=[("none",)])


async def test_a_manifest_that_says_less_than_there_is_does_not_stay(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:{tmp_path / 'store'}")
    out = tmp_path / "out"
    async with (
        begin(store, output_dir=out) as run,
        run.open_stream(*KEY, state=new()) as stream,
    ):
        async for batch in stream.batches(range(5)):
            step(stream.state)
            batch.complete()
    assert (out / "manifest.json").exists()
    await compact(store)
    assert not (out / "manifest.json").exists()
    async with begin(store, output_dir=out):
        pass
    assert (out / "manifest.json").exists()
    await store.aclose()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "store"
    trio.run(work, f"sqlite:{folder}", 9)
    assert main(["compact", str(folder), "r"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["compact", str(folder), "r", "--keep", "1", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == "r"
    assert said["streams"] == [["s"]]
    assert (said["merged"], said["frames"], said["dropped"]) == (1, 11, 1)
    assert said["freed_bytes"] > 700_000
    assert main(["compact", str(folder), "r", "--stream", "s", "--yes"]) == 0
    assert "nothing to merge" in capsys.readouterr().out
