"""The pending tokens, for monitors.

Watching is level-triggered: the registry has a version that grows with every change,
and `TokenRegistry.wait_changed` returns at once if it has moved past the version that
the caller knows.  So a monitor that was busy may miss intermediate states, but never the
latest one, and does not poll.
"""

# The hosts of tokens change a registry by the functions below it, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import trio

from .._util.arguments import whole_number
from .._util.errors import DuplicateCheckpointError, describe_batch
from .._util.plain import StreamKey
from .._util.portal import Portal
from .._util.uninterrupted import uninterrupted
from .token import (
    CANCELLED,
    AnyToken,
    CheckpointToken,
    Failure,
    TokenEvent,
    TokenHost,
    move,
)

MAX_NAMED = 5  # streams in one message
_CLOSED = Failure("its coordinator was closed before it was settled", error=CANCELLED.error)


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


def find_in_any(registry: TokenRegistry, run_id: str, batch_index: int) -> AnyToken | None:
    """The pending token of a batch, without a stream or in any stream.

    Raises:
        ValueError: it is pending in several streams.
    """
    token = registry._tokens.get((run_id, (), batch_index))
    if token is not None or not registry._of_streams:
        return token
    found = [
        token
        for token in tuple(registry._tokens.values())
        if token.run_id == run_id and token.batch_index == batch_index
    ]
    if len(found) > 1:
        names = ", ".join(repr("/".join(token.stream)) for token in found[:MAX_NAMED])
        raise ValueError(
            f"batch {batch_index} of run {run_id!r} is pending in {len(found)} streams, "
            f"{names}: name one with stream="
        )
    return found[0] if found else None


def make_token(
    registry: TokenRegistry,
    run_id: str,
    stream: StreamKey,
    batch_index: int,
    host: TokenHost,
    portal: Portal,
) -> AnyToken:
    """Make a token whose events `host` handles, and add it.

    Raises:
        DuplicateCheckpointError: a token of the batch is pending.
        trio.ClosedResourceError: the registry is closed.
    """
    if registry._is_closed:
        raise trio.ClosedResourceError("the coordinator is closed")
    place = (run_id, stream, batch_index)
    if place in registry._tokens:
        raise DuplicateCheckpointError(
            f"a token of {describe_batch(run_id, stream, batch_index)} is pending already: "
            "settle that one first",
            run_id=run_id,
            stream=stream,
            batch_index=batch_index,
        )
    token: AnyToken = CheckpointToken(run_id, stream, batch_index, host, portal)
    registry._portal = portal
    registry._tokens[place] = token
    registry._of_streams += bool(stream)
    touch(registry)
    return token


def close_registry(registry: TokenRegistry) -> None:
    """Fail the pending tokens and take no more, from any thread."""
    registry._is_closed = True
    if registry._portal is not None:
        registry._portal.run(_fail_pending, registry)


def _fail_pending(registry: TokenRegistry) -> None:
    for token in registry.pending():
        move(token, TokenEvent.REJECT, _CLOSED)


def token_moved(registry: TokenRegistry, token: AnyToken, *, is_final: bool) -> None:
    """Publish that a token's state has changed; one in a final state is removed."""
    if is_final:
        found = registry._tokens.pop((token.run_id, token.stream, token.batch_index), None)
        registry._of_streams -= found is not None and bool(token.stream)
    touch(registry)


def touch(registry: TokenRegistry) -> None:
    """Increment the version and wake the monitors."""
    registry.version += 1
    if registry._changed is not None:
        registry._changed.set()
        registry._changed = None
