"""Plans: which classes a state may hold, and how a saved one is built again."""

from __future__ import annotations

import dataclasses
import enum
import math
import threading
from typing import Any, Literal, NewType, TypedDict

import attrs
import numpy as np
import pytest

from tests.state.tree.shapes import (
    PLAN,
    Bits,
    Layer,
    Level,
    Mode,
    Model,
    Pair,
    Point,
    State,
    Step,
    seen,
    there_and_back,
)
from trio_ckpt._util.errors import NotEncodableError, StoreDamagedError
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tree.classes import EXCLUDE
from trio_ckpt.state._tree.errors import StateChangedError
from trio_ckpt.state._tree.format import Tag, encode_tree

Alias = NewType("Alias", Point)


class Typed(TypedDict):
    step: Step


@attrs.define
class Annotated:
    a: list[Alias]
    b: dict[str, Typed]
    c: tuple[Pair, ...] | None
    d: Literal[Mode.TRAIN] | None
    e: Annotated | None
    f: NowhereToBeFound  # type: ignore[name-defined]  # noqa: F821


def test_annotations_show_the_classes_even_where_one_cannot_be_read() -> None:
    plan = Plan.of(Annotated([], {}, None, None, None, 0))
    inner = Annotated([], {}, None, None, None, 1)
    state = Annotated([Alias(Point(1))], {"k": {"step": Step(1)}}, (Pair(1),), Mode.TRAIN, inner, 0)
    assert seen(there_and_back(plan, state)) == seen(state)


def test_without_annotations_the_initial_value_shows_the_classes() -> None:
    initial = {"m": [Layer(0)], ("k", Mode.EVAL): {Pair(Point(1))}}
    plan = Plan.of(initial)
    state = {"other": [Layer(Point(2), Mode.EVAL)], "x": Mode.EVAL}
    assert seen(there_and_back(plan, state)) == seen(state)
    with pytest.raises(NotEncodableError, match="the initial state shows no Step"):
        plan.flatten(Step(1))


def test_nothing_is_built_or_imported_by_a_stored_name() -> None:
    for label in ("subprocess:Popen", "tests:Loose", "builtins:object", "x", ""):
        for tag in (Tag.OBJECT, Tag.NAMED_TUPLE, Tag.ENUM):
            with pytest.raises(StateChangedError, match="has no class"):
                PLAN.build({tag: [label, {}]}, [])
    for label in (None, 1, [], {}):
        with pytest.raises(StoreDamagedError):
            PLAN.build({Tag.OBJECT: [label, {}]}, [])


def test_a_class_is_found_by_its_name_in_another_module() -> None:
    tree = PLAN.flatten(Point(1)).tree
    tree[Tag.OBJECT][0] = tree[Tag.OBJECT][0].replace(__name__, "elsewhere")
    assert PLAN.build(tree, []) == Point(1)
    twins = [attrs.make_class("Point", ["x"]) for _ in range(2)]
    for at, twin in enumerate(twins):
        twin.__module__, twin.__qualname__ = f"m{at}", "Point"
    state = [twin(1) for twin in twins]
    result = there_and_back(Plan.of(state), state)
    assert [type(item) for item in result] == twins


def test_an_excluded_field_is_fresh_or_from_the_initial_state() -> None:
    client = threading.Lock()
    initial = State(Model([Layer(1, cache={"old": 1})], client=client))
    plan = Plan.of(initial)
    state = State(Model([Layer(1, cache={"new": 1}), Layer(2)], client=object()))
    flat = plan.flatten(state)
    assert b"cache" not in encode_tree(flat.tree)
    assert b"client" not in encode_tree(flat.tree)
    result = plan.build(flat.tree, [])
    assert [layer.cache for layer in result.model.layers] == [{}, {}]
    assert result.model.client is client
    elsewhere = plan.build(plan.flatten(state.model).tree, [])
    assert elsewhere.client is None


def test_a_plan_does_not_hold_the_arrays_of_the_initial_state() -> None:
    import gc

    array = np.zeros(10)
    plan = Plan.of(State(Model([Layer(array)])))
    assert not any(found is plan or isinstance(found, Layer) for found in gc.get_referrers(array))


def remade(cls: type, **fields: Any) -> type:
    made = attrs.make_class(cls.__name__, fields)
    made.__module__, made.__qualname__ = cls.__module__, cls.__qualname__
    return made


