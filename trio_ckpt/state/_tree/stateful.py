"""Stateful objects: they give their state to a save and take it back, by methods of their own.

Optimizers, schedulers, modules and data loaders have ``state_dict`` and ``load_state_dict``,
generators of torch ``get_state`` and ``set_state``, and so may an object of the program.  What it
gives is saved like any other part of the state; what was saved is loaded into the object that the
program gave, which is never built or copied.  The methods are code of others: whatever they raise
names the object.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import cast

from ..._util.errors import NotEncodableError
from ..._util.exceptions import class_name, text_of
from .classes import protocol_of
from .errors import StateChangedError
from .format import Value, kind_of
from .identity import Where, path_of, steps_of

_Place = tuple[object, ...]


def give_state(value: Value, where: Where) -> Value:
    """Return what a stateful object gives.

    Raises:
        NotEncodableError: its method raised; the message has the path of the object.
    """
    give, _ = _methods_of(value)
    try:
        return getattr(value, give)()
    except Exception as error:
        raise NotEncodableError(path_of(where), _raised(give, error)) from error


def metadata_of(given: Value) -> Value:
    """Return the ``_metadata`` with which a module of torch notes the versions of its parts."""
    return getattr(given, "_metadata", None) if kind_of(given) is OrderedDict else None


def with_metadata(given: Value, metadata: Value) -> Value:
    """Return what an object gave with its ``_metadata``, if it had one."""
    if metadata is not None and kind_of(given) is OrderedDict:
        given._metadata = metadata
    return given


def check_class(value: Value, label: str, name: str) -> Value:
    """Return the program's object for a saved one of a class.

    Raises:
        StateChangedError: there is none, or it is of a class of another name.
    """
    saved, own = label.partition(":")[2], kind_of(value).__qualname__
    problem = f"an object of the class {saved} was saved, the program"
    if value is None:
        raise StateChangedError(name, f"{problem}'s state has none there when the stream is opened")
    if own != saved:
        help_ = "give one of the saved class, or begin with fresh=True"
        raise StateChangedError(name, f"{problem} gives a {own}: {help_}")
    return value


def load_state(value: Value, given: Value, name: str) -> None:
    """Load what an object gave, and check that no array of it was converted.

    A module of torch copies numbers of one dtype into those of another without a word.

    Raises:
        StateChangedError: its method raised, or an array has another dtype or shape now.
    """
    give, take = _methods_of(value)
    saved = dict(_forms_in(given, ()))
    _call(name, value, take, given)
    now = dict(_forms_in(_call(name, value, give), ())) if saved else saved
    for place, form in saved.items():
        if now.get(place, form) != form:
            problem = f"saved as {form}, it is {now[place]} after {take}()"
            raise StateChangedError(
                name + steps_of(place),
                f"{problem}: give an object like the saved one, or save it under another key",
            )


def _call(name: str, value: Value, method: str, *arguments: Value) -> Value:
    try:
        return getattr(value, method)(*arguments)
    except Exception as error:
        raise StateChangedError(name, _raised(method, error)) from error


def _forms_in(given: Value, place: _Place) -> Iterator[tuple[_Place, str]]:
    """Yield the dtype and shape of each array that an object gave, with its place."""
    if isinstance(given, dict):
        for key, item in cast("dict[object, Value]", given).items():
            yield from _forms_in(item, (*place, key))
    elif isinstance(given, (list, tuple)):
        for at, item in enumerate(cast("Sequence[Value]", given)):
            yield from _forms_in(item, (*place, at))
    elif hasattr(given, "dtype") and hasattr(given, "shape"):
        yield place, f"{given.dtype} {tuple(given.shape)}"


def _methods_of(value: Value) -> tuple[str, str]:
    names = protocol_of(kind_of(value))
    if names is None:
        raise RuntimeError(f"a {kind_of(value).__qualname__} has no methods for its state")
    return names


def _raised(method: str, error: Exception) -> str:
    return f"its {method}() raised {class_name(error)}: {text_of(error)}"
