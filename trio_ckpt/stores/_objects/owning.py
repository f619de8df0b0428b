"""Who owns a run: an entry of its log, which only one process can create.

Theory of operation.  The next position of a log is taken by a PUT that must create, and that is the
fence: commit, takeover and repetition in one.  An owner that was paused finds its next position
taken: there its heir began.  So an entry that begins an owner is never removed, or the position
would be free again.  All others may be merged and removed.

That leaves one process to think of: one that wants the run, has read its log up to a position, and
is paused before it creates its entry at the next.  Meanwhile the run goes on, and the entry of that
position is merged and removed.  When the process goes on, it creates an entry that is never read.
So a process that has created its entry looks at the bases once more.  A base is written before
what is in it is removed, so if the position was ever free again, there is a base that reaches it:
then the entry is void, and the process begins again.  A void entry is not removed either, or its
position would be free for a former owner; it lies below a base, so it is never read.

The *lease* only says when another process may take the run.  Each entry renews it, also an empty
one, and the store's clock writes the time beside it.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress

import attrs

from ..._buckets.bucket import RefusedError
from ..._buckets.clock import StoreClock, probe, utc
from ..._buckets.requests import Requests
from ..._journal.store import Owner, RunKey
from ..._util.errors import (
    RunLockedError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
)
from ..._util.log import get_logger
from ..._util.threads import WorkerThread
from .._local.fence import compare_owner, refuse_unlocked
from .entries import Holder, LogEntry, NamedBlob
from .layout import RunKeys, StoreKeys, position_of, seal
from .load import LoadedRun, load

logger = get_logger(__name__)


@attrs.define
class Put:
    """A blob that was put under this lock: its upload, and how many puts no record has followed."""

    upload: str
    size: int
    pins: int = 1


@attrs.define(eq=False, repr=False)
class OwnedLog:
    """What the owner of a run remembers of it: it alone changes it while the fence holds.

    Attributes:
        loaded: The run, kept up to date.
        thread: Its changes are made in it, one after another.
        puts: The blobs that were put and are not named yet, by digest.
        problem: Why nothing more is saved; empty: nothing is in the way.
        merged_at: The position at which merging was tried last.
        doomed: What is to be removed and is not yet, in this order: objects that nothing reads.
        strays: What mergings have written that failed; no base names it.
    """

    loaded: LoadedRun
    thread: WorkerThread
    puts: dict[str, Put] = attrs.field(factory=dict[str, Put])
    problem: str = ""
    merged_at: int = 0
    doomed: list[list[str]] = attrs.field(factory=list[list[str]])
    strays: list[str] = attrs.field(factory=list[str])

    @property
    def keys(self) -> RunKeys:
        """The keys of the run."""
        return self.loaded.keys

    @property
    def owner(self) -> int:
        """The owner number."""
        return self.loaded.state.owner


def append(requests: Requests, owned: OwnedLog, group: LogEntry) -> dict[str, NamedBlob]:
    """Create the next entry of a run; returns the blobs that no record names any more.

    Raises:
        StoreConflictError: another process has taken the run.
        SaveOutcomeUnknownError: it may have been created or not.
        StoreError: it was not created.
    """
    loaded, run_id = owned.loaded, owned.keys.run_id
    if owned.problem:
        raise StoreConflictError(f"{owned.problem}: nothing was changed", run_id=run_id)
    position, data = loaded.state.position + 1, seal(group)
    try:
        is_ours = requests.create(owned.keys.log(position), data)
    except SaveOutcomeUnknownError as error:
        owned.problem = "the outcome of an earlier change is unknown"
        error.run_id = run_id
        raise
    if not is_ours:
        owned.problem = f"owner {group.owner} does not have the run any more"
        raise StoreConflictError(f"{owned.problem}: nothing was changed", run_id=run_id)
    freed = loaded.state.apply(group)
    loaded.tail[position], loaded.sizes[position] = group, len(data)
    return freed


def remove(requests: Requests, owned: OwnedLog, *doomed: list[str]) -> None:
    """Remove objects that nothing reads, and those that could not be removed before.

    An error is logged: they are removed later.  Of an owner that is killed before that they stay.
    """
    owned.doomed += filter(None, doomed)
    try:
        while owned.doomed:
            requests.delete(owned.doomed[0])
            del owned.doomed[0]
    except StoreError as error:
        logger.warning("run %r: what nothing reads is removed later: %s", owned.keys.run_id, error)


def need_next_free(requests: Requests, owned: OwnedLog) -> None:
    """Check that no process has taken a run, without an entry.

    Raises:
        StoreConflictError: one has.
    """
    if requests.find(owned.keys.log(owned.loaded.state.position + 1)) is not None:
        owned.problem = f"owner {owned.owner} does not have the run any more"
    if owned.problem:
        raise StoreConflictError(f"{owned.problem}: nothing was stored", run_id=owned.keys.run_id)


def lease_left_s(loaded: LoadedRun, clock: StoreClock) -> float | None:
    """How long the lease of a run lasts, in seconds; None: it has ended, or no process has it."""
    holder, newest_at = loaded.state.holder, loaded.newest_at
    if holder is None or newest_at is None:
        return None
    left_s = holder.lease_s - clock.age(newest_at)
    return min(left_s, holder.lease_s) if left_s > 0 else None


def owner_of(loaded: LoadedRun, clock: StoreClock) -> Owner | None:
    """The process that has a run, as it was read."""
    holder, left_s = loaded.state.holder, lease_left_s(loaded, clock)
    if holder is None or left_s is None:
        return None
    return Owner(holder.host, holder.pid, utc(holder.since), left_s)


def take(
    requests: Requests,
    layout: StoreKeys,
    clock: StoreClock,
    run_id: str,
    lease_s: float,
    thread: WorkerThread,
) -> OwnedLog:
    """Lock a run, and raise its owner number.

    Raises:
        RunLockedError: the lease of another owner has not ended.
        StoreError: it cannot be locked.
    """
    keys = layout.run(run_id)
    while True:
        loaded = load(requests, keys)
        _refuse_if_owned(requests, layout, clock, loaded)
        state = loaded.state
        if not state.position:
            requests.create(layout.name(run_id), run_id.encode("utf-8", "surrogatepass"))
        now = clock.now()
        holder = Holder(socket.gethostname(), os.getpid(), now, lease_s, secrets.token_bytes(8))
        group = LogEntry(state.owner + 1, state.next_generation(), now, holder=holder)
        position, data = state.position + 1, seal(group)
        if not requests.create(keys.log(position), data):
            continue  # another process was faster
        bases = requests.list_all(keys.bases)
        if any(position_of(base.key, is_base=True) >= position for base in bases):
            logger.info("run %r has gone on since it was read: it is read again", run_id)
            continue  # the entry stays: a former owner may be about to create one there
        state.apply(group)
        loaded.tail[position], loaded.sizes[position] = group, len(data)
        owned = OwnedLog(loaded, thread, merged_at=loaded.base)
        # A former owner may write a base only now: a newer one than was read stays.
        older = [one.key for one in bases if position_of(one.key, is_base=True) < loaded.base]
        remove(requests, owned, older)
        return owned


def _refuse_if_owned(
    requests: Requests, layout: StoreKeys, clock: StoreClock, loaded: LoadedRun
) -> None:
    left_s = lease_left_s(loaded, clock)
    if left_s is not None and clock.is_old:
        with suppress(RefusedError):
            probe(requests, layout.new_probe(), clock.set)
        left_s = lease_left_s(loaded, clock)
    holder = loaded.state.holder
    if left_s is not None and holder is not None:
        raise RunLockedError(
            loaded.keys.run_id,
            host=holder.host,
            pid=holder.pid,
            since=utc(holder.since).isoformat(timespec="seconds"),
            lease_left_s=left_s,
        )


def give_back(requests: Requests, clock: StoreClock, owned: OwnedLog) -> None:
    """Release a run; without effect where another process has taken it.

    Raises:
        StoreError: the store does not answer.
    """
    state = owned.loaded.state
    group = LogEntry(state.owner, state.generation, clock.now(), is_released=True)
    try:
        append(requests, owned, group)
    except StoreConflictError:
        logger.info("run %r was taken by another process", owned.keys.run_id)


def compare(owned: OwnedLog | None, key: RunKey) -> OwnedLog:
    """Check that a handle has locked a run as this owner.

    Raises:
        StoreConflictError: it has not.
    """
    if owned is None:
        raise refuse_unlocked(key)
    compare_owner(owned.owner, key)
    return owned