def test_a_new_field_gets_its_default_and_others_are_named() -> None:
    tree = Plan.of([Point(1)]).flatten([Point(1, 2)]).tree
    new = remade(Point, x=attrs.field(), y=attrs.field(), z=attrs.field(factory=list))
    (found,) = Plan.of([new(0, 0)]).build(tree, [])
    assert (found.x, found.y, found.z) == (1, 2, [])
    takes_self = remade(
        Point,
        x=attrs.field(),
        y=attrs.field(),
        z=attrs.field(default=attrs.Factory(lambda self: self.x, True)),
    )
    (found,) = Plan.of([takes_self(0, 0)]).build(tree, [])
    assert found.z == 1
    missing = remade(Point, x=attrs.field(), y=attrs.field(), z=attrs.field())
    with pytest.raises(StateChangedError, match="'z' of Point was not saved") as caught:
        Plan.of([missing(0, 0, 0)]).build(tree, [])
    assert caught.value.path == "state[0].z"
    gone = remade(Point, x=attrs.field())
    with pytest.raises(StateChangedError, match="Point has no field 'y' any more") as caught:
        Plan.of([gone(0)]).build(tree, [])
    assert caught.value.path == "state[0].y"
    excluded = remade(Point, x=attrs.field(), y=attrs.field(metadata={EXCLUDE: True}))
    (found,) = Plan.of([excluded(0, 5)]).build(tree, [])
    assert (found.x, found.y) == (1, 5)


def test_a_member_that_is_gone_is_named() -> None:
    tree = PLAN.flatten(Mode.EVAL).tree
    tree[Tag.ENUM][1] = "gone"
    with pytest.raises(StateChangedError, match="Mode has no member of the value 'gone'"):
        PLAN.build(tree, [])


def test_a_member_may_be_of_any_value_and_a_kept_hash_is_made_again() -> None:
    class Odd(enum.Enum):
        LIST = [1, {"a": (2,)}]  # noqa: RUF012
        NAN = math.nan
        PAIR = Pair(1, Point(2))
        FALSE = False
        ZERO = "0"

    @attrs.frozen(cache_hash=True)
    class Slotted:
        x: Any

    @attrs.frozen(cache_hash=True, slots=False)
    class Loose:
        x: Any

    state: list[Any] = [*Odd, {Slotted(Odd.NAN), Loose("a")}, Loose("b"), Slotted(2)]
    assert all(map(hash, state[-2:]))
    result = there_and_back(Plan.of(state), state)
    assert result == state
    assert all(one is other for one, other in zip(result[: len(Odd)], Odd, strict=True))


def test_objects_are_made_without_init_and_unset_fields_stay_unset() -> None:
    @attrs.define
    class Strict:
        x: int = attrs.field(validator=attrs.validators.gt(0))
        y: int = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            assert self.x != 7

    state = Strict(8)
    state_dict = attrs.evolve(state)
    object.__setattr__(state_dict, "x", 7)
    result = there_and_back(Plan.of(state), state_dict)
    assert result.x == 7
    assert not hasattr(result, "y")


class Shouting(enum.Enum):
    YES = "yes"

    @property
    def value(self) -> str:  # type: ignore[override]  # what is tested
        return str(self._value_).upper()


@attrs.define
class Lazy:
    one: int = 1

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Doubled:
    """A descriptor of the program's."""

    def __get__(self, instance: Any, owner: Any = None) -> int:
        return 2

    def __set__(self, instance: Any, value: int) -> None:
        pass


@dataclasses.dataclass
class WithDescriptor:
    one: int = Doubled()  # type: ignore[assignment]  # what is tested


@attrs.define(slots=False)
class Loosely:
    one: int = 1
    two: list[int] = attrs.field(factory=list[int])


@pytest.mark.parametrize(
    ("state", "runs_code"),
    [
        ({"a": [1, (2.0, "b")]}, False),
        (Point(1, 2), False),
        (Pair(1, "a"), False),
        (Step(1), False),
        (Loosely(), False),
        ([Mode.EVAL, Bits.A, Level.LOW], False),
        ([Shouting.YES], True),
        (Lazy(), True),
        (WithDescriptor(), True),
    ],
)
def test_a_plan_knows_whether_reading_a_state_runs_program_code(
    state: Any, *, runs_code: bool
) -> None:
    assert Plan.of(state).runs_code is runs_code
