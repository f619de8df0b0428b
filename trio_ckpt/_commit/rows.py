"""Rows in a database of the user: the gate commits them before the record of their batch.

The record is in that transaction, too (see `trio_ckpt.sinks`).  This ensures that after a crash in
between the next start finds it there, and saves it instead of running the batch again.
"""

from __future__ import annotations

from .._util.errors import SinkError
from .._util.exceptions import text_of
from .._util.text import one_line
from .batch import AnyBatch, staged_of
from .open_stream import OpenStream
from .staged import Staged


async def commit_staged(staged: Staged, payload: bytes, has_more: bool) -> Exception | None:
    """Commit the rows of a batch, and note that its record has to follow.

    Args:
        staged: What is saved with the batch.
        payload: Its encoded record.
        has_more: Whether the record names blobs or lines.

    Returns:
        Why the database has none of the rows; None: they are committed.
    """
    if staged.commit is None:
        return None
    refused = await staged.commit(payload, has_more)
    staged.is_committed = refused is None
    return refused


def end_run_if_committed(open_stream: OpenStream, batch: AnyBatch, problem: BaseException) -> None:
    """Save nothing more where rows are committed and their record could not be saved.

    The batch must not run again beside its rows; the next start saves the record.
    """
    if staged_of(batch).is_committed:
        error = open_stream.error(
            SinkError,
            f"the rows of {open_stream.where(batch.index)} are committed, and its record could not "
            f"be saved ({one_line(text_of(problem))}); start the run again: that saves it",
            batch.index,
        )
        error.__cause__ = problem
        open_stream.committer.set_poison(error)
