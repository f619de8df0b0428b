"""Converts JSON values to instances of attrs classes, without any coercion.

cattrs knows classes, generics and annotations; by itself it would accept ``int("12")`` for a
string, and a list of characters for a word.  So every leaf and every container has a hook
here, which accepts only the JSON type that fits.  If several members of
a union fit, the first is taken (an int before a float).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import traceback
import types
import typing
from collections.abc import (
    Callable,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence as AbstractSequence,
    Set as AbstractSet,
)
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, cast

import attrs

from .._util.arguments import shown
from .._util.errors import class_name, text_of
from .._util.extras import needs_extra
from .._util.text import plural

MAX_SHOWN_CHARS = 40  # per value in a message

Structure = Callable[[Any], Any]
_Hook = Callable[[Any, Any], Any]


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


def is_class(kind: Any) -> bool:
    """Return whether `kind` is an attrs class or a dataclass, or a parametrised one."""
    origin = _origin(kind)
    return isinstance(origin, type) and (attrs.has(origin) or dataclasses.is_dataclass(origin))


def make_structure(kind: Any) -> Structure:
    """Return a function that makes instances of `kind`; it raises `MisfitError`.

    Raises:
        MissingExtraError: cattrs is not installed.
        TypeError: a type in it cannot come from JSON, or an annotation cannot be resolved.
    """
    with needs_extra("validate", "validation by an attrs class"):
        import cattrs
    converter = cattrs.Converter(detailed_validation=True)
    for leaf in (str, int, float, bool, bytes, type(None), Path, datetime, date, time):
        converter.register_structure_hook(leaf, _structure_leaf)
    converter.register_structure_hook_func(_is_enum, _structure_leaf)
    for predicate, factory in _FACTORIES:
        converter.register_structure_hook_factory(predicate, _bind(factory, converter))
    try:
        hook = converter.get_structure_hook(kind)
    except (cattrs.StructureHandlerNotFoundError, NameError) as error:
        raise TypeError(f"{shown(kind)} cannot validate JSON: {text_of(error)}") from error

    def structure(value: Any) -> Any:
        try:
            return hook(value, kind)
        except Exception as error:
            raise misfit_of(error) from error

    return structure


def _bind(factory: Callable[[Any, Any], _Hook], converter: Any) -> Callable[[Any], _Hook]:
    return lambda kind: factory(kind, converter)


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
    located, others = group()
    misfits = [
        _missing(note.name) if _is_missing(cause, note.name) else below(note.name, cause)
        for cause, note in located
    ]
    misfits += [misfit_of(cause) for cause in others]
    first = misfits[0]
    more = sum(1 + misfit.more for misfit in misfits) - 1
    return MisfitError(first.field, first.reason, more)


def below(step: str, error: BaseException) -> MisfitError:
    """Return the problem with its path extended outwards by ``text`` or ``[3]``."""
    inner = misfit_of(error)
    return MisfitError(join(step, inner.field), inner.reason, inner.more)


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


def show(value: Any) -> str:
    """Return a short form of a JSON value for a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"


def _missing(name: str) -> MisfitError:
    return MisfitError(name, "required, but missing")


def _is_missing(error: BaseException, name: str) -> bool:
    return type(error) is KeyError and error.args == (name,)


def _attribute_in(error: BaseException) -> str:
    """Return the attribute whose validator raised: the first in a frame below ``__init__``."""
    is_inside = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if is_inside:
            for value in frame.f_locals.values():
                if isinstance(value, attrs.Attribute):
                    return str(value.name)
        is_inside = is_inside or frame.f_code.co_name == "__init__"
    return ""


# ---------------------------------------------------------------------------------------
# Leaves
# ---------------------------------------------------------------------------------------


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _structure_leaf(value: Any, kind: Any) -> Any:
    if _is_enum(kind):  # also an enum that derives from str or int
        for member in cast("type[enum.Enum]", kind):
            if type(member.value) is type(value) and member.value == value:
                return member
        raise MisfitError("", f"{show(value)} is not a value of {kind.__name__}")
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise MisfitError("", f"{show(value)} exceeds the range of a float") from None
    if kind in _FROM_TEXT:
        return _structure_text(value, kind)
    if kind is bytes or type(value) is not kind:
        name = "null" if kind is type(None) else kind.__name__
        raise MisfitError("", f"{show(value)} is not {_article(name)}")
    return value


_FROM_TEXT: dict[Any, tuple[Callable[[str], Any], str]] = {
    datetime: (datetime.fromisoformat, "an ISO 8601 datetime"),
    date: (date.fromisoformat, "an ISO 8601 date"),
    time: (time.fromisoformat, "an ISO 8601 time"),
    Path: (Path, "a path"),
}


def _structure_text(value: Any, kind: Any) -> Any:
    read, name = _FROM_TEXT[kind]
    if type(value) is not str:
        raise MisfitError("", f"{show(value)} is not {name}")
    try:
        return read(value)
    except ValueError as error:
        raise MisfitError("", f"{show(value)} is not {name}") from error


