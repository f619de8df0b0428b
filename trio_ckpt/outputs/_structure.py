"""Converts JSON values to instances of attrs classes and dataclasses, without any coercion.

cattrs resolves annotations and generics and makes the instances.  Its own hooks coerce: they
would accept ``int("12")`` for a number, and a list of characters for a word.  The hooks here
accept only the JSON type that fits.  They also keep no more than the first problem of an array
and the number of the others, because a document may have millions of them.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import traceback
import types
import typing
from collections import deque
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
    Set as AbstractSet,
)
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from .._util.arguments import shown
from .._util.exceptions import class_name, text_of
from .._util.extras import needs_extra
from .._util.text import plural
from ._json import Json

if TYPE_CHECKING:
    from cattrs import Converter

MAX_SHOWN_CHARS = 40  # per value in a message

Hint: TypeAlias = Any  # an annotation: a class, a generic alias, a union …
Hook = Callable[[Json, Hint], Json]


class MisfitError(ValueError):
    """A value does not have the required shape.

    Attributes:
        field: The place, ``lines[3].text``; empty: the whole value.
        reason: What is wrong there.
        more: The number of other problems.
    """

    def __init__(self, field: str, reason: str, more: int = 0) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.more = more


def is_class(kind: Hint) -> bool:
    """Return whether `kind` is an attrs class or a dataclass, or a parametrised one."""
    origin = _origin(kind)
    return isinstance(origin, type) and (attrs.has(origin) or dataclasses.is_dataclass(origin))


def make_structure(kind: Hint) -> Callable[[object], Json]:
    """Return a function that makes instances of `kind`; it raises `MisfitError`.

    Raises:
        MissingExtraError: cattrs is not installed.
        TypeError: a type in it cannot come from JSON, or an annotation cannot be resolved.
    """
    with needs_extra("validate", "validation by an attrs class"):
        import cattrs
    converter = cattrs.Converter(detailed_validation=True)
    for leaf in _LEAVES:
        converter.register_structure_hook(leaf, _structure_leaf)
    converter.register_structure_hook_func(_has_choices, _structure_choice)
    for predicate, factory in _FACTORIES:
        converter.register_structure_hook_factory(predicate)(factory)
    try:
        hook: Hook = converter.get_structure_hook(kind)
    except (cattrs.StructureHandlerNotFoundError, NameError) as error:
        raise TypeError(f"{shown(kind)} cannot validate JSON: {text_of(error)}") from error

    def structure(value: object) -> Json:
        try:
            return hook(value, kind)
        except Exception as error:
            raise misfit_of(error) from error

    return structure


def _origin(kind: object) -> Hint:
    return typing.get_origin(kind) or kind


# ---------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------


def misfit_of(error: BaseException) -> MisfitError:
    """Summarise the errors of one value: the first of them, and the number of others."""
    if isinstance(error, MisfitError):
        return error
    group = getattr(error, "group_exceptions", None)
    if group is None:
        return MisfitError(_attribute_in(error), words_of(error))
    located, others = group()  # by the fields of a class, or the items of a collection
    first, *rest = (
        *(_below(getattr(note, "name", None) or _step(note.index), e) for e, note in located),
        *map(misfit_of, others),
    )
    return MisfitError(first.field, first.reason, first.more + sum(1 + m.more for m in rest))


def _below(step: str, error: BaseException) -> MisfitError:
    """Return the problem with its path extended outwards by ``text`` or ``[3]``."""
    if type(error) is KeyError and error.args == (step,):
        return MisfitError(step, "required, but missing")
    inner = misfit_of(error)
    return MisfitError(join(step, inner.field), inner.reason, inner.more)


def _step(at: object) -> str:
    """Return the path of an item by its position, or by its key."""
    return at if isinstance(at, str) and at.isidentifier() else f"[{json.dumps(at)}]"


def join(step: str, field: str) -> str:
    """Join two paths: ``lines`` and ``[3].text`` give ``lines[3].text``."""
    return f"{step}.{field}" if step and field and not field.startswith("[") else f"{step}{field}"


def words_of(error: BaseException) -> str:
    """Describe an exception: the text alone if it is one for bad values."""
    first = error.args[0] if error.args else None
    is_about_values = isinstance(error, (ValueError, TypeError, AssertionError))
    if is_about_values and isinstance(first, str) and first:
        return first
    return f"{class_name(error)}: {text_of(error)}"


def _attribute_in(error: BaseException) -> str:
    """Return the attribute whose validator raised: the first in a frame below ``__init__``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames]
    inside = frames[names.index("__init__") + 1 :] if "__init__" in names else []
    found = [value for frame in inside for value in frame.f_locals.values()]
    return next((str(value.name) for value in found if isinstance(value, attrs.Attribute)), "")


