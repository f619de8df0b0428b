"""What is saved, and what it adds up to.

Everything durable is a checkpoint: a `Record` in the sequence of its stream.  A record
carries only what its batch changed.  `Progress` is what the records of a stream add up
to, and `apply` is the only function that adds one: the same in memory, when a save has
been confirmed, and on load.

Records are `msgspec.Struct` because one definition is then the encoder, the decoder and
the validation of what comes back, compiled.  On the wire their names are one letter.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec

from ._errors import NotEncodableError, StoreDamagedError, describe_batch
from ._ranges import IndexSet
from ._totals import MAX_SHIFT, ExactSum, Number, add_amounts

StreamKey = tuple[str, ...]

# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------

MAX_RUN_ID_CHARS = 200  # fits every file system and column with room for a suffix
MAX_KEY_CHARS = 1_000  # a stream's key is read with every resume
RUN_STREAM: StreamKey = ()  # the run's own stream: sessions, config, overrides


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it is a good one.

    Raises:
        ValueError: it is empty, longer than `MAX_RUN_ID_CHARS`, ``.`` or ``..``, or has a
            path separator or control character in it.
    """
    _check_text("a run id", run_id, MAX_RUN_ID_CHARS)
    if run_id in (".", "..") or "/" in run_id or "\\" in run_id:
        raise ValueError(f"a run id has no path separators and is not '.' or '..': {run_id!r}")
    return run_id


def check_stream_key(parts: StreamKey) -> StreamKey:
    """Return `parts` if they are a good key for a user's stream.

    Raises:
        ValueError: there are none, one is empty, has a control character, or the first
            begins with ``@`` (those are the library's); or they are too long together.
    """
    if not parts:
        raise ValueError("a stream has at least one part; the run's own stream cannot be opened")
    for part in parts:
        _check_text("a part of a stream's key", part, MAX_KEY_CHARS)
    if sum(map(len, parts)) > MAX_KEY_CHARS:
        raise ValueError(f"the parts of a stream's key are over {MAX_KEY_CHARS} characters")
    if parts[0].startswith("@"):
        raise ValueError(f"streams whose first part begins with '@' are the library's: {parts!r}")
    return parts


