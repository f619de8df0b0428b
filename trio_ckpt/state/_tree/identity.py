"""Bookkeeping of a walk through a state: places, numbers of objects, depth and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

from ..._util.errors import NotEncodableError
from .format import MAX_TREE_NODES, Tag, Tree, Value

MAX_DEPTH = 64  # each level costs 8 frames of an interpreter's 1,000

Where: TypeAlias = "tuple[Where, object] | None"
"""A place: the place around it, and the field, key or position; None: the state itself."""

Walk = Callable[[Value, Where], Tree]  # takes the inside of a container apart


def path_of(where: Where) -> str:
    """Return a place in the form of messages: ``state.model.layers[3]``, ``state.table['a b']``."""
    parts: list[str] = []
    while where is not None:
        where, part = where
        parts.append(_step(part))
    return "state" + "".join(reversed(parts))


def steps_of(place: Iterable[object]) -> str:
    """Return fields, keys and positions, one inside the other, as a path has them."""
    return "".join(map(_step, place))


def _step(part: object) -> str:
    return f".{part}" if type(part) is str and part.isidentifier() else f"[{part!r}]"


@attrs.define(eq=False, repr=False)  # frozen ones take three times as long to make, for each array
class ArrayLeaf:
    """An array of the state.

    Attributes:
        path: Its first place, ``state.model.layers[3]``.
        value: The object itself, not a copy.
    """

    path: str
    value: Value


class IdentityTable:
    """The objects, depth and size of one walk.

    Attributes:
        arrays: The arrays found so far, each once.
        nodes: The number of values in the tree so far, or a few more.
    """

    def __init__(self) -> None:
        self.arrays: list[ArrayLeaf] = []
        self.nodes = 0
        self._depth = 0
        self._by_value = 0  # the number of enclosing sets, keys and members of enumerations
        self._in_member = 0  # the members among these
        self._numbers: dict[int, int] = {}  # of mutable objects, by id
        self._open: dict[int, Where] = {}  # the objects that are being taken apart
        self._array_numbers: dict[int, int] = {}
        self._around: tuple[Where, str] = (None, "state")  # of the last array, and its path
        self._kept: list[object] = []  # keeps numbered objects alive, so that no id is used twice

    def mutable(self, value: Value, where: Where, walk: Walk) -> Tree:
        """Return the node of a mutable object; refuses an object that contains itself."""
        if self._in_member and type(value) in (list, dict):
            return self.deeper(value, where, walk)
        if self._by_value:
            problem = f"a {type(value).__qualname__} in a set or a key is known by identity alone"
            raise NotEncodableError(path_of(where), problem)
        known = self._numbers.get(id(value))
        if known is not None:
            if id(value) in self._open:
                around = path_of(self._open[id(value)])
                raise NotEncodableError(path_of(where), f"it is {around}, which holds it")
            self.count(2, where)
            return {Tag.SAME: known}
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        self._open[id(value)] = where
        tree = self.deeper(value, where, walk)
        del self._open[id(value)]
        return tree

    def deeper(self, value: Value, where: Where, walk: Walk) -> Tree:
        """Return the result of `walk` for a container, one level deeper."""
        if self._depth >= MAX_DEPTH:
            raise NotEncodableError(path_of(where), f"nested deeper than {MAX_DEPTH}")
        self._depth += 1
        try:
            return walk(value, where)
        finally:
            self._depth -= 1

    def count(self, nodes: int, where: Where) -> None:
        """Add to the number of values, and check its limit."""
        self.nodes += nodes
        if self.nodes > MAX_TREE_NODES:
            problem = f"more than {MAX_TREE_NODES} values so far; put numbers in arrays"
            raise NotEncodableError(path_of(where), problem)

    def array(self, value: Value, where: Where) -> int:
        """Return the number of an array, one per object."""
        known = self._array_numbers.get(id(value))
        if known is not None:
            return known
        number = self._array_numbers[id(value)] = self.new_array(value, where)
        return number

    def new_array(self, value: Value, where: Where) -> int:
        """Number an array that no earlier number is for."""
        if self._by_value:
            problem = f"a {type(value).__qualname__} in a set or a key; use a number of Python"
            raise NotEncodableError(path_of(where), problem)
        self.count(3, where)
        self._kept.append(value)
        self.arrays.append(ArrayLeaf(self._path_of(where), value))
        return len(self.arrays) - 1

    def _path_of(self, where: Where) -> str:
        """Return the path of an array; for its siblings that of their container is known."""
        if where is None:
            return "state"
        around, part = where
        if around is not self._around[0]:
            self._around = (around, path_of(around))
        return self._around[1] + _step(part)

    def by_value(self, value: Value, where: Where, walk: Walk, *, in_member: bool) -> Tree:
        """Return the result of `walk` for a value without identity: nothing in it gets a number.

        It is an item of a set, a key, or the value of a member of an enumeration.
        """
        self._by_value += 1
        self._in_member += in_member
        try:
            return walk(value, where)
        finally:
            self._by_value -= 1
            self._in_member -= in_member

    @property
    def is_by_value(self) -> bool:
        """Whether the walk is inside of such a value."""
        return self._by_value > 0
