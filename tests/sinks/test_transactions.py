"""A transaction has the rows of a batch and its record, or neither."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.hangs import HANG_S
from tests.opening import begin
from tests.sinks.program import (
    AGAIN,
    connect,
    is_postgres,
    open_sink,
    read_rows,
    undisturbed,
    write,
)
from trio_ckpt import (
    Batch,
    BatchFailedError,
    CheckpointResult,
    Frontier,
    Limits,
    RetryRule,
    RetryTable,
    RunStoppedError,
    SinkError,
    Then,
    TokenNeverSettledError,
    run_batches,
)
from trio_ckpt._commit.awaits import NeverAwaitedError
from trio_ckpt._journal.record import decode_record
from trio_ckpt.abc import Store
from trio_ckpt.sinks import Sink, SinkConnection
from trio_ckpt.sinks._session import Session
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore

EMPTY: tuple[list[Any], int] = ([], 0)


class BodyError(Exception):
    """What a body raises."""


def markers(database: str) -> list[tuple[Any, ...]]:
    """The slots of the markers, with their batches and records."""
    connection = connect(database)
    found = connection.execute(
        "SELECT slot, batch, record FROM trio_ckpt_markers ORDER BY slot"
    ).fetchall()
    connection.close()
    return [tuple(row) for row in found]


async def run_one(
    database: str,
    body: Callable[[Sink, Batch[Any]], Any],
    store: MemoryStore | None = None,
    **options: Any,
) -> None:
    """Work on one batch."""
    sink = open_sink(database)
    async with (
        begin(store or MemoryStore()) as run,
        run.open_stream("s", sink=sink, **options) as stream,
    ):
        async for batch in stream.batches(range(1)):
            await body(sink, batch)


async def insert(connection: SinkConnection) -> None:
    await connection.execute("INSERT INTO pages VALUES (0, 0)")


async def test_the_rows_of_a_loop_are_there_once(database: str) -> None:
    sink = open_sink(database)
    async with begin() as run, run.open_stream("s", sink=sink, retry=AGAIN) as stream:
        async for batch in stream.batches(range(20)):
            await write(sink, batch)
            assert (batch.token.is_pending, stream.progress.is_done(batch.index)) == (
                batch.state.value == "failed",
                batch.state.value == "over",
            )
    assert read_rows(database) == undisturbed(20)


async def test_the_rows_of_handlers_side_by_side_are_there_once(database: str) -> None:
    sink = open_sink(database)

    async def handle(batch: Batch[int]) -> None:
        async with sink.transaction(batch) as connection:
            for line in range(2):
                await connection.execute(f"INSERT INTO pages VALUES ({batch.index}, {line})")
            batch.complete()

    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        await run_batches(stream, range(30), handle, concurrency=4)
    assert read_rows(database)[0] == undisturbed(30)[0]
    assert [slot for slot, _, _ in markers(database)] in (
        [0, 1],
        [0, 1, 2],
        [*range(4)],
        [*range(5)],
    )


async def test_the_table_of_markers_does_not_grow_with_the_batches(database: str) -> None:
    sink = open_sink(database)
    async with begin() as run, run.open_stream("s", sink=sink, retry=AGAIN) as stream:
        async for batch in stream.batches(range(50)):
            await write(sink, batch)
    (fence, (slot, index, record)) = markers(database)
    assert (fence, slot, index) == ((0, None, None), 1, 49)
    assert decode_record(bytes(record)).cursor == 49


async def test_a_batch_costs_one_statement_more(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BEGIN and COMMIT are those of the transaction itself."""
    executed: list[str] = []
    call = Session._call

    class Counting:
        def __init__(self, raw: Any) -> None:
            self.raw = raw

        def __getattr__(self, name: str) -> Any:
            return getattr(self.raw, name)

        def execute(self, statement: Any, *values: Any) -> Any:
            text = statement.decode() if isinstance(statement, bytes) else statement
            executed.append(" ".join(text.split()[:3]))
            return self.raw.execute(statement, *values)

    def counting(self: Session, func: Callable[..., Any], *args: object) -> Any:
        return call(self, lambda raw, *rest: func(Counting(raw), *rest), *args)

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        monkeypatch.setattr(Session, "_call", counting)
        async with sink.transaction(batch) as connection:
            await insert(connection)
            batch.complete()
        monkeypatch.setattr(Session, "_call", call)

    await run_one(database, body)
    first = "BEGIN IMMEDIATE" if not is_postgres(database) else "BEGIN"
    assert executed == [first, "INSERT INTO pages", "INSERT INTO trio_ckpt_markers", "COMMIT"]


