"""Collections: one set of items that any number of processes share, on any number of machines.

Theory of operation.  Each process claims one partition after another, by the lock of its run.  So
what a run promises holds for each partition, and the store alone decides who works on what: there
is no coordinator that could be lost.  A partition becomes free when its process completes it, or
dies.  Processes that find no partition free wait for those that are owned.  The one that gets the
lock of the collection's own run then does the last phase; the others find it done.
"""

# What `opened_of` gives of a collection is private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs
import trio

from .._commit.limits import Limits
from .._commit.shutdown import Stop
from .._journal.collection import (
    FINISH,
    collection_config,
    partition_config,
)
from .._journal.history import ENDED, session_metadata_of
from .._journal.observer import Observer
from .._journal.record import Status
from .._journal.store import RunView, Store
from .._journal.summary import exit_code, phase_statuses
from .._tokens.coordinator import CheckpointCoordinator
from .._util.errors import (
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_FAILED,
    EXIT_SKIPPED,
    ConfigChangedError,
    PartitionsLeftError,
    RunLockedError,
    RunStoppedError,
    StoreDamagedError,
)
from .._util.opening import opening
from .._util.plain import PHASE, RUN_STREAM, Plain
from .._util.uninterrupted import uninterrupted
from ..outputs import place_below
from .announce import announce_stop
from .config import (
    canonical_config,
    diff_config,
    refused_changes,
    resume_command_of,
    without_fields,
)
from .lifecycle import open_run
from .open_run import OpenRun
from .partition import Partition
from .partition_list import PartitionList
from .phase import begin_phase
from .run import Run, open_run_of
from .run_lock import MAX_PAUSE_S, MIN_PAUSE_S
from .verify import Verify

if TYPE_CHECKING:
    from .code import Code

MAX_SHARE = 0.05  # of the time of a process that waits goes into reading the list


@attrs.frozen(kw_only=True)
class RunOptions:
    """What every run of a collection is opened with; see `open_collection`."""

    exclude: tuple[str, ...]
    tunable: tuple[str, ...]
    verify: Verify
    redo_missing: bool
    retry_failed: bool
    limits: Limits | None
    grace_s: float
    save_timeout_s: float
    wait_for_deferred_s: float
    resume_command: str | None
    coordinator: CheckpointCoordinator | None
    observe: tuple[Observer, ...]
    code: Code | None


