"""`verify --full` says what is damaged, and nothing else, also of a run that goes on."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from tests.opening import begin
from trio_ckpt import Run, StoreError, open_maintenance
from trio_ckpt._maintenance.offline import Maintenance, requeue_all
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt.abc import Finding, HistoryPage, StoredRun
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore


async def damages(store: MemoryStore) -> list[Finding]:
    return [finding async for finding in check_all(store) if finding.is_damage]


async def work(run: Run, *, count: int, key: str = "s") -> None:
    """Batches that stand alone, each with a file."""
    async with run.open_stream(key) as stream:
        async for batch in stream.batches(range(count)):
            await batch.write_text(f"{key}/{batch.index}", f"{stream.progress.sequence}")
            batch.complete(records=1)


async def train(run: Run, *, count: int) -> None:
    """Batches that build on each other: arrays, and a line each."""
    async with run.open_stream("t", state={"a": np.zeros(100_000)}) as stream:
        async for batch in stream.batches(range(count)):
            stream.state["a"][:] = np.random.default_rng(batch.index).random(100_000)
            batch.append_json("t.jsonl", batch.index)
            batch.complete()


# ---------------------------------------------------------------------------------------
# A run that goes on
# ---------------------------------------------------------------------------------------


class MovesOn(MemoryStore):
    """Something happens to the run right before a read of it."""

    step: Callable[[], Awaitable[None]] | None = None
    reads = 0
    moves_at = -1

    async def _move(self) -> None:
        if self.step is not None:
            self.reads += 1
            if self.reads == self.moves_at:
                step, self.step = self.step, None
                await step()

    async def history(self, run_id: str, stream: str, **kw: Any) -> HistoryPage:
        await self._move()
        return await super().history(run_id, stream, **kw)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        await self._move()
        return await super().read_run(run_id, generation)


async def more(run: Run) -> None:
    await work(run, count=8)
    await train(run, count=5)


async def redone(run: Run) -> None:
    async with run.open_stream("s") as stream:
        await stream.redo([1, 3], reason="x")


async def redone_and_done(run: Run) -> None:
    await redone(run)
    await work(run, count=5)


async def rewound(run: Run) -> None:
    await run.rewind(("s",), to=1, reason="x")
    await run.rewind(("t",), to=-1, reason="x")


async def rewound_and_done(run: Run) -> None:
    await rewound(run)
    await work(run, count=5)
    await train(run, count=3)


async def nothing(_run: Run) -> None:
    """The session alone is news."""


@pytest.mark.parametrize("is_fresh", [False, True])
@pytest.mark.parametrize(
    "change", [more, redone, redone_and_done, rewound, rewound_and_done, nothing]
)
async def test_what_a_run_does_meanwhile_is_no_damage(
    change: Callable[[Run], Awaitable[None]], is_fresh: bool, tmp_path: Path
) -> None:
    """Whatever it is, and whichever read it comes before."""
    for moves_at in itertools.count(1):
        store, folder = MovesOn(), tmp_path / f"{moves_at}"
        async with begin(store, output_dir=folder) as run:
            await work(run, count=5)
            await train(run, count=3)

        async def step(store: MemoryStore = store, folder: Path = folder) -> None:
            async with begin(store, output_dir=folder, fresh=is_fresh) as run:
                if is_fresh:
                    await work(run, count=5)
                    await train(run, count=3)
                await change(run)

        store.step, store.moves_at = step, moves_at
        assert await damages(store) == []
        if store.step is not None:  # it came to no read of that number
            break
        assert await damages(store) == []
    assert moves_at > 5


async def test_pages_that_move_while_they_are_read_are_added_up_once(tmp_path: Path) -> None:
    """More records than a page has; those that come meanwhile push the older ones down."""
    for moves_at in itertools.count(1):
        store = MovesOn()
        async with (
            begin(store, output_dir=tmp_path / f"{moves_at}") as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(520)):
                batch.complete(records=1)

        async def step(store: MemoryStore = store, folder: Path = tmp_path / "again") -> None:
            async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
                async for batch in stream.batches(range(560)):
                    batch.complete(records=1)

        store.step, store.moves_at = step, moves_at
        assert await damages(store) == []
        if store.step is not None:
            break
    assert moves_at > 5


async def test_damage_is_found_while_the_run_goes_on(tmp_path: Path) -> None:
    store = MovesOn()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, count=5)
    (tmp_path / "s" / "2").write_text("damaged")
    (tmp_path / "s" / "3").unlink()

    async def step() -> None:
        async with begin(store, output_dir=tmp_path, verify="off") as run:
            await redone(run)
            await work(run, count=6)

    store.step, store.moves_at = step, 6
    found = await damages(store)
    assert store.step is None
    assert {finding.batch_index for finding in found} == {2}  # 3 was redone meanwhile


# ---------------------------------------------------------------------------------------
# The manifest
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
async def test_the_order_in_which_streams_and_phases_begin_is_no_damage(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        for key in order:
            async with run.phase(key), run.open_stream(key) as stream:
                async for batch in stream.batches(range(2)):
                    names = (key, "sum") if batch.index else ("sum", key)
                    for name in (key, "lines"):
                        batch.append_json(f"{name}-{key}.jsonl", 1)
                    batch.spend(**{f"cost_{name}": 0.1 for name in names})
                    batch.complete(records=1, totals=dict.fromkeys(names, 1))
    assert await damages(store) == []


async def test_streams_that_begin_side_by_side_are_no_damage(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, trio.open_nursery() as nursery:
        for key in "hgfedcba":
            nursery.start_soon(lambda key=key: work(run, count=2, key=key))
    assert await damages(store) == []


async def test_a_manifest_of_another_config_is_written_again(tmp_path: Path) -> None:
    store = MemoryStore()
    for n in (1, 2):
        async with begin(store, output_dir=tmp_path, config={"n": n}, tunable=["n"]) as run:
            await work(run, count=2)
        assert f'"config":{{"n":{n}}}' in (tmp_path / "manifest.json").read_text()
        assert await damages(store) == []


async def test_a_manifest_that_was_written_and_is_missing_is_damage(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, count=2)
        assert await damages(store) == []  # the session has not written it yet
    (tmp_path / "manifest.json").unlink()
    (finding,) = await damages(store)
    assert (finding.path, finding.what) == ("manifest.json", "it was written, and is missing")
    async with begin(store, output_dir=tmp_path):
        assert await damages(store) == []  # this session has found it gone
    assert await damages(store) == []
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("moved", [False, True])
async def test_a_manifest_that_no_session_has_written_is_not_missed(
    moved: bool, tmp_path: Path
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, count=2)
    if moved:  # what a command has put back is done again by a session that is killed
        async with open_maintenance(store, "r") as maintenance:
            await maintenance.redo(("s",), [1], "x")
        async with begin(store, output_dir=tmp_path) as run:
            await work(run, count=2)
            store = store.after_crash()
    else:
        (tmp_path / "manifest.json").write_text("of another run")
        async with begin(store, output_dir=tmp_path):
            pass
        assert await damages(store) == []
    (tmp_path / "manifest.json").unlink()
    assert await damages(store) == []


async def redo_one(maintenance: Maintenance) -> None:
    await maintenance.redo(("s",), [1], "x")


async def rewind(maintenance: Maintenance) -> None:
    await maintenance.rewind(("s",), to=0, reason="x")


async def begin_again(maintenance: Maintenance) -> None:
    await requeue_all(maintenance, ("s",), "x")


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("change", [redo_one, rewind, begin_again])
async def test_a_change_that_is_killed_at_its_beginning_is_no_damage(
    change: Callable[[Maintenance], Awaitable[None]], times: int, tmp_path: Path
) -> None:
    """A command moves the manifest first, so that none is outdated; here nothing follows."""
    store, manifest = MemoryStore(), tmp_path / "manifest.json"
    for number in range(times):
        async with begin(store, output_dir=tmp_path, config={"n": number}, tunable=["n"]) as run:
            async with run.open_stream("s") as stream:
                if number:
                    await stream.redo([0], reason="x")
            await work(run, count=3)
        assert manifest.exists()
        with pytest.raises(StoreError):
            async with open_maintenance(FaultyStore(store, {1: Fail()}), "r") as maintenance:
                await change(maintenance)
        assert not manifest.exists()
        (finding,) = [finding async for finding in check_all(store)]
        assert not finding.is_damage
        assert finding.what.endswith("is in the archive: a change of the run was interrupted")
    async with begin(store, output_dir=tmp_path, config={"n": number}, tunable=["n"]):
        pass
    assert manifest.exists()
    assert await damages(store) == []


@pytest.mark.parametrize("batch", range(5))
async def test_a_manifest_of_before_a_redo_is_outdated_and_no_damage(
    batch: int, tmp_path: Path
) -> None:
    """All was done again, and then the session was killed, before it could write another."""
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, count=5)
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s") as stream:
            await stream.redo([batch], reason="x")
        await work(run, count=5)
        assert await damages(store.after_crash()) == []


@pytest.mark.parametrize("place", range(12, 160, 7))
async def test_a_manifest_that_is_altered_anywhere_is_damage(place: int, tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, count=2)
    manifest = tmp_path / "manifest.json"
    content = bytearray(manifest.read_bytes())
    content[place] ^= 1
    manifest.write_bytes(content)
    assert [finding.path for finding in await damages(store)] == ["manifest.json"]


async def test_what_is_refused_moves_no_manifest(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await work(run, count=2)
    async with open_maintenance(store, "r") as maintenance:
        with pytest.raises(ValueError, match="neither confirmed nor skipped"):
            await maintenance.redo(("s",), [7], "x")
        await maintenance.rewind(("s",), to=5, reason="nothing is after it")
    assert await damages(store) == []
    assert (tmp_path / "manifest.json").exists()
