"""The classes and the stateful objects of a state: found in its annotations and initial value.

Only the classes found here are ever built again.  They are looked up by the saved name,
never imported by it.  A stateful object is never built: it is the one that is found here.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import attrs

from .format import Value, kind_of
from .identity import Where, path_of

Hint: TypeAlias = Any  # an annotation: a class, a generic alias, a union …

EXCLUDE = "exclude"
"""The metadata of a field that is not saved: ``field(metadata={EXCLUDE: True})``."""

PROTOCOLS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))
"""The methods by which a stateful object gives and takes its state; the first pair counts."""

CACHED_HASH = "_attrs_cached_hash"  # the attribute of an attrs class with cache_hash=True

ATOMS: frozenset[type] = frozenset((type(None), bool, int, float, str, bytes))


@attrs.frozen
class Field:
    """A field of a class.

    Attributes:
        name: The name of the field.
        is_excluded: Whether it is excluded from saving.
        default: Its default, or `attrs.NOTHING`.
        factory: The function that makes a new default, or None.
        takes_self: Whether the factory gets the instance.
    """

    name: str
    is_excluded: bool
    default: Value
    factory: Callable[..., Value] | None
    takes_self: bool = False


@attrs.frozen(eq=False, repr=False)
class Shape:
    """The fields and properties of an attrs class, a dataclass or a named tuple.

    Attributes:
        cls: The class.
        label: The name of the class in saved states.
        fields: The fields by name, in order.
        problem: Why its instances cannot be saved, or None.
        is_tuple: Whether it is a named tuple.
        caches_hash: Whether its instances cache their hash.
        loose: Attributes beside its fields that an instance may have: they are computed again.
        runs_code: Whether reading a field may run code of the program.
    """

    cls: type
    label: str
    fields: dict[str, Field]
    problem: str | None
    is_tuple: bool
    caches_hash: bool
    loose: frozenset[str]
    runs_code: bool


def label_of(cls: type) -> str:
    """Return the name of a class in saved states."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_declared(cls: type) -> bool:
    """Return whether it is a class whose instances can be saved once a plan knows it."""
    is_plain = _is_named_tuple(cls) or _is_enum(cls)
    return is_plain or attrs.has(cls) or dataclasses.is_dataclass(cls)


@attrs.define(eq=False, repr=False)
class Classes:
    """The classes of a state.

    Attributes:
        shapes: The classes that are built field by field.
        enums: The enumerations.
    """

    shapes: dict[type, Shape] = attrs.Factory(dict[type, Shape])
    enums: set[type[enum.Enum]] = attrs.Factory(set[type[enum.Enum]])
    _labels: dict[str, list[type]] = attrs.Factory(dict[str, list[type]])

    def find(self, label: str) -> type | None:
        """Return the class that was saved under a label; None: there is none.

        A class that moved to another module is found as long as its qualified name is
        unique.
        """
        found = self._labels.get(label.partition(":")[2], [])
        if len(found) == 1:
            return found[0]
        return next((cls for cls in found if label_of(cls) == label), None)

    @property
    def run_code(self) -> bool:
        """Return whether reading their instances may run code of the program."""
        value = _static(enum.Enum, "value")
        return any(shape.runs_code for shape in self.shapes.values()) or any(
            _static(cls, "value") is not value or _runs_code(cls, ()) for cls in self.enums
        )

    def learn(self, hint: Hint) -> None:
        """Add every class that an annotation names, and those of their fields."""
        waiting: list[Hint] = [hint]
        seen: set[int] = set()
        kept: list[Hint] = []  # keeps objects alive, so that no id is used twice
        while waiting:
            hint = waiting.pop()
            if id(hint) in seen:
                continue
            seen.add(id(hint))
            kept.append(hint)
            if isinstance(hint, type) and typing.get_origin(hint) is None:
                waiting.extend(self.learn_class(hint))
            else:
                waiting.extend(_parts_of(hint))

    def learn_class(self, cls: type) -> Iterable[Hint]:
        """Add a class, and return the annotations of its fields; none if it was known."""
        if cls in self.shapes or cls in self.enums:
            return ()
        if _is_enum(cls):
            self.enums.add(cls)
        elif is_declared(cls):
            self.shapes[cls] = _shape_of(cls)
        else:
            return _hints_of(cls).values() if typing.is_typeddict(cls) else ()
        self._labels.setdefault(cls.__qualname__, []).append(cls)
        if _is_enum(cls):
            learn_from(self, [member.value for member in cls.__members__.values()])
            return ()
        return _hints_of(cls).values()