@uninterrupted
class Collection:
    """An open collection; made by `open_collection`.

    Attributes:
        name: Its name, which is that of its own run.
        partitions: How many partitions it has.
        items: How many items it has; None: it was opened without.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        partitions: int,
        items: int | None,
        output_dir: str | None,
        config: dict[str, object],
        options: RunOptions,
    ) -> None:
        self.name = name
        self.partitions = partitions
        self.items = items
        self._store = store
        self._output_dir = output_dir
        self._config = config
        self._options = options
        self._list = PartitionList(store, name, partitions, retry_failed=options.retry_failed)
        self._finish_code = EXIT_DRAINED
        self._open_runs: set[OpenRun] = set()
        self._stop = Stop(options.grace_s)
        self._stop.changed = self._stop_runs
        self._is_stopping = trio.Event()
        self._body = trio.CancelScope()

    @property
    def exit_code(self) -> int:
        """The exit code for a command that ends now.

        It is 75 while a partition or the last phase has work left, as far as this process knows,
        else 69 if a partition failed for good, else 3 if any batch was skipped, else 0.
        """
        codes = (self._list.exit_code, self._finish_code)
        if codes[0] == EXIT_FAILED:  # so the last phase cannot begin
            return EXIT_FAILED
        order = (EXIT_DRAINED, EXIT_FAILED, EXIT_SKIPPED)
        return next((code for code in order if code in codes), EXIT_COMPLETE)

    def request_stop(self) -> None:
        """Stop in good order, as `Run.request_stop` does, all partitions that are open here.

        It may be called from any task, any thread and any signal handler, more than once.
        """
        self._stop.request()

    @opening("partition")
    async def claim(self) -> AsyncGenerator[Partition | None]:
        """Own a partition for a block: one that no process owns, and that is not complete.

        Where all that are left are owned, it waits until one is free, or all are complete.  A
        process gets a partition once: one that it leaves with work is for other processes, or for
        its next start.  Several tasks may claim at the same time.

        Yields:
            The partition; None: no partition is left that this process can work on.

        Raises:
            RunStoppedError: the collection was stopped, or a limit is reached; see `open_run`.
            RuntimeError: the block has looped over no batches of a stream, so the partition is not
                complete; or it is inside of a block of a partition or of the last phase, for whose
                end it would wait.
            ConfigChangedError: a run that has the name of a partition is not of this collection.
            StoreError: the store cannot be used.
            TrioCkptError: as `open_run` raises it.

        Durability: confirmed batches survive kill -9 and power loss, as the store promises.
        Cancellation: completed batches are saved before it takes effect.
        """
        self._check_not_inside()
        async with AsyncExitStack() as stack:
            partition = await self._take(stack)
            if partition is None:
                yield None
                return
            with self._inside():
                yield partition
            self._check_begun(partition.run)

    @opening("run")
    async def finish(self) -> AsyncGenerator[Run | None]:
        """Do the last phase, once in all processes together, when all partitions are complete.

        It is done when a block of it ends without an exception, and the streams that were opened
        in it are done.  Partitions and the last phase that other processes own are waited for.

        Yields:
            The collection's own run; None: the last phase is done.

        Raises:
            PartitionsLeftError: partitions have failed for good, or were left with work.
            RunStoppedError: the collection was stopped, or a limit is reached; see `open_run`.
            RuntimeError: it is inside of a block of a partition or of the last phase, for whose
                end it would wait.
            StoreError: the store cannot be used.

        Durability: when the block has ended, how it ended is durable.
        Cancellation: completed batches are saved before it takes effect.
        """
        self._check_not_inside()
        await self._wait_for_partitions()
        async with AsyncExitStack() as stack:
            run = await self._take_own_run(stack)
            if run is None:
                yield None
                return
            async with run.phase(FINISH) as phase:
                with self._inside():
                    yield None if phase.complete else run
            self._finish_code = run.exit_code

    # -- blocks inside of blocks -----------------------------------------------------------

    def _check_not_inside(self) -> None:
        if any(block.collection is self and block.is_open for block in _blocks_around.get()):
            raise RuntimeError(
                f"collection {self.name!r}: claim() and finish() wait for what is owned, and this "
                "task is inside of a block of one of them: leave that block first"
            )

    @contextmanager
    def _inside(self) -> Generator[None]:
        """Open a block in which this task, and those begun in it, own a run of the collection."""
        block = _Block(self)
        token = _blocks_around.set((*_blocks_around.get(), block))
        try:
            yield
        finally:
            block.is_open = False
            _blocks_around.reset(token)

    def _check_begun(self, run: Run) -> None:
        """Check that the block of a partition has not ended before it did anything.

        A run that ends so is complete: the next start of its program would find out.  A partition
        that is complete is not claimed again.
        """
        parts = open_run_of(run).parts()
        if run.is_stopping or any(key != RUN_STREAM and parts[key].sequence for key in parts):
            return
        self._check_going_on()
        raise RuntimeError(
            f"partition {run.run_id!r}: its block has ended before any loop over the batches of a "
            "stream; where there is nothing to do for it, loop over a stream without items"
        )

    # -- taking a run ----------------------------------------------------------------------

    async def _take(self, stack: AsyncExitStack) -> Partition | None:
        """Take a partition; the exit stack releases it."""
        pause_s = MIN_PAUSE_S
        while True:
            began, is_any_owned = trio.current_time(), False
            for window in self._list.windows():
                self._check_going_on()
                found = await self._list.read(window)
                is_any_owned |= found.is_any_owned
                for index in found.free:
                    partition = await self._try(stack, index)
                    if partition is not None:
                        return partition
                    is_any_owned |= index not in self._list.over
            if not is_any_owned:
                await trio.lowlevel.checkpoint()
                return None
            pause_s = await self._pause(pause_s, began)

    async def _try(self, stack: AsyncExitStack, index: int) -> Partition | None:
        """Take a partition; None: another owner has it, or it is over."""
        run_id = self._list.run_id(index)
        place = partition_config(self.name, index, self.partitions, self.items)
        async with AsyncExitStack() as own:
            try:
                run = await self._open(own, run_id, place)
            except (ConfigChangedError, StoreDamagedError):
                self._list.claim(index)  # the next claim is for another one
                raise
            if run is None:
                return None
            self._list.claim(index)
            if self._is_over(run):
                self._list.end(index, run.exit_code)  # since it was listed
                return None
            stack.push_async_exit(own.pop_all())
        return Partition(run, index, self.partitions, self.items)

    def _is_over(self, run: Run) -> bool:
        """Whether a partition that was just opened has nothing left for this process."""
        if run.exit_code in (EXIT_FAILED, EXIT_SKIPPED) and self._options.retry_failed:
            return False
        return run.exit_code == EXIT_FAILED or (
            run.found.last_end == ENDED and run.exit_code != EXIT_DRAINED
        )

    async def _take_own_run(self, stack: AsyncExitStack) -> Run | None:
        """Take the collection's own run; None: the last phase is done."""
        pause_s, place = MIN_PAUSE_S, collection_config(self.partitions, self.items)
        while True:
            self._check_going_on()
            began = trio.current_time()
            view = await self._store.load_run(self.name)
            code = None if view is None else _code_if_finished(view)
            if code is not None and not self._options.retry_failed:
                self._finish_code = code
                return None
            run = await self._open(stack, self.name, place)
            if run is not None:
                return run
            pause_s = await self._pause(pause_s, began)

    async def _open(
        self, stack: AsyncExitStack, run_id: str, place: dict[str, Plain]
    ) -> Run | None:
        """Open a run of the collection; None: another owner has it."""
        folder = None if self._output_dir is None else place_below(self._output_dir, run_id)
        opened = open_run(
            run_id,
            store=self._store,
            config=self._config | place,
            output_dir=folder,
            handle_signals=False,
            **attrs.asdict(self._options, recurse=False),
        )
        try:
            run = await stack.enter_async_context(opened)
        except RunLockedError:
            return None
        own = open_run_of(run)
        self._open_runs.add(own)
        stack.callback(self._open_runs.discard, own)
        if self._stop.is_requested:
            self._stop_runs()
        return run

    async def _wait_for_partitions(self) -> None:
        """Wait until no partition is owned by another process.

        Raises:
            PartitionsLeftError: some are not complete then.
        """
        pause_s = MIN_PAUSE_S
        while True:
            began, is_any_owned = trio.current_time(), False
            for window in self._list.windows():
                self._check_going_on()
                is_any_owned |= (await self._list.read(window)).is_any_owned
            if not is_any_owned:
                break
            pause_s = await self._pause(pause_s, began)
        failed, left = self._list.left_over()
        if failed or left:
            raise PartitionsLeftError(self.name, failed, left)

    # -- its beginning, and a stop ---------------------------------------------------------

    async def _begin(self) -> None:
        """Make the collection's own run, unless it is there.

        Raises:
            ConfigChangedError: it is there with another configuration.

        Durability: when this returns the collection is durable.
        """
        pause_s, place = MIN_PAUSE_S, collection_config(self.partitions, self.items)
        while True:
            began = trio.current_time()
            view = await self._store.load_run(self.name)
            self._compare(view, place)
            if view is not None and (PHASE, FINISH) in view.streams:
                return
            async with AsyncExitStack() as stack:
                run = await self._open(stack, self.name, place)
                if run is not None:
                    own = open_run_of(run)
                    await begin_phase(own.committer, own.stream_table.stream_log((PHASE, FINISH)))
                    return
            pause_s = await self._pause(pause_s, began)

    def _compare(self, view: RunView | None, place: dict[str, Plain]) -> None:
        before = {} if view is None else session_metadata_of(view)
        if "config" not in before:
            return
        kept = without_fields(before["config"], self._options.exclude)
        config = canonical_config(self._config | place, self._options.exclude)
        refused = refused_changes(diff_config(kept, config), self._options.tunable)
        if refused:
            remedy = "restore it, or give the collection another name: it is fixed for a collection"
            raise ConfigChangedError(self.name, refused, remedy=remedy)

    def _stop_runs(self) -> None:
        """Pass a stop on to the runs that are open; a second signal cancels them."""
        is_second = self._stop.exit_code != 0
        for own in tuple(self._open_runs):
            own.stop.request(self._stop.forced_code, reason=self._stop.reason)
            if is_second:
                own.stop.cancel_streams(own.stop.forced_code if own.stop.busy else EXIT_DRAINED)
                own.stop.body.cancel()
        if is_second and not self._open_runs:  # else they end the block, with their exit code
            self._body.cancel()
        self._is_stopping.set()

    def _check_going_on(self) -> None:
        if self._stop.is_requested:
            raise self._stopped()

    def _stopped(self) -> RunStoppedError:
        """The error of a collection that was stopped while none of its runs was open here."""
        error = RunStoppedError(
            self.name,
            exit_code=EXIT_DRAINED,
            resume_command=resume_command_of(self._options.resume_command),
            reason=self._stop.reason or None,
        )
        announce_stop(self.name, error)
        return error

    async def _pause(self, pause_s: float, began: float) -> float:
        """Wait before the list is read again, longer each time; a stop ends the wait."""
        took_s = trio.current_time() - began
        with trio.move_on_after(max(pause_s, took_s / MAX_SHARE)):
            await self._is_stopping.wait()
        self._check_going_on()
        return min(2 * pause_s, MAX_PAUSE_S)


