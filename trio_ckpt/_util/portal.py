"""Portals: calls from other threads into the trio run that an object belongs to.

Tokens, batches and runs change only in the thread of their trio run, so their state machines
need no locks, and waiting tasks wake in their own thread.  A call from another thread is executed
in that thread and waits for its result; so of two threads that settle one batch, the first wins.
In trio's own thread it costs one comparison.
"""

# Objects with methods for any thread have their portal in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
import queue
import sys
from collections.abc import Callable
from threading import get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple

import attrs
import outcome
import trio

from .forks import need_process, this_process

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def _call(wake: Callable[[], None]) -> None:
    wake()


@attrs.define(eq=False)
class Portal:
    """A portal into one trio run, from any thread.

    Attributes:
        thread: The id of the thread that trio runs in.
        trio_token: The token of the trio run.
        clock: The clock of the trio run.
        wake: Called with a function that wakes the calling thread; for `trio_ckpt.testing`.
    """

    thread: int
    trio_token: trio.lowlevel.TrioToken
    clock: trio.abc.Clock
    wake: Callable[[Callable[[], None]], None] = attrs.field(default=_call, init=False)
    _process: int = attrs.field(factory=this_process, init=False)

    @classmethod
    def here(cls) -> Portal:
        """The portal of the trio run that the caller is in.

        Raises:
            RuntimeError: the caller is not in a trio run; the message says what to do.
        """
        try:
            return _portal.get()
        except LookupError:
            portal = cls(
                get_ident(), trio.lowlevel.current_trio_token(), trio.lowlevel.current_clock()
            )
            _portal.set(portal)
            return portal
        except RuntimeError:  # trio's own message does not say what to do
            raise RuntimeError(_no_trio()) from None

    def run(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function in the thread of the trio run, and wait for it there.

        Raises:
            trio.RunFinishedError: the trio run has ended; nothing was called.
            ForkedProcessError: this is a forked child, which the trio run does not answer.
        """
        if get_ident() == self.thread:
            return func(*args)
        need_process(self._process)
        answers = queue.SimpleQueue[outcome.Outcome[T]]()

        def carry_out() -> None:
            answer = outcome.capture(func, *args)
            self.wake(lambda: answers.put(answer))

        try:
            self.trio_token.run_sync_soon(carry_out)
        except trio.RunFinishedError:
            raise trio.RunFinishedError(
                "the trio.run() that it belongs to has ended, so this call changed nothing: make "
                "the call before trio.run() returns"
            ) from None
        return answers.get().unwrap()


_portal: trio.lowlevel.RunVar[Portal] = trio.lowlevel.RunVar("trio_ckpt portal")


def _no_trio() -> str:
    asyncio = sys.modules.get("asyncio")
    is_asyncio = asyncio is not None and asyncio._get_running_loop() is not None
    where = "under asyncio" if is_asyncio else "outside of trio"
    return (
        f"trio_ckpt works in a trio program, and this call came {where}: start the program with "
        "trio.run(main); in a notebook, say %autoawait trio first"
    )


def check_trio() -> None:
    """Check that the caller is in a trio program.

    Raises:
        RuntimeError: the caller is not; the message says what to do.
    """
    Portal.here()


class _HasPortal(Protocol):
    @property
    def _portal(self) -> Portal: ...


S = TypeVar("S", bound=_HasPortal)


def from_any_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method run in the trio run that its object belongs to, from any thread."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        portal = self._portal
        if portal.thread == get_ident():
            return method(self, *args, **kwargs)
        return portal.run(functools.partial(method, self, *args, **kwargs))

    return call