def _parts_of(hint: object) -> Iterable[Hint]:
    """Return the parts of an annotation that is not a class."""
    if isinstance(hint, typing.TypeVar):
        return (hint.__bound__, *hint.__constraints__)
    inner = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    if inner is not None:  # a NewType, or `type X = …`
        return (inner,)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return [type(value) for value in typing.get_args(hint)]
    if isinstance(hint, (list, tuple)):  # the arguments of a Callable
        return typing.cast("Iterable[Hint]", hint)
    return (origin, *typing.get_args(hint)) if origin is not None else ()


def _hints_of(cls: type) -> dict[str, Hint]:
    """Return the annotations of a class, without those whose names cannot be resolved."""
    try:
        return typing.get_type_hints(cls)
    except Exception:  # an annotation is code, which may raise any exception
        raw: dict[str, Hint] = {}
        for base in reversed(cls.__mro__):
            space = (
                dict(vars(sys.modules[base.__module__])) if base.__module__ in sys.modules else {}
            )
            for name, hint in _raw_hints(base).items():
                one = types.SimpleNamespace(__annotations__={name: hint})
                try:
                    raw |= typing.get_type_hints(one, space, {base.__name__: base, **vars(base)})
                except Exception:  # noqa: S112
                    continue
        return raw


def _raw_hints(cls: Hint) -> dict[str, Hint]:
    if attrs.has(cls):
        return {field.name: field.type for field in attrs.fields(cls) if field.type is not None}
    own = getattr(cls, "__dataclass_fields__", None)
    if own is not None:
        return {field.name: field.type for field in own.values()}
    return inspect.get_annotations(cls)


# ---------------------------------------------------------------------------------------
# The fields of one class
# ---------------------------------------------------------------------------------------


def _is_enum(cls: type) -> typing.TypeGuard[type[enum.Enum]]:
    return issubclass(cls, enum.Enum)


def _is_named_tuple(cls: type) -> bool:
    return tuple in cls.__mro__ and hasattr(cls, "_fields")


def _shape_of(cls: type) -> Shape:
    is_tuple = _is_named_tuple(cls)
    problem = None
    if is_tuple:
        fields = _fields_of_tuple(cls)
    else:
        fields = _fields_of_attrs(cls) if attrs.has(cls) else _fields_of_dataclass(cls)
        if _static(cls, "__new__") is not _static(object, "__new__"):
            problem = f"{cls.__qualname__} has a __new__ of its own, so it is not only its fields"
    loose = {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    }
    # The hash that attrs caches in an instance is valid only in this process.
    code = getattr(cls.__hash__, "__code__", None)
    caches_hash = isinstance(code, types.CodeType) and CACHED_HASH in code.co_names
    if caches_hash:
        loose.add(CACHED_HASH)
    runs_code = _runs_code(cls, fields)
    label = label_of(cls)
    return Shape(cls, label, fields, problem, is_tuple, caches_hash, frozenset(loose), runs_code)


class _Pair(typing.NamedTuple):
    one: int


_OF_PAIR: object = inspect.getattr_static(_Pair, "one")
# The types that read a slot, and those that read a field of a named tuple.
_PLAIN_READERS: frozenset[type] = frozenset((types.MemberDescriptorType, kind_of(_OF_PAIR)))


def _runs_code(cls: type, names: Iterable[str]) -> bool:
    """Return whether reading attributes of an instance may run code, such as a property's."""
    if type(_static(cls, "__getattribute__")) is not types.WrapperDescriptorType:
        return True
    if _static(cls, "__getattr__") is not None:
        return True
    readers = [kind_of(_static(cls, name)) for name in names]
    return any(hasattr(kind, "__get__") and kind not in _PLAIN_READERS for kind in readers)


