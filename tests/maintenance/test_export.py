"""An archive holds one moment of a run, whatever goes on meanwhile."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.maintenance.export_tools import (
    KINDS,
    everything,
    export_all,
    make_store,
    outputs_in,
    save_folds,
    save_many,
    save_records,
    unpack,
    write_run,
)
from tests.outputs.faulty import FaultySystem, files_in
from trio_ckpt import ArchiveError, OutputError, StoreDamagedError
from trio_ckpt._journal.record import Record, RecordKind, SinkLines
from trio_ckpt._maintenance import export, import_
from trio_ckpt._maintenance.export import ExportSummary, export_run
from trio_ckpt._maintenance.import_ import import_run
from trio_ckpt.abc import Checkpoint, HistoryPage, RunKey, RunView, Store, StoredRecord
from trio_ckpt.outputs import OutputDir
from trio_ckpt.outputs._tree import temp_name
from trio_ckpt.stores import MemoryStore, open_store


def names_in(path: Path) -> list[str]:
    return sorted(name for name in unpack(path) if name.startswith("outputs/"))


# ---------------------------------------------------------------------------------------
# Round trips
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
async def test_what_was_exported_is_what_is_imported(
    tmp_path: Path, source: str, target: str
) -> None:
    """Progress, every record and every output; whatever the stores, the keys, the limits."""
    store = await make_store(source, tmp_path / "a", b"one key")
    other = await make_store(target, tmp_path / "b", b"another key")
    await write_run(store, tmp_path / "out")
    summary = await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    imported = await import_run(
        other, tmp_path / "r.zip", run_id="again", output_dir=tmp_path / "new"
    )
    assert await everything(other, "again", as_exported=True) == await everything(store, "r")
    assert outputs_in(tmp_path / "new") == outputs_in(tmp_path / "out")
    assert (imported.run_id, imported.records) == ("again", summary.records)
    for handle in (store, other):
        await handle.aclose()
    again = await make_store(target, tmp_path / "b", b"another key")
    if target != "memory:":  # it is durable, and it is a run
        async with (
            trio_ckpt.open_run("again", store=again, output_dir=tmp_path / "new") as run,
            run.open_stream("päge", "a/b") as stream,
        ):
            assert [batch.index async for batch in stream.batches(range(5))] == []
    await again.aclose()


async def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    store = MemoryStore(inline_limit_bytes=2_000)
    await write_run(store, tmp_path / "out")
    summary = await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    every = await everything(store, "r")
    assert () in every  # the library keeps its sessions there
    found = {key: value for key, value in every.items() if key}
    assert summary == ExportSummary(
        path=str(tmp_path / "r.zip"),
        run_id="r",
        generation=0,
        streams=len(found),
        records=sum(len(records) for _, records in found.values()),
        outputs=5,
        size_bytes=os.stat(tmp_path / "r.zip").st_size,
        created_at=summary.created_at,
    )


async def test_a_run_goes_on_where_its_archive_was_made(tmp_path: Path) -> None:
    store, other = MemoryStore(), MemoryStore()
    worked: list[int] = []

    async def work(store: Store, stop_at: int) -> None:
        async with (
            trio_ckpt.open_run("r", store=store, output_dir=tmp_path / "out") as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(6)):
                if batch.index == stop_at:
                    break
                worked.append(batch.index)
                await batch.write_text(f"{batch.index}.txt", "text")
                batch.append_json("l.jsonl", batch.index)
                batch.complete()

    with pytest.raises(trio_ckpt.TokenNeverSettledError):
        await work(store, 3)
    await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    await import_run(other, tmp_path / "r.zip")
    await work(other, -1)
    assert worked == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "out/l.jsonl").read_bytes() == b"0\n1\n2\n3\n4\n5\n"


# ---------------------------------------------------------------------------------------
# One moment
# ---------------------------------------------------------------------------------------


async def test_a_run_may_be_exported_while_it_is_running(tmp_path: Path) -> None:
    """What is saved between the call and its end is left out, in records and in files."""

    class Running(MemoryStore):
        step: Callable[[], Awaitable[object]]

        async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
            view = await super().load_run(run_id, generation)
            await self.step()
            return view

    store, other = Running(), MemoryStore()
    store.step = trio.lowlevel.checkpoint
    async with (
        trio_ckpt.open_run("r", store=store, output_dir=tmp_path / "out") as run,
        run.open_stream("s") as stream,
    ):
        batches = aiter(stream.batches())

        async def work() -> None:
            batch = await anext(batches)
            await batch.write_text(f"{batch.index}.txt", "text")
            batch.append_json("l.jsonl", batch.index)
            batch.complete()
            await batch.confirm()

        for _ in range(3):
            await work()
        before = await everything(store, "r")
        store.step = work
        await export_all(store, tmp_path / "out", tmp_path / "r.zip")
        store.step = trio.lowlevel.checkpoint
        assert stream.progress.confirmed.count(0) == 4
        await work()
        await stream.finish()
    await import_run(other, tmp_path / "r.zip", output_dir=tmp_path / "new")
    assert await everything(other, "r", as_exported=True) == before
    assert outputs_in(tmp_path / "new") == {
        **{f"{n}.txt": b"text" for n in range(3)},
        "l.jsonl": b"0\n1\n2\n",
    }


async def test_a_run_that_is_begun_afresh_meanwhile_is_exported_as_it_was(tmp_path: Path) -> None:
    class Restarting(MemoryStore):
        async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
            view = await super().load_run(run_id, generation)
            async with self.lock_run(run_id) as owner:
                sealed = self.seal(run_id, 1, ("s",)).close(1, b"another generation")
                await self.save(RunKey(run_id, 1, owner), [Checkpoint('["s"]', 1, sealed)])
            return view

    store, other = Restarting(), MemoryStore()
    await save_many(store, "r", {("s",): 3})
    await export_run(store, "r", tmp_path / "r.zip")
    await import_run(other, tmp_path / "r.zip")
    assert [len(records) for _, records in (await everything(other, "r")).values()] == [3]


async def test_it_is_the_newest_generation(tmp_path: Path) -> None:
    store, other = MemoryStore(), MemoryStore()
    for fresh in (False, True):
        async with (
            trio_ckpt.open_run("r", store=store, fresh=fresh) as run,
            run.open_stream("new" if fresh else "old") as stream,
        ):
            async for batch in stream.batches(range(2)):
                batch.complete()
    assert (await export_run(store, "r", tmp_path / "r.zip")).generation == 1
    assert (await import_run(other, tmp_path / "r.zip")).generation == 0
    found = await everything(other, "r")
    assert found == await everything(store, "r")
    assert ("old",) not in found


# ---------------------------------------------------------------------------------------
# Outputs
# ---------------------------------------------------------------------------------------


async def test_only_outputs_that_stand_are_exported(tmp_path: Path) -> None:
    """Not what a redone batch had made, nor one that is re-queued, nor foreign files."""
    store, out = MemoryStore(), tmp_path / "out"

    async def work(limit: int, *names: str) -> None:
        async with (
            trio_ckpt.open_run("r", store=store, output_dir=out) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(3)):
                if batch.index >= limit:
                    break
                for name in names:
                    await batch.write_text(f"{batch.index}{name}", f"{names}")
                batch.complete()

    await work(3, ".txt", "-old.txt")
    for name in ("1.txt", "2.txt"):
        (out / name).unlink()
    with pytest.raises(trio_ckpt.TokenNeverSettledError):
        await work(2, ".txt")  # does 1 again, and leaves 2
    (out / "2.txt").write_text("half")
    (out / "foreign").write_text("not ours")
    await export_all(store, out, tmp_path / "r.zip")
    names = ["outputs/0-old.txt", "outputs/0.txt", "outputs/1.txt"]
    assert names_in(tmp_path / "r.zip") == names
    assert unpack(tmp_path / "r.zip")["outputs/1.txt"] == b"('.txt',)"


async def test_an_append_file_is_exported_as_far_as_it_is_confirmed(tmp_path: Path) -> None:
    store = MemoryStore(inline_limit_bytes=2_000)
    await write_run(store, tmp_path / "out")
    with (tmp_path / "out/lines.jsonl").open("ab") as file:
        file.write(b'{"line": ')
    await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    assert unpack(tmp_path / "r.zip")["outputs/lines.jsonl"].count(b"\n") == 5
    assert unpack(tmp_path / "r.zip")["outputs/lines.jsonl"].endswith(b'{"line":4}\n')


async def test_an_append_file_of_which_nothing_counts_need_not_be_there(tmp_path: Path) -> None:
    store, lines = MemoryStore(), (SinkLines("l.jsonl", 3, b""),)
    records = [
        Record(kind=RecordKind.BATCH, at=1.0, index=0, lines=lines),
        Record(kind=RecordKind.REDO, at=2.0, steps=(0, 1), lines=lines),
    ]
    await save_records(store, "r", ("s",), records)
    assert (await export_all(store, tmp_path / "out", tmp_path / "r.zip")).outputs == 0


async def test_without_a_folder_no_outputs_are_exported(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_run(store, tmp_path / "out")
    assert (await export_run(store, "r", tmp_path / "r.zip")).outputs == 0
    assert names_in(tmp_path / "r.zip") == []


@pytest.mark.parametrize("harm", ["altered", "longer", "gone", "cut"])
async def test_an_output_that_is_not_what_was_confirmed_is_refused(
    tmp_path: Path, harm: str
) -> None:
    store, out = MemoryStore(), tmp_path / "out"
    await write_run(store, out)
    path = out / ("lines.jsonl" if harm == "cut" else "pages/2.json")
    if harm == "gone":
        path.unlink()
    else:
        data = {"altered": b'{"page":3}', "longer": path.read_bytes() + b" ", "cut": b"{"}[harm]
        path.write_bytes(data)
    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match=path.name):
        await export_all(store, out, tmp_path / "x/r.zip")
    assert files_in(tmp_path / "x") == {}


# ---------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------


async def test_the_archive_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await save_many(store, "r", {("s",): 3})
    system = FaultySystem()
    opened = OutputDir.open

    def open_watched(path: str) -> OutputDir:
        return opened(path, system=system)

    monkeypatch.setattr(OutputDir, "open", staticmethod(open_watched))
    await export_run(store, "r", tmp_path / "r.zip")
    last = [change for change in system.changes if "pwrite" not in change][-3:]
    assert last == ["fsync temp", "rename r.zip", "fsync root"]


async def test_an_export_that_fails_or_is_cancelled_leaves_what_was_there(tmp_path: Path) -> None:
    class Broken(MemoryStore):
        problem: Callable[[], object]

        async def history(
            self,
            run_id: str,
            stream: str,
            *,
            generation: int | None = None,
            cursor: str | None = None,
            limit: int = 1000,
        ) -> HistoryPage:
            if cursor is not None:
                self.problem()
            return await super().history(
                run_id, stream, generation=generation, cursor=cursor, limit=limit
            )

    store = Broken()
    await save_many(store, "r", {("s",): 2_500})
    (tmp_path / "other").write_bytes(b"old")

    def fail() -> None:
        raise StoreDamagedError("as planned")

    store.problem = fail
    with pytest.raises(StoreDamagedError, match="as planned"):
        await export_run(store, "r", tmp_path / "r.zip")
    assert files_in(tmp_path) == {"other": b"old"}
    with trio.CancelScope() as scope:
        store.problem = scope.cancel
        await export_run(store, "r", tmp_path / "r.zip")
    assert scope.cancelled_caught
    assert files_in(tmp_path) == {"other": b"old"}


async def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    class Slow(MemoryStore):
        """Another process makes the file while it is exported to."""

        async def history(
            self,
            run_id: str,
            stream: str,
            *,
            generation: int | None = None,
            cursor: str | None = None,
            limit: int = 1000,
        ) -> HistoryPage:
            (tmp_path / "late").write_bytes(b"old")
            return await super().history(
                run_id, stream, generation=generation, cursor=cursor, limit=limit
            )

    store = Slow()
    await save_many(store, "r", {("s",): 3})
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "late"):
        with pytest.raises(ArchiveError, match="is there already: choose another name"):
            await export_run(store, "r", tmp_path / name)
    with pytest.raises(ArchiveError, match="there is no folder"):
        await export_run(store, "r", tmp_path / "none/file")
    (tmp_path / "link").unlink()
    assert files_in(tmp_path) == {"file": b"old", "late": b"old"}


async def test_a_history_with_a_hole_is_refused(tmp_path: Path) -> None:
    class Holey(MemoryStore):
        async def history(
            self,
            run_id: str,
            stream: str,
            *,
            generation: int | None = None,
            cursor: str | None = None,
            limit: int = 1000,
        ) -> HistoryPage:
            page = await super().history(
                run_id, stream, generation=generation, cursor=cursor, limit=limit
            )
            kept: tuple[StoredRecord, ...] = tuple(
                r for r in page.records if r.sequence != self.hole
            )
            return HistoryPage(kept, page.cursor)

        hole = 0

    store = Holey()
    await save_many(store, "r", {("s",): 5})
    for store.hole in (1, 3, 5):
        with pytest.raises(StoreDamagedError, match="missing"):
            await export_run(store, "r", tmp_path / "r.zip")


async def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no run 'r' in memory:") as caught:
        await export_run(MemoryStore(), "r", tmp_path / "r.zip")
    assert caught.value.run_id == "r"
    assert files_in(tmp_path) == {}


async def test_a_run_without_records_is_one(tmp_path: Path) -> None:
    store, other = MemoryStore(), MemoryStore()
    async with store.lock_run("r"):
        pass
    await export_run(store, "r", tmp_path / "r.zip")
    await import_run(other, tmp_path / "r.zip")
    assert await everything(other, "r") == {}


async def test_streams_come_and_go_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is never held: a page of it is."""
    monkeypatch.setattr(export, "PAGE", 100)
    monkeypatch.setattr(import_, "PAGE", 100)
    store = await open_store(f"sqlite:{tmp_path / 'a'}")
    other = await open_store(f"sqlite:{tmp_path / 'b'}")
    payload = os.urandom(4_000)
    await save_many(store, "r", {("s",): 1_000}, payload)
    await save_folds(store, "r")  # or loading it would read every record
    tracemalloc.start()
    await export_run(store, "r", tmp_path / "r.zip")
    await import_run(other, tmp_path / "r.zip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000 * len(payload)
    for handle in (store, other):
        await handle.aclose()


async def test_what_a_killed_export_has_left_goes_with_the_next(tmp_path: Path) -> None:
    """That of one that is alive stays: it has a lock."""
    store = MemoryStore()
    await write_run(store, tmp_path / "out")
    with closing(OutputDir.open(tmp_path)) as folder:
        alive = folder.create("other.zip")
        (tmp_path / temp_name("r.zip")).write_bytes(b"half of it")
        before = set(os.listdir(tmp_path))
        await export_run(store, "r", tmp_path / "r.zip")
        left = set(os.listdir(tmp_path)) - {"r.zip", "out"}
        assert len(left) == 1 < len(before - {"out"})
        alive.commit()
        alive.close()


async def test_what_a_killed_import_has_left_goes_with_the_next(tmp_path: Path) -> None:
    store, new = MemoryStore(), tmp_path / "new"
    await write_run(store, tmp_path / "out")
    await export_all(store, tmp_path / "out", tmp_path / "r.zip")
    (new / "pages").mkdir(parents=True)
    (new / "pages" / temp_name("0.json")).write_bytes(b"[")
    (new / temp_name("lines.jsonl")).write_bytes(b"[")
    await import_run(MemoryStore(), tmp_path / "r.zip", output_dir=new)
    assert outputs_in(new) == outputs_in(tmp_path / "out")
