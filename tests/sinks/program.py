"""A program whose batches write rows: ``python -m tests.sinks.program DATABASE STORE POINT``.

It kills itself with SIGKILL at a point of its calls into the database: the odd ones are before a
call, the even ones after it, so that one lies between each COMMIT and the record of its batch.  At
a place that has a name it stops itself instead, see `pause_at`.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import trio

import trio_ckpt
from trio_ckpt.sinks import Sink, SinkConnection, SinkMarker, SqliteSink
from trio_ckpt.sinks._session import Session

BATCHES = 60
AGAIN = trio_ckpt.RetryTable((trio_ckpt.RetryRule((Exception,), attempts=3, backoff_s=0),))
TABLES = (
    "CREATE TABLE pages (batch INTEGER, line INTEGER)",
    "CREATE TABLE counted (batches INTEGER)",
    "INSERT INTO counted VALUES (0)",
)


def is_postgres(database: str) -> bool:
    return database.startswith("postgresql:")


def connect(database: str) -> Any:
    """A connection to a database, for the tests themselves."""
    if not is_postgres(database):
        return sqlite3.connect(database)
    import psycopg

    return psycopg.connect(database)


def make_tables(database: str) -> None:
    connection = connect(database)
    for statement in TABLES:
        connection.execute(statement)
    connection.commit()
    connection.close()


def read_rows(database: str) -> tuple[list[Any], int]:
    """The pages in their order, and how many batches were counted."""
    connection = connect(database)
    pages = connection.execute("SELECT batch, line FROM pages ORDER BY batch, line").fetchall()
    ((counted,),) = connection.execute("SELECT batches FROM counted").fetchall()
    connection.close()
    return pages, counted


def undisturbed(batches: int = BATCHES) -> tuple[list[Any], int]:
    """What `read_rows` returns of a run that nothing disturbed."""
    return [(batch, line) for batch in range(batches) for line in range(2)], batches


def open_sink(database: str, **options: Any) -> Sink:
    if not is_postgres(database):
        return SqliteSink(database, **options)
    from trio_ckpt.sinks import PostgresSink

    return PostgresSink(database, **options)


async def undo(connection: SinkConnection, marker: SinkMarker) -> None:
    await connection.execute(f"DELETE FROM pages WHERE batch = {marker.batch_index}")
    await connection.execute("UPDATE counted SET batches = batches - 1")


async def write(sink: Sink, batch: trio_ckpt.Batch[Any]) -> None:
    """Write the rows of a batch; the first attempt at every seventh batch fails after them."""
    async with sink.transaction(batch) as connection:
        for line in range(2):
            await connection.execute(f"INSERT INTO pages VALUES ({batch.index}, {line})")
        await connection.execute("UPDATE counted SET batches = batches + 1")
        if batch.index % 7 == 3 and batch.attempt == 1:
            batch.fail("as planned")
        else:
            batch.complete(records=2, cursor=batch.index)


async def main(database: str, store: str, *, batches: int = BATCHES) -> None:
    sink = open_sink(database, undo=undo)
    async with (
        trio_ckpt.open_run("r", store=store, handle_signals=False, wait_for_lock_s=60) as run,
        run.open_stream("s", sink=sink, retry=AGAIN) as stream,
    ):
        async for batch in stream.batches(range(batches)):
            await write(sink, batch)
        print(stream.statistics().records, flush=True)


def kill_at(point: int) -> None:
    """Let this process be killed at a point of its calls."""
    call, lock, points = Session._call, threading.Lock(), 0

    def pass_point() -> None:
        nonlocal points
        with lock:
            points += 1
            if points == point:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: Session, func: Callable[..., Any], *args: object) -> Any:
        pass_point()
        try:
            return call(self, func, *args)
        finally:
            pass_point()

    Session._call = counted  # type: ignore[method-assign]


def pause_at(place: str) -> None:
    """Let this process stop itself in the transaction of batch 2, until it is woken.

    Args:
        place: ``begin`` is before it, ``marker`` before its marker, ``commit`` before its COMMIT,
            ``record`` before the record of its batch.
    """
    executed, committed = Session.execute, Session.commit
    commits = 0

    async def execute(self: Session, statement: str, values: Mapping[str, object]) -> int:
        if place == "marker" and commits == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return await executed(self, statement, values)

    async def commit(self: Session) -> None:
        nonlocal commits
        commits += 1
        if place == "commit" and commits == 4:
            os.kill(os.getpid(), signal.SIGSTOP)
        await committed(self)
        if commits == (3 if place == "begin" else 4 if place == "record" else 0):
            os.kill(os.getpid(), signal.SIGSTOP)

    Session.execute, Session.commit = execute, commit  # type: ignore[method-assign]


if __name__ == "__main__":
    point = sys.argv[3]
    kill_at(int(point)) if point.isdecimal() else pause_at(point)
    trio.run(main, sys.argv[1], sys.argv[2])
