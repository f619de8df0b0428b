"""The connection of a transaction, as the body of a batch holds it."""

# What the library does with a connection is in private fields.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from .._commit.awaits import Calls, awaits_noted
from .._util.arguments import function, several, text
from .._util.errors import SinkError
from .._util.uninterrupted import uninterrupted
from ._driver import Driver
from ._session import Session

T = TypeVar("T")

Row = tuple[Any, ...]
Values = Sequence[Any] | Mapping[str, Any]


@uninterrupted
@awaits_noted
@attrs.define(eq=False, repr=False)
class SinkConnection:
    """A connection to the database, for the block of `Sink.transaction`.

    Statements are those of the database, with its spelling of values: ``?`` and ``:name`` in
    SQLite, ``%s`` and ``%(name)s`` in PostgreSQL.  Errors are those of `sqlite3` and `psycopg`.
    """

    _session: Session
    _is_open: bool = attrs.field(default=True, init=False)
    _calls: Calls | None = attrs.field(default=None, init=False)

    async def execute(self, statement: str, values: Values = ()) -> list[Row]:
        """Execute a statement.

        Args:
            statement: The statement.
            values: Its values.

        Returns:
            The rows that it returns; empty where it returns none.

        Raises:
            Exception: the error of the database's library.
            SinkError: the transaction was ended inside the block.

        Cancellation: the statement is ended, and the transaction undone.
        """
        return await self._run(_fetch, text("statement", statement), values)

    async def executemany(self, statement: str, values: Iterable[Values]) -> None:
        """Execute a statement once for each set of values.

        Args:
            statement: The statement.
            values: The values of each execution.

        Raises:
            Exception: the error of the database's library.
            SinkError: the transaction was ended inside the block.

        Cancellation: the statement is ended, and the transaction undone.
        """
        given = several("values", values, "sets of values")
        await self._run(_execute_many, text("statement", statement), given)

    async def run(self, func: Callable[..., T], *args: object) -> T:
        """Call a function with the connection of the database's library, in its thread.

        It is for what the other methods do not have, such as COPY.  The function must neither
        commit, as `sqlite3.Connection.executescript` does, nor roll back, and must not keep the
        connection.

        Args:
            func: A function of the connection, a `sqlite3.Connection` or a `psycopg.Connection`,
                and of `args`.
            args: Its other arguments.

        Returns:
            What it returns.

        Raises:
            Exception: what it raises.
            SinkError: the transaction was ended inside the block.

        Cancellation: the statement that it executes is ended, and the transaction undone.
        """
        return await self._run(function("func", func), *args)

    async def _run(self, func: Callable[..., T], *args: object) -> T:
        if not self._is_open:
            raise RuntimeError("the transaction of this connection is over: work in its block")
        driver = self._session.driver
        try:
            return await self._session.call(_in_transaction, driver, func, *args)
        except driver.errors as error:
            advice = driver.advise(error)
            error.add_note(f"{driver.name}{f': {advice}' if advice else ''}")
            raise

    def __repr__(self) -> str:
        state = "open" if self._is_open else "over"
        return f"<SinkConnection to {self._session.driver.name}; {state}>"


def end_connection(connection: SinkConnection, where: str) -> None:
    """Let a connection take no more statements, at the end of its block.

    Raises:
        NeverAwaitedError: one of its methods was called without await.
    """
    close_connection(connection)
    calls = connection._calls
    if calls is not None and (problem := calls.problem(where, is_left=True)) is not None:
        raise problem


def close_connection(connection: SinkConnection) -> None:
    """Let a connection take no more statements."""
    connection._is_open = False


def _in_transaction(raw: Any, driver: Driver, func: Callable[..., T], *args: object) -> T:
    """Call a function, unless what it executes would be committed by itself."""
    if not driver.is_in_transaction(raw):
        raise SinkError(
            f"{driver.name}: the transaction was ended inside its block, by a statement or by the "
            "error of one, so nothing more is executed in it; let the error leave the block, and "
            "leave COMMIT and ROLLBACK to its end"
        )
    return func(raw, *args)


def _fetch(raw: Any, statement: str, values: Values) -> list[Row]:
    cursor = raw.execute(statement, values)
    return list(cursor.fetchall()) if cursor.description else []


def _execute_many(raw: Any, statement: str, values: Sequence[Values]) -> None:
    raw.cursor().executemany(statement, values)
