"""A database of the user, as the program holds it: it opens a transaction for a batch."""

# What the library does with a sink is in private fields.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import trio

from .._commit.batch import AnyBatch, AttemptState, Batch, commit_rows
from .._commit.open_stream import OpenStream
from .._commit.rows import confirmed_inside, only_with_rows
from .._journal.history import ReadPages
from .._util.arguments import function, instance
from .._util.errors import SinkError, TokenNeverSettledError, describe_batch
from .._util.plain import StreamKey
from .._util.uninterrupted import uninterrupted
from ._connection import SinkConnection, close_connection, end_connection
from ._driver import Driver
from ._session import Session
from ._stream_rows import StreamRows, Undo


@uninterrupted
class Sink:
    """A database of yours, which gets the rows of each batch exactly once.

    Open the streams of its batches with ``run.open_stream(..., sink=sink)``.  Its table
    `trio_ckpt_markers` is made if it does not exist.  `SqliteSink` and `PostgresSink` make one.
    """

    def __init__(self, driver: Driver, *, undo: Undo | None) -> None:
        self._driver = driver
        self._undo = undo if undo is None else function("undo", undo)
        self._streams: dict[tuple[str, StreamKey], StreamRows] = {}
        self._sessions: list[Session] = []  # all of them, by their numbers
        self._idle: list[Session] = []
        self._turn = trio.Semaphore(1) if driver.is_single else None
        self._holder: trio.lowlevel.Task | None = None  # of the turn

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._driver.name}>"

    @asynccontextmanager
    async def transaction(self, batch: AnyBatch) -> AsyncGenerator[SinkConnection]:
        """Open a transaction for the rows of a batch: ``async with sink.transaction(batch) as c:``.

        Complete the batch inside the block.  At its end the rows are committed together with the
        record of the batch, and the batch is confirmed.  A batch that was failed, skipped, deferred
        or withdrawn in the block leaves no rows.  Neither does an exception; a batch that was
        completed before it is open again.

        Where this process ends between the commit and the checkpoint, the next one saves the
        record that lies beside the rows, and does not hand the batch out again.

        Args:
            batch: An open batch of a stream that was opened with this sink.

        Yields:
            The connection.

        Raises:
            SinkError: the database cannot be used, or the stream was not opened with this sink.
            SinkFencedError: another process has taken the stream over; nothing was committed, and
                the run ends.
            TokenNeverSettledError: the block ends, and the batch is not settled; there are no rows.
            RuntimeError: SQLite has one transaction at a time, and this task has one open.
            SaveOutcomeUnknownError: the connection broke during the commit, and the database did
                not answer since; the run ends, and the next start finds out.
            Exception: the database refused the commit; the attempt has failed with that error.

        Durability: when the block has ended, rows and checkpoint are durable.
        Cancellation: until the commit the transaction is undone; a commit is waited for.
        """
        instance("batch", batch, Batch, "a batch")
        token = batch.token
        where = describe_batch(token.run_id, token.stream, batch.index)
        rows = self._streams.get((token.run_id, token.stream))
        if rows is None:
            raise SinkError(
                f"{where}: its stream was not opened with this sink; write "
                "run.open_stream(..., sink=sink)",
                run_id=token.run_id,
                stream=token.stream,
                batch_index=batch.index,
            )
        if batch.state is not AttemptState.OPEN:
            raise RuntimeError(f"{where} is {batch.state.value}: a batch has one transaction")
        await rows.wait_reverted()
        async with self._session() as session:
            await session.begin()
            connection = SinkConnection(session)
            try:
                with only_with_rows(batch):
                    yield connection
                    end_connection(connection, where)
                    if _has_rows(batch, where):
                        await commit_rows(batch, partial(rows.commit, session, batch.index))
            finally:
                close_connection(connection)
                await session.rollback()

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Session]:
        """Use a connection that no other task uses.

        Raises:
            RuntimeError: the database has one transaction at a time, and this task has it open.
        """
        task = trio.lowlevel.current_task()
        if self._turn is not None:
            if self._holder is task:
                raise RuntimeError(
                    f"{self._driver.name} has one transaction at a time, and this task has one "
                    "open: leave its block first"
                )
            await self._turn.acquire()
            self._holder = task
        if not self._idle:
            session = Session(self._driver, len(self._sessions) + 1)
            self._sessions.append(session)
            self._idle.append(session)
        session = min(self._idle, key=lambda idle: idle.number)
        self._idle.remove(session)
        try:
            yield session
        finally:
            if session in self._sessions:
                self._idle.append(session)
            else:  # the last stream was closed meanwhile; another session may have the number
                session.stop()
            if self._turn is not None:
                self._holder = None
                self._turn.release()


async def open_rows(sink: Sink, open_stream: OpenStream, pages: ReadPages) -> StreamRows:
    """Take a stream, and bring its rows and records together; see `StreamRows.open`."""
    rows = StreamRows(sink._driver, sink._session, sink._undo, open_stream, pages)
    key = open_stream.run_id, open_stream.stream_log.key
    if sink._streams.setdefault(key, rows) is not rows:
        raise open_stream.error(
            SinkError,
            f"{open_stream.where()} is open with this sink already, in a run of another store",
        )
    await rows.open()
    return rows


def close_rows(sink: Sink, open_stream: OpenStream) -> None:
    """Drop a stream; with the last one the connections are closed."""
    key = open_stream.run_id, open_stream.stream_log.key
    if key in sink._streams and sink._streams[key].open_stream is open_stream:
        del sink._streams[key]
    if not sink._streams:
        for session in sink._sessions:
            session.stop()
        sink._sessions, sink._idle = [], []


def _has_rows(batch: AnyBatch, where: str) -> bool:
    """Whether the rows of a batch are to be committed, at the end of its block.

    Raises:
        TokenNeverSettledError: it is not settled.
        RuntimeError: it was confirmed inside the block.
    """
    if batch.state is AttemptState.OPEN:
        raise TokenNeverSettledError(
            f"{where} was not completed in its transaction, so its rows are undone: call "
            "batch.complete() inside the block"
        )
    if batch.state in (AttemptState.SUBMITTED, AttemptState.OVER):
        raise confirmed_inside(batch)
    return batch.state is AttemptState.COMPLETED
