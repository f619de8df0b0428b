"""The tables of a PostgreSQL store, how they are made, and what the server under them is good for.

Theory of operation.  One row of ``runs`` is a run: its fence, its lease, how far its log is.  Every
save changes that row, so no index covers a column that a save changes, and half of each page is
left free: such a change touches no index and its old version is reclaimed at once
(https://www.postgresql.org/docs/current/storage-hot.html).

``log`` is append-only.  Its key is (run, position): the owner gives out positions, so all rows of
a run lie together and a prune is a range.  ``prev`` is the position of the stream's record before.
A stream is a number within its run; ``streams`` has its newest record as of ``runs.folded``, and
what came later is in the log behind that position.

Blobs belong to a run.  A row of ``blobs`` names a whole blob; its bytes are rows of ``parts``,
which are written before it.
"""

from __future__ import annotations

import attrs
import psycopg

from ..._journal.store import Durability, Finding, Severity
from ..._util.errors import StoreError, StoreVersionError
from .address import parse_address
from .connection import PostgresConnection, in_schema

FORMAT_VERSION = 1
OLDEST_SERVER = 130_000  # PostgreSQL 13

TABLES = {
    "format": "CREATE TABLE {s}.format (version int NOT NULL, made_at timestamptz NOT NULL)",
    # `first` is the oldest generation that was not pruned; greater than `generation`: all were.
    # `expires_at` is NULL where no process owns the run; `nonce` is that of its lock.
    # `host` is the name of its machine, a blank, and the process space that `pid` is of.
    "runs": """CREATE TABLE {s}.runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text COLLATE "C" NOT NULL UNIQUE,
    owner bigint NOT NULL, generation int NOT NULL DEFAULT 0, first int NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0, folded bigint NOT NULL DEFAULT 0,
    numbers int NOT NULL DEFAULT 0, streams int NOT NULL DEFAULT 0,
    records bigint NOT NULL DEFAULT 0,
    updated_at timestamptz, summary bytea, expires_at timestamptz, since timestamptz,
    nonce bigint, host text, pid int
) WITH (fillfactor = 50)""",
    "streams": """CREATE TABLE {s}.streams (
    run bigint NOT NULL, number int NOT NULL, generation int NOT NULL,
    key text COLLATE "C" NOT NULL, sequence bigint NOT NULL, last bigint NOT NULL,
    through bigint, fold bytea, PRIMARY KEY (run, number)
) WITH (fillfactor = 70)""",
    "log": """CREATE TABLE {s}.log (
    run bigint NOT NULL, position bigint NOT NULL, sequence bigint NOT NULL, prev bigint NOT NULL,
    stream int NOT NULL, blob text COLLATE "C", payload bytea NOT NULL,
    PRIMARY KEY (run, position)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_freeze_min_age = 0)""",
    "log_blob": "CREATE INDEX log_blob ON {s}.log (run, blob) WHERE blob IS NOT NULL",
    "attached": """CREATE TABLE {s}.attached (
    run bigint NOT NULL, stream int NOT NULL, sequence bigint NOT NULL, place int NOT NULL,
    digest text COLLATE "C" NOT NULL, PRIMARY KEY (run, stream, sequence, place))""",
    "attached_digest": "CREATE INDEX attached_digest ON {s}.attached (run, digest)",
    "blobs": """CREATE TABLE {s}.blobs (
    run bigint NOT NULL, digest text COLLATE "C" NOT NULL, size bigint NOT NULL,
    upload bigint NOT NULL, PRIMARY KEY (run, digest))""",
    "parts": """CREATE TABLE {s}.parts (
    run bigint NOT NULL, upload bigint NOT NULL, place int NOT NULL, content bytea NOT NULL,
    PRIMARY KEY (run, upload, place))""",
    # They are packed already, and read in parts.
    "external": "ALTER TABLE {s}.parts ALTER COLUMN content SET STORAGE EXTERNAL",
    # Not logged: after a crash of the server it is empty, and it costs no flush.
    "live": """CREATE UNLOGGED TABLE {s}.live (
    run_id text COLLATE "C" PRIMARY KEY, owner bigint NOT NULL, payload bytea NOT NULL,
    read_at timestamptz) WITH (fillfactor = 50)""",
}
NAMES = ("format", "runs", "streams", "log", "attached", "blobs", "parts", "live")

_MAKE_SCHEMA = "CREATE SCHEMA {s}"
_NOTE_FORMAT = f"INSERT INTO {{s}}.format VALUES ({FORMAT_VERSION}, clock_timestamp())"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('trio_ckpt ' || %(schema)s::text, 0))"
_FIND_SCHEMA = "SELECT oid FROM pg_namespace WHERE nspname = %(schema)s"
_FIND_TABLES = (
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = "
    "(SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)"
)
_READ_VERSION = "SELECT max(version) FROM {s}.format"
_READ_SERVER = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
    "current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on', "
    "current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), "
    "current_setting('transaction_read_only') = 'on', pg_is_in_recovery(), "
    "(SELECT count(*) FROM pg_stat_replication), current_setting('max_connections')::int"
)


