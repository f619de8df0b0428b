"""What keeps a store to its owner: numbers that are compared, and files that are still in place.

Files can be removed, or replaced by a copy, under whoever has them open, and then everything that
is written goes into files that have no name any more.  So an owner looks, before anybody is told of
a save, whether those who open the store by its names find what is open here.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..._journal.store import Checkpoint, RunKey
from ..._util.errors import StoreConflictError, StoreError

Identity = tuple[int, int]  # device and inode: of no other file as long as this one is open


def compare_owner(owner: int, key: RunKey) -> None:
    """See that who saves is the newest owner.

    Raises:
        StoreConflictError: it is not.
    """
    if owner != key.owner:
        raise StoreConflictError(
            f"owner {owner} has the run now, this is owner {key.owner}: nothing was changed",
            run_id=key.run_id,
        )


def compare_generation(generation: int, key: RunKey, verb: str) -> None:
    """See that what is to be changed is the newest generation.

    Raises:
        StoreConflictError: it is not.
    """
    if key.generation != generation:
        raise StoreConflictError(
            f"generation {key.generation} is not the newest, {generation} is: nothing was {verb}",
            run_id=key.run_id,
        )


def refusal(checkpoint: Checkpoint, problem: Exception) -> StoreError:
    """Say that one checkpoint of a group was not saved."""
    kind = StoreConflictError if isinstance(problem, StoreConflictError) else StoreError
    error = kind(
        f"checkpoint {checkpoint.sequence} of {checkpoint.stream} was not saved: {problem}"
    )
    error.__cause__ = problem
    return error


def identity_of(path: str | Path) -> Identity | None:
    """Which file has a name; None: there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def out_of_place(path: Path, run_id: str | None = None) -> StoreConflictError:
    """What to raise where a file that is open has no name any more, or another file has it."""
    return StoreConflictError(
        f"{path} was removed or replaced while the run went on: what was saved last may be lost "
        "with it, and nothing more is written; find out what did it, put the newest copy back, and "
        "start again",
        run_id=run_id,
    )