@attrs.frozen(eq=False, repr=False)
class OpenCollection:
    """An open collection as what serves synchronous programs sees it.

    Attributes:
        run_id: Its name.
        stop: Whether it is being stopped.
        resume_command: The command that the log shows for a resume.
        stopped: Makes the error of a collection that was stopped.
    """

    run_id: str
    stop: Stop
    resume_command: str | None
    stopped: Callable[[], RunStoppedError]


def opened_of(collection: Collection) -> OpenCollection:
    """The live state of an open collection: for the library, out of reach of users."""
    command = resume_command_of(collection._options.resume_command)
    return OpenCollection(collection.name, collection._stop, command, collection._stopped)


@attrs.define(eq=False, repr=False)
class _Block:
    """A block of a collection in which a run is owned."""

    collection: Collection
    is_open: bool = True


# Those around the code that runs now; a task has those that were around its beginning.
_blocks_around = ContextVar[tuple[_Block, ...]]("trio_ckpt blocks of collections", default=())


def _code_if_finished(view: RunView) -> int | None:
    """The exit code of a collection's own run; None: its last phase is not done."""
    parts = {key: entry.progress for key, entry in view.streams.items()}
    is_done = phase_statuses(parts).get(FINISH) is Status.COMPLETE
    return exit_code(parts, has_ended=True) if is_done else None
