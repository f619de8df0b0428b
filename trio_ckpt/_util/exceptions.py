"""Exceptions of any class, asked with care: their leaves, their names and their texts."""

from __future__ import annotations

from collections.abc import Callable

import trio

_QUALNAME = type.__dict__["__qualname__"]
_PARTS = BaseExceptionGroup.__dict__["exceptions"]
_MESSAGE = BaseExceptionGroup.__dict__["message"]

NURSERY_MESSAGES = frozenset(
    {"Exceptions from Trio nursery", "unhandled errors in a TaskGroup", "multiple tasks failed"}
)
"""The messages of groups that trio, asyncio and anyio make: they do not say what happened."""

MAX_TEXTS = 5  # different texts of the exceptions in a group


def leaves_of(
    error: BaseException, is_leaf: Callable[[BaseException], bool] | None = None
) -> list[BaseException]:
    """The exceptions of a group and its nested groups, each once; of another exception itself.

    Args:
        error: An exception or a group, of any class.
        is_leaf: Whether a group counts as one exception; default: none does.
    """
    found, left, seen = list[BaseException](), [error], set[int]()
    while left:  # not by recursion: a program may nest groups deeper than the stack
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        is_group = issubclass(type(part), BaseExceptionGroup)
        if is_group and not (is_leaf is not None and is_leaf(part)):
            left += reversed(_PARTS.__get__(part))
        else:
            found.append(part)
    return found


def failures_in(
    error: BaseException, is_leaf: Callable[[BaseException], bool] | None = None
) -> list[BaseException]:
    """The exceptions of a group that are not trio's cancellation of a task; see `leaves_of`."""
    leaves = leaves_of(error, is_leaf)
    return [leaf for leaf in leaves if not issubclass(type(leaf), trio.Cancelled)]


def class_name(error: BaseException) -> str:
    """The name of an exception's class, for any metaclass.

    A plain group whose exceptions are all of one class has the name of that class.
    """
    kind: type[BaseException] = type(error)
    if kind in (ExceptionGroup, BaseExceptionGroup):
        kinds = set(map(type, failures_in(error) or leaves_of(error)))
        kind = kinds.pop() if len(kinds) == 1 else kind
    return qualname_of(kind)


def qualname_of(kind: type[object]) -> str:
    """The name of a class, for any metaclass: one may have a ``__qualname__`` of its own."""
    name: str = _QUALNAME.__get__(kind)
    return name


def with_article(name: str) -> str:
    """The name of a class with "a" or "an" before it."""
    return f"{'an' if name[:1].lower() in tuple('aeio') else 'a'} {name}"


def text_of(error: BaseException) -> str:
    """The text of an exception; the name of its class where the text is empty.

    The exception may be of a user's class whose ``__str__`` raises, exits, or returns anything:
    then the text says so.  This is the one place that asks a foreign exception for its text.
    The text of a group has the texts of its exceptions.
    """
    try:
        if type(error).__str__ is BaseExceptionGroup.__str__:
            return _text_of_group(error)
        text = str.__str__(str(error))  # not that of a subclass of str
    except BaseException as problem:
        return f"{class_name(error)}, whose text cannot be made: {class_name(problem)}"
    return text or class_name(error)


def _text_of_group(group: BaseException) -> str:
    """The texts of the exceptions in a group, after its own where that is informative."""
    leaves = failures_in(group) or leaves_of(group)
    is_mixed = len(set(map(type, leaves))) > 1
    counts = dict[str, int]()
    for leaf in leaves:
        kind, text = class_name(leaf), text_of(leaf)
        if is_mixed and not text.startswith(kind):
            text = f"{kind}: {text}"
        counts[text] = counts.get(text, 0) + 1
    texts = [text if count == 1 else f"{text} ({count} times)" for text, count in counts.items()]
    if len(texts) > MAX_TEXTS:
        texts[MAX_TEXTS:] = [f"and {len(texts) - MAX_TEXTS} more"]
    message = str.__str__(_MESSAGE.__get__(group))
    head = "" if message in NURSERY_MESSAGES else f"{message}: "
    return head + "; ".join(texts)
