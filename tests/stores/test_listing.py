"""`check_store` notices a store that lists its runs wrongly, and what the local stores list."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from msgspec.structs import replace

from tests.opening import begin
from tests.stores.test_conformance import _memory
from trio_ckpt._maintenance.repair import repair_folder
from trio_ckpt.abc import Checkpoint, Fold, RunKey, RunSummary
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.stores._local import locks
from trio_ckpt.stores._local.locks import _lock_path
from trio_ckpt.testing import check_store


class DropsSummaries(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        return await super().save(run, group, folds, summary=summary if group else None)


class ForgetsSummaries(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        return await super().save(run, group, folds, summary=summary or b"")


class SummarizesFirst(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        if summary is not None:
            self._memory.runs[run.run_id].summary = summary
        return await super().save(run, group, folds, summary=summary)


class SummarizesOnSuccess(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        stored = self._memory.runs.get(run.run_id)
        before = b"" if stored is None else stored.summary
        outcomes = await super().save(run, group, folds, summary=summary)
        if any(outcomes):
            self._memory.runs[run.run_id].summary = before
        return outcomes


class _OtherLines(MemoryStore):
    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        return tuple(map(self.line, await super().list_runs(prefix, after, limit)))

    def line(self, line: RunSummary) -> RunSummary:
        return line


class KeepsOldSummaries(_OtherLines):
    kept: ClassVar[dict[str, bytes]] = {}

    def line(self, line: RunSummary) -> RunSummary:
        self.kept[line.run_id] = line.summary or self.kept.get(line.run_id, b"")
        return replace(line, summary=self.kept[line.run_id])


class OwnsNothing(_OtherLines):
    def line(self, line: RunSummary) -> RunSummary:
        return replace(line, is_owned=False)


class OwnsWhatWasOwned(_OtherLines):
    def line(self, line: RunSummary) -> RunSummary:
        return replace(line, is_owned=line.owner > 0)


class OwnsItsOwn(MemoryStore):
    owned = 0

    @contextlib.asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id) as owner:
            self.owned += 1
            try:
                yield owner
            finally:
                self.owned -= 1

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        page = await super().list_runs(prefix, after, limit)
        return tuple(replace(run, is_owned=run.is_owned and self.owned > 0) for run in page)


class HasNoTimes(_OtherLines):
    def line(self, line: RunSummary) -> RunSummary:
        return replace(line, updated_at=None)


class TellsTheTimeOfNow(_OtherLines):
    def line(self, line: RunSummary) -> RunSummary:
        return replace(line, updated_at=time.time() if line.records else None)


class TimesTheFirst(_OtherLines):
    first: ClassVar[dict[str, float | None]] = {}

    def line(self, line: RunSummary) -> RunSummary:
        if line.updated_at is None:
            return line
        return replace(line, updated_at=self.first.setdefault(line.run_id, line.updated_at))


class NoticesNoReader(MemoryStore):
    has_live = True
    views: ClassVar[dict[str, bytes]] = {}

    async def publish(self, run_id: str, payload: bytes) -> None:
        self.views[run_id] = payload

    async def read_live(self, run_id: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.views.get(run_id, b"")

    async def is_watched(self, run_id: str) -> bool:
        return False


BROKEN = {
    DropsSummaries: "A summary is saved with its save.*the summary is",
    ForgetsSummaries: "A summary is saved with its save.*the summary is b''",
    SummarizesFirst: "A save that is refused leaves the summary",
    SummarizesOnSuccess: "A save that is refused leaves the summary.*with it",
    KeepsOldSummaries: "A summary is of its generation",
    OwnsNothing: "list_runs tells which runs are owned now",
    OwnsWhatWasOwned: "list_runs tells which runs are owned now",
    OwnsItsOwn: "list_runs tells which runs are owned now",
    HasNoTimes: "updated_at is when the newest record was saved.*saved at None",
    TellsTheTimeOfNow: "updated_at is when the newest record was saved.*it moved",
    TimesTheFirst: "updated_at is when the newest record was saved.*records came",
    NoticesNoReader: "A process that reads a live view is noticed",
}


@pytest.mark.parametrize(
    ("kind", "clause"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", "")
)
async def test_a_broken_list_of_runs_is_caught(kind: type[MemoryStore], clause: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s)^{clause}"):
        await check_store(_memory(kind))


# -- the local stores ------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "json"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return f"{request.param}:{tmp_path / 's'}"


async def test_a_lock_file_that_cannot_be_read_hides_no_run(url: str, tmp_path: Path) -> None:
    """Its run counts as owned: who reads it learns what is wrong."""
    store = await open_store(url)
    for name in ("a", "b", "c"):
        async with store.lock_run(name):
            pass
    path = _lock_path(tmp_path / "s", "b")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert [run.is_owned for run in await store.list_runs()] == [False, True, False]
    path.unlink()
    path.mkdir()
    assert [run.run_id for run in await store.list_runs() if run.is_owned] == ["b"]
    await store.aclose()


async def test_a_platform_that_tells_no_owners_lists_runs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was given back is free, also there."""
    store = await open_store(url)
    async with store.lock_run("a"):
        pass
    async with store.lock_run("b"):
        monkeypatch.setattr(locks.sys, "platform", "darwin")
        assert [run.is_owned for run in await store.list_runs()] == [False, True]
        monkeypatch.undo()
    await store.aclose()


async def test_a_check_finds_a_summary_without_its_run(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    async with store.lock_run("r") as owner:
        await store.save(RunKey("r", 0, owner), [], summary=bytes(10))
    await store.aclose()
    with contextlib.closing(sqlite3.connect(tmp_path / "s/state.db")) as database:
        database.execute("UPDATE summaries SET generation = 4")
        database.execute("INSERT INTO summaries VALUES (77, 0, 'text')")
        database.commit()
    store = await open_store(tmp_path / "s")
    found = [finding.what async for finding in store.check()]
    assert found == [
        "run 'r' has a summary of generation 4, which is not one of that run",
        "run 77 has a summary of generation 0, which is not one of that run",
    ]
    (line,) = await store.list_runs()
    assert line.summary == b""
    await store.aclose()


async def test_a_repair_leaves_no_summary(url: str, tmp_path: Path) -> None:
    """It may have lost records, and a later save as many new ones."""
    store = await open_store(url)
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(5)):
            batch.complete()
    assert (await store.list_runs())[0].is_complete
    await store.aclose()
    kind, _, _ = url.partition(":")
    if kind == "json":
        path = tmp_path / "s/runs/r/checkpoint.json"
        path.write_bytes(path.read_bytes().replace(b'"kind":"batch"', b'"kind":"catch"', 1))
    repair_folder(tmp_path / "s", kind, mac_key=None, accept_loss=True)
    store = await open_store(url)
    (line,) = await store.list_runs()
    assert (line.run_id, line.summary, line.is_complete) == ("r", b"", False)
    await store.aclose()
