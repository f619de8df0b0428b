"""Arguments of public callables: checked once, at the border, before anything has changed.

Each function takes the name of an argument and its value, and returns the value in its plain
form: an `int` for a NumPy integer, a `tuple` for any iterable.  A value that does not fit raises
TypeError (another kind) or ValueError (out of range).  The message has the name, the value and
what would be right: ``grace_s must be a number of seconds >= 0, not '30'``.
"""

from __future__ import annotations

import math
import operator
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar, cast

import attrs

from .exceptions import qualname_of, with_article

MAX_INDEX = 2**63 - 2
"""The greatest batch index: the end of an interval, one more, fits into 64 signed bits."""

MAX_PORT = 65_535

NOT_EXPANDED = "begins with '~', which only a shell expands: give os.path.expanduser(path)"

MAX_SHOWN_CHARS = 80
"""How much of a wrong value a message shows: it may be a whole document."""

UNSTOPPABLE = ("SIGKILL", "SIGSTOP")

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def shown(value: object) -> str:
    """A value as a message names it: its `repr`, shortened; its class where that raises.

    The value may be of a user's class, or come from outside, so any exception of its
    ``__repr__`` is caught, also the one that Python raises for an int of many digits.
    """
    try:
        text = str.__str__(repr(value))  # not that of a subclass of str
    except BaseException:
        return with_article(qualname_of(type(value)))
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"


def whole_number(name: str, value: object, *, least: int = 0, most: int = MAX_INDEX) -> int:
    """Check an index or a count: an int, or an object that stands for one, as a NumPy integer.

    Raises:
        TypeError: the value is a bool, a float, a str or any other kind.
        ValueError: the value is below `least` or above `most`.
    """
    if type(value) is int and least <= value <= most:  # the usual case, on the hot path
        return value
    bounds = f"an int from {least} on" if most == MAX_INDEX else f"an int from {least} to {most}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be {bounds}, not {shown(value)}")
    try:
        number = operator.index(cast("int", value))
    except TypeError as error:  # an array of several numbers also has the method
        raise TypeError(f"{name} must be {bounds}, not {shown(value)}") from error
    if not least <= number <= most:
        bounds = bounds if number < least else f"an int from {least} to {most}"
        raise ValueError(f"{name} must be {bounds}, not {shown(value)}")
    return number


def port(name: str, value: object) -> int:
    """Check the number of a TCP port; 0 stands for any free port.

    Raises:
        TypeError, ValueError: the value is not a port.
    """
    return whole_number(name, value, most=MAX_PORT)


def whole_numbers(name: str, values: Iterable[int]) -> list[int]:
    """Check several indexes; returns each once, ascending.

    Raises:
        TypeError: the value cannot be iterated, or a member is not a whole number.
        ValueError: a member is out of range.
    """
    members = several(name, values, "ints")
    return sorted({whole_number(f"an index of {name}", member) for member in members})


def index_range(start: object, end: object) -> tuple[int | None, int | None]:
    """Check the arguments ``start`` and ``end`` of a loop: indexes, both inclusive, or None.

    Raises:
        TypeError, ValueError: one is not an index.
    """
    return (
        None if start is None else whole_number("start", start),
        None if end is None else whole_number("end", end),
    )


def seconds(
    name: str, value: object, *, is_zero_allowed: bool = True, is_endless_allowed: bool = False
) -> float:
    """Check a time span in seconds: a finite int or float, not a bool.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is negative, NaN, infinite unless `is_endless_allowed`, or zero
            unless `is_zero_allowed`.
    """
    wanted = f"a number of seconds {'>=' if is_zero_allowed else '>'} 0"
    span = _real(name, value, wanted, is_endless_allowed=is_endless_allowed)
    if span == 0 and not is_zero_allowed:
        raise ValueError(f"{name} must be {wanted}, not {shown(value)}")
    return span


def ratio(name: str, value: object) -> float:
    """Check a ratio: a finite number >= 0, not a bool.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is negative, NaN or infinite.
    """
    return _real(name, value, "a number >= 0")


def _real(name: str, value: object, wanted: str, *, is_endless_allowed: bool = False) -> float:
    """Check a number >= 0, which is finite unless `is_endless_allowed`."""
    has_sign = isinstance(value, int | float) or hasattr(value, "__index__")
    if isinstance(value, bool) or not has_sign:
        raise TypeError(f"{name} must be {wanted}, not {shown(value)}")
    try:
        number = float(cast("float", value))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be {wanted}, not {shown(value)}") from error
    if not (0 <= number < math.inf or (number == math.inf and is_endless_allowed)):
        raise ValueError(f"{name} must be {wanted}, not {shown(value)}")
    return number


def moment(name: str, value: object) -> datetime:
    """Check a moment: a datetime with a time zone.

    Raises:
        TypeError: the value is not a datetime, for example a number.
        ValueError: it has no time zone, so it is another moment on another machine.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime with a time zone, not {shown(value)}")
    if value.utcoffset() is None:
        raise ValueError(f"{name} must be a datetime with a time zone, not {shown(value)}")
    return value


def signals(name: str, values: Iterable[str]) -> tuple[signal.Signals, ...]:
    """Check names of signals, such as ``SIGUSR1``, that a handler of Python can be set for.

    Raises:
        TypeError: the value is no list, or a member is not a str.
        ValueError: there are none, this system has no such signal, or none can handle it.
    """
    names = several(name, values, "names of signals")
    if not names:
        raise ValueError(f"{name} must have one name of a signal at least")
    wanted = "names of signals that a process of this system can handle"
    known = signal.Signals.__members__
    for each in names:
        if not isinstance(cast("object", each), str):
            raise TypeError(f"{name} must have {wanted}, not {shown(each)}")
        if each not in known or each in UNSTOPPABLE:
            raise ValueError(f"{name} must have {wanted}, not {shown(each)}")
    return tuple(dict.fromkeys(known[each] for each in names))


def flag(name: str, value: object) -> bool:
    """Check a flag: True or False, and no other truthy value, such as ``"no"``.

    Raises:
        TypeError: the value is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {shown(value)}")
    return value


