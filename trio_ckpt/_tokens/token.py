"""The token: the one-shot promise of one batch, and the registry of those that are pending.

Theory of operation
===================

A token begins PENDING.  The table `TRANSITIONS` defines which events may happen to it, and
`move` is the only function that changes a state.

    complete    the user is done; the result is not durable yet
    confirm     the record is durable
    fail        the user gave it up, where no run has to save that
    reject      a run ends it: its batch failed, was skipped or cancelled, or was not saved
    retry       a completed batch did not pass its checks and runs again
    withdraw    the batch does not exist

CONFIRMED, FAILED and WITHDRAWN are final: a second event changes nothing.  Events that
come from users return False when the table refuses them, because settling twice is
safe; events of the library raise, because there they are a bug.

The token's *host* decides what a user's event means.  A coordinator without a run
confirms at once; a run's stream marks its attempt and lets the gate save first.

The `trio.Event` of a token is made by the first wait, so a token without waiters costs
one small object.

Watching the registry is level-triggered: it has a version that grows with every change, and
`TokenRegistry.wait_changed` returns at once if it has moved past the version that the caller
knows.  So a monitor that was busy may miss intermediate states, but never the latest one, and
does not poll.
"""

# Functions below the classes change tokens and registries, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import enum
import time
import warnings
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import attrs
import msgspec
import trio

from .._journal.record import CheckpointResult, Output
from .._util.arguments import reason, whole_number
from .._util.errors import (
    BatchCancelledError,
    BatchWithdrawnError,
    CheckpointFailedError,
    DuplicateCheckpointError,
    describe_batch,
)
from .._util.exceptions import failures_in, text_of
from .._util.plain import Plain, StreamKey
from .._util.threads import Portal, from_any_thread
from .._util.uninterrupted import uninterrupted

T = TypeVar("T")


class TokenState(enum.Enum):
    """The state of a token."""

    PENDING = "pending"
    COMPLETED = "completed"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is Python code


class TokenEvent(enum.Enum):
    """An event in the life of a token."""

    COMPLETE = "complete"
    CONFIRM = "confirm"
    FAIL = "fail"
    REJECT = "reject"
    RETRY = "retry"
    WITHDRAW = "withdraw"

    __hash__ = object.__hash__


TRANSITIONS: dict[TokenState, dict[TokenEvent, TokenState]] = {
    TokenState.PENDING: {
        TokenEvent.COMPLETE: TokenState.COMPLETED,
        TokenEvent.FAIL: TokenState.FAILED,
        TokenEvent.REJECT: TokenState.FAILED,
        TokenEvent.WITHDRAW: TokenState.WITHDRAWN,
    },
    TokenState.COMPLETED: {
        TokenEvent.CONFIRM: TokenState.CONFIRMED,
        TokenEvent.REJECT: TokenState.FAILED,
        TokenEvent.RETRY: TokenState.PENDING,
    },
    TokenState.CONFIRMED: {},
    TokenState.FAILED: {},
    TokenState.WITHDRAWN: {},
}

_PENDING = TokenState.PENDING
_CONFIRMED = TokenState.CONFIRMED
_FINAL = frozenset(state for state, events in TRANSITIONS.items() if not events)


class Failure(msgspec.Struct, frozen=True):
    """Why a token failed; each waiter gets its own exception, made from this."""

    reason: str
    cause: BaseException | None = None
    error: type[CheckpointFailedError] = CheckpointFailedError


CANCELLED = Failure("it was cancelled before it was settled", error=BatchCancelledError)
WITHDRAWN = Failure("it was withdrawn: there is no such batch", error=BatchWithdrawnError)
_CLOSED = Failure("its coordinator was closed before it was settled", error=BatchCancelledError)


def failure_of(error: BaseException | str) -> Failure:
    """Make a `Failure` of an exception or a text.

    trio's own cancellation is not kept: waiters of a cancelled batch are not cancelled.
    """
    if isinstance(error, str):
        return Failure(error)
    if is_cancellation(error):
        return CANCELLED
    return Failure(text_of(error), error)


def is_cancellation(error: BaseException) -> bool:
    """Whether an exception reports only that tasks were cancelled."""
    return not failures_in(error)


AnyToken: TypeAlias = "CheckpointToken[Any]"


class TokenHost(Protocol):
    """The object that handles a token's events: a coordinator, or a stream of a run."""

    @property
    def registry(self) -> TokenRegistry:
        """The registry that has the token while it is pending."""
        ...

    def complete(self, token: AnyToken, result: object) -> bool:
        """Complete the token for the user; returns False if it was settled before."""
        ...

    def fail(self, token: AnyToken, error: BaseException | str) -> bool:
        """Fail the token for the user; returns False if it was settled before."""
        ...

    def check_wait(self, token: AnyToken) -> None:
        """Raise RuntimeError where the waiting task is the one that has to settle the token."""
        ...

    def ended(self, token: AnyToken) -> None:
        """Called when the token is in a final state, before its waiters wake."""
        ...


