"""Damages of the database that keep it a good one to SQLite: rows that are changed by SQL."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.damage.samples import Files, Sample, lay_out, read_files

Row = Callable[[sqlite3.Connection, random.Random], None]


def _one(connection: sqlite3.Connection, table: str, rng: random.Random) -> int:
    key = "rowid" if table != "attached" else "sequence"
    found = [n for (n,) in connection.execute(f"SELECT {key} FROM {table}")]
    return int(rng.choice(found))


def _delete(table: str) -> Row:
    def change(connection: sqlite3.Connection, rng: random.Random) -> None:
        key = "rowid" if table != "attached" else "sequence"
        at = _one(connection, table, rng)
        connection.execute(f"DELETE FROM {table} WHERE {key} = ?", (at,))

    return change


def _delete_last(connection: sqlite3.Connection, _rng: random.Random) -> None:
    connection.execute("DELETE FROM log WHERE id = (SELECT max(id) FROM log)")


def _forget_last(connection: sqlite3.Connection, rng: random.Random) -> None:
    """A record less, and everything fits: as of an older copy."""
    stream = _one(connection, "heads", rng)
    row = connection.execute(
        "SELECT heads.sequence, last, prev FROM heads JOIN log ON log.id = last "
        "WHERE heads.stream = ?",
        (stream,),
    ).fetchone()
    if row is not None:
        connection.execute("DELETE FROM log WHERE id = ?", (row[1],))
        connection.execute(
            "UPDATE heads SET sequence = ?, last = ? WHERE stream = ?", (row[0] - 1, row[2], stream)
        )
        connection.execute("DELETE FROM folds WHERE stream = ?", (stream,))


def _add(column: str, table: str) -> Row:
    def change(connection: sqlite3.Connection, rng: random.Random) -> None:
        at = _one(connection, table, rng)
        connection.execute(
            f"UPDATE {table} SET {column} = {column} + ? WHERE rowid = ?",
            (rng.choice([-1, 1, 2, 64]), at),
        )

    return change


def _double(connection: sqlite3.Connection, rng: random.Random) -> None:
    connection.execute(
        "INSERT INTO log (stream, sequence, prev, payload, blob) SELECT stream, sequence, prev, "
        "payload, blob FROM log WHERE id = ?",
        (_one(connection, "log", rng),),
    )


def _swap_payloads(connection: sqlite3.Connection, rng: random.Random) -> None:
    one, two = _one(connection, "log", rng), _one(connection, "log", rng)
    rows = dict(
        connection.execute("SELECT id, payload FROM log WHERE id IN (?, ?)", (one, two)).fetchall()
    )
    for row, other in ((one, two), (two, one)):
        connection.execute("UPDATE log SET payload = ? WHERE id = ?", (rows[other], row))


def _alter(table: str) -> Row:
    def change(connection: sqlite3.Connection, rng: random.Random) -> None:
        at = _one(connection, table, rng)
        (payload,) = connection.execute(
            f"SELECT payload FROM {table} WHERE rowid = ?",
            (at,),
        ).fetchone()
        if payload:
            place = rng.randrange(len(payload))
            altered = bytearray(payload)
            altered[place] ^= 1 << rng.randrange(8)
            connection.execute(
                f"UPDATE {table} SET payload = ? WHERE rowid = ?",
                (bytes(altered), at),
            )

    return change


ROWS: dict[str, Row] = {
    "remove a row of the log": _delete("log"),
    "remove the last row of the log": _delete_last,
    "remove a row of heads": _delete("heads"),
    "remove a row of streams": _delete("streams"),
    "remove a row of runs": _delete("runs"),
    "remove a row of folds": _delete("folds"),
    "remove a row of attached": _delete("attached"),
    "take the last record of a stream away": _forget_last,
    "duplicate a row of the log": _double,
    "swap two payloads": _swap_payloads,
    "alter a payload": _alter("log"),
    "alter a fold": _alter("folds"),
    "another sequence in the log": _add("sequence", "log"),
    "another row before in the log": _add("prev", "log"),
    "another head": _add("sequence", "heads"),
    "another last row": _add("last", "heads"),
    "another end of a fold": _add("through", "folds"),
    "another generation of a stream": _add("generation", "streams"),
    "another generation of a run": _add("generation", "runs"),
    "another first generation of a run": _add("first", "runs"),
    "another owner": _add("owner", "runs"),
}


def plant_row(sample: Sample, kind: str, rng: random.Random, beside: Path) -> Files | None:
    """All files, with a row of the database changed; a copy `beside` is made for it."""
    inside = {name: sample.files[name] for name in sample.files if "/state.db" in name}
    lay_out(beside, inside)
    try:
        with closing(sqlite3.connect(beside / "store" / "state.db")) as connection:
            with connection:
                ROWS[kind](connection, rng)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except (sqlite3.Error, IndexError):
        return None  # it would be the same row twice, or there is none
    others = {name: sample.files[name] for name in sample.files if name not in inside}
    return {**others, **read_files(beside)}