def _article(name: str) -> str:
    if name == "null":
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


# ---------------------------------------------------------------------------------------
# Literals and unions
# ---------------------------------------------------------------------------------------


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _literal(kind: Any, converter: Any) -> _Hook:
    allowed = typing.get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        for choice in allowed:
            plain = choice.value if isinstance(choice, enum.Enum) else choice
            if type(plain) is type(value) and plain == value:
                return choice
        raise MisfitError("", f"{show(value)} is not one of {', '.join(map(repr, allowed))}")

    return structure


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _union(kind: Any, converter: Any) -> _Hook:
    members = sorted(typing.get_args(kind), key=lambda member: member is float)
    hooks: list[tuple[Any, _Hook]] = [
        (member, converter.get_structure_hook(member)) for member in members
    ]
    is_optional = len(hooks) == 2 and type(None) in members
    names = " | ".join(_name(member) for member in typing.get_args(kind))

    def structure(value: Any, _: Any) -> Any:
        likely: list[MisfitError] = []
        for member, hook in hooks:
            try:
                return hook(value, member)
            except Exception as error:
                if member is not type(None) and (isinstance(value, dict) == is_class(member)):
                    likely.append(misfit_of(error))
        if len(likely) == 1 and (likely[0].field or is_optional):
            raise likely[0]
        raise MisfitError("", f"{show(value)} fits none of {names}")

    return structure


def _name(kind: Any) -> str:
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


# ---------------------------------------------------------------------------------------
# Containers
# ---------------------------------------------------------------------------------------

_SEQUENCES: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    AbstractSequence: list,
    MutableSequence: list,
    set: set,
    AbstractSet: set,
    MutableSet: set,
    frozenset: frozenset,
}
_MAPPINGS = (dict, Mapping, MutableMapping)


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _each(values: list[Any], hooks: list[tuple[_Hook, Any]]) -> list[Any]:
    """Structure item by item; the first problem is raised with the number of the others."""
    made: list[Any] = []
    first: MisfitError | None = None
    more = 0
    for position, (value, (hook, kind)) in enumerate(zip(values, hooks, strict=True)):
        try:
            made.append(hook(value, kind))
        except Exception as error:
            misfit = below(f"[{position}]", error)
            more += misfit.more + (first is not None)
            first = first or misfit
    if first is not None:
        raise MisfitError(first.field, first.reason, more)
    return made


def _sequence(kind: Any, converter: Any) -> _Hook:
    make = _SEQUENCES[_origin(kind)]
    item = (typing.get_args(kind) or (Any,))[0]
    hook: _Hook = converter.get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        _need_array(value)
        made = _each(value, [(hook, item)] * len(value))
        try:
            return make(made)
        except TypeError as error:  # an item that cannot be in a set
            raise MisfitError("", text_of(error)) from error

    return structure


def _tuple(kind: Any, converter: Any) -> _Hook:
    items = typing.get_args(kind) or (Any, ...)
    is_open = items[-1] is Ellipsis
    fixed = items[:1] if is_open else items
    hooks: list[tuple[_Hook, Any]] = [(converter.get_structure_hook(i), i) for i in fixed]

    def structure(value: Any, _: Any) -> Any:
        _need_array(value)
        if not is_open and len(value) != len(hooks):
            raise MisfitError("", f"has {plural(len(value), 'item')}, not {len(hooks)}")
        return tuple(_each(value, hooks * len(value) if is_open else hooks))

    return structure


def _mapping(kind: Any, converter: Any) -> _Hook:
    wanted, item = typing.get_args(kind) or (Any, Any)
    key_hook: _Hook = converter.get_structure_hook(wanted)
    hook: _Hook = converter.get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise MisfitError("", f"{show(value)} is not an object")
        found = cast("dict[str, Any]", value)
        made: dict[Any, Any] = {}
        for key, inner in found.items():
            step = key if key.isidentifier() else f"[{show(key)}]"
            try:
                made[key_hook(key, wanted)] = hook(inner, item)
            except Exception as error:
                raise below(step, error) from error
        return made

    return structure


def _class(kind: Any, converter: Any) -> _Hook:
    inner: _Hook = converter.gen_structure_attrs_fromdict(kind)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise MisfitError("", f"{show(value)} is not an object")
        return inner(value, kind)

    return structure


def _need_array(value: Any) -> None:
    if type(value) is not list:
        raise MisfitError("", f"{show(value)} is not an array")


_FACTORIES: tuple[tuple[Callable[[Any], bool], Callable[[Any, Any], _Hook]], ...] = (
    (is_class, _class),
    (_is_literal, _literal),
    (_is_union, _union),
    (lambda kind: _origin(kind) in _SEQUENCES, _sequence),
    (lambda kind: _origin(kind) is tuple, _tuple),
    (lambda kind: _origin(kind) in _MAPPINGS, _mapping),
)
