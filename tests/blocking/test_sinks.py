"""Rows of a synchronous program are there once, as those of a program of trio."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.opening import begin_blocking
from trio_ckpt.blocking import BlockingBatch, BlockingConnection, run_batches, transaction
from trio_ckpt.sinks import SinkConnection, SqliteSink


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE pages (page INTEGER)")
    connection.close()
    return path


def pages(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT page FROM pages ORDER BY page").fetchall()
    connection.close()
    return [page for (page,) in rows]


def test_rows_of_a_loop_and_of_threads_are_there_once(path: Path) -> None:
    sink = SqliteSink(path)

    def handle(batch: BlockingBatch[int]) -> None:
        with transaction(sink, batch) as connection:
            connection.execute("INSERT INTO pages VALUES (?)", (batch.index,))
            batch.complete()

    with begin_blocking() as run, run.open_stream("s", sink=sink) as stream:
        for batch in stream.batches(range(3)):
            handle(batch)
    with begin_blocking(run_id="other") as run, run.open_stream("s", sink=sink) as stream:
        run_batches(stream, range(20), handle, concurrency=4)
    assert pages(path) == sorted([*range(3), *range(20)])


def test_an_exception_of_the_block_leaves_no_rows(path: Path) -> None:
    sink = SqliteSink(path)

    def work() -> None:
        with begin_blocking() as run, run.open_stream("s", sink=sink) as stream:
            for batch in stream.batches(range(3)):
                with transaction(sink, batch) as connection:
                    connection.executemany("INSERT INTO pages VALUES (?)", [(1,), (2,)])
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert pages(path) == []


def test_the_connection_has_the_methods_of_that_of_trio() -> None:
    public = {name for name in vars(SinkConnection) if not name.startswith("_")}
    assert public == {name for name in vars(BlockingConnection) if not name.startswith("_")}


def test_a_batch_of_trio_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match=r"batch must be a batch of trio_ckpt\.blocking"):
        transaction(SqliteSink(path), "batch")  # type: ignore[arg-type]
