"""The stores of a process that runs items: open once, in a trio run of their own.

Theory of operation.  To open a store takes a fraction of a second, and a database allows so many
connections.  So a process opens a store once, for all of its items.  An item has a trio run of its
own, in whatever thread the engine calls it; but an open store belongs to one trio run.  So stores
live in the trio run of one more thread, the host, and items call their methods there.

A call is carried out in a task of the host.  If its caller is cancelled, the task is, too, and not
waited for.  A lock is held by such a task, which enters and leaves it: its release is waited for.

The host ends when no item needs it and its stores are closed.  An error in its trio run ends it,
too: the calls that are under way fail, and its stores are closed then.  A forked process begins its
own.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Literal, TypeVar, TypeVarTuple, cast

import attrs
import trio
from outcome import Error, Outcome, Value

from .._journal.store import Durability, Store
from .._util.errors import StoreError
from .._util.exceptions import class_name, text_of
from .._util.forks import this_process
from .._util.log import get_logger
from .._util.nursery import open_service_nursery
from .._util.text import one_line
from .._util.threads import start_thread
from .._util.uninterrupted import shielded
from ..stores import open_store

log = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

HAS_ENDED = "the thread for stores has ended because of an error; run the item again"
MAX_IDLE = 2  # open stores that no item uses

StoreKey = tuple[str, Durability]


@attrs.define(eq=False)
class _OpenedStore:
    """A store that is open, and how many items use it."""

    store: Store
    users: int = 0


@attrs.define(eq=False)
class _HostCall:
    """A call on its way to the host, and back to the task that waits for it."""

    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_over: bool = False  # decided on the caller's side only

    def finish(self, result: Outcome[object]) -> None:
        """Give the caller its result, unless it was cancelled."""
        if not self.is_over:
            self.is_over = True
            trio.lowlevel.reschedule(self.task, result)


@attrs.define(eq=False)
class StoreHost:
    """A thread with a trio run, in which stores are open.

    Attributes:
        users: How many items need it; changed under the guard of this module.
        has_ended: Whether its trio run is over or ends, also because of an error: it serves no
            item more.
    """

    users: int = 0
    has_ended: bool = attrs.field(default=False, init=False)
    _has_begun: bool = attrs.field(default=False, init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)
    _stores: OrderedDict[StoreKey, _OpenedStore] = attrs.field(
        factory=OrderedDict[StoreKey, _OpenedStore], init=False
    )

    def start(self) -> None:
        """Begin the thread, and wait until its trio run has begun.

        Raises:
            StoreError: it cannot begin, as where no file descriptor is left.
        """
        begun = queue.SimpleQueue[Outcome[None]]()

        def run() -> None:
            try:
                trio.run(self._run, begun)
            except BaseException as error:
                if self._has_begun:
                    raise
                begun.put(Error(error))
            finally:
                self.has_ended = True

        start_thread(run, "trio_ckpt stores")
        try:
            begun.get().unwrap()
        except Exception as error:
            text = one_line(f"{class_name(error)}: {text_of(error)}")
            raise StoreError(f"the thread for stores cannot begin: {text}") from error

    async def _run(self, begun: queue.SimpleQueue[Outcome[None]]) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                self._token = trio.lowlevel.current_trio_token()
                self._has_begun = True
                begun.put(Value(None))
                await trio.sleep_forever()
        finally:
            self.has_ended = True
            while self._stores:
                _key, opened = self._stores.popitem()
                await _close(opened.store)

    def stop(self) -> None:
        """Let the thread end."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)

    async def call(self, func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Call an async function in the host, and wait for its result.

        Raises:
            StoreError: the host has ended.

        Cancellation: cancels the call, and does not wait for its end.
        """
        call = _HostCall(trio.lowlevel.current_task(), trio.lowlevel.current_trio_token())
        await trio.lowlevel.checkpoint_if_cancelled()

        async def carry_out() -> None:
            result: Outcome[object] = Error(StoreError(HAS_ENDED))
            try:
                with call.scope:
                    try:
                        result = Value(await func(*args))
                    except (Exception, BaseExceptionGroup) as error:
                        result = Error(error)
            finally:
                answer(result)

        def answer(result: Outcome[object]) -> None:
            # Ray interrupts the run of a caller also while it ends, and closes what wakes it.
            with suppress(trio.RunFinishedError, OSError):
                call.token.run_sync_soon(call.finish, result)

        def begin() -> None:
            try:
                self._nursery.start_soon(carry_out)
            except RuntimeError:  # the nursery is closed
                answer(Error(StoreError(HAS_ENDED)))

        def give_up(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            call.is_over = True
            with suppress(trio.RunFinishedError):
                self.soon(call.scope.cancel)
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            self.soon(begin)
        except trio.RunFinishedError:
            raise StoreError(HAS_ENDED) from None
        return cast("T", await trio.lowlevel.wait_task_rescheduled(give_up))

    def soon(self, func: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function in the host soon, and do not wait for it."""
        self._token.run_sync_soon(func, *args)

    # -- in the host ------------------------------------------------------------------------------

    async def use(self, key: StoreKey) -> Store:
        """Open a store, or use the one that is open.

        Raises:
            StoreError: it cannot be opened.
        """
        opened = self._stores.get(key)
        if opened is None:
            address, durability = key
            kind: Literal["full", "process"] = "process" if durability == "process" else "full"
            opening = partial(open_store, address, durability=kind, create=False)
            store = await shielded(opening)  # else no task would close it
            store.spare_connections()
            opened = self._stores.setdefault(key, _OpenedStore(store))
            if opened.store is not store:  # another item was faster
                await _close(store)
        self._stores.move_to_end(key)
        opened.users += 1
        return opened.store

    async def leave(self, key: StoreKey) -> None:
        """Use a store no longer; of those that no item uses, the oldest are closed."""
        self._stores[key].users -= 1
        await self.close(MAX_IDLE)

    async def close(self, keep: int) -> None:
        """Close the stores that no item uses, but for those that were used last."""
        idle = [key for key, opened in self._stores.items() if not opened.users]
        for key in idle[: max(0, len(idle) - keep)]:
            await _close(self._stores.pop(key).store)


async def _close(store: Store) -> None:
    with trio.CancelScope(shield=True):
        try:
            await store.aclose()
        except StoreError as error:
            log.warning("closing %s failed: %s", store.url, one_line(text_of(error)))


@attrs.define(eq=False)
class HeldLock:
    """The lock of a run, which a task of the host holds for a task elsewhere.

    Attributes:
        owner: The owner number, once the lock is held.
        is_held: Set when it is held; belongs to the trio run of the caller.
    """

    host: StoreHost
    store: Store
    run_id: str
    owner: int = attrs.field(default=0, init=False)
    is_held: trio.Event = attrs.field(factory=trio.Event, init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    _entering: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _is_taken: bool = attrs.field(default=False, init=False)
    _is_released: bool = attrs.field(default=False, init=False)
    _wake: trio.Event | None = attrs.field(default=None, init=False)  # of the host

    async def run(self) -> None:
        """Hold the lock until it is released; on the caller's side.

        Raises:
            RunLockedError, StoreError: the lock cannot be taken, or not be given back.

        Cancellation: none; `release` ends it.
        """
        with trio.CancelScope(shield=True):
            await self.host.call(self._hold)

    async def _hold(self) -> None:
        self._wake = trio.Event()
        with self._entering:
            lock = self.store.lock_run(self.run_id)
            async with lock as owner:
                self._is_taken = True
                self._token.run_sync_soon(self._tell, owner)
                while not self._is_released:
                    await self._wake.wait()

    def _tell(self, owner: int) -> None:
        self.owner = owner
        self.is_held.set()

    def release(self) -> None:
        """Let the lock go, or the attempt to take it; from the caller's side."""
        self.host.soon(self._release)

    def _release(self) -> None:
        self._is_released = True
        if self._wake is not None:
            self._wake.set()
        if not self._is_taken:
            self._entering.cancel()


@asynccontextmanager
async def hold_lock(host: StoreHost, store: Store, run_id: str) -> AsyncGenerator[int]:
    """Own a run for a block; the lock is taken and given back in the host.

    Raises:
        RunLockedError: another owner has it.
        StoreError: the store cannot be used.

    Cancellation: as for `Store.lock_run`.
    """
    held = HeldLock(host, store, run_id)
    async with open_service_nursery() as nursery:
        nursery.start_soon(held.run)
        try:
            await held.is_held.wait()
            yield held.owner
        finally:
            held.release()


# -- the host of this process ----------------------------------------------------------------------

_guard = threading.Lock()  # items run in several threads
_hosts: dict[int, StoreHost] = {}  # by process: a forked one has that of its parent, which is dead


def _begin_child() -> None:
    """Make the guard again in a forked child: a thread of the parent may hold it."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


@asynccontextmanager
async def open_in_host(
    address: str, durability: Durability
) -> AsyncGenerator[tuple[StoreHost, Store]]:
    """Use the store at an address for a block; it stays open for the next item.

    Args:
        address: The address of the store.
        durability: Of a local store.

    Yields:
        The host, and the store, which only the host may call.

    Raises:
        StoreError: it cannot be opened.

    Cancellation: a cancellation point before the block.
    """
    key = (address, durability)
    with _guard:
        host = _hosts.get(this_process())
        if host is None or host.has_ended:
            host = StoreHost()
            host.start()
            _hosts[this_process()] = host
        host.users += 1
    try:
        store = await shielded(host.call, host.use, key)
        try:
            yield host, store
        finally:
            await shielded(host.call, host.leave, key)
    finally:
        with _guard:
            host.users -= 1


async def close_host() -> None:
    """Close the stores of this process and end their thread, unless an item needs them.

    Cancellation: shielded.
    """
    with _guard:
        host = _hosts.get(this_process())
        if host is None or host.users:
            return
        del _hosts[this_process()]
    with suppress(StoreError):  # a host that has ended has closed them
        await shielded(host.call, host.close, 0)
    host.stop()
