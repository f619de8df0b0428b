"""Builds a live state from a tree and its arrays; nothing in the tree is trusted."""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import attrs
import msgspec

from ..._util.errors import StoreDamagedError
from ..._util.exceptions import text_of
from .classes import ATOMS, CACHED_HASH, Classes, Field, InitialValues, Shape
from .errors import MissingHereError, StateChangedError
from .flatten import FACTORIES
from .format import MUTABLE, Tag, Tree, Value, kind_of, pack, unpack_floats
from .identity import MAX_DEPTH, Where, path_of
from .leaves import BAD_LEAF, LEAF_DECODERS
from .numpy_scalars import decode_scalar
from .random_state import decode_bit_generator, decode_legacy, decode_random, import_numpy
from .stateful import check_class, load_state, with_metadata

_MISSING = object()


def build_state(
    classes: Classes,
    shown: InitialValues,
    tree: Tree,
    arrays: Sequence[object],
    *,
    is_loading: bool,
) -> Value:
    """Build the state that a tree and its arrays describe.

    Stateful objects are loaded last, when all else has been found to fit.

    Args:
        classes: The classes that may be built.
        shown: The excluded values and the stateful objects of the initial state.
        tree: As flattened, or patched.
        arrays: One for each number.
        is_loading: Whether stateful objects are loaded; False: they have this state already.

    Raises:
        StateChangedError: a class, a field or a stateful object has changed.
        StoreDamagedError: the tree does not describe a state.
    """
    builder = _Builder(classes, shown, arrays)
    try:
        state = builder.node(tree, None)
    except RecursionError as error:
        raise StoreDamagedError("a saved state is nested too deeply") from error
    for name in shown.objects.keys() - builder.saved.keys() - builder.fresh:
        problem = (
            "nothing was saved of this object; one that is new must be in a new field of an "
            "attrs class or a dataclass"
        )
        raise StateChangedError(name, f"{problem}, or begin with fresh=True")
    for name, saved in builder.saved.items() if is_loading else ():
        load_state(shown.objects[name], saved, name)
    return state


