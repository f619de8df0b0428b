"""Coordination without I/O, for programs that save by themselves.

    create -> work and save -> complete -> the waiting tasks go on

The coordinator makes tokens, knows the pending ones, and fails those that are left when it is
closed, so that no waiter sleeps for ever.
"""

# Whether tokens of streams are pending is in a private field of the registry.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType

import attrs
import trio

from .._journal.record import CheckpointResult, utc_now
from .._util.arguments import stream_key, whole_number
from .._util.errors import TokenNeverSettledError, describe_batch
from .._util.plain import StreamKey, check_run_id, check_stream_key
from .._util.threads import Portal, check_trio
from .._util.uninterrupted import uninterrupted
from .token import (
    AnyToken,
    Failure,
    TokenEvent,
    TokenRegistry,
    close_registry,
    failure_of,
    make_token,
    may,
    move,
    own_result,
)

NO_STREAM: StreamKey = ()  # known by identity, so that it needs no check

MAX_NAMED = 5  # streams in one message


@uninterrupted
class CheckpointCoordinator:
    """Makes checkpoint tokens and knows the pending ones.  No I/O, no tasks of its own.

    Use it as an async context manager, so that leaving the block fails pending tokens, or
    call `close`.

    Attributes:
        registry: The pending tokens, for monitors.
    """

    def __init__(self) -> None:
        self.registry = TokenRegistry()
        self._host = _Immediate(self.registry)
        self._run_id: object = self  # the newest run id that was checked: none yet

    def create_checkpoint(
        self, run_id: str, batch_index: int, *, stream: StreamKey = NO_STREAM
    ) -> AnyToken:
        """Make the token of a batch.  It confirms as soon as it is completed.

        Args:
            run_id: Any name without path separators and control characters.
            batch_index: The index of the batch, >= 0.
            stream: The parts of a stream's key, which separate the sequences of one run.

        Raises:
            DuplicateCheckpointError: this batch has a pending token.
            ValueError: a bad run id, stream or batch index.
            TypeError: `stream` is not a tuple of str.
            RuntimeError: the caller is not in a trio program.
            trio.ClosedResourceError: the coordinator is closed.
        """
        if run_id is not self._run_id:  # most tokens are of one run
            self._run_id = check_run_id(run_id)
        batch_index = whole_number("batch_index", batch_index)
        if stream is not NO_STREAM and (stream := stream_key("stream", stream)):
            check_stream_key(stream)
        return make_token(run_id, stream, batch_index, self._host, Portal.here())

    def find_checkpoint(
        self, run_id: str, batch_index: int, *, stream: StreamKey | None = None
    ) -> AnyToken | None:
        """The token of a batch while it is pending, else None; None never means success.

        Args:
            run_id: The run.
            batch_index: The batch.
            stream: The key of its stream, ``()`` for none; default: any stream in which such a
                batch is pending.

        Raises:
            ValueError: several streams of the run have such a batch pending.
        """
        batch_index = whole_number("batch_index", batch_index)
        if stream is None:
            return _find_in_any(self.registry, check_run_id(run_id), batch_index)
        return self.registry.find(check_run_id(run_id), stream_key("stream", stream), batch_index)

    def get_pending_checkpoints(self, run_id: str | None = None) -> tuple[AnyToken, ...]:
        """The pending tokens of a run, or of all runs; oldest first."""
        return self.registry.pending(None if run_id is None else check_run_id(run_id))

    @asynccontextmanager
    async def open_checkpoint(
        self, run_id: str, batch_index: int, *, stream: StreamKey = NO_STREAM
    ) -> AsyncGenerator[AnyToken]:
        """Open the token of a batch for a block, so that it is settled when the block ends.

        An exception fails the token and leaves the block as it is; cancellation gives
        waiters `BatchCancelledError`.

        Raises:
            TokenNeverSettledError: the block ended without settling it.

        Cancellation: entering and leaving are schedule points of their own.
        """
        token = self.create_checkpoint(run_id, batch_index, stream=stream)
        await trio.lowlevel.cancel_shielded_checkpoint()
        try:
            yield token
        except BaseException as error:
            _fail(token, failure_of(error))
            raise
        await trio.lowlevel.cancel_shielded_checkpoint()
        if token.is_pending:
            forgotten = TokenNeverSettledError(
                f"the block of {describe_batch(run_id, stream, batch_index)} ended without "
                "complete() or fail()",
                run_id=run_id,
                stream=stream,
                batch_index=batch_index,
            )
            _fail(token, failure_of(forgotten))
            raise forgotten

    def close(self) -> None:
        """Fail pending tokens and make no more, from any thread.  A second call has no effect.

        Raises:
            trio.RunFinishedError: the call comes from another thread, after ``trio.run()`` has
                ended.
        """
        close_registry(self.registry)

    async def __aenter__(self) -> CheckpointCoordinator:
        check_trio()
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()


class _Immediate:
    """The host of tokens without a run: a completed token is confirmed at once."""

    __slots__ = ("registry",)

    def __init__(self, registry: TokenRegistry) -> None:
        self.registry = registry

    def complete(self, token: AnyToken, result: object) -> bool:
        if not may(token, TokenEvent.COMPLETE):
            return False
        move(token, TokenEvent.COMPLETE, stamp(result), then=TokenEvent.CONFIRM)
        return True

    def fail(self, token: AnyToken, error: BaseException | str) -> bool:
        if not may(token, TokenEvent.FAIL):
            return False
        move(token, TokenEvent.FAIL, failure_of(error))
        return True

    def check_wait(self, token: AnyToken) -> None:
        """Allow every wait: any task may settle a token without a run."""

    def ended(self, token: AnyToken) -> None:
        """Do nothing: the coordinator knows pending tokens by its registry alone."""


def stamp(result: object) -> object:
    """Set ``completed_at`` in a copy of a `CheckpointResult` that leaves it out."""
    if not isinstance(result, CheckpointResult):
        return result
    if result.completed_at is None:
        return attrs.evolve(result, completed_at=utc_now())
    return own_result(result)


def _fail(token: AnyToken, failure: Failure) -> None:
    """Fail a token in any state, unless it is settled."""
    if token.is_pending:
        move(token, TokenEvent.REJECT, failure)


def _find_in_any(registry: TokenRegistry, run_id: str, batch_index: int) -> AnyToken | None:
    """The pending token of a batch, without a stream or in any stream.

    Raises:
        ValueError: it is pending in several streams.
    """
    token = registry.find(run_id, (), batch_index)
    if token is not None or not registry._of_streams:
        return token
    found = [token for token in registry.pending(run_id) if token.batch_index == batch_index]
    if len(found) > 1:
        names = ", ".join(repr("/".join(token.stream)) for token in found[:MAX_NAMED])
        raise ValueError(
            f"batch {batch_index} of run {run_id!r} is pending in {len(found)} streams, "
            f"{names}: name one with stream="
        )
    return found[0] if found else None
