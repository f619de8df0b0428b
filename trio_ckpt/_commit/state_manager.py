"""The state of one stream: captured with its checkpoints, and restored from them.

Theory of operation
===================

`StateManager.capture` flattens the state while no task changes it, and copies what may have
changed in its arrays.  `StateCapture.encode` makes a frame of that; when the checkpoint with it is
durable, `StateManager.mark_durable` makes it the base of the next delta.

A failed attempt may have changed the state in memory: the state is *dirty* until it is restored
from the last confirmed frame.  A state without arrays is restored at once, since its tree is
still in memory; arrays are read back from the store.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple

import attrs
import msgspec
import trio

from .._journal.record import Record, RecordKind
from .._journal.statistics import ArrayStatistics, StateStatistics
from .._journal.store import Store
from .._util.arguments import shown
from .._util.plain import kind_of
from .._util.threads import run_blocking
from ..state import Plan, check_kind, encode_tree, is_of_kind
from ..state._chain import fill, read_chain
from ..state._retention import Retention, Version, Versions
from ..state._shared_capture import ArrayTools
from .group_commit import GroupCommitter
from .state_capture import StateCapture
from .stored_state import EncodedState, StoredState, is_long, stored_state_of

if TYPE_CHECKING:
    from ..state._arrays.engine import DigestTable

S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREAD_FROM_BYTES = 2**15
"""A state whose last tree was larger is flattened and compared in a thread.