@uninterrupted
class CheckpointToken(Generic[T]):
    """The one-shot promise that a batch's checkpoint will be durable, or has failed.

    It is made by `CheckpointCoordinator.create_checkpoint` and by the loops of a run.  Settling
    is synchronous and allowed from any task and any thread: a call from another thread waits
    until the thread of trio has carried it out.

    Attributes:
        run_id: The run it belongs to.
        stream: The parts of its stream's key; ``()`` if it has none.
        batch_index: The batch that it promises.
    """

    __slots__ = (
        "_begun",
        "_created",
        "_created_at",
        "_event",
        "_host",
        "_outcome",
        "_portal",
        "_state",
        "_waits_until",
        "batch_index",
        "run_id",
        "stream",
    )

    def __init__(
        self, run_id: str, stream: StreamKey, batch_index: int, host: TokenHost, portal: Portal
    ) -> None:
        self._portal = portal
        self._created = self._begun = portal.clock.current_time()
        self._waits_until: float | None = None  # on trio's clock, as the two above
        self._created_at = time.time()
        self.run_id = run_id
        self.stream = stream
        self.batch_index = batch_index
        self._state = _PENDING
        self._outcome: object = None
        self._event: trio.Event | None = None
        self._host = host

    @property
    def state(self) -> TokenState:
        """The state of the token."""
        return self._state

    @property
    def is_pending(self) -> bool:
        """Whether it is neither durable nor failed: PENDING or COMPLETED."""
        return self._state not in _FINAL

    @property
    def created_at(self) -> datetime:
        """When it was made, UTC."""
        return datetime.fromtimestamp(self._created_at, UTC)

    @property
    def age_s(self) -> float:
        """Seconds since it was made, on trio's clock."""
        return self._portal.clock.current_time() - self._created

    @from_any_thread
    def complete(self, result: T | None = None) -> bool:
        """Mark the batch as done.

        Without a run this confirms the checkpoint at once; in a run the checkpoint is
        confirmed when it is durable.

        Args:
            result: The value that waiters get, of any type.  A `CheckpointResult` without
                ``completed_at`` gets the time.

        Returns:
            False if it had been settled before: the first call wins.

        Raises:
            trio.RunFinishedError: the call comes from another thread, after ``trio.run()`` has
                ended.
        """
        return self._host.complete(self, result)

    @from_any_thread
    def fail(self, error: BaseException | str) -> bool:
        """Mark the batch as failed for good.

        Args:
            error: A reason, or the exception, which becomes the cause of the waiters' errors.

        Returns:
            False if it had been settled before: the first call wins.

        Raises:
            trio.RunFinishedError: the call comes from another thread, after ``trio.run()`` has
                ended.
        """
        return self._host.fail(self, reason("error", error))

    async def wait(self) -> T:
        """Wait until the checkpoint is confirmed or has failed; any number of tasks may wait.

        Returns:
            The result that the batch was completed with.

        Raises:
            CheckpointFailedError: it will never be confirmed; the error has the reason as text
                and the original exception as ``__cause__``.
            RuntimeError: the caller is the task that has to settle it first.

        Cancellation: always a cancellation and a schedule point; a cancelled wait does not
            affect other waiters.
        """
        if self._state in _FINAL:
            await trio.lowlevel.checkpoint()
        else:
            self._host.check_wait(self)
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        return self.result_nowait()

    def result_nowait(self) -> T:
        """Return the result without waiting.

        Raises:
            trio.WouldBlock: it is neither confirmed nor failed yet.
            CheckpointFailedError: it has failed.
        """
        if self._state is _CONFIRMED:
            return cast("T", own_result(self._outcome))
        if self._state not in _FINAL:
            raise trio.WouldBlock
        failure = cast("Failure", self._outcome)
        raise failure.error(
            failure.reason,
            run_id=self.run_id,
            stream=self.stream,
            batch_index=self.batch_index,
        ) from failure.cause

    def __repr__(self) -> str:
        where = describe_batch(self.run_id, self.stream, self.batch_index)
        return f"<CheckpointToken of {where}: {self._state.value}>"

    def __del__(self) -> None:
        if getattr(self, "_state", _CONFIRMED) not in _FINAL:  # unset if __init__ raised
            _warn_unsettled(self)


def _warn_unsettled(token: AnyToken) -> None:
    where = describe_batch(token.run_id, token.stream, token.batch_index)
    warnings.warn(
        f"the token of {where} was never settled: call complete() or fail(), or use "
        "'async with coordinator.open_checkpoint(...)'",
        ResourceWarning,
        source=token,
        stacklevel=3,
    )


def may(token: AnyToken, event: TokenEvent) -> bool:
    """Whether the table allows `event` for `token` now."""
    return event in TRANSITIONS[token._state]


