"""What the records of a session say of it, and the check of what was stored."""

from __future__ import annotations

import msgspec

from .._util.errors import StoreDamagedError
from .._util.exact_sum import Number
from .._util.plain import Plain
from .record import check_times


class SessionCounts(msgspec.Struct, gc=False):
    """What a session did; 0 for an imported session, which does not know it."""

    batches: int = 0
    skipped: int = 0
    retries: int = 0
    records: int = 0
    totals: dict[str, Number] = {}  # copied for each, see msgspec
    spent: dict[str, Number] = {}


class _Again(msgspec.Struct, forbid_unknown_fields=True):
    base: int
    checkpoints: int | None = None
    counts: dict[str, int] = {}


class _SessionMetadata(msgspec.Struct):
    session: int
    runtime_s: float
    changes: list[tuple[str, str, str]]
    config: dict[str, Plain]
    config_digest: str
    output_dir: str | None
    host: str
    pid: int
    began: float
    manifest: int | None = None
    outputs_since: float = 0.0
    limits: dict[str, Plain] = {}
    paused: dict[str, Plain] = {}
    again: _Again | None = None
    code: dict[str, Plain] = {}
    reason: str | None = None
    next_due: float | None = None
    ended: str | msgspec.UnsetType = msgspec.UNSET
    at: float | msgspec.UnsetType = msgspec.UNSET
    counts: SessionCounts | msgspec.UnsetType = msgspec.UNSET


MAX_RUNTIME_S = 1e11  # three thousand years


def check_session_metadata(metadata: dict[str, Plain], *, is_end: bool = False) -> dict[str, Plain]:
    """Check session metadata, and return it.

    Args:
        metadata: The metadata of the record.
        is_end: Whether the record is the end of a session.

    Raises:
        StoreDamagedError: it has another shape.
    """
    try:
        found = msgspec.convert(metadata, _SessionMetadata)
    except (msgspec.ValidationError, RecursionError) as error:
        raise StoreDamagedError(f"a session cannot be read: {error}") from error
    if is_end and msgspec.UNSET in (found.ended, found.at, found.counts):
        raise StoreDamagedError("the end of a session cannot be read: it lacks when and how")
    check_times(found.began, found.next_due)
    check_times(None if isinstance(found.at, msgspec.UnsetType) else found.at)
    if not 0 <= found.runtime_s < MAX_RUNTIME_S:
        raise StoreDamagedError(f"a session cannot be read: it took {found.runtime_s!r} s")
    return metadata