@attrs.frozen
class ServerFacts:
    """What a server says of itself, and of the session that asks.

    Attributes:
        version_number: Its version as a number, 150004.
        version: Its version.
        has_fsync: Whether it flushes its log at a commit.
        has_full_pages: Whether a page that power loss tears can be restored.
        commits: ``synchronous_commit`` of the session.
        standby_names: The standbys that a commit waits for.
        is_read_only: Whether the session may not write.
        is_standby: Whether it follows another server.
        standbys: How many standbys are connected.
        max_connections: How many connections it takes.
    """

    version_number: int
    version: str
    has_fsync: bool
    has_full_pages: bool
    commits: str
    standby_names: str
    is_read_only: bool
    is_standby: bool
    standbys: int
    max_connections: int

    @property
    def durability(self) -> Durability:
        """What an acknowledged commit of the session survives."""
        is_full = self.has_fsync and self.has_full_pages and self.commits != "off"
        return "full" if is_full else "process"


def read_server(connection: PostgresConnection) -> ServerFacts:
    """Read what the server says of itself."""
    (row,) = connection.query(_READ_SERVER)
    return ServerFacts(*row)


def server_findings(facts: ServerFacts) -> list[Finding]:
    """Return what the server is good for, as findings."""
    good, doubt, note = Severity.GOOD, Severity.DOUBT, Severity.NOTE
    found = [Finding("server", f"PostgreSQL {facts.version}", severity=good)]
    if facts.is_standby or facts.is_read_only:
        text = "it is a standby" if facts.is_standby else "the session may not write"
        found.append(Finding("server", text, "runs can be read here, not run", severity=note))
    for is_on, name, loss in (
        (facts.has_fsync, "fsync", "power loss may damage the whole database"),
        (facts.has_full_pages, "full_page_writes", "power loss in the middle of a write damages"),
        (facts.commits != "off", "synchronous_commit", "the newest saves may be lost"),
    ):
        if is_on:
            found.append(Finding(name, "it is on", severity=good))
        else:
            found.append(Finding(name, f"it is off: {loss}", "turn it on", severity=doubt))
    return [*found, _standby_finding(facts)]


def _standby_finding(facts: ServerFacts) -> Finding:
    if facts.standby_names:
        text = f"commits wait for standbys ({facts.standby_names}), as {facts.commits!r} says"
        severity = Severity.GOOD if facts.commits != "local" else Severity.DOUBT
        return Finding("replication", text, severity=severity)
    if facts.standbys:
        text = f"commits wait for none of the {facts.standbys} standbys: a failover may lose some"
        return Finding(
            "replication", text, "set synchronous_standby_names", severity=Severity.DOUBT
        )
    return Finding("replication", "no standby: its disk is the only copy", severity=Severity.NOTE)


def prepare_store(connection: PostgresConnection, *, create: bool) -> ServerFacts:
    """Check that the schema holds a store of this version; make one where there is none.

    Raises:
        StoreError: there is none, or the schema holds other tables, or the server is too old.
        StoreVersionError: another version wrote it.
        psycopg.Error: the database refused.
    """
    facts, shown = read_server(connection), connection.address.shown
    if facts.version_number < OLDEST_SERVER:
        oldest = OLDEST_SERVER // 10_000
        raise StoreError(f"{shown}: PostgreSQL {facts.version} is older than {oldest}")
    version = _read_version(connection)
    if version is None:
        _make_first(connection, create=create, is_read_only=facts.is_read_only)
        version = _read_version(connection)
    if version != FORMAT_VERSION:
        raise StoreVersionError(
            f"{shown}: the store is of format {version}, and this version of trio_ckpt reads "
            f"format {FORMAT_VERSION}; upgrade trio_ckpt"
        )
    return facts


def _read_version(connection: PostgresConnection) -> int | None:
    """Return the format of the store in a schema; None: there is no store."""
    try:
        ((version,),) = connection.query(_READ_VERSION)
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        return None
    return int(version) if version is not None else 0


def _make_first(connection: PostgresConnection, *, create: bool, is_read_only: bool) -> None:
    """Make a store in a schema that has none, if it may be made.

    Raises:
        StoreError: it may not, or the schema holds other tables of its names.
    """
    schema, shown = connection.address.schema, connection.address.shown
    tables = {name for (name,) in connection.query(_FIND_TABLES, {"schema": schema})}
    if tables.issuperset(NAMES):
        return  # another process has made it since
    if not tables.isdisjoint(NAMES):
        raise StoreError(
            f"{shown}: schema {schema} has tables that are not those of a trio_ckpt store; choose "
            "another with ?schema="
        )
    if not create:
        raise StoreError(
            f"{shown}: there is no store in schema {schema} of this database; make one with: "
            f"trio-ckpt init {shown}"
        )
    if is_read_only:
        raise StoreError(f"{shown}: there is no store, and the server is read-only")
    make_store(connection)


def make_store(connection: PostgresConnection) -> None:
    """Make the tables in one transaction; where another process makes them, wait for it."""
    schema = {"schema": connection.address.schema}
    with connection.transaction():
        connection.query(_LOCK, schema)
        if ("format",) in connection.query(_FIND_TABLES, schema):
            return
        if not connection.query(_FIND_SCHEMA, schema):
            connection.query(_MAKE_SCHEMA)
        for statement in TABLES.values():
            connection.query(statement)
        connection.query(_NOTE_FORMAT)


def init_script(url: str) -> str:
    """Return the SQL that makes a store, for an administrator to read and run.

    Raises:
        StoreError: the URL cannot be read.
    """
    schema = parse_address(url).schema
    statements = (_MAKE_SCHEMA, *TABLES.values(), _NOTE_FORMAT)
    lines = [f"{in_schema(statement, schema).decode()};" for statement in statements]
    return "\n".join(["BEGIN;", *lines, "COMMIT;"])
