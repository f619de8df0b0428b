"""One connection to the database of a user, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from .._util.threads import WorkerThread, run_blocking
from .._util.uninterrupted import uninterrupted
from ._driver import Driver
from ._marker import READ, MarkedStream, MarkerRow, row_of

T = TypeVar("T")


@uninterrupted
@attrs.define(eq=False)
class Session:
    """A connection that is opened when it is first used, and again after it broke.

    Attributes:
        driver: The kind of the database.
        number: Its number among those that are open at a time, from 1: the slot of its markers.
    """

    driver: Driver
    number: int
    _raw: Any = attrs.field(default=None, init=False)
    _thread: WorkerThread = attrs.field(factory=lambda: WorkerThread("trio_ckpt sink"), init=False)

    async def call(self, func: Callable[..., T], *args: object) -> T:
        """Call a function with the connection of the library, and more arguments, in the thread.

        Cancellation: a statement that is being executed is ended; its transaction is still open.
        """
        try:
            return await self._thread.run(self._call, func, *args)
        except (trio.Cancelled, KeyboardInterrupt):
            raw = self._raw
            if raw is not None:
                with trio.CancelScope(shield=True), suppress(*self.driver.errors):
                    await run_blocking(self.driver.interrupt, raw)
            raise

    def _call(self, func: Callable[..., T], *args: object) -> T:
        if self._raw is None:
            self._raw = self.driver.connect()
        return func(self._raw, *args)

    async def execute(self, statement: str, values: Mapping[str, object]) -> int:
        """Execute a statement of the library; returns how many rows it has changed."""
        return await self.call(self._execute, statement, values)

    def _execute(self, raw: Any, statement: str, values: Mapping[str, object]) -> int:
        return int(raw.execute(self.driver.spell(statement), values).rowcount)

    async def begin(self, *, is_asking: bool = False) -> None:
        """Begin a transaction.

        Args:
            is_asking: Whether its statements have to see all that was committed before them.

        Raises:
            SinkError: the database cannot be used.

        Cancellation: the wait ends at once; a transaction that begins later is undone.
        """
        try:
            statement = self.driver.begin_asking if is_asking else self.driver.begin
            await self.call(self._begin, statement)
        except (trio.Cancelled, KeyboardInterrupt):
            self._thread.run_late(self._end)
            raise
        except self.driver.errors as error:
            await self.discard()
            raise self.driver.sink_error("beginning a transaction", error) from error

    def _begin(self, raw: Any, statement: str) -> None:
        try:
            _execute_bare(raw, statement)
        except self.driver.errors:
            if self.driver.is_usable(raw):
                raise
            self._close()  # the server has ended it since it was used last
            self._call(_execute_bare, statement)

    async def commit(self) -> None:
        """Commit the transaction; after an error its outcome is not known.

        Durability: when this returns it is durable, as the database promises.
        """
        with trio.CancelScope(shield=True):
            await self.call(_execute_bare, "COMMIT")

    async def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return await self.call(self.driver.is_in_transaction)

    async def rollback(self) -> None:
        """Undo the transaction if one is open; a connection that cannot is closed."""
        with trio.CancelScope(shield=True):
            await self._thread.run(self._end)

    def _end(self) -> None:
        try:
            if self._raw is not None and self.driver.is_in_transaction(self._raw):
                _execute_bare(self._raw, "ROLLBACK")
        except self.driver.errors:
            self._close()

    async def discard(self) -> None:
        """Close the connection; it is opened again when it is used."""
        with trio.CancelScope(shield=True):
            await self._thread.run(self._close)

    def _close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(*self.driver.errors):
                raw.close()

    def stop(self) -> None:
        """Close the connection when its calls have ended, without waiting for that."""
        self._thread.stop(self._close)

    async def read_rows(self, stream: MarkedStream) -> list[MarkerRow]:
        """Read the markers of a stream in the transaction that is open."""
        return await self.call(partial(read_rows, self.driver), stream.values())

    async def read_markers(self, stream: MarkedStream) -> list[MarkerRow]:
        """Read the markers of a stream when no other transaction holds its fence.

        What is not seen then will not be committed by an older transaction any more.
        """
        try:
            return await self.call(self._read_markers, stream.values())
        finally:
            await self.rollback()

    def _read_markers(self, raw: Any, values: Mapping[str, object]) -> list[MarkerRow]:
        _execute_bare(raw, self.driver.begin_asking)
        self.driver.lock_fence(raw, values)
        return read_rows(self.driver, raw, values)


def _execute_bare(raw: Any, statement: str) -> None:
    raw.execute(statement)


def read_rows(driver: Driver, raw: Any, values: Mapping[str, object]) -> list[MarkerRow]:
    """Read the markers of a stream; blocks."""
    place = {"run": values["run"], "stream": values["stream"]}
    return [row_of(row) for row in raw.execute(driver.spell(READ), place).fetchall()]