def _refusal(value: Json, name: str) -> MisfitError:
    return MisfitError("", f"{_shown(value)} is not {name}")


def _shown(value: Json) -> str:
    """Return a short form of a JSON value for a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"


# ---------------------------------------------------------------------------------------
# Single values: JSON's own, texts with a meaning, enumerations, literals, unions
# ---------------------------------------------------------------------------------------

_LEAVES: dict[type, tuple[tuple[type, ...], Callable[[Json], Json], str]] = {
    str: ((str,), str, "a str"),
    int: ((int,), int, "an int"),
    float: ((float, int), float, "a float"),
    bool: ((bool,), bool, "a bool"),
    bytes: ((), bytes, "a bytes"),
    type(None): ((type(None),), lambda value: value, "null"),
    datetime: ((str,), datetime.fromisoformat, "an ISO 8601 datetime"),
    date: ((str,), date.fromisoformat, "an ISO 8601 date"),
    time: ((str,), time.fromisoformat, "an ISO 8601 time"),
    Path: ((str,), Path, "a path"),
}
"""For each type: the JSON types that it accepts, how it is read, and its name."""


def _structure_leaf(value: Json, kind: Hint) -> Json:
    if _has_choices(kind):  # cattrs finds the hook of int for an enumeration of ints
        return _structure_choice(value, kind)
    accepted, read, name = _LEAVES.get(kind, ((), kind, f"a {kind.__name__}"))
    if type(value) not in accepted:  # exactly: true is no int
        raise _refusal(value, name)
    try:
        return read(value)
    except OverflowError:
        raise MisfitError("", f"{_shown(value)} exceeds the range of {name}") from None
    except ValueError as error:
        raise _refusal(value, name) from error


def _has_choices(kind: Hint) -> bool:
    is_literal = _origin(kind) is typing.Literal
    return is_literal or (isinstance(kind, type) and issubclass(kind, enum.Enum))


def _structure_choice(value: Json, kind: Hint) -> Json:
    """Make a member of an enumeration by its value, or one of the values of a literal."""
    choices: Sequence[object] = typing.get_args(kind) or list(kind)
    for choice in choices:
        plain = choice.value if isinstance(choice, enum.Enum) else choice
        if type(plain) is type(value) and plain == value:
            return choice
    is_literal = _origin(kind) is typing.Literal
    one = f"one of {', '.join(map(repr, choices))}" if is_literal else f"a value of {kind.__name__}"
    raise _refusal(value, one)


def _is_union(kind: Hint) -> bool:
    """Return whether it is a union, except one of a type and None, which cattrs knows."""
    members = typing.get_args(kind)
    is_optional = len(members) == 2 and type(None) in members
    return _origin(kind) in (typing.Union, types.UnionType) and not is_optional


def _union(kind: Hint, converter: Converter) -> Hook:
    """Make the hook of a union: the first member that fits is taken, an int before a float."""
    members = typing.get_args(kind)
    in_order = sorted(members, key=lambda member: member is float)
    hooks: list[tuple[Hint, Hook]] = [(m, converter.get_structure_hook(m)) for m in in_order]
    names = " | ".join(map(_name, members))

    def structure(value: Json, _: Hint) -> Json:
        likely: list[MisfitError] = []
        for member, hook in hooks:
            try:
                return hook(value, member)
            except Exception as error:
                if member is not type(None) and isinstance(value, dict) == is_class(member):
                    likely.append(misfit_of(error))
        if len(likely) == 1 and likely[0].field:
            raise likely[0]
        raise MisfitError("", f"{_shown(value)} fits none of {names}")

    return structure


def _name(kind: Hint) -> str:
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


# ---------------------------------------------------------------------------------------
# Objects and arrays
# ---------------------------------------------------------------------------------------

_ARRAYS: dict[type, Callable[[list[Json]], Json]] = {
    list: list,
    Sequence: list,
    MutableSequence: list,
    set: set,
    AbstractSet: set,
    MutableSet: set,
    frozenset: frozenset,
    tuple: tuple,
    deque: deque,
}


def _class(kind: Hint, converter: Converter) -> Hook:
    inner: Hook = converter.gen_structure_attrs_fromdict(kind)
    return lambda value, _: inner(_need(dict, value), kind)


def _array(kind: Hint, converter: Converter) -> Hook:
    make = _ARRAYS[_origin(kind)]
    items = typing.get_args(kind) or (Any, ...)
    is_open = make is not tuple or items[-1] is Ellipsis
    hooks: list[tuple[Hook, Hint]] = [
        (converter.get_structure_hook(item), item) for item in (items[:1] if is_open else items)
    ]

    def structure(value: Json, _: Hint) -> Json:
        _need(list, value)
        if not is_open and len(value) != len(hooks):
            raise MisfitError("", f"has {plural(len(value), 'item')}, not {len(hooks)}")
        each = hooks * len(value) if is_open else hooks
        made = _all(
            (at, hook, item, of)
            for at, (item, (hook, of)) in enumerate(zip(value, each, strict=True))
        )
        try:
            return make(made)
        except TypeError as error:  # an item that cannot be in a set
            raise MisfitError("", text_of(error)) from error

    return structure


def _mapping(kind: Hint, converter: Converter) -> Hook:
    key_kind, item_kind = typing.get_args(kind) or (Any, Any)
    key_hook: Hook = converter.get_structure_hook(key_kind)
    item_hook: Hook = converter.get_structure_hook(item_kind)

    def structure(value: Json, _: Hint) -> Json:
        _need(dict, value)
        keys = _all((key, key_hook, key, key_kind) for key in value)
        items = _all((key, item_hook, item, item_kind) for key, item in value.items())
        return dict(zip(keys, items, strict=True))

    return structure


def _need(kind: type[dict[Json, Json]] | type[list[Json]], value: Json) -> Json:
    if type(value) is not kind:
        raise _refusal(value, "an object" if kind is dict else "an array")
    return value


def _all(parts: Iterable[tuple[int | str, Hook, Json, Hint]]) -> list[Json]:
    """Convert item by item; the first problem is raised with the number of the others."""
    made: list[Json] = []
    first: MisfitError | None = None
    more = 0
    for at, hook, value, kind in parts:
        try:
            made.append(hook(value, kind))
        except Exception as error:
            misfit = _below(_step(at), error)
            more += misfit.more + (first is not None)
            first = first or misfit
    if first is not None:
        raise MisfitError(first.field, first.reason, more)
    return made


_FACTORIES: tuple[tuple[Callable[[Hint], bool], Callable[[Hint, Converter], Hook]], ...] = (
    (is_class, _class),
    (_is_union, _union),
    (lambda kind: _origin(kind) in _ARRAYS, _array),
    (lambda kind: _origin(kind) in (dict, Mapping, MutableMapping), _mapping),
)