class _Builder:
    def __init__(self, classes: Classes, shown: InitialValues, arrays: Sequence[object]) -> None:
        self.saved: dict[str, Value] = {}  # what stateful objects gave, by name
        self.fresh: set[str] = set()  # the stateful objects in fields that are new
        self._classes = classes
        self._shown = shown
        self._arrays = arrays
        self._built: list[Value] = []  # mutable objects by number; _MISSING: not complete yet
        self._depth = 0
        self._by_value = 0

    # -- one node ----------------------------------------------------------------------

    def node(self, tree: Tree, where: Where) -> Value:
        kind = kind_of(tree)
        if kind in ATOMS:
            return tree
        if self._depth >= MAX_DEPTH * 2:  # a leaf takes one level, its container another
            raise _damaged(where, "it is nested too deeply")
        self._depth += 1
        try:
            if kind is list:
                return self._numbered(where, self._list, tree)
            if kind is not dict:
                raise _damaged(where, f"a {kind.__qualname__} cannot be part of a tree")
            tag: Tree = next(iter(tree), "")
            if kind_of(tag) is str:
                return self._numbered(where, self._dict, tree)
            return self._tagged(tag, tree[tag], where)
        except BAD_LEAF as error:
            if isinstance(error, (StoreDamagedError, StateChangedError)):
                raise
            raise _damaged(where, text_of(error)) from error
        except MissingHereError as error:
            raise StateChangedError(path_of(where), str(error)) from error
        finally:
            self._depth -= 1

    def _tagged(self, tag: int, value: Tree, where: Where) -> Value:
        leaf = _LEAVES.get(tag)
        if leaf is not None:
            if tag in MUTABLE:
                return self._numbered(where, lambda tree, _: leaf(tree), value)
            return leaf(value)
        walk = _WALKERS.get(tag)
        if walk is None:
            raise _damaged(where, f"a node has the unknown tag {tag!r}")
        if tag in MUTABLE:
            return self._numbered(where, lambda tree, where: walk(self, tree, where), value)
        return walk(self, value, where)

    def _numbered(self, where: Where, walk: Callable[[Tree, Where], Value], tree: Tree) -> Value:
        if self._by_value:
            return walk(tree, where)
        number = len(self._built)
        self._built.append(_MISSING)
        result = self._built[number] = walk(tree, where)
        return result

    # -- containers --------------------------------------------------------------------

    def _list(self, tree: list[Tree], where: Where) -> list[Value]:
        node = self.node
        return [
            item if type(item) in ATOMS else node(item, (where, at)) for at, item in enumerate(tree)
        ]

    def _dict(self, tree: dict[str, Tree], where: Where) -> dict[str, Value]:
        node = self.node
        return {
            key: item if type(item) in ATOMS else node(item, (where, key))
            for key, item in tree.items()
        }

    def pairs(self, tree: Tree, where: Where) -> Iterator[tuple[Value, Value]]:
        flat = iter(_list_of(tree))
        seen: set[Value] = set()
        for key, item in zip(flat, flat, strict=True):
            found = self.value(key, where)
            if found in seen:
                raise ValueError("a dict has a key twice")
            seen.add(found)
            yield found, self.node(item, (where, found))

    def value(self, tree: Tree, where: Where) -> Value:
        self._by_value += 1
        try:
            return self.node(tree, where)
        finally:
            self._by_value -= 1

    def items(self, tree: Tree, where: Where) -> list[Value]:
        return self._list(_list_of(tree), where)

    def set_(self, tree: Tree, where: Where) -> set[Value]:
        items = _list_of(tree)
        found = {self.value(item, where) for item in items}
        if len(found) != len(items):
            raise ValueError("a set has an item twice")
        return found

    def default_(self, tree: Tree, where: Where) -> Value:
        name, pairs = tree
        factory = None if name is None else FACTORIES[name]
        return defaultdict(factory, self.pairs(pairs, where))

    def deque_(self, tree: Tree, where: Where) -> deque[Value]:
        longest, items = tree
        found = self.items(items, where)
        if longest is not None and (type(longest) is not int or longest < len(found)):
            raise ValueError("a deque is longer than its maximum")
        return deque(found, longest)

    # -- instances ---------------------------------------------------------------------

    def object_(self, tree: Tree, where: Where) -> Value:
        shape, saved = self._shape(tree, where)
        if shape.is_tuple or shape.problem is not None:
            raise StateChangedError(path_of(where), shape.problem or "it is a named tuple now")
        cls: Value = shape.cls
        result: Value = object.__new__(cls)
        for name, value in self._saved_fields(shape, saved, where).items():
            object.__setattr__(result, name, value)
        if shape.caches_hash:
            object.__setattr__(result, CACHED_HASH, None)
        for field in shape.fields.values():
            if field.is_excluded:
                self._set_excluded(result, shape, field, where)
            elif field.name not in saved:
                object.__setattr__(result, field.name, self._new(field, result, shape, where))
        return result

    def named_tuple(self, tree: Tree, where: Where) -> Value:
        shape, saved = self._shape(tree, where)
        if not shape.is_tuple:
            raise StateChangedError(path_of(where), "it is not a named tuple any more")
        values = self._saved_fields(shape, saved, where)
        for field in shape.fields.values():
            if field.name not in values:
                values[field.name] = self._new(field, None, shape, where)
        cls: Value = shape.cls
        names = list(shape.fields)
        return cls._make([values[name] for name in names])

    def _shape(self, tree: Tree, where: Where) -> tuple[Shape, dict[str, Tree]]:
        label, saved = tree
        cls = self._find(label, where)
        shape = self._classes.shapes.get(cls)
        if shape is None:
            raise StateChangedError(path_of(where), f"{label} has no fields any more")
        if kind_of(saved) is not dict or not all(kind_of(name) is str for name in saved):
            raise TypeError("the fields of an object are not a dict")
        fields: dict[str, Tree] = saved
        return shape, fields

    def _find(self, label: Tree, where: Where) -> type:
        if type(label) is not str:
            raise TypeError("the name of a class is not a str")
        cls = self._classes.find(label)
        if cls is None:
            problem = f"the program's state has no class {label.partition(':')[2]!r} any more"
            raise StateChangedError(path_of(where), f"{problem}; annotate the field that holds it")
        return cls

    def _saved_fields(self, shape: Shape, saved: dict[str, Tree], where: Where) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name, item in saved.items():
            field = shape.fields.get(name)
            if field is None:
                problem = f"{shape.cls.__qualname__} has no field {name!r} any more"
                raise StateChangedError(path_of((where, name)), problem)
            if type(item) is dict and Tag.UNSET in item:
                continue
            value = self.node(item, (where, name))
            if not field.is_excluded:
                values[name] = value
        return values

    def _set_excluded(self, result: Value, shape: Shape, field: Field, where: Where) -> None:
        value = _MISSING
        if field.factory is None:
            value = self._shown.excluded.get(path_of((where, field.name)), _MISSING)
        if value is _MISSING:
            value = _default(field, result, shape, where)
        object.__setattr__(result, field.name, value)

    def _new(self, field: Field, result: Value, shape: Shape, where: Where) -> Value:
        """Return the value of a field that was not saved: the program's object, or the default."""
        name = path_of((where, field.name))
        if name not in self._shown.objects:
            return _default(field, result, shape, where)
        self.fresh.add(name)
        return self._shown.objects[name]

    def stateful(self, tree: Tree, where: Where) -> Value:
        name, label, given, metadata = tree
        if type(name) is not str or type(label) is not str or name in self.saved:
            raise ValueError("a stateful object has no name of its own")
        value = check_class(self._shown.objects.get(name), label, name)
        self.saved[name] = with_metadata(
            self.node(given, where), self.node(metadata, (where, "_metadata"))
        )
        return value

    def member(self, tree: Tree, where: Where) -> enum.Enum:
        label, value = tree
        cls: Value = self._find(label, where)
        if cls not in self._classes.enums:
            raise StateChangedError(path_of(where), f"{label} is not an enumeration any more")
        found = self.value(value, where)
        for member in cls.__members__.values():
            if type(member.value) is type(found) and _is_same(member.value, found):
                return cast("enum.Enum", member)
        if issubclass(cls, enum.Flag) and type(found) is int:
            try:
                return cast("enum.Enum", cls(found))
            except ValueError:
                pass
        problem = f"{cls.__qualname__} has no member of the value {found!r} any more"
        raise StateChangedError(path_of(where), problem)

    # -- references to earlier objects, arrays, generators ------------------------------

    def same(self, tree: Tree, where: Where) -> Value:
        if self._by_value or self._built[_index(tree)] is _MISSING:
            raise ValueError("an object refers to an object that contains it")
        return self._built[tree]

    def array(self, tree: Tree, where: Where) -> Value:
        return self._arrays[_index(tree)]

    def array_item(self, tree: Tree, where: Where) -> Value:
        found: Value = self._arrays[_index(tree)]
        if getattr(found, "shape", None) != ():
            raise ValueError("an array is in the place of a single number")
        return found[()]

    def object_array(self, tree: Tree, where: Where) -> Value:
        shape, tree = tree
        shape = msgspec.convert(shape, list[int])
        items = _list_of(tree)
        if any(size < 0 for size in shape) or math.prod(shape) != len(items):
            raise ValueError("an array does not have the items that its shape says")
        result = import_numpy().empty(len(items), dtype=object)
        for at, item in enumerate(items):
            result[at] = self.node(item, (where, at))
        return result.reshape(shape)

    def generator(self, tree: Tree, where: Where) -> Value:
        return import_numpy().random.Generator(self._bits(tree, where))

    def _bits(self, tree: Tree, where: Where) -> Value:
        bits = self.node(tree, (where, "bit_generator"))
        if not isinstance(bits, import_numpy().random.BitGenerator):
            raise TypeError("a random generator has no bit generator")
        return bits

    def random_state(self, tree: Tree, where: Where) -> Value:
        bits, *fields = _list_of(tree)
        return decode_legacy(self._bits(bits, where), fields)


