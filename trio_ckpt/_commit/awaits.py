"""Calls of async methods whose `await` was forgotten: an error where their object is left.

A coroutine that is never awaited does nothing.  Python warns of that when it is collected, and the
program goes on as if the file had been written.  So an object keeps the coroutines that its async
methods have made, and checks them when it is left: one that has not begun, and that no task is
about to begin, was forgotten.  The callers get the coroutines themselves, so cancellation,
`nursery.start_soon` and type checkers work as usual.
"""

# The calls of an object are in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

import attrs
import msgspec
import trio

from .._tokens.token import AnyToken
from .._util.errors import TrioCkptError, describe_batch

T = TypeVar("T", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])

PRUNED_OVER = 64  # calls that are kept before those that have ended are dropped

_Made = Coroutine[Any, Any, Any]
_mark: Callable[[Any], Any] = getattr(inspect, "markcoroutinefunction", lambda function: function)


class NeverAwaitedError(TrioCkptError, RuntimeError):
    """An async method was called without await, or not waited for: it has not done its work."""


class _Call(msgspec.Struct, frozen=True):
    name: str
    coroutine: _Made
    file: str
    line: int


@attrs.define(eq=False, repr=False)
class Calls:
    """The calls of an object's async methods."""

    _calls: list[_Call] = attrs.field(factory=list[_Call], init=False)
    _pruned_over: int = attrs.field(default=PRUNED_OVER, init=False)

    def note(self, name: str, coroutine: _Made) -> None:
        """Keep a coroutine that a method has made; its caller is two frames above.

        Raises:
            NeverAwaitedError: there are many calls, and one of them was forgotten.
        """
        frame = sys._getframe(2)
        self._calls.append(_Call(name, coroutine, frame.f_code.co_filename, frame.f_lineno))
        if len(self._calls) > self._pruned_over:
            self._prune(coroutine)

    def _prune(self, newest: _Made) -> None:
        """Drop calls that have ended; each call is checked about twice, however many there are."""
        *older, last = self._calls
        self._calls = older
        if (error := self.problem("a loop")) is not None:
            newest.close()
            raise error
        self._calls = [call for call in older if _is_open(call)]
        self._calls.append(last)
        self._pruned_over = max(PRUNED_OVER, 2 * len(self._calls))

    def has_open(self) -> bool:
        """Whether a call has not ended, so that `problem` may find one."""
        return any(map(_is_open, self._calls))

    def problem(self, where: str, *, is_left: bool = False) -> NeverAwaitedError | None:
        """The error for the first forgotten call; None: no call was forgotten.

        Args:
            where: The object that they were called on, as the message names it.
            is_left: Calls of other tasks have to have ended, too.
        """
        states = [inspect.getcoroutinestate(call.coroutine) for call in self._calls]
        waiting = [c for c, at in zip(self._calls, states, strict=True) if at == _CREATED]
        if waiting:
            spawned = _coroutines_of_tasks()
            forgotten = [call for call in waiting if id(call.coroutine) not in spawned]
            for call in forgotten:
                call.coroutine.close()  # else Python warns, too
            if forgotten:
                return _forgotten(forgotten[0], where)
        if is_left:
            for call, at in zip(self._calls, states, strict=True):
                if at in (_CREATED, inspect.CORO_SUSPENDED) and call.name != "confirm":
                    return _unfinished(call, where)
        return None


_CREATED = inspect.CORO_CREATED


def _is_open(call: _Call) -> bool:
    return inspect.getcoroutinestate(call.coroutine) != inspect.CORO_CLOSED


def _forgotten(call: _Call, where: str) -> NeverAwaitedError:
    return NeverAwaitedError(
        f"{call.name}() was called without await in {os.path.basename(call.file)}, line "
        f"{call.line}, so it did nothing ({where}): write 'await' before it"
    )


def _unfinished(call: _Call, where: str) -> NeverAwaitedError:
    return NeverAwaitedError(
        f"{call.name}() of another task has not ended ({where}): wait for it before the batch is "
        "left, with a nursery in the body"
    )


def check_awaited(calls: Calls, token: AnyToken, *, is_left: bool = False) -> None:
    """Check that no method of a batch was called without await.

    Args:
        calls: The calls of its async methods.
        token: Its token.
        is_left: Calls of other tasks have to have ended, too.

    Raises:
        NeverAwaitedError: a method was called without await, or its call has not ended.
    """
    if calls.has_open():
        where = describe_batch(token.run_id, token.stream, token.batch_index)
        if (error := calls.problem(where, is_left=is_left)) is not None:
            raise error


def _coroutines_of_tasks() -> set[int]:
    """The ids of coroutines that a task runs or is about to run."""
    found, left = set[int](), [trio.lowlevel.current_root_task()]
    while left:
        task = left.pop()
        if task is not None:
            found.add(id(task.coro))
            for nursery in task.child_nurseries:
                left += nursery.child_tasks
    return found


class _HasCalls(Protocol):
    _calls: Calls | None


def awaits_noted(kind: T) -> T:
    """Note every call of the public async methods of a class, which has a field `_calls`."""
    for name, member in tuple(vars(kind).items()):
        if inspect.iscoroutinefunction(member) and not name.startswith("_"):
            setattr(kind, name, _noted(member))
    return kind


def await_noted(function: F) -> F:
    """Note every call of an async function among those of its first argument, named `stream`."""

    @functools.wraps(function)
    @trio.lowlevel.enable_ki_protection
    def call(*args: Any, **kwargs: Any) -> _Made:
        coroutine: _Made = function(*args, **kwargs)
        calls = getattr(args[0] if args else kwargs["stream"], "_calls", None)
        if isinstance(calls, Calls):  # else the function refuses what it was given
            calls.note(function.__name__, coroutine)
        return coroutine

    _mark(call)
    return cast("F", call)


def _noted(method: Callable[..., _Made]) -> Callable[..., _Made]:
    name = method.__name__

    @functools.wraps(method)
    @trio.lowlevel.enable_ki_protection  # else Ctrl-C drops a coroutine that was never awaited
    def call(self: _HasCalls, /, *args: Any, **kwargs: Any) -> _Made:
        coroutine = method(self, *args, **kwargs)
        calls = self._calls
        if calls is None:
            calls = self._calls = Calls()
        calls.note(name, coroutine)
        return coroutine

    _mark(call)
    return call
