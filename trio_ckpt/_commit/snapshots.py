"""Snapshots: the state saved inside a batch whose body is long.

A snapshot has no outputs and no totals, and progress does not move.  If the process dies in
the body, the next session runs the body with the state of the newest snapshot.
"""

# What the library asks of snapshots is below the class, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._journal.record import Record, RecordKind, describe_error, trouble
from .._tokens.token import portal_of, touch
from .._util.arguments import checked_by, seconds
from .._util.errors import NotEncodableError
from .._util.exceptions import text_of
from .._util.log import get_logger
from .._util.plain import as_metadata, check_point_label
from .._util.shown import Shown
from .._util.text import number, printable, stream_name
from .._util.uninterrupted import uninterrupted
from .awaits import Calls, awaits_noted
from .batch import Batch
from .open_stream import OpenStream

if TYPE_CHECKING:
    from .state_capture import StateCapture
    from .state_manager import StateManager

log = get_logger(__name__)

MAX_NOTES = 10  # different problems of one body that are saved in the history


@uninterrupted
@awaits_noted
@attrs.define(eq=False, repr=False)
class Snapshots(Shown):
    """Saves the state of a stream inside a batch; made by `Stream.snapshots`.

    Attributes:
        every_s: The least time between two snapshots, in seconds on trio's clock.
        saved: How many snapshots this block has saved.
        skipped: How many could not be saved.
        problem: Why the newest of those could not be saved; empty: all were saved.
        overhead_s: For how long the body waited for copies, in seconds.
        metadata: JSON-like values that are saved with each snapshot, beside its label; a point
            saves them as they are then.
    """

    every_s: float = attrs.field(validator=checked_by(seconds, is_endless_allowed=True))
    _open_stream: OpenStream
    _state_manager: StateManager[object]
    _batch: Batch[object]
    _nursery: trio.Nursery
    saved: int = attrs.field(default=0, init=False)
    skipped: int = attrs.field(default=0, init=False)
    problem: str = attrs.field(default="", init=False)
    overhead_s: float = attrs.field(default=0.0, init=False)
    metadata: dict[str, Any] = attrs.field(factory=dict[str, Any], init=False)
    _due: float = attrs.field(factory=trio.current_time, init=False)
    _noted: set[str] = attrs.field(factory=set[str], init=False)
    _calls: Calls = attrs.field(factory=Calls, init=False)

    def _shown(self) -> Iterable[tuple[str, str]]:
        token = self._batch.token
        return [
            ("", ""),
            ("batch", number(token.batch_index)),
            ("of", stream_name(token.stream)),
            ("saved", number(self.saved)),
            ("skipped", number(self.skipped) if self.skipped else ""),
        ]

    async def point(self, label: str = "") -> bool:
        """Save the state as it is now if a snapshot is due.

        The state is copied while this is awaited, during which the body must not change it, and
        saved beside the body.  While a snapshot is being saved, points do nothing.

        During a stop a snapshot is always due, and the body does not return from the point: the
        batch ends here as one that is cancelled, and the next session runs it with this state.

        Args:
            label: The place in the body; on resume it is `Batch.resumed_from`.

        Returns:
            Whether a snapshot was begun.

        Raises:
            ValueError: the label is too long.
            RuntimeError: the caller is not in the body of the batch of this block.

        Durability: none yet; `wait` returns when the snapshot is durable or could not be saved.
        Cancellation: always a cancellation and a schedule point; a copy that has begun is
            finished.  During a stop it is cancelled when all other batches are saved.
        """
        check_point_label(label)
        await trio.lowlevel.checkpoint()
        if self._open_stream.open.get(self._batch.index) is not self._batch:
            raise RuntimeError(
                f"{self._where} is not open any more: call point() in the body of the batch in "
                "which the snapshots were opened"
            )
        if self._open_stream.stop.is_requested:
            return await self._save_and_park(label)
        if self._state_manager.is_saving or trio.current_time() < self._due:
            return False
        begun = await self._begin(label)
        if begun is None:
            return False
        self._nursery.start_soon(self._save, *begun)
        return True

    async def _begin(self, label: str) -> tuple[StateCapture, dict[str, Any]] | None:
        """Copy the state; None: it cannot be saved, and the body goes on without a snapshot."""
        held_from = time.perf_counter()
        try:
            # Before the copy: another task may reach a point during it.
            self._state_manager.begin_saving()
            metadata = as_metadata({**self.metadata, "label": label})
            capture = await self._state_manager.capture()
        except BaseException as error:
            self._state_manager.end_saving()
            if not isinstance(error, NotEncodableError | MemoryError):
                raise
            self._due = trio.current_time() + self.every_s
            self._leave_out(error)
            return None
        self.overhead_s += time.perf_counter() - held_from
        return capture, metadata

    async def _save_and_park(self, label: str) -> bool:
        """Save the newest state for the next session, and end the body if that succeeds."""
        await self._state_manager.wait_saved()
        saved, begun = self.saved, await self._begin(label)
        if begun is None:
            return False
        await self._save(*begun)
        if self.saved > saved:
            async with self._open_stream.aside(self._batch):  # never returns during a stop
                pass
        return True

    def point_sync(self, label: str = "") -> bool:
        """Call `point` from another thread, which waits for it.

        Args:
            label: The place in the body; on resume it is `Batch.resumed_from`.

        Returns:
            Whether a snapshot was begun.

        Raises:
            ValueError: the label is too long.
            RuntimeError: the batch of this block is not open any more.
            trio.RunFinishedError: the program has ended; after a stop also in a thread that trio
                has not started.

        Durability: as for `point`.
        """
        if _is_of_trio():
            return trio.from_thread.run(self.point, label)
        token = portal_of(self._batch.token).trio_token
        try:
            return trio.from_thread.run(self.point, label, trio_token=token)
        except trio.Cancelled:
            raise trio.RunFinishedError(
                f"{self._where} was ended by a stop at this point, and the program has ended"
            ) from None

    async def wait(self) -> None:
        """Wait until no snapshot is being saved.

        Durability: when this returns the snapshots that `saved` counts are durable.
        Cancellation: none; a save ends in bounded time.
        """
        await self._state_manager.wait_saved()

    @property
    def _where(self) -> str:
        return self._open_stream.where(self._batch.index)

    async def _save(self, capture: StateCapture, metadata: dict[str, Any]) -> None:
        """Save a snapshot beside the body; a failure is logged, and earlier ones stay valid."""
        try:
            with trio.CancelScope(shield=True):
                saved = await capture.encode()
                if saved is not None:
                    from .archive_states import prune_states  # few programs take snapshots

                    record = Record(
                        kind=RecordKind.SNAPSHOT,
                        at=time.time(),
                        index=self._batch.index,
                        attempts=self._batch.attempt,
                        metadata=metadata,
                        state=saved.payload,
                    )
                    sequence = await self._open_stream.save_plain(record, saved.stored.blobs)
                    self._state_manager.mark_durable(saved, sequence, record.at, is_confirmed=False)
                    await prune_states(self._open_stream)
                self.saved += 1
        except Exception as error:
            self._leave_out(error)  # earlier ones stay valid
        finally:
            self._state_manager.end_saving()  # first: the end of the block waits for it
            self._due = trio.current_time() + self.every_s

    def _leave_out(self, error: BaseException) -> None:
        """Record that a snapshot is not saved: in log and statistics, and once in the history."""
        self.skipped += 1
        self.problem = problem = describe_error(error).message
        self._state_manager.note_left_out(problem)
        touch(self._open_stream.registry)  # publishes the change
        log.warning(
            "a snapshot of %s is left out: %s",
            self._where,
            printable(problem),
            extra=self._open_stream.place(self._batch.index),
        )
        if problem not in self._noted and len(self._noted) < MAX_NOTES:
            self._noted.add(problem)
            self._nursery.start_soon(self._save_note, f"a snapshot is left out: {problem}")

    async def _save_note(self, text: str) -> None:
        """Save a note in the history of the stream, best effort."""
        record = trouble(text, index=self._batch.index)
        with trio.CancelScope(shield=True):
            try:
                await self._open_stream.save_plain(record)
            except Exception as error:
                log.debug(
                    "a note of %s is not saved: %s",
                    self._where,
                    text_of(error),
                    extra=self._open_stream.place(self._batch.index),
                )


def make_due(snapshots: Snapshots) -> None:
    """Make a snapshot due at the next point."""
    snapshots._due = -math.inf


def put_off(snapshots: Snapshots) -> None:
    """Let the first snapshot be due after `every_s`, as all others are, not at the first point."""
    snapshots._due = trio.current_time() + snapshots.every_s


def check_snapshots_awaited(snapshots: Snapshots) -> None:
    """Check that no method of the snapshots was called without await.

    Raises:
        NeverAwaitedError: a method was called without await.
    """
    if (error := snapshots._calls.problem(snapshots._where)) is not None:
        raise error


def _is_of_trio() -> bool:
    """Whether trio has started this thread."""
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True
