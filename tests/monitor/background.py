"""A monitor in a thread of its own, for clients that block: browsers and requests."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from tests.hangs import HANG_S
from tests.monitor.client import ACTION_SECRET, SECRET
from trio_ckpt import Run, monitor
from trio_ckpt.abc import Store
from trio_ckpt.monitor import Serving


@attrs.define(eq=False)
class Background:
    """A trio program in a thread."""

    serving: Serving | None = None
    token: trio.lowlevel.TrioToken | None = None
    error: BaseException | None = None
    _stop: trio.Event = attrs.field(factory=trio.Event, init=False)
    _ready: threading.Event = attrs.field(factory=threading.Event, init=False)

    @property
    def url(self) -> str:
        assert self.serving is not None
        return self.serving.url.rstrip("/")

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Run something in the thread's trio, and wait for it."""
        return trio.from_thread.run_sync(func, *args, trio_token=self.token)

    async def show(self, what: Run | Store, **options: Any) -> None:
        """Serve until stopped; called by the program."""
        self.token = trio.lowlevel.current_trio_token()
        options = {
            "port": 0,
            "secret": SECRET,
            "allow_actions": True,
            "action_secret": ACTION_SECRET,
        } | options

        async def begin(*, task_status: Any) -> None:
            await monitor.serve(what, task_status=task_status, **options)

        async with trio.open_nursery() as nursery:
            self.serving = await nursery.start(begin)
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Let `show` end."""
        self.call(self._stop.set)


@contextmanager
def background(program: Callable[[Background], Awaitable[None]]) -> Generator[Background]:
    """Run a program that calls `Background.show` while the block runs."""
    found = Background()

    def run() -> None:
        try:
            trio.run(program, found)
        except BaseException as error:
            found.error = error
        finally:
            found._ready.set()

    thread = threading.Thread(target=run, name="monitor for a test")
    thread.start()
    try:
        found._ready.wait(HANG_S)
        if found.error is not None:
            raise found.error
        yield found
    finally:
        if thread.is_alive():
            found.stop()
        thread.join(HANG_S)
    assert not thread.is_alive()
    if found.error is not None:
        raise found.error