def text(name: str, value: object, *, is_empty_allowed: bool = False) -> str:
    """Check a str.

    Raises:
        TypeError: the value is not a str.
        ValueError: the value is empty, unless `is_empty_allowed`.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {shown(value)}")
    if not value and not is_empty_allowed:
        raise ValueError(f"{name} must not be empty")
    return value


def any_path(name: str, value: object) -> str:
    """Check the path of a file or a folder; returns it as a str, also an empty one.

    Raises:
        TypeError: the value is neither a str nor a path of str.
    """
    try:
        plain: object = os.fspath(cast("str", value))
    except TypeError:
        plain = None
    if not isinstance(plain, str):
        raise TypeError(f"{name} must be a path, a str or a pathlib.Path, not {shown(value)}")
    return plain


def path_text(name: str, value: object) -> str:
    """Check the path of a file or a folder; returns it as a str.

    Raises:
        TypeError: the value is neither a str nor a path of str.
        ValueError: the value is empty, or begins with ``~``.
    """
    plain = any_path(name, value)
    if names_home(plain):
        raise ValueError(
            f"{name} must be a path without '~', which only a shell expands, not {shown(value)}: "
            "give os.path.expanduser(path)"
        )
    return text(name, plain)


def names_home(path: str) -> bool:
    """Whether a path begins with ``~`` or ``~user``, the home folder in a shell.

    A folder that is named ``~`` is ``./~``.
    """
    return path.startswith("~")


def reason(name: str, value: object) -> BaseException | str:
    """Check the reason of a failure: an exception, or a text, which may be empty.

    Raises:
        TypeError: the value is neither, such as the class of an exception.
    """
    if not isinstance(value, BaseException | str):
        raise TypeError(f"{name} must be an exception or a str, not {shown(value)}")
    return value


def one_of(name: str, value: object, choices: Sequence[T]) -> T:
    """Check that a value is one of a few.

    Raises:
        ValueError: the value is not among them.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(value)}")


def several(name: str, values: Iterable[T], what: str) -> tuple[T, ...]:
    """The members of an iterable; a str counts as one text, not as several letters.

    Args:
        name: The name of the argument.
        values: Any iterable but a str, bytes or a mapping.
        what: The kind of its members, in the plural: ``stream keys``.

    Raises:
        TypeError: the value is a str, bytes or a mapping, or cannot be iterated.
    """
    given = cast("object", values)  # of any kind, which is checked here
    if type(given) is tuple:  # the usual default, on the hot path
        return cast("tuple[T, ...]", given)
    if isinstance(given, str | bytes | bytearray | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list of {what}, not {shown(values)}")
    return tuple(values)


def stream_key(name: str, value: Iterable[str]) -> tuple[str, ...]:
    """The key of a stream as a tuple of its parts; the parts themselves are not checked.

    Raises:
        TypeError: the value is not a tuple or list of str, for example one str.
    """
    given: object = value
    if not isinstance(given, tuple | list):  # a set has no order, a str is one text
        raise TypeError(f"{name} must be a tuple of its parts, not {shown(given)}")
    parts = tuple(value)
    for part in parts:
        text(f"a part of {name}", part, is_empty_allowed=True)
    return parts


def instance(name: str, value: T, kind: type[object], what: str) -> T:
    """Check that a value is an object of a class.

    Args:
        name: The name of the argument.
        value: The object.
        kind: The class.
        what: The right kind of value, with its article: ``a RetryTable``.

    Raises:
        TypeError: the value is of another class, or is the class itself.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, not {shown(value)}")
    return value


def function(name: str, value: T) -> T:
    """Check that a value can be called.

    Raises:
        TypeError: the value cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {shown(value)}")
    return value


def mapping(name: str, value: Mapping[str, T]) -> dict[str, T]:
    """A mapping as a new dict.

    Raises:
        TypeError: the value is not a mapping.
    """
    if not isinstance(cast("object", value), Mapping):
        raise TypeError(f"{name} must be a mapping, not {shown(value)}")
    return dict(value)


def exception_classes(name: str, values: Iterable[type[E]]) -> tuple[type[E], ...]:
    """Check classes of exceptions, as an `except` clause takes them.

    Raises:
        TypeError: the value is one class or a str, or a member is not an exception class.
    """
    kinds = several(name, values, "classes of exceptions")
    for kind in kinds:
        given = cast("object", kind)
        if not (isinstance(given, type) and issubclass(given, BaseException)):
            raise TypeError(f"{name} must be a list of classes of exceptions, not {shown(values)}")
    return kinds


def checked_by(check: Callable[..., object], **options: object) -> Callable[..., None]:
    """Make a validator for a field of an attrs class from a function above and its options."""

    def validate(_: object, attribute: attrs.Attribute[object], value: object) -> None:
        check(attribute.name, value, **options)

    return validate


def optional(check: Callable[..., object]) -> Callable[..., None]:
    """Make a validator for a field that may be None from one of the functions above."""
    return attrs.validators.optional(checked_by(check))
