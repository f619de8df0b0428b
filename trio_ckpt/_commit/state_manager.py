"""The state of one stream: captured with its checkpoints, and what it is restored from.

Theory of operation
===================

`StateManager.capture` takes the state apart while nobody changes it, and copies what may have
changed in its arrays.  `StateCapture.pack` makes a frame of that; when the checkpoint with it is
durable, `StateManager.mark_durable` makes it what the next one is a difference to.

A failed attempt has changed the state in memory: it is *tainted* until it is restored from
the last confirmed frame.  A state without arrays is restored at once, since its tree is
still in memory; arrays are read back from the store.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple

import attrs
import trio

from .._journal.record import Record, RecordKind
from .._journal.statistics import ArrayStatistics, StateStatistics
from .._journal.store import Store
from .._util.arguments import shown
from .._util.plain import kind_of
from .._util.threads import run_blocking
from ..state import (
    NO_ARRAYS,
    NO_PARENT,
    Plan,
    StateFrame,
    Tree,
    check_kind,
    diff_tree,
    encode_frame,
    encode_tree,
    frame_digest,
    is_of_kind,
    new_lineage,
)
from ..state._chain import fill, read_chain
from ..state._retention import Retention, Version, Versions
from ..state._shared_capture import ArrayTools
from .group_commit import GroupCommitter
from .stored_state import (
    DELTA_FROM_BYTES,
    EncodedState,
    StoredState,
    is_long,
    is_unchanged,
    kept_of,
)

if TYPE_CHECKING:
    from ..state._arrays.engine import ArrayCapture, DigestTable, EncodedArrays, Piece

S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

INLINE_BYTES = 2**18  # of array data, or the store's limit: more goes into a blob of its own
THREAD_FROM_BYTES = 2**15
"""Of the tree, the last time: a larger one is taken apart and compared in a thread.

