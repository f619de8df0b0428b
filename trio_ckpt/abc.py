"""Every contract that users can plug into."""

from ._journal.observer import (
    Attempt as Attempt,
    AttemptEnd as AttemptEnd,
    Observer as Observer,
)
from ._journal.store import (
    INLINE_LIMIT_BYTES as INLINE_LIMIT_BYTES,
    MAX_INLINE_LIMIT_BYTES as MAX_INLINE_LIMIT_BYTES,
    BlobPart as BlobPart,
    BlobPayload as BlobPayload,
    Checkpoint as Checkpoint,
    Durability as Durability,
    Finding as Finding,
    FindingKind as FindingKind,
    Fold as Fold,
    HistoryPage as HistoryPage,
    Owner as Owner,
    Pruned as Pruned,
    Repaired as Repaired,
    RunKey as RunKey,
    RunSummary as RunSummary,
    RunView as RunView,
    Severity as Severity,
    Store as Store,
    StoredRecord as StoredRecord,
    StoredRun as StoredRun,
    StoredStream as StoredStream,
    StreamView as StreamView,
)
