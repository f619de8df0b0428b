"""Rows in a database of the user: the gate commits them before the record of their batch.

The record is in that transaction, too (see `trio_ckpt.sinks`).  This ensures that after a crash in
between the next start finds it there, and saves it instead of running the batch again.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from .._tokens.token import TokenEvent, move
from .._util.errors import SinkError, describe_batch
from .._util.exceptions import text_of
from .._util.text import one_line
from .._util.uninterrupted import uninterrupted
from .batch import AnyBatch, AttemptState, staged_of
from .open_stream import OpenStream
from .staged import Staged


@uninterrupted
@contextmanager
def only_with_rows(batch: AnyBatch) -> Generator[None]:
    """Open a block in which a batch is saved with its rows, by `commit_rows`, or not at all.

    Where an exception leaves the block, the rows are undone, so a batch that was completed inside
    is open again.  This ensures that it is not saved without them where the exception is caught,
    or is a cancellation.
    """
    staged = staged_of(batch)

    async def refuse(_payload: bytes, _has_more: bool) -> Exception:
        return confirmed_inside(batch)

    staged.commit = refuse
    try:
        yield
    except BaseException:
        if batch.state is AttemptState.COMPLETED:
            batch.state = AttemptState.OPEN
            staged.adopted.clear()
            move(batch.token, TokenEvent.RETRY)
        raise
    finally:
        staged.commit = None


def confirmed_inside(batch: AnyBatch) -> RuntimeError:
    """The error for a batch that passes the gate while its transaction is open."""
    where = describe_batch(batch.token.run_id, batch.token.stream, batch.index)
    return RuntimeError(
        f"{where} was confirmed inside its transaction, so its rows are undone: the end of the "
        "block confirms it"
    )


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
