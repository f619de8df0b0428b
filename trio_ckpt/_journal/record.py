"""Records: everything durable is a checkpoint, a `Record` in the sequence of its stream.

A record has only what its batch changed.  The sum of the records of a stream is its
progress, see `trio_ckpt._journal.progress`.

Records are `msgspec.Struct`: one definition gives the encoder, the decoder and the
validation of stored bytes, compiled.  Their stored names have one letter.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import cast

import attrs
import msgspec

from .._util.arguments import instance, several, whole_number
from .._util.errors import (
    BatchFailedError,
    NotEncodableError,
    StoreDamagedError,
    StreamFailedError,
    TrioCkptError,
    describe_batch,
)
from .._util.exact_sum import Amount, Number, StoredSum, check_amounts
from .._util.exceptions import class_name, text_of
from .._util.plain import Plain, StreamKey, copy_plain, encode_key
from .._util.text import message_of, printable
from .code import CodeMark

# ---------------------------------------------------------------------------------------
# Results, as users see them
# ---------------------------------------------------------------------------------------


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An output file of a batch.

    Attributes:
        path: Its path relative to the run's output folder, with ``/``.
        size: Its size in bytes.
        mtime_ns: Its modification time when it was confirmed, nanoseconds; in a bucket a negative
            number that was made of its ETag.
        sha256: The SHA-256 of its content, hexadecimal.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str


def utc_now() -> datetime:
    """The time now as an aware datetime, UTC."""
    return datetime.now(UTC)


def _outputs(outputs: Iterable[Output]) -> tuple[Output, ...]:
    if not outputs:
        return ()
    return tuple(
        instance("an output", output, Output, "an Output")
        for output in several("outputs", outputs, "Output")
    )


def _count(records: int) -> int:
    return whole_number("records", records)


def _metadata(metadata: Mapping[str, Plain]) -> Mapping[str, Plain]:
    copied: dict[str, Plain] = copy_plain(dict(metadata)) if metadata else {}
    return copied


@attrs.frozen
class CheckpointResult:
    """What a batch produced, and when its checkpoint was completed.

    Each waiter gets its own copy.

    Attributes:
        outputs: The files, with their hashes.
        metadata: JSON-like values of the batch.
        records: How many records the batch produced.
        completed_at: When the token was settled, UTC; callers leave it out.
        batch_path: The path of the batch's data, for programs that save by themselves.
        checkpoint_path: The path of the batch's checkpoint, for programs that save by themselves.
        batch_hash: The hash of the file at `batch_path`.
        checkpoint_hash: The hash of the file at `checkpoint_path`.
    """

    outputs: tuple[Output, ...] = attrs.field(default=(), converter=_outputs)
    metadata: Mapping[str, Plain] = attrs.field(factory=dict[str, Plain], converter=_metadata)
    records: int = attrs.field(default=0, converter=_count)
    completed_at: datetime | None = None
    batch_path: str | None = None
    checkpoint_path: str | None = None
    batch_hash: str | None = None
    checkpoint_hash: str | None = None


class Status(enum.Enum):
    """The status of a run, a group or a stream."""

    PENDING = "pending"
    IN_PROGRESS = "in progress"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is Python code


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An error as it is saved.

    Attributes:
        type: The name of its class.
        message: Its text, truncated to `MAX_ERROR_CHARS`.
        retryable: Whether a plain resume may try again.
        batch_index: The batch that it happened to; None: none.
    """

    type: str
    message: str
    retryable: bool = True
    batch_index: int | None = None


OF_TEXT = "str"  # the type of an `ErrorInfo` whose reason was given as a text


def error_line(error: ErrorInfo) -> str:
    """A recorded error in a line: its class, if it has one, and its message."""
    message = message_of(error.message)
    return message if error.type == OF_TEXT else f"{printable(error.type)}: {message}"


MIN_TIME = -62_135_596_800  # Unix time of the first day of datetime
END_OF_TIME = 253_402_300_800  # Unix time just after the last day of datetime

MAX_ERROR_CHARS = 2_000  # enough to see what happened; the log has the traceback


def describe_error(
    error: BaseException | str, *, retryable: bool = True, batch_index: int | None = None
) -> ErrorInfo:
    """Turn an exception, or a reason as text, into what is saved of it."""
    kind = OF_TEXT if isinstance(error, str) else class_name(error)
    message = (error or kind if isinstance(error, str) else text_of(error))[:MAX_ERROR_CHARS]
    if not message.isascii():  # lone surrogates, as in names of files, cannot be stored
        message = message.encode(errors="backslashreplace").decode()[:MAX_ERROR_CHARS]
    return ErrorInfo(kind, message, retryable, batch_index)


def describe_end(error: BaseException, stream: StreamKey, batch_index: int | None) -> ErrorInfo:
    """Turn the exception that ended a stream into what is saved of it.

    Args:
        error: The exception that ended it.
        stream: Its key.
        batch_index: The batch that was open.
    """
    if not isinstance(error, TrioCkptError) or error.stream != stream:
        return describe_error(error, batch_index=batch_index)
    if isinstance(error, BatchFailedError | StreamFailedError):
        return describe_error(  # the cause says more than the fact that it failed
            error.__cause__ or error.reason,
            retryable=error.retryable,
            batch_index=error.batch_index,
        )
    return describe_error(error, batch_index=error.batch_index)


