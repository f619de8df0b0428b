"""What stores take and give: records as they are stored, and what is known of runs."""

from __future__ import annotations

from datetime import datetime

import attrs

from .._util.plain import StreamKey
from .progress import Progress


@attrs.frozen
class RunKey:
    """Who saves: carried by every save and compared in its transaction.

    Attributes:
        run_id: The run.
        generation: Counts the times it was begun afresh, from 0.
        owner: The number that `Store.lock_run` gave, the fence.
    """

    run_id: str
    generation: int
    owner: int


@attrs.frozen
class Checkpoint:
    """One record on its way into a store.

    Attributes:
        stream: The stream's key as text, see `trio_ckpt._util.plain.encode_key`.
        sequence: The predecessor's plus one; 1 for the first of a stream.
        payload: The sealed record; empty if it is a blob.
        blob: What `Store.put_blob` named the payload.
        blobs: The digests of other blobs that it needs, its *attached* blobs: each was put
            under the same lock, or is named by a record already.  Any number of checkpoints
            and runs may name the same; it is kept as long as one of them does.
    """

    stream: str
    sequence: int
    payload: bytes
    blob: str | None = None
    blobs: tuple[str, ...] = ()


@attrs.frozen
class Fold:
    """The progress of a stream, through a checkpoint that is saved already.

    Attributes:
        stream: The stream's key as text.
        through: The sequence of the newest record folded into it.
        payload: The progress, sealed under ``-through`` so that it is never taken for a
            record.
    """

    stream: str
    through: int
    payload: bytes


@attrs.frozen
class StoredRecord:
    """One saved record as it comes back, its blob resolved.

    Attributes:
        sequence: Its number in its stream.
        payload: What was saved.
        blobs: The attached blobs that it still names, in their order, each once; read them
            with `Store.read_blob`.
    """

    sequence: int
    payload: bytes
    blobs: tuple[str, ...] = ()


@attrs.frozen
class StoredStream:
    """What resuming needs to know of a stream.

    Attributes:
        stream: Its key as text.
        sequence: Of its newest record.
        fold: Its newest fold, or None.
        tail: The records after the fold, oldest first; the first is ``fold.through + 1``.
    """

    stream: str
    sequence: int
    fold: Fold | None
    tail: tuple[StoredRecord, ...]


@attrs.frozen
class StoredRun:
    """What resuming needs to know of a run."""

    run_id: str
    generation: int
    owner: int
    streams: tuple[StoredStream, ...]


@attrs.frozen
class HistoryPage:
    """Some records of a stream, newest first.

    Attributes:
        records: At most as many as were asked for.
        cursor: Give it to `Store.history` for the next page; None: that was the last.
    """

    records: tuple[StoredRecord, ...]
    cursor: str | None


@attrs.frozen
class RunSummary:
    """One line of a list of runs."""

    run_id: str
    generation: int
    owner: int
    streams: int
    records: int


@attrs.frozen
class Owner:
    """Who owns a run at this moment.

    Attributes:
        host: Its host name.
        pid: Its process id.
        since: When it took the run, aware, in UTC.
    """

    host: str
    pid: int
    since: datetime


@attrs.frozen
class Pruned:
    """What `Store.prune` removed.

    Attributes:
        generations: How many.
        records: The records of those generations, all streams together.
        bytes: The payloads of those records and of their folds, and the blobs, attached ones
            included, that no record of the store names any more.
    """

    generations: int
    records: int
    bytes: int


@attrs.frozen
class Finding:
    """Something that is not as it should be, in a store or in the outputs of a run.

    Attributes:
        where: The file or the row, as a person would look for it.
        what: What is wrong with it, in words.
        advice: What can be done.
        is_damage: Something that was saved is not as it was; else it is only worth knowing.
        run_id: The run, if it is about one.
        generation: Of the run.
        stream: Its key as text, if it is about one.
        sequence: Of the checkpoint, if it is about one.
        batch_index: The batch, if it is about one.
        blob: The digest of the blob, if it is about one.
        path: The output file, if it is about one, relative to the output folder.
        is_state: It is about a saved state, not about the record that has it.
        is_loss: Less is there than was acknowledged.
    """

    where: str
    what: str
    advice: str = ""
    is_damage: bool = True
    run_id: str | None = attrs.field(default=None, kw_only=True)
    generation: int | None = attrs.field(default=None, kw_only=True)
    stream: str | None = attrs.field(default=None, kw_only=True)
    sequence: int | None = attrs.field(default=None, kw_only=True)
    batch_index: int | None = attrs.field(default=None, kw_only=True)
    blob: str | None = attrs.field(default=None, kw_only=True)
    path: str | None = attrs.field(default=None, kw_only=True)
    is_state: bool = attrs.field(default=False, kw_only=True)
    is_loss: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen
class Repaired:
    """Something that a repair has done.

    Attributes:
        where: What it did it to.
        what: What it did, in words.
        is_loss: Something that was saved is gone with it.
    """

    where: str
    what: str
    is_loss: bool = False


@attrs.frozen
class StreamView:
    """A stream as the store has it."""

    key: StreamKey
    progress: Progress


@attrs.frozen
class RunView:
    """A run as the store has it: ``view.streams["repo", "pulls"].progress.confirmed``."""

    run_id: str
    generation: int
    owner: int
    streams: dict[StreamKey, StreamView]
