"""The writing side of the JSON store.

Theory of operation.  A save is one line appended to the run's journal and one fdatasync.
When the journal outgrows ``checkpoint.json`` (and `MIN_REWRITE_BYTES`), the run is rewritten:
both are read, combined and replaced, see `files.py`.  Between two rewrites the run grows by a
fixed share at least (with records of the usual size it nearly doubles), so the total work
is linear in what was saved.  The run is also rewritten when it is released, so that
after a run ``checkpoint.json`` has everything.

So the writer caches what appending needs while the run is owned: the open journal (`journal.py`),
and the newest sequences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import attrs
import msgspec

from ..._journal.store import Checkpoint, Fold, Pruned, RunKey
from ..._util.errors import RunLockedError, SaveOutcomeUnknownError, StoreConflictError, StoreError
from ..._util.log import at, get_logger
from .._local.blobs import Blobs
from .._local.fence import (
    compare_generation,
    compare_owner,
    refuse_generation,
    save_each,
)
from .._local.files import explain, make_member, sync_folder
from .._local.locks import lock_opening, need_flock
from .content import blobs_of, named_in, payload_bytes
from .files import (
    MAX_RUN_BYTES,
    PreparedFile,
    load,
    make_folders,
    make_marker,
    prepare,
    publish,
    remove_leftovers,
    run_folder,
    run_folders,
)
from .format import JournalLine, RunState, StreamState, encode_line, frame
from .journal import OwnedJournal
from .records import decode_entry, encode_entry, encode_fold

logger = get_logger(__name__)

MIN_REWRITE_BYTES = 256 * 2**10  # a few hundred saves; rewriting a smaller run saves little
TOLD_EVERY_S = 0.1  # a line of the journal has the time of its save if that has moved so far
REWRITE_SHARE = 1.0  # the part of checkpoint.json's size beyond which the journal is too long

_BAD_VALUE = (TypeError, ValueError, OverflowError)
_REFUSED = (StoreError, *_BAD_VALUE)


@attrs.define
class _OwnedRun:
    """The cached state of a run while it is owned."""

    folder: Path
    blobs: Blobs
    owner: int
    generation: int
    first: int
    heads: dict[str, int]  # the newest sequences of the newest generation
    journal: OwnedJournal
    checkpoint_bytes: int
    records: int = 0  # in all generations, when it was locked or pruned
    told_at: float = -math.inf  # the newest time in a line of this owner
    rewrite_at: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rewrite_at = _rewrite_at(self.checkpoint_bytes)


class JsonWriter:
    """Opens, makes and writes the store.  Every method blocks, in one thread."""

    def __init__(
        self, folder: Path, *, durability: Literal["full", "process"], create: bool
    ) -> None:
        """Open the store.

        Raises:
            StoreError: see `trio_ckpt.stores.open_store`.
        """
        self._folder = folder
        self._is_synced = durability == "full"
        self._held: dict[str, _OwnedRun] = {}
        self._broken: dict[str, str] = {}  # runs that are not written any more, and why
        need_flock(folder)
        make_folders(folder, create=create)
        lock = lock_opening(folder)
        try:
            make_marker(folder)
        finally:
            lock.release()

    def close(self) -> None:
        """Release all runs and close the files."""
        for run_id in list(self._held):
            self._release(run_id)

    # -----------------------------------------------------------------------------------
    # Ownership
    # -----------------------------------------------------------------------------------

    def raise_owner(self, run_id: str) -> int:
        """Raise a run's owner number, durably, and return it."""
        self._refuse_broken(run_id)
        folder = run_folder(self._folder, run_id)
        with explain(folder, f"locking run {run_id!r}"):
            loaded = load(folder, run_id)
            if loaded is None:
                return self._begin(folder, run_id)
            state, end = loaded.state, loaded.end
            # A killed rewrite may have left names that are not durable, and power loss would
            # remove a journal without a durable name, with all that is appended to it.
            sync_folder(folder)
            journal = OwnedJournal.open(run_id, folder, state.journal, end.size, end.check)
            try:
                journal.mend_end(end)
            except BaseException:
                journal.close()
                raise
        generation = max(state.generation, state.first)  # a pruned run begins with its next one
        heads = {key: len(stream.entries) for key, stream in state.of(generation).items()}
        held = _OwnedRun(
            folder,
            Blobs(self._folder, run_id),
            state.owner,
            generation,
            state.first,
            heads,
            journal,
            loaded.checkpoint_bytes,
            sum(len(stream.entries) for stream in state.streams.values()),
        )
        self._held[run_id] = held
        try:
            self._append(held, JournalLine(held.owner + 1, held.generation))
        except BaseException:
            self._release(run_id)
            raise
        held.owner += 1
        return held.owner

    def _begin(self, folder: Path, run_id: str) -> int:
        make_member(folder)
        sync_folder(folder.parent)  # a crash may have come between the folder's making and this
        state = RunState(run_id, 1)
        written = prepare(folder, state)
        try:
            publish(folder)
        except OSError as error:
            self._broken[run_id] = str(error)  # its name may not be durable
            raise
        journal = _open_journal(run_id, folder, written)
        blobs, size = Blobs(self._folder, run_id), written.checkpoint_bytes
        self._held[run_id] = _OwnedRun(folder, blobs, 1, 0, 0, {}, journal, size)
        return 1

    def count(self, run_id: str) -> tuple[int, int]:
        """Return the newest generation of an owned run, and its records in all generations."""
        held = self._held[run_id]
        return held.generation, held.records

    def give_back(self, run_id: str) -> None:
        """Rewrite the run, so that ``checkpoint.json`` has everything, and release it."""
        held = self._held.get(run_id)
        if held is None:
            return
        try:
            if held.journal.broken is None:
                held.journal.need_untouched()
                self._rewrite_if_it_can_be(run_id, held)
        finally:
            self._release(run_id)

    def _release(self, run_id: str) -> None:
        journal = self._held.pop(run_id).journal
        if journal.broken is not None:
            self._broken[run_id] = journal.broken
        journal.release()

    # -----------------------------------------------------------------------------------
    # Saving
    # -----------------------------------------------------------------------------------

    def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        """See `Store.save`."""
        held = self._fence(run)
        allowed = {held.generation, held.generation + 1}
        if run.generation not in allowed or run.generation < held.first:
            raise refuse_generation(held.generation, run)
        heads = held.heads if run.generation == held.generation else {}
        moved: dict[str, int] = {}
        records: list[tuple[str, msgspec.Raw]] = []
        outcomes = save_each(group, partial(_add, held.blobs, heads, moved, records), _REFUSED)
        now = time.time()
        is_told = run.generation == held.generation and abs(now - held.told_at) < TOLD_EVERY_S
        line = JournalLine(
            run.owner,
            run.generation,
            records,
            _encode_folds({**heads, **moved}, folds),
            at=now if records and not is_told else None,
            summary=summary or b"",
        )
        if line.records or line.folds or line.summary or run.generation != held.generation:
            self._append(held, line)
            held.told_at = held.told_at if line.at is None else line.at
            held.generation, held.heads = run.generation, heads
            held.heads.update(moved)
        else:
            held.journal.need_untouched()
        if held.journal.size > held.rewrite_at:
            self._rewrite_if_it_can_be(run.run_id, held)
        return outcomes

    def _fence(self, key: RunKey) -> _OwnedRun:
        """Return the cached state of the run, if the caller owns it."""
        self._refuse_broken(key.run_id)
        held = self._held[key.run_id]
        compare_owner(held.owner, key)
        return held

    def _refuse_broken(self, run_id: str) -> None:
        held = self._held.get(run_id)
        broken = self._broken.get(run_id) if held is None else held.journal.broken
        if broken is not None:
            raise StoreError(
                f"{run_folder(self._folder, run_id)} failed with {broken}; nothing more is written "
                "to it: check the disk and start again"
            )

    def _append(self, held: _OwnedRun, line: JournalLine) -> None:
        """Append a line, durably."""
        content, check = frame(encode_line(line), held.journal.check)
        if held.checkpoint_bytes + held.journal.size + len(content) > MAX_RUN_BYTES:
            raise StoreError(
                f"{held.folder} would be over {MAX_RUN_BYTES:,} bytes, more than a readable file "
                "should have: nothing was saved; use the sqlite store for runs of this size, or "
                "prune older generations"
            )
        held.journal.append(content, check, is_synced=self._is_synced)

    # -----------------------------------------------------------------------------------
    # Rewriting, pruning
    # -----------------------------------------------------------------------------------

    def _rewrite_if_it_can_be(self, run_id: str, held: _OwnedRun) -> None:
        """Rewrite the run; if that fails the journal, which has everything, grows on."""
        try:
            state = _load_owned(run_id, held)
            with explain(held.folder, "rewriting it"):
                written = prepare(held.folder, state)
        except StoreError as error:
            logger.warning("the journal grows on: %s", error, extra=at(run_id))
            held.rewrite_at = 2 * held.journal.size
            return
        self._switch(run_id, held, written)

    def _switch(self, run_id: str, held: _OwnedRun, written: PreparedFile) -> None:
        """Publish the prepared files, and continue in the new journal."""
        try:
            publish(held.folder)
            journal = _open_journal(run_id, held.folder, written)
        except (OSError, RunLockedError) as error:
            # Power loss may leave either file: records appended to one may be lost.
            held.journal.give_up(str(error))
            raise SaveOutcomeUnknownError(
                f"{held.folder}: replacing checkpoint.json failed with {error}; nothing more is "
                "written to it: check the disk and start again"
            ) from error
        held.journal.release()
        held.journal, held.checkpoint_bytes = journal, written.checkpoint_bytes
        held.rewrite_at = _rewrite_at(written.checkpoint_bytes)
        with suppress(OSError):  # the next owner of the run tries again
            remove_leftovers(held.folder, written.journal)

    def prune(self, run: RunKey, keep: int) -> tuple[Pruned, set[str]]:
        """See `Store.prune`; returns the digests that were named, too."""
        held = self._fence(run)
        held.journal.need_untouched()
        compare_generation(held.generation, run, "removed")
        first = max(held.first, held.generation + 1 - keep)
        state = _load_owned(run.run_id, held)
        doomed = [state.streams.pop(place) for place in list(state.streams) if place[0] < first]
        size = sum(map(payload_bytes, doomed))
        pruned = Pruned(first - held.first, sum(len(s.entries) for s in doomed), size)
        state.first = first
        with explain(held.folder, "pruning"):
            written = prepare(held.folder, state)
        self._switch(run.run_id, held, written)
        held.first = first
        held.records = sum(len(stream.entries) for stream in state.streams.values())
        if state.is_gone:
            held.generation, held.heads = first - 1, {}
        return pruned, set(blobs_of(doomed))

    def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> set[str]:
        """See `Store.drop_blobs`; returns the digests that were named.  It reads the whole run."""
        held = self._fence(run)
        held.journal.need_untouched()
        compare_generation(held.generation, run, "dropped")
        found = _load_owned(run.run_id, held).streams.get((held.generation, stream), StreamState())
        there = sorted({n for n in sequences if 1 <= n <= len(found.entries)})
        named = {n: blobs for n in there if (blobs := decode_entry(found.entries[n - 1]).blobs)}
        if named:
            line = JournalLine(run.owner, run.generation, drops=[(stream, list(named))])
            self._append(held, line)
        return {digest for blobs in named.values() for digest in blobs}

    @contextmanager
    def owning(self, run: RunKey) -> Generator[None]:
        """Keep the run; the lock of its journal does, as long as that is in its place.

        Raises:
            StoreConflictError: it is not.
        """
        self._fence(run).journal.need_untouched()
        yield

    def unnamed(self, run_id: str, digests: Collection[str]) -> list[str]:
        """Return the digests that no record of a run names.  It reads the whole run."""
        wanted = set(digests)
        if wanted:
            wanted.difference_update(named_in(run_folder(self._folder, run_id)))
        return sorted(wanted)

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, also of those that were removed.  It reads all runs."""
        loaded = filter(None, map(load, run_folders(self._folder)))
        return [one.state.run_id for one in loaded]


def _add(
    blobs: Blobs,
    heads: dict[str, int],
    moved: dict[str, int],
    records: list[tuple[str, msgspec.Raw]],
    checkpoint: Checkpoint,
) -> None:
    """Add a checkpoint to the records of a line."""
    stream = checkpoint.stream
    newest = moved.get(stream, heads.get(stream, 0))
    if checkpoint.sequence != newest + 1:
        raise StoreConflictError(f"the next one is {newest + 1}")
    if checkpoint.blob is not None or checkpoint.blobs:
        blobs.need(checkpoint)
    stream.encode()  # refuses a lone surrogate, which has no form in a file
    records.append((stream, msgspec.Raw(encode_entry(checkpoint))))
    moved[stream] = checkpoint.sequence


def _load_owned(run_id: str, held: _OwnedRun) -> RunState:
    loaded = load(held.folder, run_id)
    if loaded is None:
        raise StoreError(f"{held.folder} is gone")
    return loaded.state


def _open_journal(run_id: str, folder: Path, written: PreparedFile) -> OwnedJournal:
    size, check = written.journal_bytes, written.check
    return OwnedJournal.open(run_id, folder, written.journal, size, check)


def _rewrite_at(checkpoint_bytes: int) -> int:
    return max(MIN_REWRITE_BYTES, int(REWRITE_SHARE * checkpoint_bytes))


def _encode_folds(heads: dict[str, int], folds: Sequence[Fold]) -> list[tuple[str, msgspec.Raw]]:
    try:
        return [
            (fold.stream, msgspec.Raw(encode_fold(fold)))
            for fold in folds
            if 1 <= fold.through <= heads.get(fold.stream, 0)
        ]
    except _BAD_VALUE as error:
        raise StoreError(f"a fold cannot be saved: {error}; nothing was saved") from error
