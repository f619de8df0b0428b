"""Protection from Ctrl-C: KeyboardInterrupt is not raised inside code of the library.

Trio raises KeyboardInterrupt at the current line of the main thread, unless the code there is
marked: then it is raised in the main task, at its next wait.  So a mark makes each piece of the
library between two waits atomic, at no cost.  Functions called from a marked function are
protected with it, also those of the program, until they wait.

Cancel scopes do not protect the waits themselves.  Operations that must not be left halfway, such
as acquiring or releasing a lock, run in a separate task (`shielded`), where it is never raised.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import FunctionType
from typing import TypeVar, TypeVarTuple

import outcome
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def uninterrupted(thing: T) -> T:
    """Protect a function, or all functions of a class, from KeyboardInterrupt."""
    members = vars(thing).values() if isinstance(thing, type) else (thing,)
    for member in members:
        for function in _functions_of(member):
            trio.lowlevel.enable_ki_protection(function)
    return thing


def _functions_of(member: object) -> Iterator[FunctionType]:
    """The functions below the decorators of a class member; other code shares the decorators."""
    parts = (member.fget, member.fset) if isinstance(member, property) else (member,)
    for part in parts:
        inner = inspect.unwrap(getattr(part, "__func__", part)) if callable(part) else None
        if inspect.isfunction(inner):
            yield inner


@uninterrupted
async def shielded(func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Call an async function that must not be abandoned, and wait for it.

    Cancellation: none; KeyboardInterrupt is raised at the next wait of the caller.
    """
    outcomes: list[outcome.Outcome[T]] = []

    @uninterrupted
    async def see_through() -> None:
        with trio.CancelScope(shield=True):
            outcomes.append(await outcome.acapture(func, *args))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(see_through)
            nursery.cancel_scope.shield = True
    except* KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)  # trio takes it back
    return outcomes[0].unwrap()