At this size that takes the 5 ms after which the interpreter makes a thread release the GIL, so
smaller ones would gain nothing.  Measured with a task that is due every millisecond while
200,000 keys, or 50,000 small objects, are saved: it was 180 to 450 ms late on the event loop, it
is 7 to 13 ms late beside a thread, and up to 90 ms only when Python's collector of cycles runs.
"""


@attrs.define(eq=False, repr=False)
class StateManager(Generic[S]):
    """Captures, saves and restores the state of one stream.

    Attributes:
        store: The store that arrays are read back from.
        committer: Writes blobs.
        plan: How the state is flattened.
        state: The state in memory, which the user's loop changes.
        kind: The class of the state that the stream was opened with.
        tools: The run's tools for capturing arrays.
        is_dirty: A failed attempt may have changed the state in memory.
        head: The newest state that the store has, also if it is a snapshot.
        confirmed: The newest state that a checkpoint of a batch, or between two, has.
        initial: The state as the user gave it, where it has no arrays.
        reports: How the arrays were captured the last time, by name.
        resumed_from: The batch and the label of the snapshot that `state` was restored from.
        versions: The states that the store has, as far as this session knows, and which are kept.
        left_out, problem: How many snapshots could not be saved, and why the newest could not.
        saves, saved_bytes, held_s: What saving has cost in this session.
        needs_pruning: A chain has begun, so older ones may have to be dropped.
        has_snapshot: `head` is a snapshot.  The next confirmed record then has a frame of its
            own, so that a snapshot is never taken for a confirmed state.
    """

    store: Store
    committer: GroupCommitter
    plan: Plan[S]
    state: S
    tools: ArrayTools
    is_dirty: bool = False
    head: StoredState | None = None
    confirmed: StoredState | None = None
    initial: StoredState | None = None
    reports: dict[str, Any] = attrs.field(factory=dict[str, Any])
    resumed_from: tuple[int, str] | None = None
    versions: Versions = attrs.field(factory=lambda: Versions(Retention()))
    left_out: int = 0
    problem: str = ""
    saves: int = 0
    saved_bytes: int = 0
    held_s: float = 0.0
    needs_pruning: bool = False
    has_snapshot: bool = False
    kind: type[Any] = attrs.field(
        default=attrs.Factory(lambda state_manager: kind_of(state_manager.state), takes_self=True),
        init=False,
    )
    _opened: float = attrs.field(factory=lambda: time.perf_counter(), init=False)
    _held_until: float | None = attrs.field(default=None, init=False)
    _saved: trio.Event | None = None

    # -- saving -------------------------------------------------------------------------------

    async def capture(self) -> StateCapture:
        """Capture the state; when this returns it may change again.

        Raises:
            NotEncodableError: a leaf cannot be saved; the error names its path.

        Cancellation: none.
        """
        started = time.perf_counter()
        try:
            return await self._capture()
        finally:
            self._held_until = time.perf_counter()
            self.held_s += self._held_until - started

    @property
    def max_deltas(self) -> int:
        """How many deltas a chain has at most before a state is saved whole."""
        return self.versions.retention.max_deltas

    async def _capture(self) -> StateCapture:
        if self.plan.runs_code:
            flat = self.plan.flatten(self.state)
        else:
            flat = await self.beside(self.plan.flatten, self.state)
        base = None if self.head is None or is_long(self.head, self.max_deltas) else self.head
        if not flat.arrays:
            return StateCapture(self, base, flat.tree, None)
        held, tables = None, {} if base is None else base.tables
        with trio.CancelScope(shield=True):
            held = await self.tools.hold(flat.arrays, tables)
        return StateCapture(self, base, flat.tree, held)

    async def beside(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function on a tree, in a thread if the last tree was large.

        Cancellation: none.
        """
        kept = self.head or self.confirmed
        if kept is None or len(kept.tree_bytes) < THREAD_FROM_BYTES:
            return func(*args)
        outcomes: list[T] = []
        with trio.CancelScope(shield=True):
            outcomes.append(await run_blocking(func, *args))
        return outcomes[0]

    def check_encodable(self) -> StateCapture:
        """Capture the state without its arrays, and check that all of it can be saved.

        Raises:
            NotEncodableError: a leaf cannot be saved; the error names its path.
        """
        flat = self.plan.flatten(self.state)
        if flat.arrays:
            self.tools.engine().check(flat.arrays)
        return StateCapture(self, None, flat.tree, None)

    async def encode_state(self) -> EncodedState | None:
        """Make a frame of the state as it is; None: it has not changed.

        It waits first for a snapshot that is being saved.

        Cancellation: none.
        """
        await self.wait_saved()
        return await (await self.capture()).encode(is_forced=self.has_snapshot)

    # -- one at a time ------------------------------------------------------------------------

    @property
    def is_saving(self) -> bool:
        """Whether a snapshot is being saved."""
        return self._saved is not None

    def begin_saving(self) -> None:
        """Mark that a snapshot is being saved."""
        self._saved = trio.Event()

    def end_saving(self) -> None:
        """Mark that the snapshot is durable or has failed, and wake the tasks that wait."""
        saved, self._saved = self._saved, None
        if saved is not None:
            saved.set()

    def note_left_out(self, problem: str) -> None:
        """Count a snapshot that could not be saved."""
        self.left_out += 1
        self.problem = problem

    async def wait_saved(self) -> None:
        """Wait until no snapshot is being saved.

        Cancellation: none; a save ends in bounded time.
        """
        with trio.CancelScope(shield=True):
            while self._saved is not None:
                await self._saved.wait()

    # -- what the store has -------------------------------------------------------------------

    def mark_durable(
        self, saved: EncodedState | None, sequence: int, at: float, *, is_confirmed: bool
    ) -> None:
        """Mark a frame as durable: it becomes the base of the next delta.

        Args:
            saved: The frame; None: the state had not changed.
            sequence: The sequence number of its record.
            at: When the record was made; Unix time, s.
            is_confirmed: Whether the record confirms the state; False for a snapshot.
        """
        if saved is not None:
            self.head = saved.stored
            self.saves += 1
            frame = saved.stored.chain[0][1]
            blob_bytes = frame.data_bytes if frame.blob else 0
            self.saved_bytes += len(saved.payload) + blob_bytes
            self.versions.add(Version(sequence, at, frame.lineage, blob_bytes))
            if (frame.is_full and frame.blob) or self.versions.is_too_large:
                self.needs_pruning = True
        self.has_snapshot = not is_confirmed
        if is_confirmed:
            self.confirmed = self.head

    def prune_soon(self) -> None:
        """Let the next `take_dropped` look for states that are not needed, as after an unpin."""
        self.needs_pruning = True

    def take_dropped(
        self, pinned: Collection[bytes], *, is_complete: bool
    ) -> dict[bytes, list[int]]:
        """The chains that are not needed any more, see `Versions.take_dropped`.

        Args:
            pinned: The lineages of chains that are kept.
            is_complete: Whether the stream is complete, so that only the newest other is kept.
        """
        self.needs_pruning = False
        needed = {
            kept.chain[0][1].lineage
            for kept in (self.confirmed, self.head)
            if kept is not None and kept.chain
        }
        return self.versions.take_dropped({*needed, *pinned}, is_complete=is_complete)

    def statistics(self) -> StateStatistics:
        """What capturing and saving the state costs."""
        kept, until = self.head, self._held_until
        return StateStatistics(
            left_out=self.left_out,
            problem=self.problem,
            saves=self.saves,
            saved_bytes=self.saved_bytes,
            held_s=self.held_s,
            held_share=0.0 if until is None else self.held_s / (until - self._opened),
            tree_bytes=0 if kept is None else len(kept.tree_bytes),
            chain=0 if kept is None else len(kept.chain),
            arrays={
                name: ArrayStatistics(r.method, r.reason, r.nbytes, r.copied_bytes, r.changed_bytes)
                for name, r in self.reports.items()
            },
        )

    # -- restoring ----------------------------------------------------------------------------

    async def copy_given(self, state: S) -> None:
        """Begin with a copy of the state that the user gave.

        Later changes to the given object have no effect, and it can be given to several streams;
        but its stateful objects are used as they are.

        Raises:
            NotEncodableError: a leaf cannot be saved; the error names its path.
        """
        flat = self.plan.flatten(state)
        self.state = self.plan.copy(flat.tree, await self.tools.copies(flat))

    async def encode_initial(self, capture: StateCapture) -> EncodedState | None:
        """Record the state as the user gave it; returns the frame to save, None: no need to.

        A state with arrays is saved, because a failed attempt may change them in place.
        """
        if capture.held is not None:
            return await capture.encode()
        self.initial = self.confirmed = StoredState(capture.tree, encode_tree(capture.tree), ())
        return None

    def replace(self, state: S) -> None:
        """Replace the state in memory by another one of the user.

        Raises:
            TypeError: its class is not that of the first one, so that no start could resume it.
        """
        if not is_of_kind(state, self.kind):
            raise TypeError(
                f"stream.state must be a {self.kind.__qualname__}, as the state= that the stream "
                f"was opened with, not {shown(state)}"
            )
        self.state, self.is_dirty, self.resumed_from = state, False, None

    def begin_batch(self, index: int) -> str | None:
        """The label of the snapshot of this batch that the state was restored from; else None.

        If the snapshot is of another batch, the state becomes dirty.
        """
        if self.resumed_from is None:
            return None
        resumed_index, label = self.resumed_from
        if resumed_index == index:
            return label
        self.mark_dirty()
        return None

    def mark_dirty(self) -> None:
        """Mark the in-memory state dirty: a failed attempt may have mutated it.

        A state without arrays and stateful objects is restored here.
        """
        self.is_dirty, self.resumed_from = True, None
        kept = self.confirmed
        if kept is not None and not kept.layout.views and not self.plan.has_objects:
            self.state = self.plan.build(kept.tree, [])
            self.head, self.is_dirty = kept if kept.chain else None, False

    async def restore(self) -> None:
        """Restore a dirty state from the last confirmed checkpoint.

        Cancellation: a cancelled restore leaves the state dirty.
        """
        if self.is_dirty and self.confirmed is not None:
            self.state, tables = await self._build(self.confirmed)
            self.confirmed = kept = attrs.evolve(self.confirmed, tables=tables)
            self.head, self.is_dirty = kept if kept.chain else None, False

    async def load(
        self,
        pages: Callable[[], AsyncGenerator[list[tuple[int, Record]]]],
        named: Collection[int],
    ) -> None:
        """Restore the newest state in the records of a stream.

        Args:
            pages: Reads its records, newest first.
            named: The sequence numbers of records whose blobs are not dropped; read after the
                records.

        Raises:
            StoreDamagedError: a frame is missing or is not what was saved.
            StateChangedError: its class is not that of the state that the user gave.
        """
        seen: list[Version] = []
        head, record = await read_chain(pages(), versions=seen)
        self.versions.add_all(
            version if version.sequence in named else msgspec.structs.replace(version, blob_bytes=0)
            for version in seen
        )
        if not head or record is None:
            return
        kept, given = stored_state_of(head), self.state
        self.plan.check_class(kept.tree, given)
        self.state, tables = await self._build(kept)
        check_kind(given, self.state)
        self.head = self.confirmed = attrs.evolve(kept, tables=tables)
        if record.kind is RecordKind.SNAPSHOT and record.index is not None:
            self.resumed_from = (record.index, str(record.metadata.get("label", "")))
            chain, _ = await read_chain(pages(), with_snapshots=False)
            self.confirmed = stored_state_of(chain) if chain else self.initial
            self.has_snapshot = True

    async def _build(self, kept: StoredState) -> tuple[S, dict[str, DigestTable]]:
        if not kept.layout.views:
            return self.plan.build(kept.tree, []), {}
        engine = self.tools.engine()
        from ..state._arrays.engine import Assembly  # as above

        frames = [frame for _, frame in kept.chain]
        assembly = Assembly(frames)
        run_id = self.committer.run_key.run_id
        await fill(self.store, run_id, assembly, frames, engine.compressor)
        # Objects may copy what they load, to where the tracker does not look yet.
        tracker = None if self.plan.has_objects else engine.tracker
        arrays, tables = await run_blocking(assembly.arrays, tracker)
        return self.plan.build(kept.tree, arrays), tables