_WALKERS: dict[int, Callable[[_Builder, Tree, Where], Value]] = {
    Tag.TUPLE: lambda builder, tree, where: tuple(builder.items(tree, where)),
    Tag.SET: _Builder.set_,
    Tag.FROZENSET: lambda builder, tree, where: frozenset(builder.set_(tree, where)),
    Tag.DICT: lambda builder, tree, where: dict(builder.pairs(tree, where)),
    Tag.ENUM: _Builder.member,
    Tag.OBJECT: _Builder.object_,
    Tag.NAMED_TUPLE: _Builder.named_tuple,
    Tag.ARRAY: _Builder.array,
    Tag.ARRAY_ITEM: _Builder.array_item,
    Tag.OBJECT_ARRAY: _Builder.object_array,
    Tag.SAME: _Builder.same,
    Tag.GENERATOR: _Builder.generator,
    Tag.RANDOM_STATE: _Builder.random_state,
    Tag.DEQUE: _Builder.deque_,
    Tag.ORDERED_DICT: lambda builder, tree, where: OrderedDict(builder.pairs(tree, where)),
    Tag.COUNTER: lambda builder, tree, where: Counter(dict(builder.pairs(tree, where))),
    Tag.DEFAULT_DICT: _Builder.default_,
    Tag.STATEFUL: _Builder.stateful,
}

_LEAVES: dict[int, Callable[[Tree], Value]] = {
    **LEAF_DECODERS,
    Tag.BYTEARRAY: lambda tree: bytearray(_bytes_of(tree)),
    Tag.FLOATS: lambda tree: unpack_floats(_bytes_of(tree)),
    Tag.RANDOM: decode_random,
    Tag.BIT_GENERATOR: decode_bit_generator,
    Tag.NUMPY_SCALAR: decode_scalar,
}


def _default(field: Field, instance: Value, shape: Shape, where: Where) -> Value:
    if field.factory is not None:
        return field.factory(instance) if field.takes_self else field.factory()
    if field.default is attrs.NOTHING:
        problem = (
            f"the field {field.name!r} of {shape.cls.__qualname__} was not saved "
            "and has no default: give it one"
        )
        raise StateChangedError(path_of((where, field.name)), problem)
    return field.default


def _is_same(one: Value, other: Value) -> bool:
    """Return whether two values of one type are equal; NaN equals NaN."""
    return bool(one == other) or (type(one) is float and pack(one) == pack(other))


def _index(tree: Tree) -> int:
    if type(tree) is not int or tree < 0:
        raise TypeError("the number of an object is not an int")
    return tree


def _list_of(tree: Tree) -> list[Tree]:
    if kind_of(tree) is not list:
        raise TypeError("a node does not hold a list")
    items: list[Tree] = tree
    return items


def _bytes_of(tree: Tree) -> bytes:
    if type(tree) is not bytes:
        raise TypeError("a node does not hold bytes")
    return tree


def _damaged(where: Where, problem: str) -> StoreDamagedError:
    return StoreDamagedError(f"a saved state cannot be read at {path_of(where)}: {problem}")