@pytest.mark.parametrize("settle", ["fail", "skip", "raise"])
async def test_a_batch_that_is_not_completed_leaves_no_rows(database: str, settle: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            await insert(connection)
            if settle == "raise":
                raise BodyError
            getattr(batch, settle)("no use")

    retry = RetryTable((RetryRule((Exception,), attempts=1, then=Then.SKIP),))
    if settle == "raise":
        with pytest.raises(BodyError):
            await run_one(database, body)
    else:
        await run_one(database, body, retry=retry)
    assert read_rows(database) == EMPTY


async def test_a_withdrawn_batch_leaves_no_rows(database: str) -> None:
    sink = open_sink(database)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        async for batch in stream.batches():
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.withdraw()
        assert stream.progress.last_index == -1
    assert read_rows(database) == EMPTY


async def test_a_block_that_ends_unsettled_is_an_error(database: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            await insert(connection)

    with pytest.raises(TokenNeverSettledError, match=r"call batch\.complete\(\) inside the block"):
        await run_one(database, body)
    assert read_rows(database) == EMPTY


async def test_a_batch_that_is_confirmed_inside_is_refused(database: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            await insert(connection)
            batch.complete()
            await batch.confirm()

    store = MemoryStore()
    with pytest.raises(BatchFailedError, match="was confirmed inside its transaction"):
        await run_one(database, body, store)
    assert read_rows(database) == EMPTY
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        assert stream.remaining(total=1) == [0]


async def test_an_error_after_complete_runs_the_batch_again(database: str) -> None:
    """Also where the program catches it: the rows are undone, so the batch is not done."""
    attempts, failed = list[int](), list[bool]()

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        attempts.append(batch.attempt)
        try:
            async with sink.transaction(batch) as connection:
                batch.complete(records=1)
                await insert(connection)
                if batch.attempt == 1:
                    await connection.execute("INSERT INTO nowhere VALUES (0)")
        except Exception as error:
            failed.append(batch.fail(error))

    await run_one(database, body, retry=AGAIN)
    assert (attempts, failed) == ([1, 2], [True])
    assert read_rows(database)[0] == [(0, 0)]


async def test_a_cancellation_after_complete_confirms_nothing(database: str) -> None:
    store, sink = MemoryStore(), open_sink(database)
    with trio.CancelScope() as scope:
        async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    batch.complete()
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert read_rows(database) == EMPTY
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        assert stream.remaining(total=1) == [0]


async def test_a_transaction_that_the_body_ends_is_refused(database: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            await insert(connection)
            await connection.execute("ROLLBACK")
            batch.complete()

    with pytest.raises(SinkError, match="was ended inside its block: leave COMMIT and ROLLBACK"):
        await run_one(database, body)
    assert [batch for _, batch, _ in markers(database)] == [None]


async def test_a_batch_has_one_transaction(database: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            batch.complete()
        with pytest.raises(RuntimeError, match="the transaction of this connection is over"):
            await insert(connection)
        with pytest.raises(RuntimeError, match="is over: a batch has one transaction"):
            async with sink.transaction(batch):
                raise AssertionError

    await run_one(database, body)
    assert read_rows(database) == EMPTY


async def test_a_stream_without_the_sink_is_refused(database: str) -> None:
    sink = open_sink(database)

    async def work() -> None:
        async with (
            begin() as run,
            run.open_stream("s") as stream,
            stream.open_batch() as batch,
            sink.transaction(batch),
        ):
            raise AssertionError

    with pytest.raises(SinkError, match=r"write run\.open_stream\(\.\.\., sink=sink\)"):
        await work()


async def test_a_statement_without_await_is_an_error(database: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            connection.execute("INSERT INTO pages VALUES (0, 0)")  # type: ignore[unused-coroutine]
            batch.complete()

    with pytest.raises(NeverAwaitedError, match=r"execute\(\) was called without await"):
        await run_one(database, body)
    assert read_rows(database) == EMPTY


async def test_a_statement_that_is_cancelled_leaves_no_rows(postgres: str) -> None:
    """It does not keep the task that is cancelled, either."""
    sink = open_sink(postgres)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        with trio.fail_after(HANG_S), trio.move_on_after(0.2):
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    await connection.execute("SELECT pg_sleep(3600)")
        async for batch in stream.batches(range(1)):
            assert read_rows(postgres) == EMPTY
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.complete()
    assert read_rows(postgres) == ([(0, 0)], 0)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_commit_that_fails_in_any_way_is_asked_about(
    database: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, committed = list[int](), Session.commit

    async def commit(self: Session) -> None:
        monkeypatch.undo()
        if moment == "after":
            await committed(self)
        raise MemoryError

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        attempts.append(batch.attempt)
        if batch.attempt == 1:
            monkeypatch.setattr(Session, "commit", commit)
        try:
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.complete()
        except MemoryError as error:
            batch.fail(error)

    await run_one(database, body, retry=AGAIN)
    assert attempts == ([1] if moment == "after" else [1, 2])
    assert read_rows(database)[0] == [(0, 0)]


async def test_a_marker_that_waits_in_vain_fails_as_the_database_says(postgres: str) -> None:
    """The error names the table of the markers, and does not say that it is lost."""
    with contextlib.closing(connect(postgres)) as other:

        async def body(sink: Sink, batch: Batch[Any]) -> None:
            async with sink.transaction(batch) as connection:
                await insert(connection)
                await connection.execute("SET LOCAL lock_timeout = '100ms'")
                other.execute("SELECT * FROM trio_ckpt_markers FOR UPDATE")
                batch.complete()

        with pytest.raises(Exception, match="due to lock timeout") as failed:
            await run_one(postgres, body)
    assert not isinstance(failed.value, SinkError)
    assert read_rows(postgres) == EMPTY


async def test_a_commit_of_sqlite_survives_power_loss(sqlite: str) -> None:
    """Without EXTRA the name of the journal may come back, which undoes the transaction."""

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            assert await connection.execute("PRAGMA synchronous") == [(3,)]
            batch.complete()

    await run_one(sqlite, body)


DEFERRED = "CREATE TABLE words (word INTEGER REFERENCES known DEFERRABLE INITIALLY DEFERRED)"


async def test_a_commit_that_the_database_refuses_is_retried(database: str) -> None:
    connection = connect(database)
    connection.execute("CREATE TABLE known (word INTEGER PRIMARY KEY)")
    connection.execute(DEFERRED)
    connection.commit()
    connection.close()
    attempts, reasons = list[int](), list[str]()

    async def body(sink: Sink, batch: Batch[Any]) -> None:
        attempts.append(batch.attempt)
        try:
            async with sink.transaction(batch) as connection:
                await insert(connection)
                await connection.execute(f"INSERT INTO words VALUES ({batch.attempt})")
                if batch.attempt == 2:
                    await connection.execute("INSERT INTO known VALUES (2)")
                batch.complete()
        except Exception as error:
            reasons.append(str(error).lower())
            batch.fail(error)

    sink = open_sink(database)
    if not is_postgres(database):
        sink._driver.connect = enforcing(sink._driver.connect)  # type: ignore[method-assign]
    async with begin() as run, run.open_stream("s", sink=sink, retry=AGAIN) as stream:
        async for batch in stream.batches(range(1)):
            await body(sink, batch)
    assert attempts == [1, 2]
    assert len(reasons) == 1
    assert "foreign key constraint" in reasons[0]
    assert read_rows(database) == ([(0, 0)], 0)


def enforcing(connect_to: Callable[[], Any]) -> Callable[[], Any]:
    """SQLite compares foreign keys where a connection asks for it."""

    def connect() -> Any:
        raw = connect_to()
        raw.execute("PRAGMA foreign_keys = ON")
        return raw

    return connect


async def committed_without_record(database: str, store: MemoryStore, **result: Any) -> None:
    """End a run between the COMMIT of a batch and its checkpoint."""
    sink = open_sink(database)
    faulty = FaultyStore(store, {3: Fail()})
    async with begin(faulty) as run, run.open_stream("s", sink=sink) as stream:
        async for batch in stream.batches(["a", "b"]):
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.spend(dollars=2)
                batch.complete(**result)


async def test_the_next_start_confirms_a_batch_by_its_rows(database: str) -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError):
        await committed_without_record(
            database, store, records=7, totals={"words": 5}, cursor="next", metadata={"etag": "x"}
        )
    assert read_rows(database)[0] == [(0, 0)]
    sink, store = open_sink(database), store.after_crash()
    async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
        assert stream.remaining(total=2) == [1]
        assert (stream.progress.records, stream.cursor) == (7, "next")
        now = stream.statistics()
        assert (now.totals, now.spent) == ({"words": 5}, {"dollars": 2})
        async for batch in stream.batches(["a", "b"]):
            assert batch.item == "b"
            batch.complete()
    async with begin(store.after_crash()) as run, run.open_stream("s", sink=sink) as stream:
        assert stream.remaining(total=2) == []
    assert read_rows(database)[0] == [(0, 0)]


async def test_a_batch_that_is_confirmed_by_its_rows_has_cost(database: str) -> None:
    store, sink, begun = MemoryStore(), open_sink(database), list[int]()
    with pytest.raises(RunStoppedError):
        await committed_without_record(database, store)

    async def work() -> None:
        limits = Limits(spent={"dollars": 2})
        async with (
            begin(store.after_crash(), limits=limits) as run,
            run.open_stream("s", sink=sink) as stream,
        ):
            async for batch in stream.batches(["a", "b"]):
                begun.append(batch.index)
                batch.complete()

    with pytest.raises(RunStoppedError, match="dollars"):
        await work()
    assert begun == []


async def test_a_batch_that_is_confirmed_by_its_rows_has_spent_its_notes(database: str) -> None:
    store, sink, begun = MemoryStore(), open_sink(database), list[int]()

    async def work(store: Store) -> None:
        limits = Limits(spent={"dollars": 2})
        async with begin(store, limits=limits) as run, run.open_stream("s", sink=sink) as stream:
            async for batch in stream.batches(["a", "b"]):
                begun.append(batch.index)
                await batch.note("job", "j-1", dollars=2)
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    batch.complete()

    with pytest.raises(RunStoppedError, match="the rows of"):
        await work(FaultyStore(store, {4: Fail()}))
    with pytest.raises(RunStoppedError, match="2 of 2 dollars are spent"):
        await work(store.after_crash())
    assert begun == [0]


async def test_results_of_batches_that_are_waited_for_are_those_given(database: str) -> None:
    sink, results = open_sink(database), list[CheckpointResult]()

    async def body(_: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch):
            batch.complete(records=4)
        results.append(await batch.token.wait())

    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        async for batch in stream.batches(range(1)):
            await body(sink, batch)
    assert [result.records for result in results] == [4]


@pytest.mark.parametrize("kind", ["state", "frontier"])
async def test_what_a_stream_goes_on_from_comes_with_the_rows(sqlite: str, kind: str) -> None:
    """A marker has the state, or the items that were found, of its batch."""
    store, seen = MemoryStore(), list[Any]()

    async def work(store: Store) -> None:
        sink = open_sink(sqlite)
        state: Any = {"seen": 0} if kind == "state" else Frontier(["a"])

        async def handle(batch: Batch[Any]) -> None:
            async with sink.transaction(batch):
                seen.append(batch.item if kind == "frontier" else stream.state["seen"])
                if kind == "state":
                    stream.state["seen"] += 1
                elif batch.item == "a":
                    batch.add(["b", "c"])
                batch.complete()

        async with begin(store) as run, run.open_stream("s", sink=sink, state=state) as stream:
            await run_batches(stream, range(3) if kind == "state" else None, handle)

    with pytest.raises(RunStoppedError):
        await work(FaultyStore(store, {4: Fail()}))
    await work(store.after_crash())
    assert seen == ([0, 1, 2] if kind == "state" else ["a", "b", "c"])
