"""States of every shape: what the tests of trees and plans share."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, Optional
from zoneinfo import ZoneInfo

import attrs
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tree.classes import EXCLUDE
from trio_ckpt.state._tree.format import decode_tree, encode_tree, pack


class Mode(enum.Enum):
    TRAIN = "train"
    EVAL = (1, "eval")


class Bits(enum.Flag):
    A = 1
    B = 2


class Level(enum.IntEnum):
    LOW = 1


@attrs.frozen
class Point:
    x: Any
    y: Any = 0


@attrs.define
class Layer:
    weights: Any
    mode: Mode = Mode.TRAIN
    cache: dict[str, int] = attrs.field(factory=dict, metadata={EXCLUDE: True})


@dataclasses.dataclass
class Model:
    layers: list[Layer]
    table: dict[str, Any] = dataclasses.field(default_factory=dict)
    client: Any = dataclasses.field(default=None, metadata={"exclude": True})


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    number: int
    loss: float = math.nan


class Pair(NamedTuple):
    left: Any
    right: Any = None


@attrs.define
class State:
    model: Model
    points: tuple[Point, ...] = ()
    extra: Any = None
    step: Step | None = None
    pair: Optional[Pair] = None  # noqa: UP045  # the old form is read too
    level: Level | Bits = Level.LOW


PLAN = Plan.of(State(Model([])))


def there_and_back(plan: Plan[Any], state: Any) -> Any:
    flat = plan.flatten(state)
    tree = decode_tree(encode_tree(flat.tree))
    assert pack(tree) == pack(flat.tree)
    return plan.build(tree, [leaf.value for leaf in flat.arrays])


def seen(value: Any) -> Any:
    """A value as what can be compared: types, bits and order, whatever its own `==` says."""
    kind = type(value)
    name = (kind.__module__, kind.__qualname__)
    if kind is float:
        return name, struct.pack(">d", value)
    if kind is complex:
        return name, seen(value.real), seen(value.imag)
    if kind in (list, tuple, deque, Pair):
        return name, getattr(value, "maxlen", None), [seen(item) for item in value]
    if kind in (set, frozenset):
        return name, sorted(map(repr, map(seen, value)))
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return name, factory, [(seen(key), seen(item)) for key, item in value.items()]
    if attrs.has(kind):
        return name, [seen(getattr(value, field.name)) for field in attrs.fields(kind)]
    if dataclasses.is_dataclass(kind):
        return name, [seen(getattr(value, field.name)) for field in dataclasses.fields(kind)]
    if kind is np.ndarray and value.dtype.hasobject:
        return name, value.shape, [seen(item) for item in value.ravel().tolist()]
    if isinstance(value, (np.ndarray, np.generic)):
        return name, value.dtype, value.shape, value.tobytes()
    if isinstance(value, (datetime.datetime, datetime.time)):
        return name, value.replace(tzinfo=None), value.fold, repr(value.tzinfo)
    if isinstance(value, random.Random):
        return name, value.getstate()
    if isinstance(value, np.random.BitGenerator):
        return name, repr(value.state), repr(getattr(value.seed_seq, "state", None))
    if isinstance(value, np.random.Generator):
        return name, seen(value.bit_generator)
    if isinstance(value, np.random.RandomState):
        return name, repr(value.get_state(legacy=False))
    return name, repr(value)


ZONES = st.sampled_from(
    [
        *(None, datetime.UTC, ZoneInfo("Europe/Paris"), ZoneInfo("UTC")),
        datetime.timezone(datetime.timedelta(hours=-5, seconds=1)),
        datetime.timezone(datetime.timedelta(0), "Z"),
        datetime.timezone(datetime.timedelta(0), "UTC"),
    ]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BIT_GENERATORS = st.builds(
    lambda name, seed, drawn: (
        (made := getattr(np.random, name)(seed)).random_raw(drawn, output=False),
        made,
    )[1],
    st.sampled_from(["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]),
    st.integers(0, 2**70),
    st.integers(0, 700),
)
FLOATS = st.one_of(
    st.floats(),
    st.sampled_from(
        [-0.0, math.inf, *struct.unpack(">2d", bytes.fromhex("7ff0000000000001fff8000000beef00"))]
    ),
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), FLOATS, TEXT, st.binary(max_size=9)),
    st.integers(-(2**200), 2**200),
    st.builds(complex, FLOATS, FLOATS),
)
LEAVES = st.one_of(
    SCALARS,
    st.builds(
        lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold),
        st.datetimes(),
        ZONES,
        st.integers(0, 1),
    ),
    *(st.dates(), st.timedeltas(), st.uuids(), st.fractions(), st.decimals(), ZONES),
    st.builds(lambda at, zone: at.replace(tzinfo=zone, fold=1), st.times(), ZONES),
    st.builds(range, st.integers(-9, 9), st.integers(), st.integers(1, 2**70)),
    st.sampled_from([*Mode, *Level, Bits.A, Bits.A | Bits.B, Bits(0)]),
    st.sampled_from([Path("a/b"), Path("/"), PurePosixPath("."), PureWindowsPath("C:\\x")]),
)
VALUES = st.recursive(
    st.one_of(SCALARS.filter(lambda value: value == value), st.dates(), st.sampled_from(Mode)),
    lambda inner: st.one_of(
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
        st.tuples(inner, inner),
        st.frozensets(inner, max_size=3),
    ),
    max_leaves=4,
)
ARRAY_EXAMPLES: list[Any] = [
    *(np.arange(6.0).reshape(2, 3), np.zeros(()), np.zeros((0, 3), "u1")),
    *(np.zeros(2, [("a", "<i4"), ("b", "S3")]), np.ones(3, ml_dtypes.bfloat16)),
    *(
        np.float64(-0.0),
        np.int8(-1),
        np.bool_(True),
        np.str_("é"),
        np.str_(""),
        np.bytes_(b"\0x"),
    ),
    *(np.datetime64("2024-01-01T01", "25s"), np.datetime64("NaT", "D"), np.timedelta64(3, "us")),
    # NumPy 2.5 warns of a scalar without a unit that is made from a value, but states may hold one.
    *np.array([np.iinfo("i8").min]).view("M8"),
    *(np.float16(2), np.complex64(1j), ml_dtypes.bfloat16(1.5), ml_dtypes.float8_e4m3fn(0.5)),
    *(ml_dtypes.int4(-3), np.zeros(1, [("a", "<i4")])[0], np.void(b"ab"), np.longdouble(1) / 3),
]
ARRAYS = st.sampled_from(ARRAY_EXAMPLES)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def objects(items: list[Any], shape: tuple[int, ...]) -> Any:
        array = np.empty(len(items), dtype=object)
        for at, item in enumerate(items):
            array[at] = item
        return array.reshape(shape)

    return st.one_of(
        *(st.lists(inner, max_size=4), st.lists(inner, max_size=3).map(tuple)),
        *(st.lists(FLOATS, min_size=1, max_size=20), st.lists(st.integers(), max_size=9)),
        *(st.dictionaries(TEXT, inner, max_size=3), st.dictionaries(VALUES, inner, max_size=3)),
        *(st.sets(VALUES, max_size=4), st.frozensets(VALUES, max_size=4)),
        st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 5)),
        st.dictionaries(VALUES, inner, max_size=2).map(OrderedDict),
        st.dictionaries(VALUES, st.integers(), max_size=2).map(Counter),
        st.builds(defaultdict, st.sampled_from([None, list, int]), st.dictionaries(TEXT, inner)),
        *(st.builds(Layer, inner, st.sampled_from(Mode)), st.builds(Point, inner, inner)),
        *(st.builds(Pair, inner, inner), st.builds(Step, st.integers(), FLOATS)),
        st.builds(
            objects, st.lists(inner, min_size=2, max_size=2), st.sampled_from([(2,), (1, 2)])
        ),
        st.builds(objects, st.lists(inner, min_size=1, max_size=1), st.just(())),
    )


STATES = st.recursive(
    st.one_of(
        *(LEAVES, LEAVES, ARRAYS, st.binary(max_size=5).map(bytearray), BIT_GENERATORS),
        st.integers().map(random.Random),
        BIT_GENERATORS.map(np.random.Generator),
        st.builds(
            lambda seed: (made := np.random.RandomState(seed), made.standard_normal())[0],
            st.integers(0, 99),
        ),
    ),
    _containers,
    max_leaves=12,
)


# ---------------------------------------------------------------------------------------
# What cannot be saved, with its path
# ---------------------------------------------------------------------------------------


class Loose:
    pass
