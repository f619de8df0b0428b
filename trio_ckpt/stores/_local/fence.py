"""The fence that keeps a store to its owner: compared numbers, and files still in their place.

Files can be removed, or replaced by a copy, while a process has them open, and then all that it
writes goes into files that have no name any more.  So before an owner acknowledges a save, it
checks whether a process that opens the store by its names finds the files that are open here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..._journal.store import Checkpoint, RunKey
from ..._util.errors import StoreConflictError, StoreError

Identity = tuple[int, int]  # device and inode: unique as long as the file is open


def need_lock(owners: Mapping[str, int], key: RunKey) -> None:
    """Check that the caller's lock of a run is held by this handle.

    A number outlives its lock: with it alone, a late save would bring a removed run back.

    Args:
        owners: The owner numbers of the runs that the handle has locked.
        key: The run and the owner that the caller claims to be.

    Raises:
        StoreConflictError: the run is not locked, or another owner has locked it since.
    """
    owner = owners.get(key.run_id)
    if owner is None:
        raise refuse_unlocked(key)
    compare_owner(owner, key)


def refuse_unlocked(key: RunKey) -> StoreConflictError:
    """Return the error for a change of a run that is not locked."""
    return StoreConflictError(
        f"this is owner {key.owner}, without its lock: nothing was changed; lock the run first",
        run_id=key.run_id,
    )


def compare_owner(owner: int, key: RunKey) -> None:
    """Check that the caller is the newest owner.

    Raises:
        StoreConflictError: another owner is newer.
    """
    if owner != key.owner:
        raise StoreConflictError(
            f"owner {owner} has the run now, this is owner {key.owner}: nothing was changed",
            run_id=key.run_id,
        )


def compare_generation(generation: int, key: RunKey, verb: str) -> None:
    """Check that the generation to change is the newest.

    Raises:
        StoreConflictError: another generation is newer.
    """
    if key.generation != generation:
        raise StoreConflictError(
            f"generation {key.generation} is not the newest, {generation} is: nothing was {verb}",
            run_id=key.run_id,
        )


def refuse_generation(generation: int, key: RunKey) -> StoreConflictError:
    """Return the error for a save to a generation that is neither the newest nor the next."""
    return StoreConflictError(
        f"generation {key.generation} is neither the newest, {generation}, nor the next: nothing "
        "was saved",
        run_id=key.run_id,
    )


def save_each(
    group: Sequence[Checkpoint],
    save: Callable[[Checkpoint], None],
    errors: tuple[type[Exception], ...] = (StoreError,),
) -> list[Exception | None]:
    """Save the checkpoints of a group, and return the outcome of each; see `Store.save`.

    Args:
        group: The checkpoints.
        save: Saves one of them, or raises an error after which nothing of it is saved.
        errors: The errors by which it refuses a checkpoint.
    """
    outcomes: list[Exception | None] = []
    failed: dict[str, int] = {}
    for checkpoint in group:
        try:
            if checkpoint.stream in failed:
                raise StoreError(f"checkpoint {failed[checkpoint.stream]} before it was not")
            save(checkpoint)
        except errors as error:
            failed.setdefault(checkpoint.stream, checkpoint.sequence)
            outcomes.append(_refusal(checkpoint, error))
        else:
            outcomes.append(None)
    return outcomes


def _refusal(checkpoint: Checkpoint, problem: Exception) -> StoreError:
    """Return the error that says that one checkpoint of a group was not saved."""
    kind = StoreConflictError if isinstance(problem, StoreConflictError) else StoreError
    error = kind(
        f"checkpoint {checkpoint.sequence} of {checkpoint.stream} was not saved: {problem}"
    )
    error.__cause__ = problem
    return error


def identity_of(path: str | Path) -> Identity | None:
    """Return the identity of the file with a name; None: there is no such file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def out_of_place(path: Path, run_id: str | None = None) -> StoreConflictError:
    """Return the error for an open file that lost its name, or whose name another file has."""
    return StoreConflictError(
        f"{path} was removed or replaced while the run went on: what was saved last may be lost "
        "with it, and nothing more is written; find out what did it, put the newest copy back, and "
        "start again",
        run_id=run_id,
    )
