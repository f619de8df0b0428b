"""How the synchronous objects get their methods: each is the one of the trio object.

Signatures, docstrings and what a method does are those of the trio API; there is no second place
where they are written down.  A method is called in one of three ways: `waits` for an async method,
`reads` for a plain one that needs trio's thread, and `passes` for one that any thread may call.
"""

# What a synchronous object holds is in private fields, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

import attrs

from .._util.shown import Shown
from ._program import Program

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
T = TypeVar("T")


@attrs.define(eq=False, repr=False)
class Held(Generic[T]):
    """A synchronous object: an object of trio, and the program whose threads use it."""

    _program: Program
    _held: T

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._held!r}>"

    def _repr_html_(self) -> str | None:
        """The table that Jupyter shows; None: there is none, the line is shown."""
        return self._held._repr_html_() if isinstance(self._held, Shown) else None


AnyHeld = Held[Any]


def waits(
    method: Callable[Concatenate[Any, P], Awaitable[R]],
) -> Callable[Concatenate[Any, P], R]:
    """Make an async method of a trio object one that the calling thread waits for."""

    @functools.wraps(method)
    def call(self: AnyHeld, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._program.call(method, self._held, *args, **kwargs)

    return call


def reads(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Make a method of a trio object one that is called in trio's thread."""

    @functools.wraps(method)
    def call(self: AnyHeld, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._program.read(method, self._held, *args, **kwargs)

    return call


def passes(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Make a method of a trio object that any thread may call one of the synchronous object."""

    @functools.wraps(method)
    def call(self: AnyHeld, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self._held, *args, **kwargs)

    return call


class HeldField(Generic[V]):
    """An attribute of the trio object that any thread may read."""

    def __set_name__(self, owner: type[AnyHeld], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, owner: None, kind: type[AnyHeld]) -> HeldField[V]: ...

    @overload
    def __get__(self, owner: AnyHeld, kind: type[AnyHeld]) -> V: ...

    def __get__(self, owner: AnyHeld | None, kind: type[AnyHeld]) -> V | HeldField[V]:
        return self if owner is None else self._read(owner)

    def __set__(self, owner: AnyHeld, value: V) -> None:
        raise AttributeError(f"{self.name} cannot be set")

    def _read(self, owner: AnyHeld) -> V:
        return cast("V", getattr(owner._held, self.name))


class Seen(HeldField[V]):
    """An attribute of the trio object that is read in trio's thread."""

    def _read(self, owner: AnyHeld) -> V:
        return cast("V", owner._program.read(getattr, owner._held, self.name))


class Settable(HeldField[V]):
    """An attribute of the trio object that any thread may read, and that is set in trio's."""

    def __set__(self, owner: AnyHeld, value: V) -> None:
        owner._program.read(setattr, owner._held, self.name, value)
