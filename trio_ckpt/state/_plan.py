"""What a program's state is made of, and the two ways: apart into tree and arrays, and back.

Theory of operation
===================

The state that a program begins with is default, type and structuring hint at once.  A plan
reads three things off it, once:

* the classes of the state: attrs classes, dataclasses, named tuples and enumerations that an
  annotation of a field names, or that the initial value has somewhere.  They hold for the whole
  state.  Nothing else is ever built, and nothing is imported by a name that was saved;
* what its excluded fields hold (``metadata={"exclude": True}``);
* nothing more: a plan holds no other part of the initial state, so its arrays can go.

`Plan.flatten` takes a state apart by the exact types of its values, `Plan.build` puts one
together again by the tags in the tree.  Objects are made without ``__init__``: their fields get
what was saved, bit for bit, and no converter, validator or ``__post_init__`` runs.

What comes back:

* the same mutable object at two places is one object at both again; an object that holds itself
  is refused.  Tuples, frozen sets and other values without identity come back equal;
* an excluded field gets a new value of its default *factory* if it has one, so that a cache
  starts empty; else what the initial state had at this very place, the object itself and not a
  copy, for it may be a client or a lock; else its plain default;
* a field that is new in the class gets its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any, Generic, TypeVar, cast

import attrs

from ._tree.build import build_state
from ._tree.classes import Classes, learn_from
from ._tree.flatten import Flat, flatten_state
from ._tree.format import Tag, Tree, kind_of, tag_of
from ._tree.leaves import StateChangedError

S = TypeVar("S")


@attrs.frozen(eq=False)
class Plan(Generic[S]):
    """The classes of a state; from `Plan.of`."""

    _classes: Classes
    _excluded: dict[str, Any]

    @classmethod
    def of(cls, initial: S) -> Plan[S]:
        """The plan of every state that begins as `initial`."""
        classes = Classes()
        return cls(classes, learn_from(classes, initial))

    @property
    def runs_code(self) -> bool:
        """Whether `flatten` may run code of the program, which belongs into the program's thread.

        It does where fields are properties, or attributes are computed by a class of its own.
        """
        return self._classes.run_code

    def flatten(self, state: S) -> Flat:
        """Take a state apart; it may change afterwards, all but its arrays.

        In another thread, too, where it `runs_code` of nobody.

        Raises:
            NotEncodableError: naming the path of the leaf that cannot be saved.
        """
        return flatten_state(self._classes, state)

    def build(self, tree: Tree, arrays: Sequence[object]) -> S:
        """The state that a tree is of: the inverse of `flatten`.

        Args:
            tree: As flattened, decoded or patched; it stays as it is.
            arrays: In the order of `Flat.arrays`, the values alone; they are put in, not copied.

        Raises:
            StateChangedError: a class or a field is not what it was; naming it and the path.
            StoreDamagedError: no state has such a tree.
        """
        return cast("S", build_state(self._classes, self._excluded, tree, arrays))

    def check_class(self, tree: Tree, given: S) -> None:
        """See that the class of a saved state is one of the program's.

        Raises:
            StateChangedError: it is not; naming both.
        """
        tag = tag_of(tree) if kind_of(tree) is dict else None
        if tag in (Tag.OBJECT, Tag.NAMED_TUPLE):
            label = str(tree[tag][0])
            if self._classes.find(label) is None:
                raise _other_kind(label.partition(":")[2], given)


def is_of_kind(state: object, kind: type) -> bool:
    """Whether a state is of the kind of the one that the program begins with.

    Classes derived from each other are of one kind, and so are all numbers; None is of any.
    """
    own = type(state)
    are_numbers = issubclass(own, Number) and issubclass(kind, Number)
    return state is None or issubclass(own, kind) or issubclass(kind, own) or are_numbers


def check_kind(given: object, saved: object) -> None:
    """See that a saved state is of the kind of the one that the program begins with.

    Raises:
        StateChangedError: it is not; naming both.
    """
    if not is_of_kind(saved, type(given)):
        raise _other_kind(type(saved).__qualname__, given)


def _other_kind(saved: str, given: object) -> StateChangedError:
    problem = f"one of type {saved} was saved, state= is of type {type(given).__qualname__}"
    return StateChangedError("state", f"{problem}; give one like it, or begin with fresh=True")