# ---------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------


class RecordKind(enum.IntEnum):
    """The kind of a record, which says what it changes."""

    BATCH = 0  # a batch is confirmed
    SKIP = 1  # a batch was given up on purpose
    ATTEMPT = 2  # an attempt at a batch failed, or was deferred; it may run again
    FAIL = 3  # the stream failed
    FINISH = 4  # the stream is complete (with or without a last index)
    SAVE = 5  # between batches: state, cursor, spent, a last index, a frontier's first items
    REDO = 6  # batches are re-queued, all after `index` if there is one (a rewind)
    SESSION = 7  # in the run's own stream: a session began
    END = 8  # in the run's own stream: a session ended
    RETRY = 9  # skipped batches and a failed stream are re-queued; it goes on behind `index`
    NOTE = 10  # for the history; it changes nothing
    ADD = 11  # the stream is on the run's list, at a position
    SNAPSHOT = 12  # state inside a batch that is not confirmed
    PIN = 13  # the confirmed state, after batch `index`, is pinned under a label
    UNPIN = 14  # the pin of a label is removed
    INTENT = 15  # of a batch that is open: what it notes, or reserves


class SinkLines(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The lines that a batch appended to one file; the sum of the sizes gives their offset."""

    path: str
    size: int
    digest: bytes


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """The opening of a stream, in the first record that is saved after it.

    Attributes:
        at: When it was opened; Unix time, s.
        first_index: The index of its first batch.
    """

    at: float
    first_index: int


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """What re-queued batches had added, exactly.

    Attributes:
        totals: What they produced.
        spent: What the attempts that had confirmed them cost; it stays spent, but resuming does
            not save it any more.
        resets_state: No saved state is left: the state begins as the user gives it.
    """

    totals: dict[str, StoredSum]
    spent: dict[str, StoredSum]
    resets_state: bool = False


# dict itself, which msgspec creates fastest, under types that checkers understand
_no_amounts = cast("Callable[[], dict[str, Number]]", dict)
_no_spending = cast("Callable[[], dict[str, Amount]]", dict)
_no_metadata = cast("Callable[[], dict[str, Plain]]", dict)


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """One checkpoint.  Which fields are used depends on `kind`.

    A new field has a default and belongs here, not in one of the arrays above: these are always
    written whole, so re-encoding a record of an older version would give other bytes.
    """

    kind: RecordKind = msgspec.field(name="k", default=RecordKind.BATCH)
    at: float = msgspec.field(name="t")  # Unix time, s
    index: int | None = msgspec.field(name="i", default=None)
    item: bytes = msgspec.field(name="d", default=b"")  # digest of the item's key
    attempts: int = msgspec.field(name="a", default=1)
    records: int = msgspec.field(name="n", default=0)
    outputs: tuple[Output, ...] = msgspec.field(name="o", default=())
    lines: tuple[SinkLines, ...] = msgspec.field(name="j", default=())
    totals: dict[str, Number] = msgspec.field(name="p", default_factory=_no_amounts)
    spent: dict[str, Amount] = msgspec.field(name="s", default_factory=_no_spending)
    cursor: Plain = msgspec.field(name="c", default=msgspec.UNSET)
    metadata: dict[str, Plain] = msgspec.field(name="m", default_factory=_no_metadata)
    state: bytes = msgspec.field(name="x", default=b"")
    adds: bytes = msgspec.field(name="f", default=b"")  # new items of a frontier
    last_index: int | None = msgspec.field(name="l", default=None)
    expected: int | None = msgspec.field(name="g", default=None)  # batches in all, as known now
    estimate: int | None = msgspec.field(name="y", default=None)  # about as many, of an open end
    opened: Opened | None = msgspec.field(name="b", default=None)  # in the first after opening
    phase: str | None = msgspec.field(name="u", default=None)  # of the run, when it was opened
    adopted: bool = msgspec.field(name="w", default=False)  # found, not made: totals are unknown
    steps: tuple[int, ...] = msgspec.field(name="r", default=())  # REDO, RETRY: an `IndexSet`
    taken: Taken | None = msgspec.field(name="z", default=None)  # REDO
    items: bytes = msgspec.field(name="v", default=b"")  # REDO: their part of the sum of items
    skipped_items: bytes = msgspec.field(name="h", default=b"")  # REDO: of that, the skipped ones
    position: int | None = msgspec.field(name="q", default=None)  # ADD
    error: ErrorInfo | None = msgspec.field(name="e", default=None)
    reserved: dict[str, Amount] | None = msgspec.field(name="R", default=None)  # what it changes by
    code: CodeMark | None = msgspec.field(name="C", default=None)  # that works on the stream now
    due: float | None = msgspec.field(name="D", default=None)  # ATTEMPT: deferred until; Unix time
    previous: int | None = msgspec.field(name="P", default=None)  # the last generation's batch
    unchanged: bool = msgspec.field(name="U", default=False)  # all of it is carried over from that


TROUBLE = "trouble"  # in the metadata of a NOTE: a problem that a user should know of
ACT = "act"  # in the metadata of a NOTE, or of a record that an act caused; see `acts`
LIMITS = "limits"  # in the metadata of the run's own stream: those of the session, by name
OF_SESSION = ("batches", "runtime_s")  # limits that an act changes, beside those on what is spent
PAUSED = "paused"  # in the metadata of the run's own stream: the act that pauses the run


def trouble(text: str, *, index: int | None = None) -> Record:
    """Make a note for the history, about a problem that did not stop the stream.

    Args:
        text: The problem.
        index: The batch that it is about; None: none.
    """
    metadata = {TROUBLE: describe_error(text).message}
    return Record(kind=RecordKind.NOTE, at=time.time(), index=index, metadata=metadata)


DIGEST_BYTES = 16
MAX_RECORD_BYTES = 2**30 - DIGEST_BYTES  # with its seal, as much as a store reads back in one piece

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class Seal:
    """Binds a payload to its place: run, generation, stream and sequence number.

    A sealed payload is a BLAKE2b digest (RFC 7693) followed by the payload.  This ensures that
    what a store returns is what was saved, at that place.  With a key the digest is a MAC.
    """

    __slots__ = ("_hasher", "_place", "_run_id", "_stream")

    def __init__(self, run_id: str, generation: int, stream: StreamKey, key: bytes | None) -> None:
        self._place = f"{generation}\n{run_id}\n{encode_key(stream)}\n".encode()
        self._hasher = _hasher(key, self._place)
        self._run_id, self._stream = run_id, stream

    def close(self, sequence: int, payload: bytes) -> bytes:
        """Seal a payload for a sequence number."""
        return _digest(self._hasher, sequence, payload) + payload

    def open(self, sequence: int, sealed: bytes) -> bytes:
        """Check a sealed payload, and return the payload.

        Raises:
            StoreDamagedError: it was not sealed for this place.
        """
        payload = sealed[DIGEST_BYTES:]
        seal = sealed[:DIGEST_BYTES]
        if hmac.compare_digest(_digest(self._hasher, sequence, payload), seal):
            return payload
        where = describe_batch(self._run_id, self._stream, None)
        what = f"checkpoint {sequence} of {where} is not what was saved"
        if _digest(_hasher(None, self._place), sequence, payload) == seal:
            raise StoreDamagedError(
                f"{what} with this MAC key: it is sealed without a key, by an earlier save without "
                "mac_key or by a writer that does not have the key"
            )
        raise StoreDamagedError(
            f"{what}: it was altered or is damaged, or the store is sealed with another MAC key; "
            "give the key that it was saved with, or restore the store from a copy"
        )


def _hasher(key: bytes | None, place: bytes) -> hashlib.blake2b:
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES, key=key or b"")
    hasher.update(place)
    return hasher


def _digest(hasher: hashlib.blake2b, sequence: int, payload: bytes) -> bytes:
    own = hasher.copy()
    own.update(b"%d\n" % sequence)
    own.update(payload)
    return own.digest()


def encode_record(record: Record) -> bytes:
    """Encode a record, not yet sealed.

    Raises:
        NotEncodableError: a value in it cannot be encoded, or could not be read back.
    """
    try:
        payload = _encoder.encode(record)
    except (TypeError, OverflowError, ValueError) as error:
        raise NotEncodableError("the record", str(error)) from error
    if len(payload) > MAX_RECORD_BYTES or not MIN_TIME <= record.at < END_OF_TIME:
        raise NotEncodableError("the record", _why_refused(record, len(payload)))
    return payload


def _why_refused(record: Record, size: int) -> str:
    if not MIN_TIME <= record.at < END_OF_TIME:
        return f"its time {record.at!r} is out of range: set the system's clock"
    return (
        f"it has {size:,} bytes, over {MAX_RECORD_BYTES:,}: put large values into an output, or "
        "into arrays of the state"
    )


def decode_record(payload: bytes) -> Record:
    """Decode a record, the inverse of `encode_record`.

    Raises:
        StoreDamagedError: the bytes are not a record.
    """
    try:
        record = _decoder.decode(payload)
        if record.spent or record.totals or record.reserved:
            check_amounts(record.spent)
            check_amounts(record.totals)
            check_amounts(record.reserved or {})
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreDamagedError(f"a checkpoint cannot be read: {error}") from error
    check_times(record.at, record.due, None if record.opened is None else record.opened.at)
    return record


def check_times(*times: float | None) -> None:
    """Check that times are in the range of datetime.

    Raises:
        StoreDamagedError: a time is not.
    """
    for at in times:
        if at is not None and not MIN_TIME <= at < END_OF_TIME:  # also refuses NaN
            raise StoreDamagedError(f"a checkpoint cannot be read: its time is {at!r}")
