"""One connection to the database, and what its errors mean.

Theory of operation.  A connection is opened when it is first used, and again after it broke.  An
error of the server says that its statement had no effect.  A connection that breaks says nothing:
the server may have committed and the answer was lost, or it may yet commit.  So every statement of
this store may be sent twice: `PostgresConnection.repeat` sends it again until there is an answer.

Statements are constants with ``{s}`` for the schema of the store's tables, whose name is checked
when the URL is read.  They name it because a pooler may give each transaction another connection,
so that a ``search_path`` would not last.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import attrs
import psycopg
from psycopg import IsolationLevel, conninfo, errors, pq

from ..._util.closing import closed_on_error
from ..._util.errors import (
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from ..._util.forks import unshare
from ..._util.log import get_logger
from ..._util.text import one_line
from .address import PostgresAddress
from .texts import to_text

logger = get_logger(__name__)

T = TypeVar("T")

Row = tuple[Any, ...]  # as psycopg types rows
Values = Mapping[str, object]

NONE: Values = MappingProxyType({})
RETRY_S = 30.0  # for how long a server that does not answer is asked again
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_ENDED = {"57P01", "57P02", "57P03", "57P05"}  # shut down, crashed, starting, idle for too long
_STANDBY = "25006"  # what was the primary may not write any more
UNDONE = {"40001", "40P01"}  # the server undid the statement for the sake of another one
_FATAL = {"FATAL", "PANIC"}  # the session ends with it, maybe after the commit
_DAMAGED = ("XX001", "XX002")
_ADVICE = {
    "25006": "it is read-only, a standby maybe: name the primary, or add "
    "target_session_attrs=read-write to a URL with several hosts",
    "28P01": "the password is wrong: libpq reads it from the URL, PGPASSFILE or a service file",
    "3D000": "create the database, or name another",
    "3F000": "make the store with: trio-ckpt init URL",
    "42501": "this role may not do that: see the permissions in docs/how-to/postgresql.md",
    "42P01": "make the store with: trio-ckpt init URL",
    "53100": "the disk of the server is full: nothing is lost, make room and start again",
    "53300": "the server has no connection left: raise max_connections, or let PgBouncer share "
    "them (?pooler=transaction)",
}
_TEXTS = {  # what a server says before there is a connection comes without a code
    "password authentication failed": "28P01",
    "no password supplied": "28P01",
    "too many clients": "53300",
    "too many connections": "53300",
    "remaining connection slots": "53300",
    "no more connections allowed": "53300",
    "session is read-only": "25006",
    "session is not read-only": "25006",
    "does not exist": "3D000",
}

# What a session must have.  A pooler gives out sessions that others have set, so there the
# server's own settings count.
_SETTINGS = (
    "SELECT set_config('default_transaction_isolation', 'read committed', false), "
    "set_config('synchronous_commit', CASE WHEN %(durability)s = 'process' THEN 'off' "
    "WHEN current_setting('synchronous_commit') = 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, false)"
)


def _key_of(owner: str) -> str:
    """The number of the mark of an owner of a run, as an expression of SQL."""
    return (
        f"hashtextextended('trio_ckpt ' || %(schema)s::text || ' ' || {owner}::text || ' ' || "
        "%(run_id)s::text, 0)"
    )


# A sign of life of one owner of a run: its session has the lock while it lasts.
_KEY = _key_of("%(owner)s")
# Shared: a session of the same owner that has not quite ended keeps no newer one from it.
_MARK = f"SELECT pg_advisory_lock_shared({_KEY})".encode()
# For the columns that the statement which takes a run returns, where ``r`` is its row.
MARK_TAKEN = (
    f"CASE WHEN %(is_marking)s THEN pg_advisory_lock_shared({_key_of('r.owner')}) IS NOT NULL END"
)
# The end of a statement that gives a run back; `mark_values` has its values.
UNMARK = f"SELECT CASE WHEN %(is_marked)s THEN pg_advisory_unlock_shared({_KEY}) END"
_IS_UNMARKED = (
    f"SELECT CASE WHEN pg_try_advisory_lock({_KEY}) THEN pg_advisory_unlock({_KEY}) ELSE false END"
)


@functools.cache
def in_schema(statement: str, schema: str) -> bytes:
    """Return a statement for the tables of a schema, whose name was checked."""
    return statement.replace("{s}", f'"{schema}"').encode()


@attrs.frozen
class Statement:
    """A statement that is prepared once in each session, with the types of its values.

    Attributes:
        name: Its name in the session.
        text: The statement; it returns no rows, or one number.
        types: The numbers of the types of its values.
    """

    name: str
    text: str
    types: tuple[int, ...]


def is_broken(error: psycopg.Error) -> bool:
    """Return whether the connection or the server has gone, so that the outcome is not known."""
    state, said = error.sqlstate, error.diag
    if (said.severity_nonlocalized or said.severity) in _FATAL:  # a pooler says only the latter
        return True
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state in _ENDED or state == _STANDBY or state.startswith("08")


@attrs.define(eq=False, repr=False)
class PostgresConnection:
    """A connection of one thread.  Every method blocks.

    Attributes:
        address: Where the store is.
        durability: What its commits survive, if the server is set up for it.
    """

    address: PostgresAddress
    durability: Literal["full", "process"]
    _marked: dict[str, int] = attrs.field(factory=dict[str, int], init=False)
    _raw: psycopg.Connection[Row] | None = attrs.field(default=None, init=False)
    _prepared: set[str] = attrs.field(factory=set[str], init=False)

    def __attrs_post_init__(self) -> None:
        unshare(self)

    def fileno(self) -> int:
        """The number of its descriptor; negative where it is not open."""
        return -1 if self._raw is None or self._raw.closed else self._raw.fileno()

    def close(self) -> None:
        """Close it; it is opened again when it is used."""
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(psycopg.Error):
                raw.close()

    def query(self, statement: str, values: Values = NONE) -> list[Row]:
        """Execute a statement, and return its rows; texts among the values are made storable.

        Raises:
            psycopg.Error: it failed.
        """
        raw, schema = self._open(), self.address.schema
        given = {
            name: to_text(value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        cursor = raw.execute(in_schema(statement, schema), given, binary=True)
        return cursor.fetchall() if cursor.description else []

    def run(self, statement: Statement, values: Sequence[bytes]) -> int:
        """Execute a statement with packed values; returns how many rows it changed, or its number.

        Raises:
            psycopg.Error: it failed.
        """
        server = self._open().pgconn
        text = in_schema(statement.text, self.address.schema)
        formats = [pq.Format.BINARY] * len(values)
        if self.address.is_pooled:
            result = server.exec_params(text, values, statement.types, formats, pq.Format.BINARY)
            return _number_of(result)
        name = statement.name.encode()
        if statement.name not in self._prepared:
            _number_of(server.prepare(name, text, statement.types))
            self._prepared.add(statement.name)
        return _number_of(server.exec_prepared(name, values, formats, pq.Format.BINARY))

    @contextmanager
    def transaction(self, *, is_snapshot: bool = False) -> Generator[None]:
        """Open a transaction for a block.

        Args:
            is_snapshot: Whether it only reads, and all reads in it see one moment.
        """
        raw = self._open()
        level = IsolationLevel.REPEATABLE_READ if is_snapshot else IsolationLevel.READ_COMMITTED
        raw.isolation_level = level  # whatever the session's default is
        raw.read_only = is_snapshot or None
        with raw.transaction():
            yield

    def repeat(self, action: Callable[[], T], limit_s: float = RETRY_S) -> T:
        """Return what an action returns that may be done twice: again, until there is an answer.

        Raises:
            psycopg.Error: it failed, or there was no answer in time.
        """
        until, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except psycopg.Error as error:
                if is_broken(error):
                    self.close()
                elif error.sqlstate not in UNDONE:
                    raise
                if time.monotonic() >= until:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def change(self, action: Callable[[], T], run_id: str) -> T:
        """Return what an action returns that changes a run: as `repeat`.

        Raises:
            SaveOutcomeUnknownError: it failed, or found another owner, after a connection had
                broken under it: a copy may have landed before.
            StoreConflictError: the action found another owner, and changed nothing.
            psycopg.Error: it failed, and changed nothing.
        """
        is_unknown = False

        def attempt() -> T:
            nonlocal is_unknown
            try:
                return action()
            except psycopg.Error as error:
                is_unknown = is_unknown or is_broken(error)
                raise

        try:
            return self.repeat(attempt)
        except (psycopg.Error, StoreConflictError) as error:
            if not is_unknown:
                raise
            raise SaveOutcomeUnknownError(
                f"{self.address.shown}: the connection broke during a change, and the server did "
                f"not say since whether it was made ({self.reason_of(error)}): start again to find "
                "out",
                run_id=run_id,
            ) from error

    def take_marked(self, statement: str, values: Values, run_id: str) -> list[Row]:
        """Execute a statement with `MARK_TAKEN`, which takes a run; again until it is answered.

        Behind a pooler it sets no mark: a session there belongs to no client.  A mark is a hint, so
        a server that has no room for it takes the run without one, which is logged.

        Raises:
            psycopg.Error: it failed.
        """
        place: dict[str, object] = {"schema": self.address.schema, "is_marking": False}
        unmarked = {**values, **place}
        if self.address.is_pooled:
            return self.repeat(lambda: self.query(statement, unmarked))
        marked = {**unmarked, "is_marking": True}
        try:
            return self.repeat(lambda: self.query(statement, marked))
        except errors.OutOfMemory as error:
            self._log_unmarked(run_id, error)
        return self.repeat(lambda: self.query(statement, unmarked))

    def keep_mark(self, run_id: str, owner: int) -> None:
        """Let later sessions of this connection show, too, that an owner of a run lives."""
        if not self.address.is_pooled:
            self._marked[run_id] = owner

    def mark_values(self, run_id: str, owner: int) -> dict[str, object]:
        """Return the values that a statement with `UNMARK` needs."""
        return self._place_of(run_id, owner) | {"is_marked": self._marked.get(run_id) == owner}

    def forget_mark(self, run_id: str, owner: int) -> None:
        """Let later sessions have no mark of an owner, which a statement has taken back."""
        if self._marked.get(run_id) == owner:
            del self._marked[run_id]

    @contextmanager
    def _only_a_hint(self, run_id: str) -> Generator[None]:
        try:
            yield
        except psycopg.Error as error:
            self._log_unmarked(run_id, error)

    def _log_unmarked(self, run_id: str, error: psycopg.Error) -> None:
        shown, reason = self.address.shown, self.reason_of(error)
        logger.warning("%s: the mark of run %r was not set: %s", shown, run_id, reason)

    def is_unmarked(self, run_id: str, owner: int) -> bool:
        """Return whether no session of another connection shows that an owner of a run lives."""
        if self.address.is_pooled or self._marked.get(run_id) == owner:
            return False
        ((is_free,),) = self.query(_IS_UNMARKED, self._place_of(run_id, owner))
        return bool(is_free)

    def _place_of(self, run_id: str, owner: int) -> dict[str, object]:
        return {"schema": self.address.schema, "run_id": run_id, "owner": owner}

    @contextmanager
    def explain(self, doing: str) -> Generator[None]:
        """Turn errors of the database into `StoreError`, with the store and the reason."""
        try:
            yield
        except psycopg.Error as error:
            raise self.store_error(doing, error) from error
        except UnicodeError as error:
            raise StoreError(f"{self.address.shown}: {doing} failed: {error}") from error

    def store_error(self, doing: str, error: psycopg.Error) -> StoreError:
        """Translate an error of the database into the store's error."""
        text, state = self.reason_of(error), error.sqlstate
        if state is None:
            state = next((code for part, code in _TEXTS.items() if part in text), None)
        code = "" if error.sqlstate is None else f" ({error.sqlstate})"
        advice = _ADVICE.get(state or "")
        message = f"{self.address.shown}: {doing} failed: {text}{code}"
        if state in _DAMAGED:
            return StoreDamagedError(f"{message}; the database is damaged, restore it from a copy")
        return StoreError(f"{message}; {advice}" if advice else message)

    def reason_of(self, error: Exception) -> str:
        """Return what an error says, in one line, without the password."""
        text = str(error)
        password = conninfo.conninfo_to_dict(self.address.conninfo).get("password")
        return one_line((text.replace(str(password), "***") if password else text).strip())

    def _open(self) -> psycopg.Connection[Row]:
        if self._raw is not None and not self._raw.closed:
            return self._raw
        self._prepared.clear()
        is_pooled = self.address.is_pooled
        raw: psycopg.Connection[Row] = psycopg.connect(
            self.address.conninfo, autocommit=True, prepare_threshold=None if is_pooled else 5
        )
        with closed_on_error(raw):
            if not is_pooled:
                raw.execute(_SETTINGS, {"durability": self.durability})
                for run_id, owner in self._marked.items():
                    with self._only_a_hint(run_id):
                        raw.execute(_MARK, self._place_of(to_text(run_id), owner))
        self._raw = raw
        return raw


def _number_of(result: pq.abc.PGresult) -> int:
    """Return the number in a result, or how many rows were changed.

    Raises:
        psycopg.Error: the statement failed.
    """
    if result.status == pq.ExecStatus.COMMAND_OK:
        return result.command_tuples or 0
    if result.status == pq.ExecStatus.TUPLES_OK:
        value = result.get_value(0, 0)
        return int.from_bytes(value or b"", "big", signed=True)
    field = result.error_field(pq.DiagnosticField.SQLSTATE)
    text = result.get_error_message() or "the server closed the connection"
    if field is None:
        raise psycopg.OperationalError(text)
    try:
        kind = errors.lookup(field.decode())
    except KeyError:
        kind = psycopg.DatabaseError
    raise kind(text, info=result)
