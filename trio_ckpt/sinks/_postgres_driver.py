"""How PostgreSQL commits rows and markers, by psycopg."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import conninfo, pq

from .._util.closing import closed_on_error
from .._util.errors import SinkError
from ..stores._postgres.address import CONNECTION_DEFAULTS
from ._driver import COMMIT_S, IDLE_S, LOCK_S, Driver, reason_text
from ._marker import TABLE

_TABLE = """
CREATE TABLE IF NOT EXISTS trio_ckpt_markers (
    run text NOT NULL, stream text NOT NULL, slot integer NOT NULL, owner bigint NOT NULL,
    began double precision NOT NULL, sequence bigint NOT NULL, batch bigint, record bytea,
    PRIMARY KEY (run, stream, slot))
"""
# From here to the COMMIT the server ends the session of a process that is stopped for too long, so
# that the next owner need not wait for it.
_MARK = f"""
INSERT INTO trio_ckpt_markers (run, stream, slot, owner, began, sequence, batch, record)
(SELECT run, stream, :slot, owner, began, :sequence, :batch, :record FROM trio_ckpt_markers
WHERE run = :run AND stream = :stream AND slot = 0 AND owner = :owner AND began = :began AND
set_config('idle_in_transaction_session_timeout', '{int(COMMIT_S * 1000)}', true) IS NOT NULL
FOR SHARE)
ON CONFLICT (run, stream, slot) DO UPDATE SET owner = excluded.owner, began = excluded.began,
sequence = excluded.sequence, batch = excluded.batch, record = excluded.record
"""
_LOCK = b"""
SELECT 1 FROM trio_ckpt_markers WHERE run = %(run)s AND stream = %(stream)s AND slot = 0 FOR UPDATE
"""
# A process that is stopped in a transaction has the rows locked that it has changed.
_IDLE = b"""
SELECT set_config('idle_in_transaction_session_timeout', '%d', false)
WHERE current_setting('idle_in_transaction_session_timeout') = '0'
""" % int(IDLE_S * 1000)
_LIMIT = b"SET LOCAL lock_timeout = '%d'" % int(LOCK_S * 1000)
_VALUE = re.compile(r":(\w+)")
_READ_ONLY = "it is read-only, a standby maybe: name the primary, or a role that may write"
_ADVICE = {
    "25006": _READ_ONLY,
    "28P01": "the password is wrong: libpq reads it from the URL, PGPASSFILE or a service file",
    "3D000": "create the database, or name another",
    "42501": "grant this role what it needs; docs/how-to/databases.md has it",
    "42P01": "make the table before the run is opened",
    "53300": "work on fewer batches at a time, each has a connection; or allow more of them",
    "55P03": "another transaction has held what is waited for, for too long",
    "57P03": "wait until the server has started",
}
_TEXTS = {  # what a server says before there is a connection comes without a code
    "password authentication failed": "28P01",
    "no password supplied": "28P01",
    "does not exist": "3D000",
    "starting up": "57P03",
    "too many clients": "53300",
    "too many connections": "53300",
    "remaining connection slots": "53300",
}


class PostgresDriver(Driver):
    """A database of PostgreSQL.

    Attributes:
        conninfo: What libpq is given.
    """

    is_single = False
    begin = "BEGIN"
    begin_asking = "BEGIN ISOLATION LEVEL READ COMMITTED"
    mark = _MARK
    errors = (psycopg.Error,)

    def __init__(self, address: str) -> None:
        try:
            parameters = conninfo.conninfo_to_dict(address)
        except psycopg.Error:  # its text repeats what may be a password
            raise SinkError(
                "the address of the PostgreSQL database is not one that libpq can read; it is not "
                "shown, because it may have a password"
            ) from None
        self._password = parameters.get("password")
        unset = {key: value for key, value in CONNECTION_DEFAULTS.items() if key not in parameters}
        self.conninfo = conninfo.make_conninfo("", **{**parameters, **unset})
        host, database = parameters.get("host", ""), parameters.get("dbname", "")
        port = f":{parameters['port']}" if "port" in parameters else ""
        self.name = f"database postgresql://{host}{port}/{database}"

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        raw = psycopg.connect(self.conninfo, autocommit=True)
        with closed_on_error(raw):
            raw.execute(_IDLE)
        return raw

    def is_usable(self, raw: psycopg.Connection[Any]) -> bool:
        return not raw.closed

    def is_in_transaction(self, raw: psycopg.Connection[Any]) -> bool:
        return raw.info.transaction_status is not pq.TransactionStatus.IDLE

    def interrupt(self, raw: psycopg.Connection[Any]) -> None:
        raw.cancel_safe(timeout=LOCK_S)

    def has_table(self, raw: psycopg.Connection[Any]) -> bool:
        found = raw.execute("SELECT to_regclass('trio_ckpt_markers') IS NOT NULL").fetchone()
        return found is not None and bool(found[0])

    def make_table(self, raw: psycopg.Connection[Any]) -> None:
        raw.execute("SELECT pg_advisory_xact_lock(hashtext('trio_ckpt_markers'))")
        raw.execute(_TABLE)

    def lacks_table(self, error: Exception) -> bool:
        return isinstance(error, psycopg.errors.UndefinedTable) and TABLE in str(error)

    def lock_fence(self, raw: psycopg.Connection[Any], values: Mapping[str, object]) -> None:
        raw.execute(_LIMIT)
        raw.execute(_LOCK, values)

    def spell(self, statement: str) -> bytes:
        return _VALUE.sub(r"%(\1)s", statement).encode()

    def advise(self, error: Exception) -> str:
        state, said = getattr(error, "sqlstate", None), str(error)
        if state is None:
            state = next((code for part, code in _TEXTS.items() if part in said), "")
        return _ADVICE.get(state, "")

    def reason_of(self, error: Exception) -> str:
        said = reason_text(error)
        return said.replace(str(self._password), "***") if self._password else said