def _static(cls: type, name: str) -> object:
    """Return the raw attribute of a class, without descriptors; None: there is none."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _fields_of_attrs(cls: type) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for field in attrs.fields(cls):
        default: Value = field.default
        factory, takes_self = None, False
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class to isinstance
            factory, takes_self, default = default.factory, default.takes_self, attrs.NOTHING
        excluded = _is_excluded(field.metadata)
        fields[field.name] = Field(field.name, excluded, default, factory, takes_self)
    return fields


def _fields_of_dataclass(cls: Hint) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for field in dataclasses.fields(cls):
        default = attrs.NOTHING if field.default is dataclasses.MISSING else field.default
        made = field.default_factory
        factory = None if made is dataclasses.MISSING else made
        fields[field.name] = Field(field.name, _is_excluded(field.metadata), default, factory)
    return fields


def _fields_of_tuple(cls: Hint) -> dict[str, Field]:
    defaults: Mapping[str, Value] = cls._field_defaults
    return {
        name: Field(name, False, defaults.get(name, attrs.NOTHING), None) for name in cls._fields
    }


def _is_excluded(metadata: Mapping[Value, Value]) -> bool:
    return bool(metadata.get(EXCLUDE, False))


# ---------------------------------------------------------------------------------------
# What the initial value shows
# ---------------------------------------------------------------------------------------


def roots_of(cls: type) -> set[str]:
    """Return the names of the libraries that define a class and its bases."""
    return {base.__module__.partition(".")[0] for base in cls.__mro__}


def protocol_of(cls: type) -> tuple[str, str] | None:
    """Return the methods by which objects of a class give and take their state; None: it has none.

    A declared class is saved by its fields, and NumPy's generators are values.
    """
    for names in PROTOCOLS:
        if all(callable(_static(cls, name)) for name in names):
            return None if is_declared(cls) or "numpy" in roots_of(cls) else names
    return None


@attrs.frozen(eq=False, repr=False)
class InitialValues:
    """What the initial state shows beside its classes.

    Attributes:
        excluded: The values of its excluded fields by path.
        objects: Its stateful objects by name, which is the first path of each.
    """

    excluded: dict[str, Value] = attrs.field(factory=dict[str, Value])
    objects: dict[str, Value] = attrs.field(factory=dict[str, Value])


def learn_from(classes: Classes, initial: object) -> InitialValues:
    """Add the classes that a value contains, and return what else it shows."""
    shown = InitialValues()
    waiting: list[tuple[Value, Where]] = [(initial, None)]  # a stack: the first place comes first
    seen: dict[int, object] = {}  # by id, with the objects: they stay alive, so no id is used twice
    stateful: dict[type, bool] = {}
    while waiting:
        value, where = waiting.pop()
        cls = kind_of(value)
        if cls in ATOMS or id(value) in seen:
            continue
        seen[id(value)] = value
        if cls not in stateful:
            stateful[cls] = protocol_of(cls) is not None
        if stateful[cls]:
            shown.objects[path_of(where)] = value
        elif issubclass(cls, dict):
            waiting.extend(
                entry
                for key, item in reversed(value.items())
                for entry in ((item, (where, key)), (key, where))
            )
        elif is_declared(cls):
            classes.learn(cls)
            waiting += _fields_shown(classes.shapes.get(cls), value, where, shown.excluded)[::-1]
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            many = typing.cast("Iterable[Value]", value)
            waiting += [(item, (where, at)) for at, item in enumerate(many)][::-1]
        elif getattr(value, "dtype", None) is not None and getattr(value.dtype, "hasobject", False):
            waiting.extend((item, where) for item in value.ravel().tolist())
    return shown


def _fields_shown(
    shape: Shape | None, value: object, where: Where, excluded: dict[str, Value]
) -> list[tuple[Value, Where]]:
    shown: list[tuple[Value, Where]] = []
    for field in shape.fields.values() if shape is not None else ():
        item = getattr(value, field.name, attrs.NOTHING)
        if item is attrs.NOTHING:
            continue
        if field.is_excluded:
            excluded[path_of((where, field.name))] = item
        else:
            shown.append((item, (where, field.name)))
    return shown


def extras_of(shape: Shape, value: object) -> set[str]:
    """Return the attributes of an instance that are neither fields nor computed again."""
    found: dict[str, object] = getattr(value, "__dict__", {})
    return found.keys() - shape.fields.keys() - shape.loose


def is_by_identity(cls: type) -> bool:
    """Return whether instances of a class are equal only to themselves."""
    return inspect.getattr_static(cls, "__hash__") is object.__hash__
