"""Snapshots: the state saved inside a batch whose body is long.

A snapshot has no outputs and no totals, and progress does not move.  If the process dies in
the body, the next session begins it with the state of the newest one.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import attrs
import trio

from .._journal.record import Record, RecordKind, describe_error, trouble
from .._util.arguments import checked_by, seconds
from .._util.errors import NotEncodableError, text_of
from .._util.log import at
from .._util.plain import as_metadata, check_point_label
from .._util.text import printable
from .._util.uninterrupted import uninterrupted
from .awaits import Calls, awaits_noted
from .batch import Batch
from .gate import Gate
from .state_manager import StateCapture, StateManager

log = logging.getLogger("trio_ckpt.snapshots")

MAX_NOTES = 10  # different problems of one body that its history has


@uninterrupted
@awaits_noted
@attrs.define(eq=False)
class Snapshots:
    """Saves the state of a stream inside a batch; from `Stream.snapshots`.

    Attributes:
        every_s: At most so often, in seconds of trio's clock.
        saved: How many this block has saved.
        skipped: How many could not be saved.
        problem: Why the newest of those could not; empty: none was skipped.
        overhead_s: Seconds for which the body was held.
        metadata: Kept with each that is saved from now on, beside its label; JSON-like, and
            taken as it is at a point.
    """

    every_s: float = attrs.field(validator=checked_by(seconds, is_endless_allowed=True))
    _open_stream: Gate
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

    async def point(self, label: str = "") -> bool:
        """Save the state as it is here, if it is time; the body must not change it meanwhile.

        It is copied while this is awaited, and saved beside the body.  While one is being
        saved no other is begun: the next point after it takes the newest state.

        During a stop it is always time, and the body does not come back from the point: the
        batch ends here as one that is cancelled, and the next session begins it with this state.

        Args:
            label: Where in the body this is; `Batch.resumed_from` on resume.

        Returns:
            Whether one was begun.

        Cancellation: always a cancellation and a schedule point; what is being copied is
            copied.  During a stop, when all other batches are saved.
        """
        check_point_label(label)
        await trio.lowlevel.checkpoint()
        if self._open_stream.open.get(self._batch.index) is not self._batch:
            raise RuntimeError("a point is for the body of the batch that the block is in")
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
        """Copy the state; None: it cannot be saved, and the body goes on without it."""
        held_from = time.perf_counter()
        try:
            # Before it is copied: another task may come to a point.
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
        """Save the newest state for the next session, and end the body; else it goes on."""
        await self._state_manager.wait_saved()
        saved, begun = self.saved, await self._begin(label)
        if begun is None:
            return False
        await self._save(*begun)
        if self.saved > saved:
            async with self._open_stream.aside(self._batch):  # which is not left during a stop
                pass
        return True

    def point_sync(self, label: str = "") -> bool:
        """The same from any other thread, which waits for it.

        Raises:
            trio.RunFinishedError: the program has ended by then: so during a stop, in a thread
                that trio has not started.
        """
        if _is_of_trio():
            return trio.from_thread.run(self.point, label)
        token = self._batch.portal.trio_token
        try:
            return trio.from_thread.run(self.point, label, trio_token=token)
        except trio.Cancelled:
            raise trio.RunFinishedError(
                f"{self._where} was ended by a stop at this point, and the program has ended"
            ) from None

    def hurry(self) -> None:
        """Let the next point save, however long ago the last one did."""
        self._due = -math.inf

    def check_awaited(self) -> None:
        """See that no await was forgotten.

        Raises:
            NeverAwaitedError: one was.
        """
        if (error := self._calls.problem(self._open_stream.where(self._batch.index))) is not None:
            raise error

    async def wait(self) -> None:
        """Wait until nothing is being saved any more."""
        await self._state_manager.wait_saved()

    @property
    def _where(self) -> str:
        return self._open_stream.where(self._batch.index)

    async def _save(self, capture: StateCapture, metadata: dict[str, Any]) -> None:
        """Save one, beside the body; a failure is told: earlier ones stay valid."""
        try:
            with trio.CancelScope(shield=True):
                saved = await capture.pack()
                if saved is not None:
                    record = Record(
                        kind=RecordKind.SNAPSHOT,
                        at=time.time(),
                        index=self._batch.index,
                        attempts=self._batch.attempt,
                        metadata=metadata,
                        state=saved.payload,
                    )
                    sequence = await self._open_stream.save_plain(record, saved.kept.blobs)
                    self._state_manager.mark_durable(saved, sequence, record.at, is_confirmed=False)
                    await self._open_stream.prune_state()
                self.saved += 1
        except Exception as error:
            self._leave_out(error)  # earlier ones stay valid
        finally:
            self._state_manager.end_saving()  # first: the end of the block waits for it
            self._due = trio.current_time() + self.every_s

    def _leave_out(self, error: BaseException) -> None:
        """Say that one is not saved: in the log, in the statistics, and once in the history."""
        self.skipped += 1
        self.problem = problem = describe_error(error).message
        self._state_manager.note_left_out(problem)
        self._open_stream.coordinator.registry.touch()  # it is to be published
        log.warning(
            "a snapshot of %s is left out: %s",
            self._where,
            printable(problem),
            extra=at(self._open_stream.run_id, self._open_stream.stream_log.key, self._batch.index),
        )
        if problem not in self._noted and len(self._noted) < MAX_NOTES:
            self._noted.add(problem)
            self._nursery.start_soon(self._save_note, f"a snapshot is left out: {problem}")

    async def _save_note(self, text: str) -> None:
        """Keep it in the history of the stream, best effort."""
        record = trouble(text, index=self._batch.index)
        with trio.CancelScope(shield=True):
            try:
                await self._open_stream.save_plain(record)
            except Exception as error:
                log.debug(
                    "a note of %s is not saved: %s",
                    self._where,
                    text_of(error),
                    extra=at(
                        self._open_stream.run_id,
                        self._open_stream.stream_log.key,
                        self._batch.index,
                    ),
                )


def _is_of_trio() -> bool:
    """Whether trio has started this thread."""
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True
