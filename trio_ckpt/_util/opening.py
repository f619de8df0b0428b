"""What `open_*` functions return: entered by `async with`, and any other use says so.

Python's own messages name a class of the standard library ("'_AsyncGeneratorContextManager' object
has no attribute 'open_stream'"), not the call in the program.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NoReturn, ParamSpec, TypeVar

from .uninterrupted import uninterrupted

P = ParamSpec("P")
T = TypeVar("T")


@uninterrupted  # else Ctrl-C before the inner `__aexit__` leaves a run open, and owned
class Opening(AbstractAsyncContextManager[T, bool | None], Generic[T]):
    """What a call of an `open_*` function returns.

    Args:
        call: The name of the function.
        name: The variable of ``async with … as``, for the message.
        manager: Opens and closes.
    """

    def __init__(
        self, call: str, name: str, manager: AbstractAsyncContextManager[T, bool | None]
    ) -> None:
        self._right = f"write 'async with {call}(...) as {name}:'"
        self._call = call
        self._manager = manager

    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)

    # Type checkers report these uses by themselves, where they do not know the methods.
    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise TypeError(
                f"{self._call}() cannot be opened with 'with': {self._right}, in a trio program; "
                "a synchronous program uses trio_ckpt.blocking"
            )

        # `with` asks for it before it enters.  As None it keeps `isinstance` from taking this for
        # an `AbstractContextManager`, which containers of services would close by `__exit__`.
        __exit__ = None

        def __await__(self) -> NoReturn:
            raise TypeError(f"{self._call}() cannot be awaited: {self._right}")

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):  # copy asks for some before there are any fields
                raise AttributeError(name)
            raise AttributeError(
                f"{self._call}() has not been opened, so it has no {name!r}: {self._right}",
                name=name,
                obj=self,
            )


def opening(
    name: str, *, call: str | None = None
) -> Callable[
    [Callable[P, AsyncGenerator[T]]], Callable[P, AbstractAsyncContextManager[T, bool | None]]
]:
    """Make an async generator function one that opens: an `asynccontextmanager` that explains.

    Args:
        name: The variable of ``async with … as``, for the message.
        call: What users call; default: the name of the function.
    """

    def decorate(
        function: Callable[P, AsyncGenerator[T]],
    ) -> Callable[P, AbstractAsyncContextManager[T, bool | None]]:
        manager = asynccontextmanager(function)

        @functools.wraps(function)
        def opener(
            *args: P.args, **kwargs: P.kwargs
        ) -> AbstractAsyncContextManager[T, bool | None]:
            return Opening(call or function.__name__, name, manager(*args, **kwargs))

        return opener

    return decorate
