"""Functions that raise what no code expects, each under the name of what it does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
import trio
import trio.lowlevel

from trio_ckpt import remote
from trio_ckpt.remote import Work

AnyWork = Work[Any]


class NoTextError(Exception):
    """As a library writes it: the text is of an argument that is not there."""

    def __str__(self) -> str:
        return str(self.args[0]["detail"])


class ExitsInTextError(Exception):
    def __str__(self) -> str:
        sys.exit(3)


class InterruptsInTextError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class TextIsNoTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class OwnText(str):
    def __len__(self) -> NoReturn:
        raise ValueError("no length")


class OddTextError(Exception):
    def __str__(self) -> str:
        return OwnText("odd")


class NotesError(Exception):
    @property
    def __notes__(self) -> NoReturn:
        raise ValueError("no notes")


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__name__", "__module__"):
            raise ValueError("no name")
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=Nameless):
    pass


class ClasslessError(Exception):
    @property
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise ValueError("no class")


class UnreducibleError(Exception):
    def __reduce__(self) -> NoReturn:
        raise ValueError("no reduce")


class OwnEnd(BaseException):
    pass


def nested(depth: int) -> BaseException:
    group: Exception = ValueError("deep")
    for _ in range(depth):
        group = ExceptionGroup("nest", [group])
    return group


def chained(length: int) -> BaseException:
    error: BaseException = ValueError("first")
    for number in range(length):
        later = ValueError(f"later {number}")
        later.__cause__ = error
        error = later
    return error


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


RAISED: dict[str, Callable[[], BaseException]] = {
    "SystemExit: 2": lambda: SystemExit(2),
    "SystemExit: in words": lambda: SystemExit("in words"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "OwnEnd": OwnEnd,
    "StopIteration: 7": lambda: StopIteration(7),
    "StopAsyncIteration": StopAsyncIteration,
    "MemoryError": MemoryError,
    "NoTextError, whose text cannot be made: KeyError": lambda: NoTextError({}),
    "ExitsInTextError, whose text cannot be made: SystemExit": ExitsInTextError,
    "InterruptsInTextError, whose text cannot be made: KeyboardInterrupt": InterruptsInTextError,
    "TextIsNoTextError, whose text cannot be made: TypeError": TextIsNoTextError,
    "OddTextError: odd": OddTextError,
    "NotesError: said": lambda: NotesError("said"),
    "NamelessError: said": lambda: NamelessError("said"),
    "ClasslessError: said": lambda: ClasslessError("said"),
    "UnreducibleError: said": lambda: UnreducibleError("said"),
    "ValueError: xxxx": lambda: ValueError("x" * 10_000_000),
    "FileNotFoundError: [Errno 2] No such file: 'caf\\udce9'": lambda: FileNotFoundError(
        2, "No such file", "caf\udce9"
    ),
    "ExceptionGroup: two: ValueError: a; OSError: b": lambda: ExceptionGroup(
        "two", [ValueError("a"), OSError("b")]
    ),
    "BaseExceptionGroup: two: KeyboardInterrupt; SystemExit: 1": lambda: BaseExceptionGroup(
        "two", [KeyboardInterrupt(), SystemExit(1)]
    ),
    "ValueError: nest: deep": lambda: nested(3_000),
    "ValueError: later 2999": lambda: chained(3_000),
}
"""What is said of it -> what is raised."""


def misbehave(what: str, _work: AnyWork) -> str:
    if what in RAISED:
        raise RAISED[what]()
    if what == "RecursionError":
        recurse(0)
    return what.upper()


async def misbehave_async(what: str, work: AnyWork) -> str:
    await trio.lowlevel.checkpoint()
    return misbehave(what, work)


class _Own(dict[Any, Any]):
    pass


class _Unshown:
    def __repr__(self) -> NoReturn:
        raise ValueError("not shown")


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


RETURNED: dict[str, Callable[[], Any]] = {
    "an int of more than 64 bits": lambda: 2**70,
    "lone surrogate": lambda: "\udce9",
    "a _Own is not JSON-like": _Own,
    "a set is not JSON-like": set,
    "_Unshown": lambda: {_Unshown(): 1},
    "over 4,194,304": lambda: "x" * 5_000_000,
    "nested deeper than": lambda: deep(100),
}
"""What is said of it -> what is returned."""


def give(what: str, _work: AnyWork) -> Any:
    return RETURNED[what]() if what in RETURNED else what.upper()


def give_nested(depth: int) -> Any:
    return deep(depth)


def exit_at_the_beginning(item: str) -> NoReturn:
    sys.exit(f"no state for {item}")


@remote.task(state=exit_at_the_beginning)
def without_state(item: str, _work: AnyWork) -> str:
    return item


async def end_unencodable(item: str, work: AnyWork) -> str:
    """A state that is saved once, and cannot be any more when the function returns."""
    work.state["step"] = 1
    await work.point("one")
    await trio.sleep(1)
    work.state["hook"] = lambda: None
    return item.upper()


def one_argument(item: int) -> int:
    return item**2


def with_default(item: int, scale: int = 3) -> int:
    return item * scale


def with_optional_work(item: int, work: AnyWork | None = None) -> bool:
    return work is not None


async def one_argument_async(item: int) -> int:
    await trio.lowlevel.checkpoint()
    return item**2


def any_arguments(*arguments: Any) -> int:
    return len(arguments)


def no_argument() -> int:
    return 1


def numbers(_item: None) -> Any:
    return [np.float64(1.5), np.int32(3), Decimal("2.5"), (1, 2)]


def take_real_time(item: float, _work: AnyWork) -> float:
    time.sleep(item)
    return item


async def save_once(item: str, work: AnyWork) -> str:
    work.state["seen"] = item
    await work.point()
    return item.upper()


def hand_back_once(item: str, work: AnyWork) -> str:
    """The first worker saves and hands the item back, from its thread; the next one ends it."""
    if not work.state.get("is_handed_back"):
        work.state["is_handed_back"] = True
        work._control.release_reason = "the function asks for it"
        work.point_sync()
    return item.upper()


NOTED: list[tuple[AnyWork, int]] = []  # the steps of `note_steps`


async def note_steps(count: int, work: AnyWork) -> int:
    while work.state.setdefault("done", 0) < count:
        work.state["done"] += 1
        NOTED.append((work, work.state["done"]))
        await work.point()
    return count


async def forget_awaits(item: int, work: Work[Any]) -> int:
    """Point without await, with every second item."""
    if item % 2:
        work.point("here")  # type: ignore[unused-coroutine]
    await work.point("there")
    return item


def forget_awaits_sync(item: int, work: Work[Any]) -> int:
    """Call `point` in a thread, where `point_sync` is right."""
    if item % 2:
        work.point("here")  # type: ignore[unused-coroutine]
    work.point_sync("there")
    return item
