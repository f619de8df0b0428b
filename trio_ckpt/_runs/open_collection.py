"""`open_collection`: its arguments, its signals and its deadline."""

# What a collection keeps for this file is private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection as Container, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from signal import Signals
from typing import TYPE_CHECKING

import attrs

from .._commit.group_commit import DEFAULT_SAVE_TIMEOUT_S
from .._commit.limit_watch import LimitWatch
from .._commit.limits import Limits, checked_limits
from .._commit.shutdown import receive_signals, release_signals, take_signals
from .._journal.collection import MAX_PARTITIONS, partition_id
from .._journal.observer import Observer
from .._journal.store import Store
from .._tokens.coordinator import CheckpointCoordinator
from .._util.arguments import any_path, flag, path_text, seconds, several, signals, whole_number
from .._util.nursery import open_service_nursery
from .._util.opening import opening
from .._util.plain import check_run_id
from .._util.threads import check_trio
from .._util.uninterrupted import uninterrupted
from ..stores import open_store
from .collection import Collection, RunOptions
from .config import DEFAULT_WAIT_S, canonical_config, fields_of
from .lifecycle import DEFAULT_GRACE_S, close_store
from .opening import code_of
from .verify import Verify

if TYPE_CHECKING:
    from .code import Code, OnCodeChange


@opening("collection")
@uninterrupted
async def open_collection(
    name: str,
    *,
    store: Store | str | os.PathLike[str],
    partitions: int,
    items: int | None = None,
    config: object = None,
    exclude: Container[str] = (),
    tunable: Container[str] = (),
    output_dir: str | os.PathLike[str] | None = None,
    verify: Verify = "size",
    redo_missing: bool = False,
    retry_failed: bool = False,
    handle_signals: bool | None = None,
    stop_signals: Container[str] = ("SIGINT", "SIGTERM"),
    limits: Limits | None = None,
    grace_s: float = DEFAULT_GRACE_S,
    save_timeout_s: float = DEFAULT_SAVE_TIMEOUT_S,
    wait_for_deferred_s: float = DEFAULT_WAIT_S,
    resume_command: str | None = None,
    coordinator: CheckpointCoordinator | None = None,
    observe: Sequence[Observer] = (),
    code: OnCodeChange | Code | None = None,
) -> AsyncGenerator[Collection]:
    """Take part in a collection for a block: begin it, or work on it with other processes.

    Every process that takes part opens it with the same arguments, at any time.

    Args:
        name: Its name; the runs of its partitions are named after it: ``crawl.00012``.
        store: Where it is kept, a folder, a URL or a store: one that all processes reach.
        partitions: How many partitions it has, which never changes: 4 to 10 for each process
            that may work on it, each with some 10,000 items.
        items: How many items it has, where they are known by their index: then each partition has
            a `Partition.range`, and this never changes either.
        output_dir: The folder in which each partition has a folder of its own, named as its run.
        retry_failed: Whether partitions that failed for good, or skipped batches, are claimed
            again, once by each process.
        handle_signals: Whether to stop in good order on signals.  Default: in the main thread,
            if no open run does.
        limits: When this process stops in good order by itself.  Deadlines are of this process:
            `Limits.runtime_s` counts from here on.  All other limits are of each partition, and of
            the last phase, as if it were a run by itself.
        wait_for_deferred_s: How long a partition that has only deferred batches left waits for the
            next one that is due, in seconds; if that is later, its run ends with exit code 75, and
            a later start goes on with it.
        config, exclude, tunable, verify, redo_missing: Those of `open_run`, for each of its runs.
        stop_signals, grace_s, save_timeout_s, resume_command: Likewise.
        coordinator, observe, code: Likewise.

    Yields:
        The collection.

    Raises:
        ConfigChangedError: it was begun with other partitions, items or another config.
        RunStoppedError: it was stopped, or a limit is reached.
        StoreError: the store cannot be used.

    Durability: the number of partitions is durable when the block begins.
    Cancellation: completed batches are saved before it takes effect.
    """
    check_trio()
    partitions = whole_number("partitions", partitions, least=1, most=MAX_PARTITIONS)
    options = RunOptions(
        exclude=several("exclude", exclude, "names of fields"),
        tunable=several("tunable", tunable, "names of fields"),
        verify=verify,
        redo_missing=redo_missing,
        retry_failed=flag("retry_failed", retry_failed),
        limits=_limits_of_runs(limits),
        grace_s=seconds("grace_s", grace_s, is_endless_allowed=True),
        save_timeout_s=save_timeout_s,
        wait_for_deferred_s=seconds(
            "wait_for_deferred_s", wait_for_deferred_s, is_endless_allowed=True
        ),
        resume_command=resume_command,
        coordinator=coordinator,
        observe=several("observe", observe, "observers"),
        code=None if code is None else code_of(code),
    )
    canonical_config(config, options.exclude)  # only checked: each run adds its place
    numbers = signals("stop_signals", stop_signals)
    folder = None if output_dir is None else path_text("output_dir", output_dir)
    check_run_id(partition_id(check_run_id(name), partitions - 1, partitions))
    opened = store if isinstance(store, Store) else any_path("store", store)
    async with AsyncExitStack() as stack:
        if not isinstance(opened, Store):
            opened = await open_store(opened)
            stack.push_async_callback(close_store, opened)
        collection = Collection(
            name,
            opened,
            partitions,
            None if items is None else whole_number("items", items),
            folder,
            dict(fields_of(config) or {}),
            options,
        )
        async with _stopping_tasks(collection, handle_signals, numbers, limits):
            await collection._begin()
            with collection._body:
                yield collection
            if collection._body.cancelled_caught:
                raise collection._stopped()


def _limits_of_runs(limits: Limits | None) -> Limits | None:
    """The limits of each run of a collection: their deadline is that of this process.

    So each run stops as long before it as its batches take; a collection that waits for a
    partition stops at it.
    """
    limits = checked_limits(limits)
    if limits is None or limits.runtime_s is None:
        return limits
    ends = datetime.now(UTC) + timedelta(seconds=limits.runtime_s)
    if limits.stop_at is not None:
        ends = min(ends, limits.stop_at)
    return attrs.evolve(limits, runtime_s=None, stop_at=ends)


@asynccontextmanager
async def _stopping_tasks(
    collection: Collection,
    handle_signals: bool | None,
    numbers: tuple[Signals, ...],
    limits: Limits | None,
) -> AsyncGenerator[None]:
    """Run the signal handler and the deadline while the block runs."""
    has_signals, stop = take_signals(handle_signals), collection._stop
    watch = LimitWatch(collection.name, limits or Limits(), stop, collection._options.grace_s, {})
    try:
        async with open_service_nursery() as nursery:
            if has_signals:
                await nursery.start(receive_signals, stop, numbers)
            if watch.has_deadline:
                nursery.start_soon(watch.watch_time)
            yield
    finally:
        if has_signals:
            release_signals()
