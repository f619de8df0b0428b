"""Live views of runs: what an owner shows other processes while they look.

Theory of operation.  A view is a row of an unlogged table, which has the owner number of the
process that published it: that of a process that was killed is not shown.  Who reads sets the time
in the row, or makes the row of the present owner, so that its first look counts; the owner
publishes only while that time is recent.  A reader that may not write reads what there is.

A name that no run has is for what processes tell each other about runs, as foremen do: its view has
owner number 0, and is shown until it is removed.  So is the inbox of a run: its name is that of the
run and a line feed, which no id of a run has.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg

from ..._journal.store import MAX_INBOX_BYTES, WATCHED_FOR_S
from .connection import PostgresConnection

_NOTE_READ = (
    "INSERT INTO {s}.live AS l (run_id, owner, payload, read_at) "
    "SELECT run_id, owner, '', clock_timestamp() FROM {s}.runs "
    "WHERE run_id = %(run_id)s AND expires_at > clock_timestamp() "
    "ON CONFLICT (run_id) DO UPDATE SET read_at = excluded.read_at, owner = excluded.owner, "
    "payload = CASE WHEN l.owner = excluded.owner THEN l.payload ELSE excluded.payload END "
    "WHERE l.owner <= excluded.owner"
)
_READ = (
    "SELECT payload FROM {s}.live l LEFT JOIN {s}.runs r USING (run_id) WHERE run_id = %(run_id)s "
    "AND CASE WHEN r.id IS NULL THEN l.owner = 0 "
    "ELSE l.owner = r.owner AND r.expires_at > clock_timestamp() END"
)
_WRITE = (
    "INSERT INTO {s}.live (run_id, owner, payload) VALUES (%(run_id)s, %(owner)s, %(payload)s) "
    "ON CONFLICT (run_id) DO UPDATE SET owner = excluded.owner, payload = excluded.payload"
)
_DROP = "DELETE FROM {s}.live WHERE run_id = %(run_id)s"
_READ_INBOX = (
    f"SELECT substring(payload FROM 1 FOR {MAX_INBOX_BYTES}) FROM {{s}}.live "
    "WHERE run_id = %(run_id)s"
)
_READ_SIGN = (
    "SELECT coalesce(read_at > clock_timestamp() - %(watched_s)s * interval '1 second', false) "
    "FROM {s}.live WHERE run_id = %(run_id)s AND owner = %(owner)s"
)


def write_live(connection: PostgresConnection, run_id: str, owner: int, payload: bytes) -> None:
    """See `Store.publish`; empty bytes remove the view."""
    values = {"run_id": run_id, "owner": owner, "payload": payload}
    connection.query(_WRITE if payload else _DROP, values)


def read_live(connection: PostgresConnection, run_id: str) -> bytes:
    """See `Store.read_live`."""
    values = {"run_id": run_id}
    try:
        rows = connection.query(_READ, values)
    except psycopg.errors.FeatureNotSupported:
        return b""  # a standby, which has no unlogged tables
    with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        connection.query(_NOTE_READ, values)
    return bytes(rows[0][0]) if rows else b""


def is_watched(connection: PostgresConnection, run_id: str, owner: int) -> bool:
    """See `Store.is_watched`."""
    values = {"run_id": run_id, "owner": owner, "watched_s": WATCHED_FOR_S}
    rows = connection.query(_READ_SIGN, values)
    return bool(rows and rows[0][0])


def write_inbox(connection: PostgresConnection, run_id: str, payload: bytes) -> None:
    """See `Store.write_inbox`."""
    write_live(connection, _inbox_name(run_id), 0, payload)


def read_inbox(connection: PostgresConnection, run_id: str) -> bytes:
    """See `Store.read_inbox`."""
    try:
        rows = connection.query(_READ_INBOX, {"run_id": _inbox_name(run_id)})
    except psycopg.errors.FeatureNotSupported:
        return b""  # a standby, which has no unlogged tables
    return bytes(rows[0][0]) if rows else b""


def _inbox_name(run_id: str) -> str:
    return f"{run_id}\n"
