"""Takes a live state apart into a tree and a list of arrays.

The tree shares no mutable object with the state, so the state may change while the tree is
saved.  The arrays are the state's own objects: the caller copies or watches them.
"""

from __future__ import annotations

import enum
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping

import attrs

from ..._util.errors import NotEncodableError
from ..._util.exceptions import text_of, with_article
from .classes import (
    Classes,
    Shape,
    extras_of,
    is_by_identity,
    is_declared,
    label_of,
    protocol_of,
    roots_of,
)
from .format import Module, Tag, Tree, Value, kind_of, pack, pack_floats
from .frame import Kind
from .identity import ArrayLeaf, IdentityTable, Walk, Where, path_of
from .leaves import INTS, LEAF_ENCODERS, encode_int
from .numpy_scalars import encode_scalar
from .random_state import encode_bit_generator, encode_legacy, encode_random, numpy_random_kind
from .stateful import give_state, metadata_of

MAX_LEAF_BYTES = 2**28  # half of a tree's limit; longer data belongs in an array
_LEAF_NODES = 20  # the number of values in a datetime with a zone; no leaf has more

_ATOMS: frozenset[type] = frozenset((type(None), bool, float))
FACTORIES: dict[str, Callable[[], Value]] = {
    kind.__name__: kind for kind in (int, float, str, list, dict, set, bool, tuple, bytes)
}
"""The factories that a defaultdict may have: looked up by name, never imported."""

_TENSORS: tuple[tuple[str, str, str, Kind], ...] = (
    ("torch", "torch.nn", "Parameter", "torch.parameter"),
    ("torch", "torch", "Tensor", "torch"),
    ("jax", "jax", "Array", "jax"),
    ("jaxlib", "jax", "Array", "jax"),
    ("tensorflow", "tensorflow", "Variable", "tensorflow.variable"),
    ("tensorflow", "tensorflow", "Tensor", "tensorflow"),
)
"""The library that a tensor's type is defined in, the class that it is of, and the kind."""


@attrs.frozen(eq=False, repr=False)
class Flat:
    """A state taken apart.

    Attributes:
        tree: Everything but the arrays; ``{Tag.ARRAY: n}`` stands for ``arrays[n]``.
        arrays: The arrays in the order in which the state holds them, each once.
        given: The numbers of those that stateful objects gave.
    """

    tree: Tree
    arrays: list[ArrayLeaf]
    given: set[int]


def flatten_state(classes: Classes, names: Mapping[int, str], state: object) -> Flat:
    """Take a state apart.

    Args:
        classes: Its classes.
        names: The names of its stateful objects, by id.
        state: The state.

    Raises:
        NotEncodableError: a leaf cannot be saved; the message has its path.
    """
    flattener = _Flattener(classes, names)
    try:
        tree = flattener.node(state, None)
    except RecursionError as error:
        raise NotEncodableError("state", "too deep for what is left of the stack") from error
    for name in names.values():
        if name not in flattener.met:
            problem = "the object that it had when the stream was opened is not in the state"
            raise NotEncodableError(name, f"{problem} any more: put it back")
    return Flat(tree, flattener.arrays, flattener.given)


