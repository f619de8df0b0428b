"""The live view: one picture of each topic, made once for all its viewers.

Theory of operation
===================

A *topic* is what viewers watch: the list of runs, or one run.  One task makes a new
picture of every topic that has viewers when something has changed, and all viewers get the
same bytes.  They are level-triggered: a viewer who is slow misses pictures in between,
never the newest one, and delays no other viewer.

Its cost for the program is bounded: the task rests for at least
`EVERY_S`, for `PER_VIEWER_S` times the number of viewers, and for so long that making the
pictures takes no more than `MAX_COST_FRACTION` of the time.  Without viewers it does nothing.

On the wire it is server-sent events.  A picture is one event; a comment is sent now and then,
so that both sides notice when the other is gone.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import attrs
import trio

from .._util.errors import StoreError, TrioCkptError, UnknownRunError
from .._util.log import get_logger
from ._access import AccessDenied
from ._guard import Receive, Scope, Send, refusal_body

log = get_logger(__name__)

EVERY_S = 0.5
IDLE_EVERY_S = 5.0  # rates and what is stuck change while nothing else does
PER_VIEWER_S = 0.015  # sending a picture takes some 0.3 ms: 2 % of a core however many watch
MAX_COST_FRACTION = 0.02
COMMENT_EVERY_S = 10.0
MAX_VIEWERS = 500
MAX_STREAM_S = 3_600.0  # then the page reconnects, so that no forgotten client is served for ever
RETRY_MS = 2_000  # what a browser's own EventSource waits for
COMMENT = b":\n\n"

Make = Callable[[str | None], Awaitable[bytes]]


@attrs.define(eq=False)
class Topic:
    """What is watched, and its newest picture.

    Attributes:
        run_id: The run; None: the list of runs.
        viewers: How many watch it.
        version: Grows with every picture.
        payload: The newest; empty before the first.
        is_gone: There is nothing to see any more.
    """

    run_id: str | None
    viewers: int = 0
    version: int = 0
    payload: bytes = b""
    is_gone: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def show(self, payload: bytes, *, is_gone: bool = False) -> None:
        """Show a new picture."""
        self.payload, self.is_gone = payload, is_gone
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait_newer(self, version: int) -> None:
        """Wait for another picture than that of `version`.

        Cancellation: always a cancellation and a schedule point.
        """
        if self.version == version:
            await self._changed.wait()
        else:
            await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Broadcast:
    """The topics, and the one task that makes their pictures.

    Attributes:
        viewers: How many watch anything.
        pictures: How many were made.
    """

    _make: Make
    _wait_changed: Callable[[], Awaitable[None]]
    viewers: int = attrs.field(default=0, init=False)
    pictures: int = attrs.field(default=0, init=False)
    _topics: dict[str | None, Topic] = attrs.field(factory=dict[str | None, Topic], init=False)
    _wanted: trio.Event = attrs.field(factory=trio.Event, init=False)

    @contextmanager
    def watching(self, run_id: str | None) -> Generator[Topic]:
        """Watch a topic while the block runs."""
        topic = self._topics.setdefault(run_id, Topic(run_id))
        topic.viewers += 1
        self.viewers += 1
        if not topic.payload:
            self._wanted.set()
        try:
            yield topic
        finally:
            topic.viewers -= 1
            self.viewers -= 1
            if not topic.viewers:
                self._topics.pop(run_id, None)

    async def run(self) -> None:
        """Make pictures, until cancelled."""
        while True:
            if not self._topics:
                self._wanted = trio.Event()
                await self._wanted.wait()
            cost_s = await self._make_all()
            rest_s = max(EVERY_S, self.viewers * PER_VIEWER_S, cost_s / MAX_COST_FRACTION)
            await self._rest(rest_s)
            with trio.move_on_after(IDLE_EVERY_S):
                await self._wait_for_news()

    async def _make_all(self) -> float:
        """A picture of each topic; returns what that has cost, in seconds."""
        cost_s = 0.0
        self._wanted = trio.Event()
        for topic in tuple(self._topics.values()):
            began = time.perf_counter()
            await self._make_one(topic)
            cost_s += time.perf_counter() - began
        return cost_s

    async def _make_one(self, topic: Topic) -> None:
        self.pictures += 1
        try:
            topic.show(await self._make(topic.run_id))
        except UnknownRunError as error:
            topic.show(_problem("not_found", str(error)), is_gone=True)
        except StoreError as error:
            topic.show(_problem("store", str(error)))
        except TrioCkptError as error:
            log.warning("a picture could not be made: %s", error)
            topic.show(_problem("internal", "the monitor itself failed; its log says how"))

    async def _rest(self, rest_s: float) -> None:
        """Rest, but not while a new viewer has no picture yet."""
        with trio.move_on_after(rest_s):
            await self._wanted.wait()

    async def _wait_for_news(self) -> None:
        """Wait until something has changed, or a new viewer has no picture yet."""
        async with trio.open_nursery() as nursery:

            async def wait_wanted() -> None:
                await self._wanted.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_wanted)
            await self._wait_changed()
            nursery.cancel_scope.cancel()


def event(name: str, data: bytes) -> bytes:
    """One event on the wire; the data is JSON on one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _problem(code: str, message: str) -> bytes:
    return event("problem", refusal_body(AccessDenied(0, code, message)))


@attrs.define(eq=False)
class EventStream:
    """The answer that goes on until its client disconnects; an ASGI application."""

    _broadcast: Broadcast
    _run_id: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send pictures until the client is gone, or `MAX_STREAM_S` are over."""
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream"),
                    (b"cache-control", b"no-store, no-transform"),
                    (b"x-accel-buffering", b"no"),  # nginx would hold it back
                ],
            }
        )
        if scope["method"] != "HEAD":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                with trio.move_on_after(MAX_STREAM_S):
                    await self._show(send)
                nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _show(self, send: Send) -> None:
        begin = b"retry: %d\n\n" % RETRY_MS
        await send({"type": "http.response.body", "body": begin, "more_body": True})
        with self._broadcast.watching(self._run_id) as topic:
            seen = 0
            while True:
                piece = COMMENT
                with trio.move_on_after(COMMENT_EVERY_S):
                    await topic.wait_newer(seen)
                    seen, piece = topic.version, topic.payload
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if topic.is_gone:
                    return


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