def _check_text(what: str, text: str, max_chars: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    if not text:
        raise ValueError(f"{what} is empty")
    if len(text) > max_chars:
        raise ValueError(f"{what} has {len(text)} characters, over {max_chars}")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise ValueError(f"{what} has a control character in it: {text!r}")


def encode_key(parts: StreamKey) -> str:
    """A stream's key as stores know it: the JSON array of its parts."""
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def decode_key(text: str) -> StreamKey:
    """The inverse of `encode_key`."""
    return tuple(json.loads(text))


# ---------------------------------------------------------------------------------------
# Results, as users see them
# ---------------------------------------------------------------------------------------


class Output(msgspec.Struct, frozen=True, array_like=True):
    """A file that a batch left behind.

    Attributes:
        path: Relative to the run's output folder, with ``/``.
        size: Bytes.
        mtime_ns: Its modification time when it was confirmed, nanoseconds.
        sha256: Of its content, hexadecimal.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)


@attrs.frozen
class CheckpointResult:
    """What a batch left behind, and when its checkpoint was completed.

    Attributes:
        outputs: The files, with their hashes.
        metadata: Anything JSON-like that the batch wants remembered.
        records: How many records the batch produced.
        completed_at: UTC; stamped when the token is settled, callers leave it out.
        batch_path: Where the batch's own data went, for programs that save by themselves.
        checkpoint_path: Where its checkpoint went, likewise.
        batch_hash: Of the one.
        checkpoint_hash: Of the other.
    """

    outputs: tuple[Output, ...] = ()
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    records: int = 0
    completed_at: datetime | None = None
    batch_path: str | None = None
    checkpoint_path: str | None = None
    batch_hash: str | None = None
    checkpoint_hash: str | None = None


class Status(enum.Enum):
    """Where a run, a group or a stream stands."""

    PENDING = "pending"
    IN_PROGRESS = "in progress"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is remembered.

    Attributes:
        type: The name of its class.
        message: Its text, cut at `MAX_ERROR_CHARS`.
        retryable: Whether a plain resume may try again.
        batch_index: The batch it happened to, if to one.
    """

    type: str
    message: str
    retryable: bool = True
    batch_index: int | None = None


MAX_ERROR_CHARS = 2_000  # enough to see what happened; a traceback belongs into the log


def describe_error(
    error: BaseException | str, *, retryable: bool = True, batch_index: int | None = None
) -> ErrorInfo:
    """Turn an exception, or a reason in words, into what is remembered of it."""
    kind = "str" if isinstance(error, str) else type(error).__qualname__
    message = str(error)[:MAX_ERROR_CHARS]
    if not message.isascii():  # lone surrogates (of a file's name, say) cannot be stored
        message = message.encode(errors="backslashreplace").decode()[:MAX_ERROR_CHARS]
    return ErrorInfo(kind, message, retryable, batch_index)


# ---------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------


class Kind(enum.IntEnum):
    """What a record says."""

    BATCH = 0  # a batch is confirmed
    SKIP = 1  # a batch was given up on purpose
    ATTEMPT = 2  # an attempt at a batch failed; it may run again
    FAIL = 3  # the stream failed
    FINISH = 4  # the stream is complete (with or without a last index)
    SAVE = 5  # state, cursor, spent between batches; a frontier's first items
    REDO = 6  # batches go back to work; amounts are what they had added
    SESSION = 7  # in the run's own stream: a session began
    END = 8  # in the run's own stream: it ended
    RETRY = 9  # skipped batches and a failed stream go back to work


class SinkLines(msgspec.Struct, frozen=True, array_like=True):
    """The lines that a batch appended to one file: where they end is a sum, not a fact."""

    path: str
    size: int
    digest: bytes


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One checkpoint.  Which fields are used depends on `kind`."""

    kind: Kind = msgspec.field(name="k", default=Kind.BATCH)
    at: float = msgspec.field(name="t")  # Unix time, s
    index: int | None = msgspec.field(name="i", default=None)
    item: bytes = msgspec.field(name="d", default=b"")  # digest of the item's key
    attempts: int = msgspec.field(name="a", default=1)
    records: int = msgspec.field(name="n", default=0)
    outputs: tuple[Output, ...] = msgspec.field(name="o", default=())
    lines: tuple[SinkLines, ...] = msgspec.field(name="j", default=())
    totals: dict[str, Number] = msgspec.field(name="p", default_factory=dict)
    spent: dict[str, Number] = msgspec.field(name="s", default_factory=dict)
    cursor: Any = msgspec.field(name="c", default=msgspec.UNSET)
    metadata: dict[str, Any] = msgspec.field(name="m", default_factory=dict)
    state: bytes = msgspec.field(name="x", default=b"")
    last_index: int | None = msgspec.field(name="l", default=None)
    indexes: tuple[int, ...] = msgspec.field(name="r", default=())  # REDO, RETRY
    error: ErrorInfo | None = msgspec.field(name="e", default=None)


MAX_RECORD_BYTES = 256 * 2**20  # what a decoder will look at
DIGEST_BYTES = 16
ITEM_DIGEST_BYTES = 8

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class Seal:
    """Binds a payload to its place: run, generation, stream and sequence.

    A sealed payload is a BLAKE2b digest (RFC 7693) followed by the payload, so that what
    a store returns is known to be what was saved, there.  With a key it is a MAC.
    """

    __slots__ = ("_hasher", "_where")

    def __init__(self, run_id: str, generation: int, stream: StreamKey, key: bytes | None) -> None:
        self._hasher = hashlib.blake2b(digest_size=DIGEST_BYTES, key=key or b"")
        self._hasher.update(f"{generation}\n{run_id}\n{encode_key(stream)}\n".encode())
        self._where = describe_batch(run_id, stream, None)

    def _digest(self, sequence: int, payload: bytes) -> bytes:
        hasher = self._hasher.copy()
        hasher.update(b"%d\n" % sequence)
        hasher.update(payload)
        return hasher.digest()

    def close(self, sequence: int, payload: bytes) -> bytes:
        """The sealed payload."""
        return self._digest(sequence, payload) + payload

    def open(self, sequence: int, sealed: bytes) -> bytes:
        """The payload of a sealed one.

        Raises:
            StoreDamagedError: it is not what was sealed for this place.
        """
        payload = sealed[DIGEST_BYTES:]
        if self._digest(sequence, payload) != sealed[:DIGEST_BYTES]:
            raise StoreDamagedError(
                f"checkpoint {sequence} of {self._where} is not what was saved: the store is "
                "damaged, or the MAC key is another; restore the store from a copy"
            )
        return payload


def encode_record(record: Record) -> bytes:
    """The bytes of a record, not yet sealed.

    Raises:
        NotEncodableError: a value in it cannot be encoded.
    """
    try:
        return _encoder.encode(record)
    except (TypeError, OverflowError, ValueError) as error:
        raise NotEncodableError("the record", str(error)) from error


def decode_record(payload: bytes) -> Record:
    """The inverse of `encode_record`.

    Raises:
        StoreDamagedError: they are not the bytes of a record.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreDamagedError(f"a checkpoint cannot be read: {error}") from error


# ---------------------------------------------------------------------------------------
# Plain values: what metadata, cursors, items and plain state are made of
# ---------------------------------------------------------------------------------------

MAX_DEPTH = 100  # deeper than any sane document, shallower than the interpreter's stack
_PLAIN_LEAVES = (bool, type(None))
_PLAIN_CONTAINERS = (dict, list, tuple)
_INT_RANGE = range(-(2**63), 2**64)  # what MessagePack holds


def check_plain(value: Any, path: str, depth: int = 0) -> None:
    """See that `value` is JSON-like: it will come back equal from a store.

    Raises:
        NotEncodableError: naming the path of the first leaf that is not: NaN, infinity,
            an int over 64 bits, a str with a lone surrogate, a key that is not a str, any
            other type, nesting deeper than `MAX_DEPTH`.
    """
    kind = type(value)
    if kind is str:
        _check_unicode(value, path)
        return
    if kind in _PLAIN_LEAVES:
        return
    if depth >= MAX_DEPTH and kind in _PLAIN_CONTAINERS:
        raise NotEncodableError(path, f"nested deeper than {MAX_DEPTH}")
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise NotEncodableError(path, f"its key {key!r} is not a str")
            _check_unicode(key, path)
            check_plain(item, f"{path}.{key}", depth + 1)
    elif kind is list or kind is tuple:
        for position, item in enumerate(value):
            check_plain(item, f"{path}[{position}]", depth + 1)
    elif kind is float:
        if not math.isfinite(value):
            raise NotEncodableError(path, f"{value!r} is not a finite number")
    elif kind is not int:
        raise NotEncodableError(path, f"a {kind.__qualname__} is not JSON-like")
    elif value not in _INT_RANGE:
        raise NotEncodableError(path, "an int of more than 64 bits")


def _check_unicode(text: str, path: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotEncodableError(path, f"{text[:50]!r} has a lone surrogate in it") from error


def check_amounts(amounts: Mapping[str, Number], path: str) -> dict[str, Number]:
    """Return `amounts` as a dict if every one is a finite number under a str.

    Raises:
        NotEncodableError: naming the first that is not.
    """
    for name, amount in amounts.items():
        if type(amount) not in (int, float):
            raise NotEncodableError(f"{path}.{name}", "an amount is an int or a float")
    plain = dict(amounts)
    check_plain(plain, path)
    return plain


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def item_digest(key: str) -> bytes:
    """What a record remembers of its item, to notice a source that changed."""
    return hashlib.blake2b(key.encode(), digest_size=ITEM_DIGEST_BYTES).digest()


# ---------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------


class FailedAttempt(msgspec.Struct, frozen=True, array_like=True):
    """How often a batch that is not confirmed was tried, and what went wrong last."""

    attempts: int
    error: ErrorInfo | None


@attrs.define
class Progress:
    """What the records of one stream add up to.

    Attributes:
        sequence: Of the newest record; 0 before the first.
        confirmed: The batches that are durable.
        skipped: Those that were given up, as saved.
        failures: Attempts at those that are neither, and the last error of the skipped.
        records: Records produced by the confirmed batches.
        totals: Produced by the confirmed batches; exact.
        spent: On all attempts, of confirmed batches or not; exact.
        cursor: Where the loop goes on, as its last checkpoint said.
        last_index: Of the last batch, once known.
        status: As far as the records know: a stream that is neither complete nor failed
            is INTERRUPTED here, and IN_PROGRESS while somebody has it open.
        error: Why it failed.
        outputs: Files confirmed so far, redone ones counted again; 0: nothing to verify.
        sinks: Confirmed bytes per append file.
        metadata: Of the finished stream.
        started_at, updated_at, completed_at, failed_at: Unix time, s; None: not yet.
    """

    sequence: int = 0
    confirmed: IndexSet = attrs.field(factory=IndexSet)
    skipped: IndexSet = attrs.field(factory=IndexSet)
    failures: dict[int, FailedAttempt] = attrs.field(factory=dict)
    records: int = 0
    totals: dict[str, ExactSum] = attrs.field(factory=dict)
    spent: dict[str, ExactSum] = attrs.field(factory=dict)
    cursor: Any = None
    last_index: int | None = None
    status: Status = Status.PENDING
    error: ErrorInfo | None = None
    outputs: int = 0
    sinks: dict[str, int] = attrs.field(factory=dict)
    metadata: dict[str, Any] = attrs.field(factory=dict)
    started_at: float | None = None
    updated_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None

    def is_done(self, index: int) -> bool:
        """Whether nothing is left to do for a batch."""
        return index in self.confirmed or index in self.skipped

    def first_left(self, start: int) -> int:
        """The least index >= `start` that is neither confirmed nor skipped."""
        index = self.confirmed.first_missing(start)
        while index in self.skipped:
            index = self.confirmed.first_missing(self.skipped.first_missing(index))
        return index

    def covers(self, start: int, stop: int) -> bool:
        """Whether nothing is left to do in ``range(start, stop)``."""
        return self.first_left(start) >= stop


def apply(progress: Progress, sequence: int, record: Record) -> None:
    """Add the next record of a stream to its progress, in place.

    Raises:
        StoreDamagedError: it is not the next one.
    """
    if sequence != progress.sequence + 1:
        raise StoreDamagedError(
            f"checkpoint {progress.sequence + 1} is missing: the next one is {sequence}"
        )
    progress.sequence = sequence
    if progress.started_at is None:
        progress.started_at = record.at
    progress.updated_at = record.at
    add_amounts(progress.spent, record.spent)
    if record.cursor is not msgspec.UNSET:
        progress.cursor = record.cursor
    _APPLY[record.kind](progress, record)


def _apply_batch(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    progress.confirmed.add(index)
    progress.skipped.discard(index)
    progress.failures.pop(index, None)
    progress.records += record.records
    progress.outputs += len(record.outputs)
    add_amounts(progress.totals, record.totals)
    for lines in record.lines:
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) + lines.size
    if record.last_index is not None:
        progress.last_index = record.last_index


def _apply_skip(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    progress.skipped.add(index)
    progress.failures[index] = FailedAttempt(record.attempts, record.error)


def _apply_attempt(progress: Progress, record: Record) -> None:
    _open(progress)
    progress.failures[_index(record)] = FailedAttempt(record.attempts, record.error)


def _apply_fail(progress: Progress, record: Record) -> None:
    if record.index is not None:
        progress.failures[record.index] = FailedAttempt(record.attempts, record.error)
    progress.status, progress.error, progress.failed_at = Status.FAILED, record.error, record.at


def _apply_finish(progress: Progress, record: Record) -> None:
    progress.status, progress.completed_at = Status.COMPLETE, record.at
    progress.error = progress.failed_at = None
    progress.metadata.update(record.metadata)
    if record.last_index is not None:
        progress.last_index = record.last_index


def _apply_save(progress: Progress, _record: Record) -> None:
    _open(progress)


def _apply_redo(progress: Progress, record: Record) -> None:
    _open(progress)
    for index in record.indexes:
        progress.confirmed.discard(index)
    progress.records -= record.records
    add_amounts(progress.totals, record.totals, sign=-1)
    for lines in record.lines:
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) - lines.size


def _apply_retry(progress: Progress, record: Record) -> None:
    _open(progress)
    for index in record.indexes:
        progress.skipped.discard(index)
        progress.failures.pop(index, None)


def _apply_note(progress: Progress, record: Record) -> None:
    """A record of the run's own stream: its newest facts are its metadata."""
    progress.metadata = dict(record.metadata)


def _open(progress: Progress) -> None:
    progress.status = Status.INTERRUPTED
    progress.error = progress.completed_at = progress.failed_at = None


def _index(record: Record) -> int:
    if record.index is None or record.index < 0:
        raise StoreDamagedError(f"a checkpoint of kind {record.kind.name} names no batch")
    return record.index


_APPLY = {
    Kind.BATCH: _apply_batch,
    Kind.SKIP: _apply_skip,
    Kind.ATTEMPT: _apply_attempt,
    Kind.FAIL: _apply_fail,
    Kind.FINISH: _apply_finish,
    Kind.SAVE: _apply_save,
    Kind.REDO: _apply_redo,
    Kind.RETRY: _apply_retry,
    Kind.SESSION: _apply_note,
    Kind.END: _apply_note,
}


# ---------------------------------------------------------------------------------------
# Folds: progress as it is stored
# ---------------------------------------------------------------------------------------


class _Fold(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    confirmed: list[int]
    skipped: list[int]
    failures: dict[int, FailedAttempt]
    records: int
    totals: dict[str, tuple[str, int]]  # the numerator may be of any length
    spent: dict[str, tuple[str, int]]
    cursor: Any
    last_index: int | None
    status: Status
    error: ErrorInfo | None
    outputs: int
    sinks: dict[str, int]
    metadata: dict[str, Any]
    times: tuple[float | None, float | None, float | None, float | None]


_fold_decoder = msgspec.msgpack.Decoder(_Fold)


def encode_progress(progress: Progress) -> bytes:
    """The bytes of a fold, not yet sealed."""
    return _encoder.encode(
        _Fold(
            progress.sequence,
            progress.confirmed.to_steps(),
            progress.skipped.to_steps(),
            progress.failures,
            progress.records,
            {name: (f"{s.numerator:x}", s.shift) for name, s in progress.totals.items()},
            {name: (f"{s.numerator:x}", s.shift) for name, s in progress.spent.items()},
            progress.cursor,
            progress.last_index,
            progress.status,
            progress.error,
            progress.outputs,
            progress.sinks,
            progress.metadata,
            (progress.started_at, progress.updated_at, progress.completed_at, progress.failed_at),
        )
    )


def _decode_sum(top: str, shift: int) -> ExactSum:
    if not 0 <= shift <= MAX_SHIFT:  # adding to it would shift by as much
        raise ValueError(f"a sum over 2**{shift} is none of finite floats")
    return ExactSum(int(top, 16), shift)


def decode_progress(payload: bytes) -> Progress:
    """The inverse of `encode_progress`.

    Raises:
        StoreDamagedError: they are not the bytes of a fold.
    """
    try:
        fold = _fold_decoder.decode(payload)
        started_at, updated_at, completed_at, failed_at = fold.times
        return Progress(
            sequence=fold.sequence,
            confirmed=IndexSet.from_steps(fold.confirmed),
            skipped=IndexSet.from_steps(fold.skipped),
            failures=fold.failures,
            records=fold.records,
            totals={name: _decode_sum(*total) for name, total in fold.totals.items()},
            spent={name: _decode_sum(*total) for name, total in fold.spent.items()},
            cursor=fold.cursor,
            last_index=fold.last_index,
            status=fold.status,
            error=fold.error,
            outputs=fold.outputs,
            sinks=fold.sinks,
            metadata=fold.metadata,
            started_at=started_at,
            updated_at=updated_at,
            completed_at=completed_at,
            failed_at=failed_at,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreDamagedError(f"saved progress cannot be read: {error}") from error
