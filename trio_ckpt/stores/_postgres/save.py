"""`Store.save` of the PostgreSQL store: one statement a group.

Theory of operation.  The statement compares the fence, moves the position, renews the lease and
appends the group, all or nothing.  The fence is a row of ``runs``: the nonce of the lock,
generation and position must be those that this owner knows.  READ COMMITTED compares them again
after it has waited for another process's change of that row, so a takeover that comes first wins.
No lock is held between two statements, so an owner that is paused keeps no other process waiting.

That the position is compared and moved makes it safe to send a save again when the connection
breaks and its outcome is not known: it lands once at most, whichever copy does.  A copy that finds
the position moved looks whether it was moved by this very save.  If the server does not answer in
time, the position is moved past the save, so that no copy can land any more, and only then it is
said that nothing was saved.

One owner writes a run, so it knows the heads of all streams, and they are written down only every
`FOLD_EVERY` records, with folds, and when the run is given back; who reads adds the log behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import attrs
import psycopg

from ..._journal.store import Checkpoint, Fold, RunKey
from ..._util.errors import SaveOutcomeUnknownError, StoreConflictError, StoreError
from ..._util.log import get_logger
from .._local.blobs import names_of, need_digest
from .._local.fence import refuse_generation, save_each
from . import binary
from .binary import BYTEA, BYTEAS, FLOAT8, INT4, INT4S, INT8, INT8S, TEXTS
from .connection import RETRY_S, UNDONE, PostgresConnection, Statement, is_broken
from .owning import OwnedRun, PostgresHead
from .texts import from_text, to_text

logger = get_logger(__name__)

FOLD_EVERY = 1_000  # records behind the heads that the database has: what a reader adds

_FENCE = (
    "UPDATE {s}.runs SET position = position + $5, records = records + $5, "
    "updated_at = CASE WHEN $5 > 0 THEN clock_timestamp() ELSE updated_at END, "
    "expires_at = clock_timestamp() + $6 * interval '1 second' "
    "WHERE id = $1 AND nonce = $2 AND generation = $3 AND position = $4"
)
_FENCED = (INT8, INT8, INT4, INT8, INT8, FLOAT8)  # run, nonce, generation, position, count, lease
_GROUP = (INT4S, INT8S, INT8S, BYTEAS)  # stream, sequence, prev, payload

RENEW = Statement("ckpt_renew", _FENCE, _FENCED)

# The common saves: no new stream, no fold, no blob.  One record, as a single loop saves it, is not
# unnested: the server takes a third less time for it.
APPEND_ONE = Statement(
    "ckpt_append_one",
    f"WITH fence AS ({_FENCE} RETURNING id) "
    "INSERT INTO {s}.log (run, position, stream, sequence, prev, payload) "
    "SELECT fence.id, $4 + 1, $7, $8, $9, $10 FROM fence",
    (*_FENCED, INT4, INT8, INT8, BYTEA),
)
APPEND = Statement(
    "ckpt_append",
    f"WITH fence AS ({_FENCE} RETURNING id) "
    "INSERT INTO {s}.log (run, position, sequence, prev, stream, payload) "
    "SELECT fence.id, $4 + u.place, u.sequence, u.prev, u.stream, u.payload FROM fence, "
    "unnest($7, $8, $9, $10) WITH ORDINALITY AS u(stream, sequence, prev, payload, place)",
    (*_FENCED, *_GROUP),
)

# All that a save can do: $11 payloads that are blobs, $12 the position that the heads are true for
# (0: none are written), $13 and $14 new streams, $15 to $17 heads, $18 to $20 folds, $21 the
# generation, $22 to $25 attached blobs, $26 the summary (empty: as it was).
SAVE = Statement(
    "ckpt_save",
    "WITH fence AS (UPDATE {s}.runs SET position = position + $5, "
    "records = CASE WHEN generation = $21 THEN records ELSE 0 END + $5, "
    "streams = CASE WHEN generation = $21 THEN streams ELSE 0 END + cardinality($13), "
    "generation = $21, numbers = numbers + cardinality($13), folded = greatest(folded, $12), "
    "summary = CASE WHEN cardinality($26) = 0 AND generation = $21 THEN summary ELSE $26[1] END, "
    "updated_at = CASE WHEN $5 > 0 THEN clock_timestamp() "
    "WHEN generation = $21 THEN updated_at END, "
    "expires_at = clock_timestamp() + $6 * interval '1 second' "
    "WHERE id = $1 AND nonce = $2 AND generation = $3 AND position = $4 RETURNING id), "
    "heads AS (SELECT h.number, h.sequence, h.last, f.through, f.fold "
    "FROM unnest($15, $16, $17) AS h(number, sequence, last) "
    "LEFT JOIN unnest($18, $19, $20) AS f(number, through, fold) ON f.number = h.number), "
    "made AS (INSERT INTO {s}.streams "
    "(run, number, generation, key, sequence, last, through, fold) "
    "SELECT fence.id, u.number, $21, u.key, coalesce(h.sequence, 0), coalesce(h.last, 0), "
    "h.through, h.fold FROM fence, unnest($13, $14) AS u(number, key) "
    "LEFT JOIN heads h ON h.number = u.number), "
    "moved AS (UPDATE {s}.streams t SET sequence = h.sequence, last = h.last, "
    "through = coalesce(h.through, t.through), fold = coalesce(h.fold, t.fold) "
    "FROM fence, heads h WHERE t.run = fence.id AND t.number = h.number), "
    "appended AS (INSERT INTO {s}.log (run, position, sequence, prev, stream, payload, blob) "
    "SELECT fence.id, $4 + u.place, u.sequence, u.prev, u.stream, u.payload, u.blob FROM fence, "
    "unnest($7, $8, $9, $10, $11) "
    "WITH ORDINALITY AS u(stream, sequence, prev, payload, blob, place)), "
    "named AS (INSERT INTO {s}.attached (run, stream, sequence, place, digest) "
    "SELECT fence.id, u.stream, u.sequence, u.place, u.digest FROM fence, "
    "unnest($22, $23, $24, $25) AS u(stream, sequence, place, digest)) "
    "SELECT count(*) FROM fence",
    (
        *(*_FENCED, *_GROUP, TEXTS, INT8, INT4S, TEXTS, INT4S, INT8S, INT8S, INT4S, INT8S, BYTEAS),
        *(INT4, INT4S, INT8S, INT4S, TEXTS, BYTEAS),
    ),
)

_READ_HEADS = (
    "SELECT number, key, sequence, last FROM {s}.streams "
    "WHERE run = %(run)s AND generation = %(generation)s"
)
_READ_BEHIND = (
    "SELECT stream, sequence, position FROM {s}.log WHERE run = %(run)s AND position > %(folded)s "
    "ORDER BY position"
)
_FIND_BLOBS = "SELECT digest FROM {s}.blobs WHERE run = %(run)s AND digest = ANY(%(digests)s)"
_READ_OUTCOME = (
    "SELECT owner, generation, position, EXISTS (SELECT FROM {s}.log l WHERE l.run = r.id AND "
    "l.position = %(last)s AND l.sequence = %(sequence)s AND l.stream = %(stream)s) "
    "FROM {s}.runs r WHERE id = %(run)s AND nonce = %(nonce)s"
)
_MOVE_PAST = (
    "UPDATE {s}.runs SET position = position + 1 "
    "WHERE id = %(run)s AND nonce = %(nonce)s AND position = %(position)s "
    "AND generation = %(generation)s RETURNING position"
)


class _Row:
    """One record of a group that is saved."""

    __slots__ = ("blob", "blobs", "number", "payload", "prev", "sequence")

    def __init__(self, head: PostgresHead, checkpoint: Checkpoint) -> None:
        self.number, self.prev = head.number, head.last
        self.sequence, self.payload = checkpoint.sequence, checkpoint.payload
        self.blob, self.blobs = checkpoint.blob, tuple(dict.fromkeys(checkpoint.blobs))


@attrs.define
class _Plan:
    """What a save will change, and how it is sent.

    Attributes:
        generation: The generation that is saved to, the newest or the next.
        heads: The heads of that generation before the save.
        rows: The records that are saved.
        moved: The heads after it.
        made: New streams, in the order of their numbers.
        outcomes: The outcome of each checkpoint, if the statement succeeds.
        is_flushed: Whether the heads are written down.
        is_plain: Whether the group is appended, and nothing else changes.
    """

    generation: int
    heads: dict[str, PostgresHead]
    rows: list[_Row] = attrs.field(factory=list[_Row])
    moved: dict[str, PostgresHead] = attrs.field(factory=dict[str, PostgresHead])
    made: dict[str, PostgresHead] = attrs.field(factory=dict[str, PostgresHead])
    outcomes: list[Exception | None] = attrs.field(factory=list[Exception | None])
    is_flushed: bool = False
    is_plain: bool = True

    def head_of(self, stream: str) -> PostgresHead | None:
        """Return the head of a stream after the save."""
        return self.moved.get(stream) or self.heads.get(stream)


def save_group(
    connection: PostgresConnection,
    owned: OwnedRun,
    key: RunKey,
    group: Sequence[Checkpoint],
    folds: Sequence[Fold],
    summary: bytes | None,
) -> list[Exception | None]:
    """See `Store.save`; the caller has compared the owner with that of this handle.

    Raises:
        psycopg.Error: the database refused; nothing was saved.
    """
    if owned.heads is None:
        connection.repeat(partial(_read_heads, connection, owned))
    try:
        plan = _make_plan(connection, owned, key, group)
        statement, values = _encode(connection, owned, plan, folds, summary)
        wanted = len(plan.rows) if statement is APPEND else 1
        send = partial(_run, connection, statement, values, wanted)
        if not _send(connection, owned, key, plan, send):
            raise StoreConflictError(
                f"owner {owned.owner} does not have the run any more, or its rows were changed: "
                "nothing was saved",
                run_id=key.run_id,
            )
    except BaseException:
        owned.heads = None  # read again, where the run is still ours
        raise
    _apply(owned, plan)
    return plan.outcomes


def _run(
    connection: PostgresConnection, statement: Statement, values: list[bytes], wanted: int
) -> bool:
    return connection.run(statement, values) == wanted


def _read_heads(connection: PostgresConnection, owned: OwnedRun) -> None:
    """Read the heads of the newest generation, and add the log behind them."""
    heads, dirty, names = dict[str, PostgresHead](), set[str](), dict[int, str]()
    if owned.numbers:
        place = {"run": owned.row, "generation": owned.generation, "folded": owned.folded}
        for number, stored_key, sequence, last in connection.query(_READ_HEADS, place):
            names[number] = from_text(stored_key)
            heads[names[number]] = PostgresHead(number, sequence, last)
        for number, sequence, position in connection.query(_READ_BEHIND, place):
            if number in names:  # not those of an older generation
                heads[names[number]] = PostgresHead(number, sequence, position)
                dirty.add(names[number])
    owned.heads, owned.dirty = heads, dirty


# -- what changes --------------------------------------------------------------------------------


def _make_plan(
    connection: PostgresConnection, owned: OwnedRun, key: RunKey, group: Sequence[Checkpoint]
) -> _Plan:
    generation, newest = key.generation, owned.generation
    if generation != newest + 1 and (generation != newest or owned.first > newest):
        raise refuse_generation(newest, key)
    is_new = generation != newest
    plan = _Plan(generation, {} if is_new or owned.heads is None else owned.heads)
    plan.is_plain = not is_new
    named = {name for one in group if one.blob or one.blobs for name in names_of(one)}
    there = _find_blobs(connection, owned, named) if named else set[str]()
    plan.outcomes = save_each(group, partial(_plan_one, owned, plan, there))
    return plan


def _find_blobs(connection: PostgresConnection, owned: OwnedRun, digests: set[str]) -> set[str]:
    """Return those of the given blobs that the run has."""
    unsure = digests - owned.pins.keys()
    if not unsure:
        return digests
    values = {"run": owned.row, "digests": list(unsure)}
    rows = connection.repeat(lambda: connection.query(_FIND_BLOBS, values))
    return (digests & owned.pins.keys()) | {digest for (digest,) in rows}


def _plan_one(owned: OwnedRun, plan: _Plan, there: set[str], checkpoint: Checkpoint) -> None:
    head = plan.head_of(checkpoint.stream)
    newest = 0 if head is None else head.sequence
    if checkpoint.sequence != newest + 1:
        raise StoreConflictError(f"the next one is {newest + 1}")
    if checkpoint.blob is not None or checkpoint.blobs:
        for digest in names_of(checkpoint):
            need_digest(digest)
            if digest not in there:
                raise StoreError(f"blob {digest} was not put")
        plan.is_plain = False
    if head is None:
        _need_text(checkpoint.stream)
        head = PostgresHead(owned.numbers + 1 + len(plan.made), 0, 0)
        plan.made[checkpoint.stream] = head
        plan.is_plain = False
    plan.rows.append(_Row(head, checkpoint))
    position = owned.position + len(plan.rows)
    plan.moved[checkpoint.stream] = PostgresHead(head.number, checkpoint.sequence, position)


def _need_text(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise StoreError("its stream has a key with half a character") from error


def _encode(
    connection: PostgresConnection,
    owned: OwnedRun,
    plan: _Plan,
    folds: Sequence[Fold],
    summary: bytes | None,
) -> tuple[Statement, list[bytes]]:
    """Choose the statement, and pack its values."""
    rows, position = plan.rows, owned.position + len(plan.rows)
    values = _fence(connection, owned, owned.generation, owned.position, len(rows))
    kept = {fold.stream: fold for fold in folds if _follows(plan.head_of(fold.stream), fold)}
    plan.is_flushed = bool(kept) or position - owned.folded >= FOLD_EVERY
    if plan.is_plain and not plan.is_flushed and summary is None:
        if not rows:
            return RENEW, values
        if len(rows) == 1:
            return APPEND_ONE, [*values, *_fields(rows[0])]
        return APPEND, [*values, *_columns(rows)]
    is_new = plan.generation != owned.generation
    plan.is_flushed = plan.is_flushed or is_new
    heads = _heads_to_write(owned, plan, kept) if plan.is_flushed else []
    numbers = [_number(plan, stream) for stream in kept]
    named = [(row, place, name) for row in rows for place, name in enumerate(row.blobs)]
    return SAVE, [
        *(*values, *_columns(rows), binary.texts([row.blob for row in rows])),
        binary.int8(position if plan.is_flushed else 0),
        binary.int4s([head.number for head in plan.made.values()]),
        binary.texts([to_text(key) for key in plan.made]),
        binary.int4s([head.number for head in heads]),
        binary.int8s([head.sequence for head in heads]),
        binary.int8s([head.last for head in heads]),
        binary.int4s(numbers),
        binary.int8s([fold.through for fold in kept.values()]),
        binary.byteas([fold.payload for fold in kept.values()]),
        binary.int4(plan.generation),
        binary.int4s([row.number for row, _, _ in named]),
        binary.int8s([row.sequence for row, _, _ in named]),
        binary.int4s([place for _, place, _ in named]),
        binary.texts([name for _, _, name in named]),
        binary.byteas([] if summary is None else [summary]),
    ]


def _fence(
    connection: PostgresConnection, owned: OwnedRun, generation: int, position: int, count: int
) -> list[bytes]:
    return [
        *(binary.int8(owned.row), binary.int8(owned.nonce), binary.int4(generation)),
        *(binary.int8(position), binary.int8(count), binary.float8(connection.address.lease_s)),
    ]


def _follows(head: PostgresHead | None, fold: Fold) -> bool:
    return head is not None and 1 <= fold.through <= head.sequence


def _fields(row: _Row) -> tuple[bytes, bytes, bytes, bytes]:
    numbers = binary.int4(row.number), binary.int8(row.sequence), binary.int8(row.prev)
    return (*numbers, row.payload)


def _columns(rows: Sequence[_Row]) -> tuple[bytes, bytes, bytes, bytes]:
    return (
        binary.int4s([row.number for row in rows]),
        binary.int8s([row.sequence for row in rows]),
        binary.int8s([row.prev for row in rows]),
        binary.byteas([row.payload for row in rows]),
    )


def _heads_to_write(owned: OwnedRun, plan: _Plan, kept: Iterable[str]) -> list[PostgresHead]:
    """Return all heads that the database does not have, and those whose folds are replaced."""
    known = {} if owned.heads is None else owned.heads
    written = [plan.head_of(stream) for stream in dict.fromkeys((*plan.moved, *kept))]
    others = owned.dirty if plan.heads is not known else owned.dirty.difference(plan.moved, kept)
    return [head for head in written if head is not None] + [known[stream] for stream in others]


def _number(plan: _Plan, stream: str) -> int:
    head = plan.head_of(stream)
    assert head is not None  # else its fold was left out
    return head.number


def _apply(owned: OwnedRun, plan: _Plan) -> None:
    """Remember what was saved."""
    heads = plan.heads
    heads.update(plan.moved)
    if plan.generation != owned.generation:
        owned.dirty = set()
    owned.heads, owned.generation = heads, plan.generation
    owned.position += len(plan.rows)
    owned.numbers += len(plan.made)
    if owned.pins:
        named = (
            name for row in plan.rows for name in {*row.blobs, *((row.blob,) if row.blob else ())}
        )
        owned.pins.subtract(name for name in named if owned.pins[name] > 0)
        owned.pins = +owned.pins
    if plan.is_flushed:
        owned.folded, owned.dirty = owned.position, set()
    else:
        owned.dirty.update(plan.moved)


# -- its outcome -----------------------------------------------------------------------------------


def _send(
    connection: PostgresConnection,
    owned: OwnedRun,
    key: RunKey,
    plan: _Plan,
    send: Callable[[], bool],
) -> bool:
    """Send a save until its outcome is known; returns whether it landed, else it was fenced.

    Once a copy has broken, no error of a later one says that nothing was saved: the position does.
    What does not move it, as a renewal, changes nothing when it lands twice.

    Raises:
        SaveOutcomeUnknownError: the server could not be asked in time.
        StoreError: it was not sent in time, or refused since; nothing was saved.
        psycopg.Error: the database refused; nothing was saved.
    """
    until = time.monotonic() + RETRY_S
    try:
        return send()
    except psycopg.Error as error:
        if not is_broken(error):
            raise
        problem = error
    logger.warning(
        "%s: a save is sent again: %s", connection.address.shown, connection.reason_of(problem)
    )
    is_moving = bool(plan.rows) or plan.generation != owned.generation

    def send_again() -> bool:
        why = problem if is_moving and time.monotonic() >= until else None
        if why is None:
            try:
                if send():
                    return True
            except psycopg.Error as error:
                if not is_moving or is_broken(error) or error.sqlstate in UNDONE:
                    raise
                why = error  # this copy was refused; one before it may have landed, or may yet
        return is_moving and _has_landed(connection, owned, key, plan, why)

    connection.close()
    try:
        return connection.repeat(send_again, 2 * RETRY_S if is_moving else RETRY_S)
    except psycopg.Error as error:
        if not is_moving:
            raise
        raise SaveOutcomeUnknownError(
            f"{connection.address.shown}: the connection broke during a save, and the server could "
            f"not be asked since whether it landed ({connection.reason_of(error)}): start the run "
            "again to find out",
            run_id=key.run_id,
        ) from error


def _has_landed(
    connection: PostgresConnection,
    owned: OwnedRun,
    key: RunKey,
    plan: _Plan,
    problem: psycopg.Error | None,
) -> bool:
    """Return whether a save has landed.

    Args:
        connection: The connection.
        owned: What is remembered of the run.
        key: The run.
        plan: The save.
        problem: Why no copy is sent any more; a late one is prevented from landing.

    Raises:
        SaveOutcomeUnknownError: another owner has the run, or it is where this save has not
            brought it.
        StoreError: it has not landed, and no copy can land any more.
    """
    last = plan.rows[-1] if plan.rows else None
    place = {
        "run": owned.row,
        "nonce": owned.nonce,
        "generation": owned.generation,
        "position": owned.position,
        "last": owned.position + len(plan.rows),
        "sequence": 0 if last is None else last.sequence,
        "stream": 0 if last is None else last.number,
    }
    is_passed = problem is not None and bool(connection.query(_MOVE_PAST, place))
    rows = connection.query(_READ_OUTCOME, place)
    if not rows or rows[0][0] != owned.owner:
        raise _taken_over(owned, key)
    _, generation, position, has_last = rows[0]
    if problem is not None and is_passed:
        owned.position += 1
        raise StoreError(
            f"{connection.address.shown}: saving failed, and nothing was saved: "
            f"{connection.reason_of(problem)}"
        ) from problem
    if (generation, position) == (plan.generation, place["last"]) and (has_last or last is None):
        # A read does not wait for a standby; a commit does, for all that is before it.
        proof = _fence(connection, owned, generation, position, 0)
        if not connection.run(RENEW, proof):
            raise _taken_over(owned, key)
        logger.info("%s: the save had landed", connection.address.shown)
        return True
    if (generation, position) == (owned.generation, owned.position):
        return False  # it was given back
    raise SaveOutcomeUnknownError(
        f"{connection.address.shown}: run {key.run_id!r} is at position {position}, where its "
        "owner has not brought it: start the run again",
        run_id=key.run_id,
    )


def _taken_over(owned: OwnedRun, key: RunKey) -> SaveOutcomeUnknownError:
    return SaveOutcomeUnknownError(
        f"owner {owned.owner} does not have the run any more; whether its last save landed is seen "
        "by the next one",
        run_id=key.run_id,
    )
