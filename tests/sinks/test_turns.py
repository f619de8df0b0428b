"""Transactions take turns: none keeps the database, and none waits for itself."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from contextlib import AsyncExitStack, closing, suppress
from typing import Any

import pytest
import trio

from tests.hangs import HANG_S
from tests.opening import begin
from tests.sinks.program import open_sink, read_rows
from tests.sinks.test_transactions import EMPTY, insert, run_one
from trio_ckpt import Batch, BatchFailedError, SinkError
from trio_ckpt.sinks import Sink


async def test_a_begin_that_is_cancelled_keeps_nothing_locked(sqlite: str) -> None:
    """It waits for another process's transaction, and would begin after that has ended."""

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        with closing(sqlite3.connect(sqlite, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with trio.fail_after(HANG_S), trio.move_on_after(0.1) as scope:
                async with sink.transaction(batch):
                    raise AssertionError
            assert scope.cancelled_caught
            other.execute("COMMIT")
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.complete()
            other.execute("BEGIN IMMEDIATE")

    await run_one(sqlite, body)
    assert read_rows(sqlite)[0] == [(0, 0)]


async def test_a_task_does_not_wait_for_its_own_transaction(sqlite: str) -> None:
    sink = open_sink(sqlite)

    async def work() -> None:
        async with begin() as run, run.open_stream("s", sink=sink) as stream:
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    async with run.open_stream("other", sink=sink):
                        batch.complete()

    with trio.fail_after(HANG_S), pytest.raises(RuntimeError, match="and this task has one open"):
        await work()
    assert read_rows(sqlite) == EMPTY


async def test_a_connection_that_outlives_its_stream_is_not_used_again(database: str) -> None:
    """Its number is free, and two of one number would overwrite each other's markers."""
    sink = open_sink(database)

    async def work() -> None:
        async with begin() as run, run.open_stream("s", sink=sink) as stream:
            async for batch in stream.batches(range(1)):
                await stack.enter_async_context(sink.transaction(batch))
                batch.complete()

    async with AsyncExitStack() as stack:
        with pytest.raises(BatchFailedError, match="was confirmed inside its transaction"):
            await work()
        with pytest.raises(RuntimeError, match="was confirmed inside its transaction"):
            await stack.aclose()
    assert (sink._sessions, sink._idle) == ([], [])


def test_ctrl_c_ends_the_statement_that_is_executed(postgres: str) -> None:
    sink, ended = open_sink(postgres), list[Any]()
    interrupt = sink._driver.interrupt

    def end(raw: Any) -> None:
        ended.append(raw)
        interrupt(raw)

    def sleep(raw: Any) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        raw.execute("SELECT pg_sleep(30)")

    async def work() -> None:
        async with begin() as run, run.open_stream("s", sink=sink) as stream:
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await connection.run(sleep)

    sink._driver.interrupt = end  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trio.run(work)
    assert len(ended) == 1


async def test_nothing_is_executed_outside_of_the_transaction(database: str) -> None:
    """It would be committed by itself, and be there twice after the next attempt."""

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            await connection.execute("ROLLBACK")
            with suppress(SinkError):
                await insert(connection)
            batch.complete()

    with pytest.raises(SinkError, match="was ended inside its block: leave COMMIT and ROLLBACK"):
        await run_one(database, body)
    assert read_rows(database) == EMPTY
