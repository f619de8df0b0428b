"""What the tests of the local stores share."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import SqliteStore, open_store
from trio_ckpt.stores._local.files import hashed_name

A, B = '["a"]', '["b"]'


async def make(
    folder: Path, *group: Checkpoint, blobs: tuple[bytes, ...] = (), scheme: str = "sqlite"
) -> None:
    """A store with a run that has these checkpoints."""
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for payload in blobs:
            await store.put_blob(run, payload)
        assert await store.save(run, group) == [None] * len(group)
    await store.aclose()


@contextlib.asynccontextmanager
async def owned(store: Store, run_id: str = "run") -> AsyncGenerator[RunKey]:
    """Lock a run."""
    async with store.lock_run(run_id) as owner:
        yield RunKey(run_id, 0, owner)


def path_of_blob(folder: Path, digest: str, run_id: str = "run") -> Path:
    """The file of a blob in the folder of a local store."""
    return folder / "blobs" / hashed_name(run_id) / digest


async def heads(store: Store) -> dict[str, int]:
    stored = await store.read_run("run")
    assert stored is not None
    return {entry.stream: entry.sequence for entry in stored.streams}


def chain(stream: str, first: int, last: int) -> list[Checkpoint]:
    return [Checkpoint(stream, n, b"%d" % n) for n in range(first, last + 1)]


class _Cursor:
    """A cursor whose COMMIT raises, after it was done or instead of it."""

    def __init__(
        self, cursor: sqlite3.Cursor, code: int, *, is_done: bool, can_roll_back: bool
    ) -> None:
        self._can_roll_back = can_roll_back
        self._cursor = cursor
        self._code = code
        self._is_done = is_done

    def execute(self, sql: str, *args: Any) -> Any:
        if sql != "COMMIT" and (sql != "ROLLBACK" or self._can_roll_back):
            return self._cursor.execute(sql, *args)
        if self._is_done:
            self._cursor.execute(sql)
        error = sqlite3.OperationalError("as planned")
        error.sqlite_errorcode = self._code
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


@contextlib.contextmanager
def failing_commit(
    store: SqliteStore, code: int, *, is_done: bool, can_roll_back: bool = True
) -> Iterator[None]:
    writer: Any = store._writer
    real = writer._cursor
    writer._cursor = _Cursor(real, code, is_done=is_done, can_roll_back=can_roll_back)
    try:
        yield
    finally:
        writer._cursor = real
