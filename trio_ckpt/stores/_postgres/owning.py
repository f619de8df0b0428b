"""Who owns a run: one row, one statement to take it, one to give it back.

Theory of operation.  The *owner number* is the fence: every change of a run compares it, and only
`take` raises it, so what an older owner sends late changes nothing.  The *lease* only says when
another process may take the run.  It is written and compared by the clock of the server alone, so
the clocks of machines need not agree; the owner counts the time since it asked on its own clock.

An owner that was killed need not be waited for as long.  Its session has an advisory lock, its
*mark*, which the statement that takes the run sets, and which ends with the session.  Who finds no
mark, and after `grace_of` the lease neither a mark nor a renewal, takes the run before the lease
ends.  An owner that lives renews within that time, also if it has no mark.  Of a process that is
known to be gone (`.process`) no renewal is waited for.  The mark is only a hint: an owner that
lives and is cut off may lose its run before its lease ends, and the fence decides, as ever.

A lock whose answer is lost is sent again: a `nonce` in the row says that it was this very one.
What changes a run compares that nonce, which stands for the owner number and for more: where the
name of the database leads to another one, or its tables were made again, numbers of rows and owners
begin at 1 and could be equal, and the nonce is not.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from datetime import UTC, datetime

import attrs

from ..._journal.store import Owner, RunKey
from ..._util.errors import RunLockedError
from .._local.fence import compare_owner, refuse_unlocked
from .connection import MARK_TAKEN, UNMARK, PostgresConnection
from .process import is_gone, this_host

_TAKE = (
    "INSERT INTO {s}.runs AS r (run_id, owner, nonce, host, pid, since, expires_at) "
    "VALUES (%(run_id)s, 1, %(nonce)s, %(host)s, %(pid)s, clock_timestamp(), "
    "clock_timestamp() + %(lease_s)s * interval '1 second') "
    # A pruned run begins with its next generation: a run exists from its first lock on.
    "ON CONFLICT (run_id) DO UPDATE SET "
    "owner = CASE WHEN r.nonce = excluded.nonce THEN r.owner ELSE r.owner + 1 END, "
    "generation = greatest(r.generation, r.first), "
    "records = CASE WHEN r.first > r.generation THEN 0 ELSE r.records END, "
    "streams = CASE WHEN r.first > r.generation THEN 0 ELSE r.streams END, "
    "summary = CASE WHEN r.first > r.generation THEN NULL ELSE r.summary END, "
    "updated_at = CASE WHEN r.first > r.generation THEN NULL ELSE r.updated_at END, "
    "nonce = excluded.nonce, host = excluded.host, pid = excluded.pid, since = excluded.since, "
    "expires_at = excluded.expires_at "
    "WHERE r.expires_at IS NULL OR r.expires_at < clock_timestamp() OR r.nonce = excluded.nonce "
    "OR (r.owner = %(dead_owner)s AND r.expires_at = %(dead_until)s) "
    "RETURNING id, owner, generation, first, position, folded, numbers, "
    "EXISTS (SELECT FROM {s}.parts p WHERE p.run = r.id), nonce, " + MARK_TAKEN
)
# Compares the lock, renews its lease, and lets no other take the run until the statement ends.
OWNED = (
    "UPDATE {s}.runs SET expires_at = clock_timestamp() + %(lease_s)s * interval '1 second' "
    "WHERE id = %(run)s AND nonce = %(nonce)s RETURNING id"
)
_READ_LEASE = (
    "SELECT owner, expires_at, host, pid, "
    "extract(epoch FROM expires_at - clock_timestamp())::float8 FROM {s}.runs "
    "WHERE run_id = %(run_id)s"
)
_READ_OWNER = (
    "SELECT split_part(host, ' ', 1), pid, since, "
    "extract(epoch FROM expires_at - clock_timestamp())::float8 FROM {s}.runs "
    "WHERE run_id = %(run_id)s AND expires_at > clock_timestamp()"
)
# The heads are written down where the position is still the one that they are true for.
_GIVE_BACK = (
    "WITH fence AS (UPDATE {s}.runs SET expires_at = NULL, nonce = NULL, host = NULL, pid = NULL, "
    "since = NULL, folded = CASE WHEN position = %(position)s THEN position ELSE folded END "
    "WHERE id = %(run)s AND nonce = %(nonce)s RETURNING id, position), "
    "heads AS (UPDATE {s}.streams t SET sequence = u.sequence, last = u.last FROM fence, "
    "unnest(%(numbers)s::int[], %(sequences)s::bigint[], %(lasts)s::bigint[]) "
    "AS u(number, sequence, last) "
    "WHERE t.run = fence.id AND t.number = u.number AND fence.position = %(position)s) " + UNMARK
)


RENEWS_WITHIN = 1 / 3  # of the lease: an idle owner saves nothing then, which renews
GRACE_S = 1.0  # for that save to arrive
PAST_LEASE_S = 0.05  # who waits for the end of a lease asks so much later


@attrs.frozen
class Suspect:
    """An owner that shows no sign of life: its number, the end of its lease, and its process.

    Attributes:
        host: Where the process is, as `.process.this_host` says it.
        lease_left_s: How long its lease lasted when it was read, in seconds.
    """

    owner: int
    expires_at: datetime
    host: str
    pid: int
    lease_left_s: float = attrs.field(eq=False)


def grace_of(lease_s: float, suspect: Suspect) -> float:
    """Return how long an owner without a mark is given to show that it lives, in seconds."""
    renewal_s = 0.0 if is_gone(suspect.host, suspect.pid) else lease_s * RENEWS_WITHIN
    return renewal_s + GRACE_S


@attrs.define
class PostgresHead:
    """The newest record of a stream: its number in the run, its sequence, its position."""

    number: int
    sequence: int
    last: int


@attrs.define
class OwnedRun:
    """What the owner of a run remembers of it: it alone changes it while the fence holds.

    Attributes:
        row: The number of its row.
        owner: The owner number.
        generation: The newest generation.
        first: The oldest generation that was not pruned.
        position: The position of the newest row in the log.
        folded: The position that the heads in the database are true for.
        numbers: How many streams it has had, in all generations.
        may_have_blobs: Whether it had blobs when it was locked, which records may no longer name.
        nonce: What no other lock has, also none of another store behind the same name.
        heads: The heads of the newest generation by key; None: they have to be read.
        dirty: The streams whose heads are newer than those in the database.
        pins: Blobs that were put under this lock, and how many puts no record has followed yet.
    """

    row: int
    owner: int
    generation: int
    first: int
    position: int
    folded: int
    numbers: int
    may_have_blobs: bool
    nonce: int
    heads: dict[str, PostgresHead] | None = None
    dirty: set[str] = attrs.field(factory=set[str])
    pins: Counter[str] = attrs.field(factory=Counter[str])


def values_of(connection: PostgresConnection, owned: OwnedRun) -> dict[str, object]:
    """Return the values that a statement with `OWNED` needs."""
    return {"run": owned.row, "nonce": owned.nonce, "lease_s": connection.address.lease_s}


class OwnedRuns:
    """The runs that one handle owns.  Methods that take a connection block."""

    def __init__(self) -> None:
        self._owned: dict[str, OwnedRun] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def find(self, key: RunKey) -> OwnedRun:
        """Return what is remembered of a run that this handle has locked as this owner.

        Raises:
            StoreConflictError: it has not.
        """
        owned = self._owned.get(key.run_id)
        if owned is None:
            raise refuse_unlocked(key)
        compare_owner(owned.owner, key)
        return owned

    def number_of(self, run_id: str) -> int:
        """Return the owner number under which this handle has a run; 0: it has not."""
        owned = self._owned.get(run_id)
        return 0 if owned is None else owned.owner

    def take(
        self, connection: PostgresConnection, run_id: str, dead: Suspect | None = None
    ) -> OwnedRun:
        """Lock a run, and raise its owner number.

        Args:
            connection: The connection that will show that this owner lives.
            run_id: The run.
            dead: The owner whose lease need not end, if it has not been renewed since.

        Raises:
            RunLockedError: the lease of another owner has not ended.
            psycopg.Error: the database refused.
        """
        values = {
            "run_id": run_id,
            "nonce": secrets.randbits(63),
            "host": this_host(),
            "pid": os.getpid(),
            "lease_s": connection.address.lease_s,
            "dead_owner": None if dead is None else dead.owner,
            "dead_until": None if dead is None else dead.expires_at,
        }
        while True:
            rows = connection.take_marked(_TAKE, values, run_id)
            if rows:
                *fields, _ = rows[0]  # the last one is that of the mark
                owned = self._owned[run_id] = OwnedRun(*fields)
                connection.keep_mark(run_id, owned.owner)
                return owned
            found = connection.repeat(lambda: connection.query(_READ_OWNER, {"run_id": run_id}))
            if found:  # else it was given back in between
                host, pid, since, lease_left_s = found[0]
                raise RunLockedError(
                    run_id,
                    host=host,
                    pid=pid,
                    since=_utc(since).isoformat(timespec="seconds"),
                    lease_left_s=lease_left_s,
                )

    def suspect(self, connection: PostgresConnection, run_id: str) -> Suspect | None:
        """Return the owner of a run, if it shows no sign of life but its lease."""
        if run_id in self._owned:
            return None
        place = {"run_id": run_id}
        rows = connection.repeat(lambda: connection.query(_READ_LEASE, place))
        if not rows or rows[0][1] is None:
            return None
        suspect = Suspect(*rows[0])
        is_silent = connection.repeat(lambda: connection.is_unmarked(run_id, suspect.owner))
        return suspect if is_silent else None

    def give_back(self, connection: PostgresConnection, run_id: str, owner: int) -> None:
        """Release a run, and write its heads down; without effect where another has taken it.

        Raises:
            psycopg.Error: the database refused.
        """
        owned = self._owned[run_id]
        if owned.owner != owner:  # this handle has locked it again, after the lease had ended
            return
        del self._owned[run_id]
        heads = [] if owned.heads is None else [owned.heads[key] for key in owned.dirty]
        values = {
            "run": owned.row,
            "nonce": owned.nonce,
            "position": -1 if owned.heads is None else owned.position,  # -1: no heads are known
            "numbers": [head.number for head in heads],
            "sequences": [head.sequence for head in heads],
            "lasts": [head.last for head in heads],
            **connection.mark_values(run_id, owner),
        }
        connection.repeat(lambda: connection.query(_GIVE_BACK, values))
        connection.forget_mark(run_id, owner)


def read_owner(connection: PostgresConnection, run_id: str) -> Owner | None:
    """Return the owner of a run whose lease has not ended."""
    rows = connection.query(_READ_OWNER, {"run_id": run_id})
    return Owner(rows[0][0], rows[0][1], _utc(rows[0][2]), rows[0][3]) if rows else None


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