class _Flattener(IdentityTable):
    def __init__(self, classes: Classes, names: Mapping[int, str]) -> None:
        super().__init__()
        self.met: set[str] = set()  # names of stateful objects
        self.given: set[int] = set()
        self._classes = classes
        self._names = names
        self._array_type = getattr(sys.modules.get("numpy"), "ndarray", None)

    # -- one value ---------------------------------------------------------------------

    def node(self, value: Value, where: Where) -> Tree:
        kind = kind_of(value)
        if kind in _ATOMS:
            return value
        if kind is str:
            return self._text(value, where)
        if kind is int:
            self.count(2 * (value not in INTS), where)
            return encode_int(value)
        if kind is bytes:
            return self.bytes_(value, where)
        walk = _WALKERS.get(kind)
        if walk is not None:
            return walk(self, value, where)
        if kind is self._array_type:
            return self._array(value, where)
        leaf = LEAF_ENCODERS.get(kind)
        if leaf is not None:
            tag, encode = leaf
            self.count(_LEAF_NODES, where)
            return {tag: _leaf(encode, value, where)}
        return self._other(kind, value, where)

    def _other(self, kind: type, value: Value, where: Where) -> Tree:
        shape = self._classes.shapes.get(kind)
        if shape is not None:
            return self._instance(value, where, shape)
        if kind in self._classes.enums:
            return self._member(value, where)
        if id(value) in self._names:
            return self.tagged(Tag.STATEFUL, value, where, self._stateful)
        if not roots_of(kind).isdisjoint(("numpy", "ml_dtypes")):
            return self._numpy(value, where)
        if tensor_kind(value) is not None:
            return {Tag.ARRAY: self.array(value, where)}
        raise _unknown(kind, where)

    def _text(self, value: str, where: Where) -> str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                problem = f"{value[:50]!r} has a lone surrogate in it"
                raise NotEncodableError(path_of(where), problem) from error
        self._check_size(len(value), where)
        return value

    def bytes_(self, value: bytes | bytearray, where: Where) -> bytes:
        self._check_size(len(value), where)
        return bytes(value)

    def _check_size(self, size: int, where: Where) -> None:
        if size > MAX_LEAF_BYTES:
            raise NotEncodableError(path_of(where), f"over {MAX_LEAF_BYTES} bytes; use an array")

    # -- containers --------------------------------------------------------------------

    def items(self, items: Collection[Value], where: Where) -> list[Tree]:
        self.count(len(items) + 4, where)
        kinds = set(map(type, items))
        if kinds <= _ATOMS or (kinds == {int} and min(items) in INTS and max(items) in INTS):
            return list(items)
        node = self.node
        return [
            item if type(item) in _ATOMS else node(item, (where, at))
            for at, item in enumerate(items)
        ]

    def list_(self, value: list[Value], where: Where) -> Tree:
        floats = pack_floats(value)
        if floats is not None:
            self._check_size(len(floats), where)
            self.count(2, where)
            return {Tag.FLOATS: floats}
        return self.items(value, where)

    def dict_(self, value: dict[Value, Value], where: Where) -> Tree:
        if not set(map(type, value)) <= {str}:
            return {Tag.DICT: self.pairs(value, where)}
        self.count(2 * len(value) + 1, where)
        node, text = self.node, self._text
        tree: dict[str, Tree] = {}
        for key, item in value.items():
            name = key if key.isascii() else text(key, where)
            tree[name] = item if type(item) in _ATOMS else node(item, (where, key))
        return tree

    def pairs(self, value: dict[Value, Value], where: Where) -> list[Tree]:
        self.count(2 * len(value) + 4, where)
        pairs: list[Tree] = []
        for key, item in value.items():
            pairs.append(self._value(key, (where, key)))
            pairs.append(self.node(item, (where, key)))
        return pairs

    def _value(self, value: Value, where: Where) -> Tree:
        return self.by_value(value, where, self.node, in_member=False)

    def members(self, value: Collection[Value], where: Where) -> list[Tree]:
        self.count(len(value) + 2, where)
        return sorted((self._value(item, (where, item)) for item in value), key=pack)

    def random_(self, value: Value, where: Where) -> Tree:
        """Return the value of a node of a random generator, which is a leaf."""
        is_ours = isinstance(value, random.Random)
        tree = _leaf(encode_random if is_ours else encode_bit_generator, value, where)
        self.count(2 + _weigh(tree), where)
        return tree

    def deque_(self, value: deque[Value], where: Where) -> Tree:
        return [value.maxlen, self.items(value, where)]

    def default_(self, value: defaultdict[Value, Value], where: Where) -> Tree:
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and FACTORIES.get(name) is not factory:
            problem = f"a defaultdict of {factory!r}; it may be of {', '.join(FACTORIES)}"
            raise NotEncodableError(path_of(where), problem)

        def walk(value: defaultdict[Value, Value], where: Where) -> Tree:
            return [name, self.pairs(value, where)]

        return self.tagged(Tag.DEFAULT_DICT, value, where, walk)

    def tagged(self, tag: int, value: Value, where: Where, walk: Walk) -> Tree:
        self.count(2, where)
        return self.mutable(value, where, lambda value, where: {tag: walk(value, where)})

    # -- instances ---------------------------------------------------------------------

    def _instance(self, value: Value, where: Where, shape: Shape) -> Tree:
        self.count(4 * len(shape.fields) + 5, where)
        if shape.problem is not None:
            raise NotEncodableError(path_of(where), shape.problem)

        def walk(value: Value, where: Where) -> Tree:
            return [shape.label, self._fields(value, where, shape)]

        if shape.is_tuple:
            return {Tag.NAMED_TUPLE: self.deeper(value, where, walk)}
        if self.is_by_value and not is_by_identity(shape.cls):
            return {Tag.OBJECT: self.deeper(value, where, walk)}
        return self.tagged(Tag.OBJECT, value, where, walk)

    def _fields(self, value: Value, where: Where, shape: Shape) -> dict[str, Tree]:
        for name in extras_of(shape, value):
            problem = f"it is not a field of {shape.cls.__qualname__}: declare it, excluded or not"
            raise NotEncodableError(path_of((where, name)), problem)
        fields: dict[str, Tree] = {}
        for field in shape.fields.values():
            if field.is_excluded:
                continue
            item = getattr(value, field.name, attrs.NOTHING)
            unset = item is attrs.NOTHING
            fields[field.name] = (
                {Tag.UNSET: None} if unset else self.node(item, (where, field.name))
            )
        return fields

    def _stateful(self, value: Value, where: Where) -> Tree:
        self.count(4, where)
        name, first = self._names[id(value)], len(self.arrays)
        given = give_state(value, where)
        tree = [
            name,
            label_of(kind_of(value)),
            self.node(given, where),
            self.node(metadata_of(given), (where, "_metadata")),
        ]
        self.met.add(name)
        self.given.update(range(first, len(self.arrays)))
        return tree

    def _member(self, value: enum.Enum, where: Where) -> Tree:
        self.count(4, where)
        label = label_of(type(value))
        tree = self.by_value(value.value, (where, "value"), self.node, in_member=True)
        return {Tag.ENUM: [label, tree]}

    # -- NumPy and tensors -------------------------------------------------------------

    def _numpy(self, value: Value, where: Where) -> Tree:
        numpy: Module = sys.modules["numpy"]
        kind = kind_of(value)
        if isinstance(value, numpy.generic):
            self.count(4, where)
            plain = encode_scalar(value)
            if plain is not None:
                return {Tag.NUMPY_SCALAR: plain}
            return {Tag.ARRAY_ITEM: self.new_array(numpy.asarray(value), where)}
        if isinstance(value, numpy.ndarray):
            problem = f"a {kind.__qualname__} is more than its numbers; use numpy.asarray of it"
            raise NotEncodableError(path_of(where), problem)
        random_kind = numpy_random_kind(value)
        if random_kind == "generator":
            return self.tagged(Tag.GENERATOR, value, where, self._generator)
        if random_kind == "random_state":
            return self.tagged(Tag.RANDOM_STATE, value, where, self._legacy)
        if random_kind == "bit_generator":
            return self.tagged(Tag.BIT_GENERATOR, value, where, self.random_)
        raise _unknown(kind, where)

    def _array(self, value: Value, where: Where) -> Tree:
        dtype = value.dtype
        if dtype.kind == "O":
            return self.tagged(Tag.OBJECT_ARRAY, value, where, self._objects)
        if dtype.hasobject or dtype.kind == "T":
            problem = f"an array of {dtype}, which has no fixed size; use dtype=object"
            raise NotEncodableError(path_of(where), problem)
        return {Tag.ARRAY: self.array(value, where)}

    def _generator(self, value: Value, where: Where) -> Tree:
        self.count(2, where)
        return self._numpy(value.bit_generator, (where, "bit_generator"))

    def _legacy(self, value: Value, where: Where) -> Tree:
        self.count(5, where)
        bits = value._bit_generator  # it may be shared, and NumPy has no public accessor
        return [self._numpy(bits, (where, "bit_generator")), *encode_legacy(value)]

    def _objects(self, value: Value, where: Where) -> Tree:
        self.count(len(value.shape), where)
        items: list[Value] = value.reshape(-1).tolist()
        return [list(value.shape), self.items(items, where)]


