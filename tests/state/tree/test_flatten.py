"""A state taken apart and put together is the same: type for type, bit for bit, alias for alias."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import random
import sys
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from uuid import UUID

import attrs
import numpy as np
import pytest
from hypothesis import given, settings

from tests.state.tree.shapes import (
    ARRAY_EXAMPLES,
    PLAN,
    STATES,
    Layer,
    Loose,
    Mode,
    Model,
    Pair,
    Point,
    State,
    seen,
    there_and_back,
)
from trio_ckpt._util.errors import NotEncodableError, StoreDamagedError
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tree import flatten, format, identity
from trio_ckpt.state._tree.errors import StateChangedError
from trio_ckpt.state._tree.format import Tag, Tree, decode_tree, encode_tree, pack
from trio_ckpt.state._tree.identity import MAX_DEPTH


@settings(max_examples=300, deadline=None)
@given(STATES)
def test_a_state_comes_back_type_for_type_and_bit_for_bit(state: Any) -> None:
    state = State(Model([Layer(state)]), extra=state)
    result = there_and_back(PLAN, state)
    assert seen(result) == seen(state)
    is_mutable = type(state.extra) in (list, dict, set, Layer, deque, bytearray, np.ndarray)
    assert not is_mutable or result.extra is result.model.layers[0].weights


@settings(max_examples=100, deadline=None)
@given(STATES)
def test_a_tree_is_the_same_each_time_and_shares_nothing_mutable(state: Any) -> None:
    state = State(Model([]), extra=[state])
    first, second = PLAN.flatten(state), PLAN.flatten(state)
    assert pack(first.tree) == pack(second.tree)
    again = PLAN.flatten(PLAN.build(first.tree, [leaf.value for leaf in first.arrays]))
    assert pack(first.tree) == pack(second.tree) == pack(again.tree)


def test_a_state_may_change_after_it_was_taken_apart() -> None:
    state: dict[str, Any] = {
        "a": [1, 2],
        "f": [0.5],
        "b": bytearray(b"x"),
        "s": {1},
        "d": {"k": []},
    }
    flat = Plan.of(state).flatten(state)
    before = pack(flat.tree)
    state["a"].append(3)
    state["f"].append(3.0)
    state["b"] += b"y"
    state["s"].add(2)
    state["d"]["k"].append(1)
    assert pack(flat.tree) == before


# ---------------------------------------------------------------------------------------
# The same object again
# ---------------------------------------------------------------------------------------


def test_one_object_at_two_places_is_one_object_again() -> None:
    shared: list[Any] = [1.5]
    layer, bits, array = Layer(shared), np.random.PCG64(1), np.arange(3)
    state: dict[str, Any] = {
        "a": shared,
        "b": (shared, {"c": layer}),
        "d": layer,
        "g": np.random.Generator(bits),
        "h": np.random.Generator(bits),
        "bits": bits,
        "x": array,
        "y": [array],
        "twins": ([], []),
    }
    flat = Plan.of(state).flatten(state)
    assert [(leaf.path, leaf.value is array) for leaf in flat.arrays] == [("state.x", True)]
    result = there_and_back(Plan.of(state), state)
    assert result["a"] is result["b"][0] is result["d"].weights
    assert result["b"][1]["c"] is result["d"]
    assert result["g"].bit_generator is result["h"].bit_generator is result["bits"]
    assert result["g"] is not result["h"]
    assert result["x"] is result["y"][0]
    assert result["twins"][0] is not result["twins"][1]


def test_what_holds_itself_is_refused_with_both_paths() -> None:
    state: dict[str, Any] = {"a": {"b": []}}
    state["a"]["b"].append(state["a"])
    with pytest.raises(NotEncodableError, match=r"it is state\.a, which holds it") as caught:
        Plan.of(state).flatten(state)
    assert caught.value.path == "state.a.b[0]"


def test_a_class_or_an_object_of_identity_in_a_set_or_key_is_refused() -> None:
    @attrs.frozen(eq=False)
    class Thing:
        pass

    for state in ({Thing()}, {Thing(): 1}, {(1, Thing()): 1}):
        with pytest.raises(NotEncodableError, match="identity"):
            Plan.of(state).flatten(state)
    assert there_and_back(Plan.of([Thing()]), [Thing()])


class MyList(list[int]):
    pass


@attrs.define
class Unknown:
    pass


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        ({"model": {"layers": [0, Loose()]}}, "state.model.layers[1]", "no plain value"),
        ({"a b": [object()]}, "state['a b'][0]", "an object"),
        ({3: {(1, 2): print}}, "state[3][(1, 2)]", "no plain value"),
        ([{"k": "\ud800"}], "state[0].k", "lone surrogate"),
        ({"\ud800": 1}, "state", "lone surrogate"),
        (["a", "\ud800"], "state[1]", "lone surrogate"),
        ([MyList()], "state[0]", "a MyList"),
        ([Unknown()], "state[0]", "annotate the field"),
        ([Fraction(2**70_000, 3)], "state[0]", "bits"),
        ([defaultdict(lambda: 1)], "state[0]", "defaultdict"),
        ([np.ma.masked_array([1])], "state[0]", "numpy.asarray"),
        ([np.zeros(1, [("a", object)])], "state[0]", "no fixed size"),
        ([np.array([1, Loose()], dtype=object)], "state[0][1]", "no plain value"),
        ({"k": PurePosixPath("\ud8ff")}, "state.k", "surrogate"),
        ([Layer([Loose()])], "state[0].weights[0]", "no plain value"),
        ([np.dtype("f4")], "state[0]", "no plain value"),
        ([range(3).__iter__()], "state[0]", "no plain value"),
    ],
)
def test_what_cannot_be_saved_is_named_by_its_path(value: Any, path: str, problem: str) -> None:
    with pytest.raises(NotEncodableError, match=problem) as caught:
        Plan.of([Layer(0)]).flatten(value)
    assert caught.value.path == path


def test_an_attribute_not_a_field_is_refused_but_no_cached_property() -> None:
    @dataclasses.dataclass
    class Sum:
        parts: list[int]

        @functools.cached_property
        def total(self) -> int:
            return sum(self.parts)

    state = Sum([1, 2])
    assert state.total == 3
    assert there_and_back(Plan.of(state), state).total == 3
    state.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(NotEncodableError, match=r"not a field of .*Sum") as caught:
        Plan.of(state).flatten(state)
    assert caught.value.path == "state.lock"


def test_depth_and_counts_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def nest(depth: int, wrap: Any) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = wrap(value)
        return value

    for wrap in (
        lambda x: [x],
        lambda x: {"k": x},
        lambda x: {1: x},
        lambda x: (x,),
        lambda x: Point(x),
    ):
        state = nest(MAX_DEPTH, wrap)
        plan = Plan.of([Point(0)])
        assert seen(there_and_back(plan, state)) == seen(state)
        with pytest.raises(NotEncodableError, match="deeper than"):
            plan.flatten(nest(MAX_DEPTH + 1, wrap))
    monkeypatch.setattr(identity, "MAX_TREE_NODES", 1_000)
    for state in ([None] * 1_001, [[]] * 1_000, {n: n for n in range(600)}, set(range(1_000))):
        with pytest.raises(NotEncodableError, match="more than 1000 values"):
            plan.flatten(state)
    plan.flatten([0.5] * 100_000)
    monkeypatch.setattr(format, "MAX_TREE_BYTES", 1_000)
    with pytest.raises(NotEncodableError, match="use arrays"):
        encode_tree("x" * 1_000)


def nodes_counted(state: Any) -> int:
    flattener = flatten._Flattener(PLAN._classes, {})
    tree = encode_tree(flattener.node(state, None))
    decode_tree(tree, format.DecodeLimits(max_nodes=flattener.nodes + 1))
    return flattener.nodes


@settings(max_examples=100, deadline=None)
@given(STATES)
def test_what_the_flattener_lets_pass_the_decoder_takes(state: Any) -> None:
    """The count on the way in is never below that of the decoder."""
    nodes_counted(state)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: [n / 7],
        lambda n: 2**70 + n,
        bytearray,
        lambda n: Point(n),
        lambda n: Pair(n),
        lambda n: {n: 1},
        lambda n: (n,),
        lambda n: [n],
        lambda n: {"k": n},
        lambda n: deque([n]),
        lambda n: {n},
        lambda n: frozenset((n,)),
        lambda n: Counter("a"),
        lambda n: OrderedDict(a=n),
        random.Random,
        np.random.PCG64,
        lambda n: np.random.default_rng(n),
        np.random.RandomState,
        lambda n: np.array([n], dtype=object).reshape(1, 1, 1, 1),
        np.float32,
        lambda n: Mode.EVAL,
        lambda n: datetime.datetime(n + 1, 1, 1, tzinfo=datetime.UTC),
        lambda n: range(2**70, 2**71, 2**66),
        lambda n: Fraction(2**70 + n, 2**71 + 1),
        lambda n: np.zeros(n),
        lambda n: defaultdict(),
        lambda n: Layer.__new__(Layer),
    ],
)
def test_the_count_on_the_way_in_holds_for_many_of_a_kind(make: Any) -> None:
    nodes_counted([make(n) for n in range(40)])


# ---------------------------------------------------------------------------------------
# Kinds of leaves
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ARRAY_EXAMPLES, ids=repr)
def test_every_kind_of_array_and_number_comes_back(value: Any) -> None:
    assert seen(there_and_back(PLAN, [value])) == seen([value])
    if isinstance(value, np.generic) and value.dtype.names is None and value.dtype.kind != "V":
        assert seen(there_and_back(PLAN, {value: {value}})) == seen({value: {value}})


@pytest.mark.parametrize("other", [2**63, -(2**60), "12345678", b"1234567", 1, True, np.float64(1)])
def test_a_list_is_one_of_floats_only_if_all_of_them_are(other: Any) -> None:
    for state in ([0.5, other, 0.5], [0.5, 0.5, other], [other, 0.5], [0.5] * 20 + [other, 0.5]):
        assert seen(there_and_back(PLAN, state)) == seen(state)


def test_paths_keep_names_that_are_not_utf8() -> None:
    state = [Path("a\udcff"), PurePosixPath("\udc80/b")]
    result = there_and_back(Plan.of(state), state)
    assert result == state
    assert [type(path) for path in result] == [type(Path()), PurePosixPath]
    assert isinstance(result[0], PurePath)


def test_random_generators_go_on_where_they_were() -> None:
    one = random.Random(1)
    one.gauss(0, 1)
    for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
        made = np.random.Generator(getattr(np.random, name)([1, 2**40, 3]))
        made.spawn(2)
        made.integers(0, 9, dtype=np.uint32)
        legacy = np.random.RandomState(made.bit_generator)
        result = there_and_back(Plan.of([]), [made, one, legacy])
        assert (made.random(50) == result[0].random(50)).all()
        assert made.spawn(1)[0].random() == result[0].spawn(1)[0].random()
        assert list(legacy.standard_normal(3)) == list(result[2].standard_normal(3))
    twin = there_and_back(Plan.of([]), one)
    assert [one.gauss(0, 1) for _ in range(3)] == [twin.gauss(0, 1) for _ in range(3)]
    legacy = np.random.RandomState(5)
    legacy.standard_normal()
    twin = there_and_back(Plan.of([]), legacy)
    assert list(legacy.standard_normal(5)) == list(twin.standard_normal(5))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("MT19937", 1, 625),
        ("MT19937", 1, -1),
        ("MT19937", 0, b"short"),
        ("Philox", 3, 5),
        ("Philox", 3, -1),
        ("Philox", 4, 2),
        ("PCG64", 0, {Tag.BIG_INT: b"\1" * 20}),
        ("SFC64", 2, 2**32),
    ],
)
def test_a_position_outside_of_a_generator_never_reaches_numpy(
    name: str, field: int, value: Tree
) -> None:
    tree = Plan.of(None).flatten(getattr(np.random, name)(1)).tree
    tree[Tag.BIT_GENERATOR][1][field] = value
    with pytest.raises(StoreDamagedError, match="random generator"):
        PLAN.build(tree, [])


def test_a_random_generator_of_another_name_is_refused() -> None:
    tree = Plan.of(None).flatten(np.random.PCG64(1)).tree
    for name in ("SeedSequence", "RandomState", "default_rng", ""):
        for fields in (tree[Tag.BIT_GENERATOR][1], []):
            tree[Tag.BIT_GENERATOR][:2] = [name, fields]
            with pytest.raises(StoreDamagedError):
                PLAN.build(tree, [])


@pytest.mark.parametrize(
    "key", ["../etc/passwd", "/etc/passwd", "a//b", "", "x" * 200, "Nowhere/Land"]
)
def test_a_time_zone_is_a_key_of_the_database(key: str) -> None:
    error = StateChangedError if key == "Nowhere/Land" else StoreDamagedError
    with pytest.raises(error):
        PLAN.build({Tag.ZONEINFO: key}, [])


@pytest.mark.parametrize("root", ["torch", "jax", "tensorflow"])
def test_tensors_are_leaves_and_no_framework_is_imported(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tensor:
        pass

    class Parameter(Tensor):
        pass

    Tensor.__module__ = {"jax": "jaxlib._jax"}.get(root, f"{root}.inner")
    tensor = Parameter()
    with pytest.raises(NotEncodableError):
        PLAN.flatten([tensor])
    module = types.ModuleType(root)
    module.Tensor = module.Array = Tensor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, root, module)
    flat = PLAN.flatten({"w": [tensor, tensor]})
    assert [(leaf.path, leaf.value) for leaf in flat.arrays] == [("state.w[0]", tensor)]
    assert PLAN.build(flat.tree, [tensor]) == {"w": [tensor, tensor]}


def test_arrays_of_objects_are_saved_by_item_and_others_by_number() -> None:
    inner = np.arange(3)
    objects = np.empty((2, 2), dtype=object)
    objects[0, 0], objects[1, 1] = inner, [objects.shape]
    state = {"o": objects, "again": objects, "i": inner}
    flat = PLAN.flatten(state)
    assert [leaf.path for leaf in flat.arrays] == ["state.o[0]"]
    result = there_and_back(PLAN, state)
    assert result["o"] is result["again"]
    assert result["o"][0, 0] is result["i"]
    assert result["o"][1, 1] == [(2, 2)]


# ---------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        *({Tag.ARRAY: 0}, {Tag.ARRAY: -1}, {Tag.ARRAY: "0"}, {Tag.ARRAY: True}),
        *({Tag.SAME: 0}, [{Tag.SAME: 0}], {Tag.SAME: -1}, [[1], {Tag.SAME: 5}]),
        *({Tag.SET: [[1]]}, {Tag.SET: [1, 1]}, {Tag.SET: 1}, {Tag.DICT: [1]}, {Tag.DICT: [[], 1]}),
        *(
            {Tag.DICT: [1, 1, 1, 1]},
            {Tag.FLOATS: b"\xcb"},
            {Tag.FLOATS: b"\xcf" + bytes(8)},
            {Tag.TUPLE: 1},
        ),
        *({Tag.BIG_INT: 1}, {Tag.COMPLEX: [1, 2]}, {Tag.COMPLEX: [1.0]}, {Tag.DATE: [2024, 13, 1]}),
        *(
            {Tag.DATETIME: [1] * 9},
            {Tag.DATETIME: []},
            {Tag.TIME: [1]},
            {Tag.TIMEZONE: [2, 0, 0, None]},
        ),
        *({Tag.DECIMAL: "x"}, {Tag.DECIMAL: "1e99999999999999999999"}, {Tag.FRACTION: [1, 0]}),
        *({Tag.UUID: b"1"}, {Tag.PATH: [9, "x"]}, {Tag.PATH: [-1, "x"]}, {Tag.RANGE: [1, 2, 0]}),
        *({Tag.DEQUE: [1, [1, 2]]}, {Tag.DEQUE: ["x", []]}, {Tag.DEFAULT_DICT: ["eval", []]}),
        *({Tag.OBJECT_ARRAY: [[2], [1]]}, {Tag.OBJECT_ARRAY: [[-1], [1]]}),
        *({Tag.OBJECT_ARRAY: [[1] * 99, [1]]}, {Tag.OBJECT_ARRAY: [[2**40, 0, 2**40], []]}),
        *({Tag.RANDOM: [3, b"", None]}, {Tag.RANDOM: [3, b"\xff" * 2500, None]}, {Tag.RANDOM: 3}),
        *({Tag.NUMPY_SCALAR: ["|O8", b"\1" * 8]}, {Tag.NUMPY_SCALAR: ["<f8", b"12345678" * 2]}),
        *({Tag.NUMPY_SCALAR: ["S999999999", b""]}, {Tag.NUMPY_SCALAR: ["finfo", b""]}),
        *({Tag.GENERATOR: 1}, {Tag.RANDOM_STATE: [1, 2, 3]}, {99: 1}, {Tag.UNSET: None}),
        *({Tag.OBJECT: []}, {Tag.OBJECT: 1}, {Tag.TUPLE: [object()]}, {Tag.ARRAY_ITEM: 0}),
    ],
)
def test_a_tree_that_no_state_has_is_damage(tree: Tree) -> None:
    with pytest.raises(StoreDamagedError):
        PLAN.build(tree, [])


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"\0\xc0",
            b"\2\xc0",
            b"\1",
            b"\1\xc0\xc0",
            b"\1\xca\0\0\0\0",
            b"\1\xc1",
            b"\1\xd4\0\0",
        ),
        *(b"\1\xdd\xff\xff\xff\xff", b"\1\xdf\xff\xff\xff\xff\xc0", b"\1\x92\xc0", b"\1\xa1\xff"),
        *(
            b"\1\xa1",
            b"\1\xc6\xff\xff\xff\xff",
            b"\1\xdb\0\0",
            b"\1\x81\xc0\xc0",
            b"\1\x81\x7f\xc0",
        ),
        *(b"\1\x82\xa1a\xc0\xa1a\xc0", b"\1\x82\x01\xc0\x02\xc0", b"\1\x82\xa1a\xcc\x81\x01\xc0"),
        *(b"\1\xcc\x01", b"\1\xd9\x01a", b"\1\xde\0\1\x01\xc0", b"\1\x81\xd9\x01a\xc0"),
        *(b"\1" + b"\x91" * 401 + b"\xc0", b"\1" + b"\x91" * 5_000 + b"\xc0", b"\1\xcb\0"),
        b"\1\x81\xa3\xed\xa0\x80\xc0",
    ],
)
def test_bytes_that_no_tree_has_are_damage(data: bytes) -> None:
    with pytest.raises(StoreDamagedError):
        decode_tree(data)


def test_limits_hold_before_anything_is_built() -> None:
    nodes = encode_tree([1, 2, {"a": 3}])
    for limits in ({"max_bytes": 7}, {"max_nodes": 5}, {"max_depth": 1}):
        with pytest.raises(StoreDamagedError):
            decode_tree(nodes, format.DecodeLimits(**limits))
    assert decode_tree(nodes, format.DecodeLimits(8, 6, 2)) == [1, 2, {"a": 3}]


def test_a_saved_uuid_and_decimal_keep_their_text() -> None:
    state = [UUID(int=5), Decimal("-0E+5"), Decimal("sNaN12"), Decimal("1.10")]
    assert [str(item) for item in there_and_back(Plan.of([]), state)] == [
        str(item) for item in state
    ]