def move(
    token: AnyToken, event: TokenEvent, outcome: object = None, then: TokenEvent | None = None
) -> None:
    """Change a token's state as the table defines, publish it, and wake the waiters.

    Args:
        token: The token.
        event: What happened.
        outcome: The result for CONFIRM, a `Failure` for FAIL, REJECT and WITHDRAW.
        then: What happened in the same moment, after it.

    Raises:
        RuntimeError: the table refuses; nothing has changed.
    """
    state = TRANSITIONS[token._state].get(event)
    if then is not None and state is not None:
        state = TRANSITIONS[state].get(then)
    if state is None:
        raise RuntimeError(f"{token!r} cannot {event.value}")
    token._state, token._outcome = state, outcome
    host = token._host
    if state in _FINAL:
        host.ended(token)
        _remove(host.registry, token)
    touch(host.registry)
    if token._event is not None and state in _FINAL:
        token._event.set()


class Confirmed(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a batch of a run; a `CheckpointResult` is made of it for each waiter."""

    outputs: tuple[Output, ...]
    metadata: dict[str, Plain]
    records: int
    at: float  # Unix time, s


def checkpoint_result(
    outputs: tuple[Output, ...], metadata: dict[str, Plain], records: int, at: float
) -> CheckpointResult:
    """What a record says of its batch, as users see it, with a copy of its metadata."""
    return CheckpointResult(outputs, metadata, records, datetime.fromtimestamp(at, UTC))


def own_result(result: object) -> object:
    """A copy of a result for one waiter: changes to its metadata do not reach the others."""
    if type(result) is Confirmed:
        return checkpoint_result(result.outputs, result.metadata, result.records, result.at)
    if isinstance(result, CheckpointResult) and result.metadata:
        return attrs.evolve(result)  # which copies the metadata
    return result


def portal_of(token: AnyToken) -> Portal:
    """The portal to the trio run in which a token was made."""
    return token._portal


@uninterrupted
class TokenRegistry:
    """Every token that is PENDING or COMPLETED, by run, stream and batch.

    Attributes:
        version: Grows with every change of any token, and when a stream opens or ends.
    """

    __slots__ = ("_changed", "_is_closed", "_of_streams", "_portal", "_tokens", "version")

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, StreamKey, int], AnyToken] = {}
        self._of_streams = 0  # tokens that have a stream
        self._changed: trio.Event | None = None
        self._is_closed = False
        self._portal: Portal | None = None  # that of the newest token
        self.version = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, run_id: str, stream: StreamKey, batch_index: int) -> AnyToken | None:
        """The pending token of a batch; None: there is none, which does not mean success."""
        return self._tokens.get((run_id, stream, batch_index))

    def pending(self, run_id: str | None = None) -> tuple[AnyToken, ...]:
        """The pending tokens, oldest first; of one run, or of all."""
        tokens = tuple(self._tokens.values())  # oldest first; copied at once, because another
        if run_id is None:  # thread may call this while trio's own changes them
            return tokens
        return tuple(token for token in tokens if token.run_id == run_id)

    async def wait_changed(self, since: int) -> int:
        """Wait until the version differs from `since`.

        Args:
            since: A version that the caller knows; -1 returns at once.

        Returns:
            The version now: give it to the next call.

        Raises:
            TypeError, ValueError: `since` is not a version.

        Cancellation: always a cancellation and a schedule point.
        """
        if self.version == whole_number("since", since, least=-1):
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
        else:
            await trio.lowlevel.checkpoint()
        return self.version


def make_token(
    run_id: str, stream: StreamKey, batch_index: int, host: TokenHost, portal: Portal
) -> AnyToken:
    """Make a token whose events `host` handles, and add it to the host's registry.

    Raises:
        DuplicateCheckpointError: a token of the batch is pending.
        trio.ClosedResourceError: the registry is closed.
    """
    registry, place = host.registry, (run_id, stream, batch_index)
    if registry._is_closed or place in registry._tokens:
        raise _not_made(registry, *place)
    token: AnyToken = CheckpointToken(run_id, stream, batch_index, host, portal)
    registry._portal = portal
    registry._tokens[place] = token
    registry._of_streams += bool(stream)
    touch(registry)
    return token


def _not_made(
    registry: TokenRegistry, run_id: str, stream: StreamKey, batch_index: int
) -> Exception:
    """The error for a token that cannot be made."""
    if registry._is_closed:
        return trio.ClosedResourceError("the coordinator is closed")
    return DuplicateCheckpointError(
        f"a token of {describe_batch(run_id, stream, batch_index)} is pending already: "
        "settle that one first",
        run_id=run_id,
        stream=stream,
        batch_index=batch_index,
    )


def close_registry(registry: TokenRegistry) -> None:
    """Fail the pending tokens and take no more, from any thread."""
    registry._is_closed = True
    if registry._portal is not None:
        registry._portal.run(_fail_pending, registry)


def _fail_pending(registry: TokenRegistry) -> None:
    for token in registry.pending():
        move(token, TokenEvent.REJECT, _CLOSED)


def _remove(registry: TokenRegistry, token: AnyToken) -> None:
    found = registry._tokens.pop((token.run_id, token.stream, token.batch_index), None)
    registry._of_streams -= found is not None and bool(token.stream)


def touch(registry: TokenRegistry) -> None:
    """Increment the version and wake the monitors."""
    registry.version += 1
    if registry._changed is not None:
        registry._changed.set()
        registry._changed = None
