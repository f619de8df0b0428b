"""Opening a stream: its records are read, its outputs verified, its state restored.

A blob that is lost, or altered, is noticed in `Resume._load`, where the state is restored from it.
Blobs that no start needs are read by `trio_ckpt._maintenance.verify_states` alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import attrs
import trio

from .._commit.gate import Gate
from .._commit.open_stream import OpenStream
from .._commit.previous import AgainGate, PreviousItems
from .._commit.redo import Redo, retry_record
from .._journal.history import read_pages
from .._journal.record import Record, RecordKind, Status
from .._journal.store import RunView, Store
from .._util.errors import (
    CannotRunAgainError,
    OutputsMissingError,
    StoreDamagedError,
    StreamFailedError,
)
from .._util.index_set import IndexSet
from .._util.log import get_logger
from .._util.uninterrupted import uninterrupted
from ..outputs import SinkTooShortError
from ..state import Frontier, FrontierItems, StateChangedError
from ..state._frontier import items_of
from ..state._retention import Versions
from ..state._shared_capture import ArrayTools
from .again_stream import begin_from_base, load_previous
from .config import Settings
from .loop import LoopCursor
from .stream import Stream
from .verify import Verifier

if TYPE_CHECKING:
    from .._commit.state_manager import StateManager
    from ..sinks._sink import Sink
    from ..sinks._stream_rows import StreamRows

log = get_logger(__name__)

S = TypeVar("S")


@attrs.define(eq=False, repr=False)
class Resume:
    """Opens one stream: verifies its outputs and restores its state.

    Attributes:
        object_owners: The open streams of the run with stateful objects, by the ids of these.
    """

    store: Store
    open_stream: OpenStream
    settings: Settings
    tools: ArrayTools
    object_owners: dict[int, OpenStream]
    sink: Sink | None = None
    _rows: StreamRows | None = attrs.field(default=None, init=False)
    _previous: PreviousItems | None = attrs.field(default=None, init=False)
    _redo: Redo = attrs.field(init=False)
    _beside: _Beside | None = attrs.field(default=None, init=False)
    _named: set[int] = attrs.field(factory=set[int], init=False)  # records that name blobs

    def __attrs_post_init__(self) -> None:
        open_stream = self.open_stream
        self._redo = Redo(
            self.store,
            open_stream.committer,
            open_stream.stream_log,
            open_stream.files.root,
            open_stream.files.path_owners,
            on_requeued=self._on_requeued,
            reverting=self._reverting,
        )

    async def open(self, state: S | None, nursery: trio.Nursery) -> Stream[S]:
        """Read the records, verify the outputs, restore the state.

        Args:
            state: The initial state; None: the stream has no state.
            nursery: The nursery of the run, for the verification of older records.

        Raises:
            StreamFailedError: the stream failed for good.
            CannotRedoError: `retry_failed` is set, and later batches build on a skipped one.
            OutputError: confirmed outputs are damaged; see `trio_ckpt._runs.verify`.
            TypeError: the stream has a saved state, and `state` is None.
            StateChangedError: the saved state does not fit `state`.
            SinkError: the database of the sink cannot be used; see `StreamRows.open`.
        """
        self._check_kind(state)
        await self._take_up_failed()
        frontier: FrontierItems[object] | None = None
        if isinstance(state, Frontier):
            frontier = items_of(cast("Frontier[object]", state))
        if self.settings.base is not None and not self._is_over():
            await self._begin_from(self.settings.base, frontier)
        await self._open_sinks()
        if self.sink is not None:
            from ..sinks._sink import open_rows  # few streams have one

            self._rows = await open_rows(self.sink, self.open_stream, self._pages)
        if frontier is not None:
            await self._load_frontier(frontier)
        else:
            await self._verify(nursery)
            if state is not None:
                await self._restore(cast("object", state))
        return Stream(
            LoopCursor(self._gate(), self._pages, self._wait_verified, self.settings.code),
            self._redo,
            nursery,
        )

    def _gate(self) -> Gate:
        if self._previous is None:
            return Gate(self.open_stream)
        return AgainGate(self.open_stream, previous=self._previous)

    async def _begin_from(self, base: RunView, frontier: FrontierItems[object] | None) -> None:
        """Begin from the last generation, or go on with what began so."""
        if self.sink is not None:
            raise CannotRunAgainError(
                f"{self.open_stream.where()} cannot be done again: the rows in its sink are those "
                "of the last generation; use a database of its own for each generation, or "
                "fresh=True",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
            )
        was = await begin_from_base(self.store, self.open_stream, base, self.settings.lag)
        self._previous = await load_previous(
            self.store,
            self.open_stream,
            base,
            was,
            frontier,
            verify=self.settings.verify,
            redo_missing=self.settings.redo_missing or self.settings.is_settled,
        )

    def _is_over(self) -> bool:
        """Whether the last generation is asked nothing: the stream was complete, or gone."""
        progress = self.open_stream.stream_log.progress
        has_files = progress.outputs > 0 or len(progress.sinks) > 0  # some may be lost
        is_over = progress.status is Status.COMPLETE and not has_files
        return self.settings.is_settled and (is_over or progress.opens == 0)

    def _on_requeued(self, index: int) -> None:
        if self._previous is not None:
            self._previous.requeued.add(index)
        self.open_stream.reconsider(index)

    def _check_kind(self, state: object) -> None:
        progress = self.open_stream.stream_log.progress
        if state is None and (progress.has_state or progress.has_frontier):
            what = "saved state" if progress.has_state else "Frontier"
            raise TypeError(
                f"{self.open_stream.where()} has a {what}: open it with state=..., or its batches "
                "would go on without it"
            )
        if isinstance(state, Frontier) and progress.has_state:
            problem = "the saved state is not a Frontier, but state= is one"
            raise StateChangedError("state", problem)
        if not isinstance(state, Frontier) and progress.has_frontier:
            raise StateChangedError("state", "a Frontier was saved, but state= is not one")

    async def close(self) -> None:
        """End the verification beside the run, because the stream is left.

        Cancellation: none; it ends after the record that is being saved.
        """
        if self._beside is not None:
            await self._beside.close()

    def release(self) -> None:
        """Drop the stream in its sink, when no batch of it is open any more."""
        if self._previous is not None:
            self._previous.close()
        if self.sink is not None:
            from ..sinks._sink import close_rows

            close_rows(self.sink, self.open_stream)

    def _reverting(self, indexes: IndexSet) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._rows is None else self._rows.reverting(indexes)

    async def _wait_verified(self) -> bool:
        return False if self._beside is None else await self._beside.wait()

    async def _take_up_failed(self) -> None:
        progress = self.open_stream.stream_log.progress
        error = progress.error if progress.status is Status.FAILED else None
        if error is not None and not error.retryable and not self.settings.retry_failed:
            raise StreamFailedError(
                f"for good, in an earlier session: {error.message}; retry_failed=True tries again",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
                retryable=False,
            )
        if self.settings.retry_failed and (
            record := retry_record(
                self.open_stream.run_id, self.open_stream.stream_log.key, progress
            )
        ):
            await self.open_stream.save_plain(record)

    async def _open_sinks(self) -> None:
        """Open the append files; batches whose lines are missing from one are re-queued."""
        open_stream = self.open_stream
        for path in tuple(open_stream.stream_log.progress.sinks):
            open_stream.files.claim_sink(path)
        while True:
            try:
                await open_stream.files.settle_sinks()
            except SinkTooShortError as error:
                await self._rewind_shortened(error)
            else:
                return

    async def _rewind_shortened(self, error: SinkTooShortError) -> None:
        """Rewind to before the missing lines, unless the file itself is missing."""
        path, size = error.path, self.open_stream.stream_log.progress.sinks[error.path]
        if error.missing_bytes == size and not self.settings.redo_missing:
            raise OutputsMissingError(
                path,
                f"all {size} confirmed bytes of the append file are missing: is this the right "
                "output folder? redo_missing=True does their batches again",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
            ) from error
        may_lose = self.settings.redo_missing
        await self._redo.rewind_shortened(path, size - error.missing_bytes, may_lose=may_lose)

    def _pages(self) -> AsyncGenerator[list[tuple[int, Record]]]:
        key = self.open_stream.committer.run_key
        stream_log = self.open_stream.stream_log
        return read_pages(self.store, key.run_id, key.generation, stream_log.key, named=self._named)

    def _verifier(self) -> Verifier:
        return Verifier(
            self.open_stream, self._redo, self.settings.verify, self.settings.redo_missing
        )

    # -- frontiers ----------------------------------------------------------------------------

    async def _load_frontier(self, frontier: FrontierItems[object]) -> None:
        """Load the items of all checkpoints into a frontier, and verify their outputs."""
        open_stream = self.open_stream
        verifier, adds = self._verifier(), list[bytes]()
        if open_stream.stream_log.progress.sequence > 0:
            async with aclosing(self._pages()) as pages:
                async for records in pages:
                    if (
                        open_stream.stream_log.progress.outputs
                        or open_stream.stream_log.progress.sinks
                    ):
                        await verifier.check(records)
                    adds += [record.adds for _, record in records if record.adds]
            await verifier.rewind()
        for payload in reversed(adds):
            frontier.fold(payload)
        progress, first = open_stream.stream_log.progress, open_stream.first_index
        frontier.settle_loaded(lambda position: first + position in progress.confirmed)
        open_stream.set_frontier(frontier)
        if seeds := frontier.news(frontier.seeds):
            payload = frontier.encode(seeds)
            await open_stream.save_plain(Record(kind=RecordKind.SAVE, at=time.time(), adds=payload))
            frontier.number(frontier.seeds)

    # -- other streams ------------------------------------------------------------------------

    async def _verify(self, nursery: trio.Nursery) -> None:
        """Check the newest records now, and the others beside the run if batches have no order."""
        open_stream = self.open_stream
        progress = open_stream.stream_log.progress
        if progress.sequence == 0:
            return
        has_folder = open_stream.files.root is not None
        if progress.outputs and not has_folder:
            log.warning(
                "the outputs of %s are not verified: there is no output_dir",
                open_stream.where(),
                extra=open_stream.place(),
            )
        if not (progress.outputs or progress.sinks) or not has_folder:
            return
        verifier = self._verifier()
        async with AsyncExitStack() as stack:
            pages = await stack.enter_async_context(aclosing(self._pages()))
            await verifier.check(await anext(pages))
            if progress.is_ordered:
                async for records in pages:
                    await verifier.check(records)
                await verifier.rewind()
            else:
                self._beside = _Beside(verifier, pages)
                nursery.start_soon(self._beside.run)
                stack.pop_all()  # it closes the pages

    async def _restore(self, state: object) -> None:
        """Restore the saved state; where there is none, begin with the one of the user."""
        from .._commit.state_manager import StateManager  # only streams with a state need it
        from ..state._plan import Plan

        plan = Plan[object].of(state)
        state_manager = StateManager(
            self.store, self.open_stream.committer, plan, state, self.tools
        )
        state_manager.versions = Versions(self.settings.retention)
        self._claim_objects(plan.names)
        # A state that cannot be saved is refused before any work.
        if self.open_stream.stream_log.progress.has_state:
            await state_manager.encode_initial(state_manager.check_encodable())
            await self._load(state_manager)
        else:
            await state_manager.copy_given(state)
            saved = await state_manager.encode_initial(await state_manager.capture())
            if saved is not None:
                record = Record(kind=RecordKind.SAVE, at=time.time(), state=saved.payload)
                sequence = await self.open_stream.save_plain(record, saved.stored.blobs)
                state_manager.mark_durable(saved, sequence, record.at, is_confirmed=True)
        self.open_stream.set_state_manager(state_manager)

    def _claim_objects(self, names: Mapping[int, str]) -> None:
        """Refuse an object that another open stream has in its state: each would load into it."""
        for number, name in names.items():
            owner = self.object_owners.setdefault(number, self.open_stream)
            if owner is not self.open_stream:
                raise ValueError(
                    f"{name} is also in the state of {owner.where()}, which is open: an object "
                    "with a state of its own can be in the state of one stream at a time"
                )

    async def _load(self, state_manager: StateManager[object]) -> None:
        """Restore the saved state; where it is damaged, the newest intact one if `recover`."""
        try:
            await state_manager.load(self._pages, self._named)
        except StoreDamagedError as error:
            if not self.settings.recover:
                raise StoreDamagedError(
                    f"the state of {self.open_stream.where()} cannot be restored: {error}; "
                    "recover=True goes back to the newest state that is whole"
                ) from error
            log.error("%s: %s", self.open_stream.where(), error, extra=self.open_stream.place())
            await self._recover(state_manager)

    async def _recover(self, state_manager: StateManager[object]) -> None:
        """Go back to the newest state that can be restored.

        It may be a snapshot of the newest attempt: progress has not moved since, so nothing is
        rewound, and the next state builds on it.
        """
        is_under_way = True  # only snapshots, notes and intents come after the record
        async with aclosing(self._pages()) as pages:
            async for records in pages:
                for sequence, record in records:
                    is_snapshot = record.kind is RecordKind.SNAPSHOT
                    is_under_way = is_under_way and record.kind in (
                        RecordKind.SNAPSHOT,
                        RecordKind.NOTE,
                        RecordKind.INTENT,
                    )
                    if not record.state or (is_snapshot and not is_under_way):
                        continue
                    state_manager.versions.clear()
                    try:
                        await state_manager.load(partial(up_to, self._pages, sequence), self._named)
                    except StoreDamagedError:
                        continue
                    if is_snapshot:
                        log.warning(
                            "%s goes on from sequence %d",
                            self.open_stream.where(),
                            sequence,
                            extra=self.open_stream.place(),
                        )
                        return
                    reason = f"the states after sequence {sequence} cannot be restored"
                    await self._redo.rewind_before(sequence + 1, reason)
                    state_manager.versions.clear()
                    await state_manager.load(self._pages, self._named)
                    return
        raise StoreDamagedError(
            f"no saved state of {self.open_stream.where()} is whole; start from the beginning "
            "with fresh=True"
        )


async def up_to(
    pages: Callable[[], AsyncGenerator[list[tuple[int, Record]]]], last: int
) -> AsyncGenerator[list[tuple[int, Record]]]:
    """The records of a stream up to the sequence `last`, newest first."""
    async with aclosing(pages()) as newest_first:
        async for records in newest_first:
            yield [(sequence, record) for sequence, record in records if sequence <= last]


@uninterrupted
class _Beside:
    """The verification of the older records, beside the run."""

    def __init__(self, verifier: Verifier, pages: AsyncGenerator[list[tuple[int, Record]]]) -> None:
        self._verifier = verifier
        self._pages = pages
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._failed = False

    async def run(self) -> None:
        """Check page after page; an error ends the run."""
        try:
            with self._scope:
                async with aclosing(self._pages) as pages:
                    async for records in pages:
                        await self._verifier.check(records)
        except BaseException as error:
            self._failed = True
            poison = self._verifier.open_stream.committer.poison
            if error is not poison:  # a poisoned run ends without this error
                raise
        finally:
            self._done.set()

    async def wait(self) -> bool:
        """Wait for the end; returns whether it was still running, so that progress may differ.

        Cancellation: a cancellation point; it does not return when the verification fails,
            because that error is about to end the run.
        """
        if self._done.is_set() and not self._failed:
            return False
        await self._done.wait()
        if self._failed:
            await trio.sleep_forever()
        return True

    async def close(self) -> None:
        """Cancel the verification, and wait until it has ended."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._done.wait()