At this size that takes the 5 ms after which the interpreter makes a thread give the GIL away, so
smaller ones would gain nothing.  Measured with a task that wants to wake every millisecond while
200,000 keys, or 50,000 small objects, are saved: it was 180 to 450 ms late on the event loop, it
is 7 to 13 ms late beside a thread, and up to 90 ms only when Python's collector of cycles runs.
"""


@attrs.define(eq=False)
class StateManager(Generic[S]):
    """Keeps the state of one stream.

    Attributes:
        plan: How the state is taken apart.
        state: As the user's loop has it.
        kind: The class of the one that the stream was opened with.
        tools: What its arrays are captured with, those of the run.
        is_dirty: A failed attempt has changed it.
        head: The newest state that the store has, also one of inside a batch.
        confirmed: The newest that a checkpoint of a batch, or between two, has.
        initial: As the user gave it, where it has no arrays.
        reports: How the arrays were captured the last time, by name.
        resumed_from: The batch, and the label of the snapshot in it, that `state` is of.
        versions: What the store has, as far as this session knows, and what is kept of it.
        saves, saved_bytes, held_s: What saving has cost in this session.
        needs_pruning: A chain has begun: older ones may have to go.
        has_snapshot: `head` is of inside a batch: the next confirmed record has a frame of
            its own, so that a snapshot is never the answer to what was confirmed.
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
        """Take the state apart; when this returns it may change again.

        Raises:
            NotEncodableError: with the path of the leaf that cannot be saved.

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
        """After so many differences a state is saved whole."""
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
        """Work on a tree: in a thread if it was large the last time, so that others go on.

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
        """The same without a copy of what is in arrays: to see that it can be saved."""
        flat = self.plan.flatten(self.state)
        if flat.arrays:
            self.tools.engine().check(flat.arrays)
        return StateCapture(self, None, flat.tree, None)

    async def save(self) -> EncodedState | None:
        """Make a frame of the state as it is; None: nothing has changed.

        A snapshot that is on its way lands first.
        """
        await self.wait_saved()
        return await (await self.capture()).pack(is_forced=self.has_snapshot)

    # -- one at a time ------------------------------------------------------------------------

    @property
    def is_saving(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._saved is not None

    def begin_saving(self) -> None:
        """Take note that one is."""
        self._saved = trio.Event()

    def end_saving(self) -> None:
        """Take note that it has landed, or failed."""
        saved, self._saved = self._saved, None
        if saved is not None:
            saved.set()

    def note_left_out(self, problem: str) -> None:
        """Count a snapshot that could not be saved."""
        self.left_out += 1
        self.problem = problem

    async def wait_saved(self) -> None:
        """Wait until none is on its way.

        Cancellation: none; a save ends in bounded time.
        """
        with trio.CancelScope(shield=True):
            while self._saved is not None:
                await self._saved.wait()

    # -- what the store has -------------------------------------------------------------------

    def mark_durable(
        self, saved: EncodedState | None, sequence: int, at: float, *, is_confirmed: bool
    ) -> None:
        """Take note that a frame is durable; None: that of a state that had not changed.

        Args:
            saved: The frame.
            sequence: Of the record with it.
            at: When that was saved; Unix time, s.
            is_confirmed: Whether that is no snapshot.
        """
        if saved is not None:
            self.head = saved.kept
            self.saves += 1
            frame = saved.kept.chain[0][1]
            blob_bytes = frame.data_bytes if frame.blob else 0
            self.saved_bytes += len(saved.payload) + blob_bytes
            self.versions.add(Version(sequence, at, frame.lineage, blob_bytes))
            if (frame.is_full and frame.blob) or self.versions.is_too_large:
                self.needs_pruning = True
        self.has_snapshot = not is_confirmed
        if is_confirmed:
            self.confirmed = self.head

    def take_dropped(
        self, pinned: Collection[bytes], *, is_complete: bool
    ) -> dict[bytes, list[int]]:
        """The chains that are not needed any more, see `Versions.take_dropped`.

        Args:
            pinned: Chains that stay.
            is_complete: Of the others only the newest does.
        """
        self.needs_pruning = False
        needed = {
            kept.chain[0][1].lineage
            for kept in (self.confirmed, self.head)
            if kept is not None and kept.chain
        }
        return self.versions.take_dropped({*needed, *pinned}, is_complete=is_complete)

    def statistics(self) -> StateStatistics:
        """What the state costs."""
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
                name: ArrayStatistics(r.rung, r.reason, r.nbytes, r.copied_bytes, r.changed_bytes)
                for name, r in self.reports.items()
            },
        )

    # -- restoring ----------------------------------------------------------------------------

    async def take(self, state: S) -> None:
        """Begin with a copy of the state that the user gave.

        What the user does to the one that was given changes nothing, and it can be given to
        several streams.

        Raises:
            NotEncodableError: with the path of the leaf that cannot be saved.
        """
        flat = self.plan.flatten(state)
        arrays: list[object] = []
        if flat.arrays:
            arrays = await run_blocking(self.tools.engine().copies, flat.arrays)
        self.state = self.plan.build(flat.tree, arrays)

    async def begin(self, capture: StateCapture) -> EncodedState | None:
        """Take note of the state as the user gave it; returns what is to be saved of it.

        Arrays have to be: nothing else could say later what they were.
        """
        if capture.held is not None:
            return await capture.pack()
        self.initial = self.confirmed = StoredState(capture.tree, encode_tree(capture.tree), ())
        return None

    def replace(self, state: S) -> None:
        """Take another state from the user: it is what counts, whatever was there.

        Raises:
            TypeError: it is of another kind than the first one, so no start could go on from it.
        """
        if not is_of_kind(state, self.kind):
            raise TypeError(
                f"stream.state must be a {self.kind.__qualname__}, as the state= that the stream "
                f"was opened with, not {shown(state)}"
            )
        self.state, self.is_dirty, self.resumed_from = state, False, None

    def begin_batch(self, index: int) -> str | None:
        """The label of the snapshot that the state is of, if that is of this batch.

        If it is of another one, which is not the first that is left, the state is tainted.
        """
        if self.resumed_from is None:
            return None
        resumed_index, label = self.resumed_from
        if resumed_index == index:
            return label
        self.mark_dirty()
        return None

    def mark_dirty(self) -> None:
        """Take note that a failed attempt may have changed the state."""
        self.is_dirty, self.resumed_from = True, None
        kept = self.confirmed
        if kept is not None and not kept.layout.views:
            self.state = self.plan.build(kept.tree, [])
            self.head, self.is_dirty = kept if kept.chain else None, False

    async def restore(self) -> None:
        """Make the state again what the last confirmed checkpoint says.

        Cancellation: a state is whole or tainted.
        """
        if self.is_dirty and self.confirmed is not None:
            self.state, tables = await self._build(self.confirmed)
            self.confirmed = self.head = attrs.evolve(self.confirmed, tables=tables)
            self.is_dirty = False

    async def load(
        self,
        pages: Callable[[], AsyncGenerator[list[tuple[int, Record]]]],
        named: Collection[int],
    ) -> None:
        """Restore the state that the records of a stream end with.

        Args:
            pages: Gives its records, newest first.
            named: Has by then the sequences of those whose blobs were not let go of.

        Raises:
            StoreDamagedError: a frame is missing or is not what was saved.
            StateChangedError: it is of another kind than the state that the user gave.
        """
        seen: list[Version] = []
        head, record = await read_chain(pages(), versions=seen)
        self.versions.add_all(
            version if version.sequence in named else attrs.evolve(version, blob_bytes=0)
            for version in seen
        )
        if not head or record is None:
            return
        kept, given = kept_of(head), self.state
        self.plan.check_class(kept.tree, given)
        self.state, tables = await self._build(kept)
        check_kind(given, self.state)
        self.head = self.confirmed = attrs.evolve(kept, tables=tables)
        if record.kind is RecordKind.SNAPSHOT and record.index is not None:
            self.resumed_from = (record.index, str(record.metadata.get("label", "")))
            chain, _ = await read_chain(pages(), with_snapshots=False)
            self.confirmed = kept_of(chain) if chain else self.initial
            self.has_snapshot = True

    async def _build(self, kept: StoredState) -> tuple[S, dict[str, DigestTable]]:
        if not kept.layout.views:
            return self.plan.build(kept.tree, []), {}
        engine = self.tools.engine()
        from ..state._arrays.engine import Assembly  # as above

        frames = [frame for _, frame in kept.chain]
        assembly = Assembly(frames)
        await fill(self.store, assembly, frames, engine.compressor)
        arrays, tables = await run_blocking(assembly.arrays, engine.tracker)
        return self.plan.build(kept.tree, arrays), tables


