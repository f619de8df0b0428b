"""The plan of a program's state: takes it apart into tree and arrays, and builds it again.

Theory of operation
===================

The initial state of a program is default, type and structuring hint at once.  A plan
reads three things from it, once:

* the classes of the state: attrs classes, dataclasses, named tuples and enumerations that an
  annotation of a field names, or that the initial value contains.  They hold for the whole
  state.  No other class is ever built, and none is imported by a name that was saved;
* what its excluded fields hold (``metadata={"exclude": True}``);
* its stateful objects, which have ``state_dict`` and ``load_state_dict``, or ``get_state`` and
  ``set_state``.  An object's name is its place in the initial state, wherever it is later.  They
  are all in the state whenever it is saved, so each has something to be loaded from;
* nothing more: a plan holds no other part of the initial state, so its arrays can go.

`Plan.flatten` takes a state apart by the exact types of its values, `Plan.build` builds one
from the tags in the tree.  Objects are made without ``__init__``: their fields get
what was saved, bit for bit, and no converter, validator or ``__post_init__`` runs.

What is restored:

* a mutable object at two places is one object at both again; an object that contains itself
  is refused.  Tuples, frozen sets and other values without identity come back equal;
* an excluded field gets a new value from its default *factory* if it has one, so that a cache
  starts empty; otherwise the object (not a copy: it may be a client or a lock) that the initial
  state had at this place; otherwise its plain default;
* a field that is new in the class gets its default, or the program's stateful object;
* a stateful object is the one of the initial state, with what was saved loaded into it.  That
  comes last, so an object is changed only when all names, classes and fields fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Generic, TypeVar, cast

import attrs

from ._tree.build import build_state
from ._tree.classes import Classes, InitialValues, learn_from
from ._tree.errors import StateChangedError
from ._tree.flatten import Flat, flatten_state
from ._tree.format import Tag, Tree, kind_of, tag_of

S = TypeVar("S")


@attrs.frozen(eq=False, repr=False)
class Plan(Generic[S]):
    """The classes and stateful objects of a state; from `Plan.of`.

    Attributes:
        names: The names of its stateful objects, by id.
    """

    names: dict[int, str]
    _classes: Classes
    _shown: InitialValues

    @classmethod
    def of(cls, initial: S) -> Plan[S]:
        """Make the plan of every state with the given initial state."""
        classes = Classes()
        shown = learn_from(classes, initial)
        return cls({id(value): name for name, value in shown.objects.items()}, classes, shown)

    @property
    def has_objects(self) -> bool:
        """Whether the state has stateful objects, into which `build` loads."""
        return bool(self.names)

    @property
    def runs_code(self) -> bool:
        """Whether `flatten` may run code of the program, and must run in the program's thread.

        It does if a field is a property, if a class of the program computes attributes, or for a
        stateful object.
        """
        return self.has_objects or self._classes.run_code

    def flatten(self, state: S) -> Flat:
        """Take a state apart; the result is independent of later changes, except to its arrays.

        Any thread may call it if `runs_code` is false.

        Raises:
            NotEncodableError: a leaf cannot be saved; the message has its path.
        """
        return flatten_state(self._classes, self.names, state)

    def copy(self, tree: Tree, arrays: Sequence[object]) -> S:
        """Build the state that was just flattened; its stateful objects stay as they are."""
        return cast("S", build_state(self._classes, self._shown, tree, arrays, is_loading=False))

    def build(self, tree: Tree, arrays: Sequence[object]) -> S:
        """Build the state that a tree describes: the inverse of `flatten`.

        Stateful objects run code of the program, so only its thread may call it for them.

        Args:
            tree: As flattened, decoded or patched; it is not changed.
            arrays: The values in the order of `Flat.arrays`; they are used, not copied.

        Raises:
            StateChangedError: a class, a field or a stateful object has changed; the message has
                its path.
            StoreDamagedError: the tree does not describe a state.
        """
        return cast("S", build_state(self._classes, self._shown, tree, arrays, is_loading=True))

    def check_class(self, tree: Tree, given: S) -> None:
        """Check that the class of a saved state is one of the program's.

        Raises:
            StateChangedError: it is not; the message names both.
        """
        tag = tag_of(tree) if kind_of(tree) is dict else None
        if tag in (Tag.OBJECT, Tag.NAMED_TUPLE):
            label = str(tree[tag][0])
            if self._classes.find(label) is None:
                raise _other_kind(label.partition(":")[2], given)


def is_of_kind(state: object, kind: type) -> bool:
    """Return whether a state is of the same kind as the program's initial state.

    Classes derived from each other are of one kind, and so are all numbers; None fits no kind.
    """
    own = type(state)
    are_numbers = issubclass(own, Number) and issubclass(kind, Number)
    return state is None or issubclass(own, kind) or issubclass(kind, own) or are_numbers


def check_kind(given: object, saved: object) -> None:
    """Check that a saved state is of the same kind as the program's initial state.

    Raises:
        StateChangedError: it is not; the message names both.
    """
    if not is_of_kind(saved, type(given)):
        raise _other_kind(type(saved).__qualname__, given)


def _other_kind(saved: str, given: object) -> StateChangedError:
    problem = f"one of type {saved} was saved, state= is of type {type(given).__qualname__}"
    return StateChangedError("state", f"{problem}; give one like it, or begin with fresh=True")