_WALKERS: dict[type, Callable[[_Flattener, Value, Where], Tree]] = {
    list: lambda flat, value, where: flat.mutable(value, where, flat.list_),
    dict: lambda flat, value, where: flat.mutable(value, where, flat.dict_),
    tuple: lambda flat, value, where: {Tag.TUPLE: flat.deeper(value, where, flat.items)},
    set: lambda flat, value, where: flat.tagged(Tag.SET, value, where, flat.members),
    frozenset: lambda flat, value, where: {Tag.FROZENSET: flat.deeper(value, where, flat.members)},
    bytearray: lambda flat, value, where: flat.tagged(Tag.BYTEARRAY, value, where, flat.bytes_),
    random.Random: lambda flat, value, where: flat.tagged(Tag.RANDOM, value, where, flat.random_),
    deque: lambda flat, value, where: flat.tagged(Tag.DEQUE, value, where, flat.deque_),
    OrderedDict: lambda flat, value, where: flat.tagged(Tag.ORDERED_DICT, value, where, flat.pairs),
    Counter: lambda flat, value, where: flat.tagged(Tag.COUNTER, value, where, flat.pairs),
    defaultdict: _Flattener.default_,
}


def _leaf(encode: Callable[[Value], Tree], value: Value, where: Where) -> Tree:
    try:
        return encode(value)
    except ValueError as error:
        raise NotEncodableError(path_of(where), text_of(error)) from error


def _weigh(tree: Tree) -> int:
    """Return the number of values in a tree, keys included."""
    if kind_of(tree) is list:
        return 1 + sum(map(_weigh, tree))
    return 2 + sum(map(_weigh, tree.values())) if kind_of(tree) is dict else 1


def tensor_kind(value: object) -> Kind | None:
    """Return the kind of a tensor, without importing a library; None: it is not one."""
    roots = roots_of(type(value))
    for root, module, name, kind in _TENSORS:
        if root in roots:
            cls = getattr(sys.modules.get(module), name, None)
            if isinstance(cls, type) and isinstance(value, cls):
                return kind
    return None


def _unknown(kind: type, where: Where) -> NotEncodableError:
    name = kind.__qualname__
    if is_declared(kind):
        help_ = (
            f"the initial state shows no {name}: annotate the field that holds it, "
            "or give an initial value that has one"
        )
    elif protocol_of(kind) is not None:
        help_ = (
            f"the {name} is not one that the state had when the stream was opened: "
            "load into that one, or replace what it holds"
        )
    else:
        named = with_article(name)
        help_ = f"{named} has no plain value: exclude the field, or use an attrs class for it"
    return NotEncodableError(path_of(where), help_)