@attrs.define(eq=False)
class StateCapture:
    """A state as it was at one moment.

    Attributes:
        state_manager: Whose.
        base: What it is the difference to; None: it begins a chain.
        tree: Without its arrays.
        held: Copies of what may have changed in those.
    """

    state_manager: StateManager[Any]
    base: StoredState | None
    tree: Any
    held: ArrayCapture | None

    async def pack(self, *, is_forced: bool = False) -> EncodedState | None:
        """Make a frame of it, its blob durable; None: nothing has changed.

        Args:
            is_forced: Make one also if nothing has changed.

        Raises:
            StoreError: the blob cannot be put.

        Cancellation: none.
        """
        held = self.held
        if held is None:
            return await self._frame(None, b"", "", is_forced=is_forced)
        try:
            data, blob, stored = b"", "", None
            with trio.CancelScope(shield=True):
                data, blob = await self._put(held)
                stored = await run_blocking(held.stored)
                self.state_manager.reports = stored.reports
            return await self._frame(stored, data, blob, is_forced=is_forced)
        finally:
            held.release()

    async def _put(self, held: ArrayCapture) -> tuple[bytes, str]:
        """What changed in arrays: the bytes if they are few, else the name of their blob."""
        pieces = held.pieces()
        limit = min(INLINE_BYTES, self.state_manager.store.inline_limit_bytes)
        first = await run_blocking(_take_first, pieces, limit)
        if sum(map(len, first)) > limit:
            return b"", await self.state_manager.committer.put_blob(chain(first, pieces))
        return b"".join(first), ""

    async def _frame(
        self, stored: EncodedArrays | None, data: bytes, blob: str, *, is_forced: bool
    ) -> EncodedState | None:
        """The same, of arrays that are packed."""
        state_manager, head = self.state_manager, self.base
        encoded = await state_manager.beside(encode_tree, self.tree)
        if head is not None and not is_forced and is_unchanged(head, encoded, stored):
            return None
        if stored is None and len(encoded) < DELTA_FROM_BYTES:
            head = None  # so small that a chain would cost more than it saves
        tree = encoded
        if head is not None:
            is_same = encoded == head.tree_bytes
            tree = (
                b"" if is_same else await state_manager.beside(_encode_delta, head.tree, self.tree)
            )
        layout = NO_ARRAYS if stored is None else stored.layout
        frame = StateFrame(
            lineage=new_lineage() if head is None else head.chain[0][1].lineage,
            number=0 if head is None else head.chain[0][1].number + 1,
            parent=NO_PARENT if head is None else head.digest,
            tree=tree,
            layout=None if head is not None and layout == head.layout else layout,
            patches=() if stored is None else stored.patches,
            data=data,
            blob=blob,
            data_bytes=0 if stored is None else stored.nbytes,
        )
        payload = encode_frame(frame)
        link = (frame_digest(payload), frame)
        return EncodedState(
            payload,
            StoredState(
                self.tree,
                encoded,
                (link, *(() if head is None else head.chain)),
                {} if stored is None else stored.tables,
                layout,
            ),
        )

    def release(self) -> None:
        """Give the copies back: it is not to be saved."""
        if self.held is not None:
            self.held.release()


def _take_first(pieces: Iterator[Piece], limit: int) -> list[Piece]:
    """As many as show whether they are few."""
    first: list[Piece] = []
    size = 0
    while size <= limit and (piece := next(pieces, None)) is not None:
        first.append(piece)
        size += len(piece)
    return first


def _encode_delta(old: Tree, new: Tree) -> bytes:
    delta = diff_tree(old, new)
    return b"" if delta is None else encode_tree(delta)
