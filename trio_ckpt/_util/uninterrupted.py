"""Ctrl-C never comes in the middle of what the library does.

Trio raises KeyboardInterrupt wherever the main thread is, unless the code that runs there is
marked: then it is raised in the main task, where that waits next.  So a mark makes each piece of
the library between two waits happen as a whole, and costs nothing when it runs.  What is called
from a marked function is marked with it, a program's own functions too, until they wait.

No cancel scope keeps it from the waits themselves.  What may not be left half way, such as taking
or giving back a lock, waits in a task of its own (`shielded`), where it never comes.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def uninterrupted(thing: T) -> T:
    """Mark a function, or all functions of a class."""
    members = vars(thing).values() if isinstance(thing, type) else (thing,)
    for member in members:
        for function in _functions_of(member):
            trio.lowlevel.enable_ki_protection(function)
    return thing


def _functions_of(member: Any) -> Iterator[Any]:
    """The functions behind a member of a class: decorators around them belong to others, too."""
    parts = (member.fget, member.fset) if isinstance(member, property) else (member,)
    for part in parts:
        inner = inspect.unwrap(getattr(part, "__func__", part)) if callable(part) else None
        if inspect.isfunction(inner):
            yield inner


@uninterrupted
async def shielded(func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Wait for something that is not to be given up on.

    Cancellation: none; Ctrl-C comes when the caller waits the next time.
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
