"""Plain values: what is given is copied, and is at once what a store gives back."""

from __future__ import annotations

import enum
import math
from collections import Counter
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.journal.test_record import FLOATS, INTS, TEXT
from trio_ckpt._util.errors import NotEncodableError
from trio_ckpt._util.plain import (
    MAX_DEPTH,
    as_amounts,
    as_plain,
    canonical_json,
    copy_plain,
    item_digest,
)

NUMPY = st.one_of(
    st.integers(-128, 127).map(np.int8),
    st.integers(0, 2**64 - 1).map(np.uint64),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32),
    FLOATS.map(np.float64),
    st.booleans().map(np.bool_),
)
LEAVES = st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXT, NUMPY)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXT, inner, max_size=3),
    ),
    max_leaves=8,
)


def told(value: Any) -> str:
    """A value with the types of all that is in it, in the order of its keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{told(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({','.join(map(told, value))})"
    return f"{type(value).__name__} {value!r}"


def spoil(value: Any) -> None:
    """Change every list and dict in a value."""
    inside = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple):
        for item in inside:
            spoil(item)
    if isinstance(value, dict):
        value.clear()
        value["spoilt"] = True
    elif isinstance(value, list):
        value[:] = ["spoilt"]


@given(VALUES)
def test_a_value_is_at_once_what_a_store_gives_back(value: Any) -> None:
    plain = as_plain(value, "x")
    assert told(msgspec.msgpack.decode(msgspec.msgpack.encode(plain))) == told(plain)
    assert told(as_plain(plain, "x")) == told(plain)
    assert msgspec.json.decode(canonical_json(plain)) == plain


@given(VALUES)
def test_a_kept_value_shares_nothing_with_what_was_given(value: Any) -> None:
    plain = as_plain(value, "x")
    was = told(plain)
    spoil(value)
    assert told(plain) == was


@given(VALUES)
def test_what_is_handed_out_shares_nothing_with_what_is_kept(value: Any) -> None:
    was = told(value)
    handed = copy_plain(value)
    assert told(handed) == was
    spoil(handed)
    assert told(value) == was


def test_a_copy_leaves_other_objects_as_they_are() -> None:
    path, counter = Path("a"), Counter("a")
    copied = copy_plain({"items": [path, (counter,)]})
    assert copied["items"][0] is path
    assert copied["items"][1][0] is counter


class Text(str):
    __slots__ = ()


class Mapped(dict[str, int]):
    pass


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "m"),
        ({"a": [0, math.inf]}, "m.a[1]"),
        ({"a": {"b": (1, {2})}}, "m.a.b[1]"),
        ([{"a": b"x"}], "m[0].a"),
        ({"a": {1: 2}}, "m.a"),
        ([2**64], "m[0]"),
        ([-(2**63) - 1], "m[0]"),
        (Text("x"), "m"),
        (Mapped(), "m"),
        (Colour.RED, "m"),
        (["ok", "\ud800"], "m[1]"),
        ({"a": {"\udfff": 1}}, "m.a"),
        ([[np.float32("nan")]], "m[0][0]"),
        ({"a": np.zeros(2)}, "m.a"),
        ([np.complex64(1)], "m[0]"),
        (np.datetime64("2024"), "m"),
        (Decimal("1E+400"), "m"),
        (Decimal("NaN"), "m"),
        (Decimal("sNaN"), "m"),
        (Decimal("1E+19999999"), "m"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(NotEncodableError) as caught:
        as_plain(value, "m")
    assert caught.value.path == path
    assert str(caught.value) == f"{path} cannot be stored: {caught.value.problem}"


def test_nesting_has_a_limit_and_a_circle_ends_there() -> None:
    deep: Any = "leaf"
    for _ in range(MAX_DEPTH):
        deep = [deep]
    plain = as_plain(deep, "m")
    assert plain == deep
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plain)) == deep
    circle: list[Any] = []
    circle.append(circle)
    for value in ([deep], circle):
        with pytest.raises(NotEncodableError, match="nested deeper"):
            as_plain(value, "m")


@pytest.mark.parametrize(
    ("value", "worth"),
    [
        ((1, (2, "a")), [1, [2, "a"]]),
        (np.float32(0.25), 0.25),
        (np.float64(0.1), 0.1),
        (np.longdouble(0.5), 0.5),
        (np.float16(2), 2.0),
        (ml_dtypes.bfloat16(1.5), 1.5),
        (np.int64(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),  # NumPy's
        (np.str_("a"), "a"),
        (HTTPStatus.OK, 200),
        (Decimal("0.0125"), 0.0125),
        (Decimal("-12.00"), -12),
        (Decimal("9007199254740993"), 2**53 + 1),
        (Decimal("1E-400"), 0.0),
        (Decimal("1E+30"), 1e30),
        (Decimal("0E+99999999"), 0.0),
    ],
)
def test_a_number_of_another_type_is_what_it_is_worth(value: object, worth: object) -> None:
    assert told(as_plain({"m": value}, "x")["m"]) == told(worth)


def test_nan_is_kept_where_it_is_allowed() -> None:
    for value in (math.nan, np.float32("nan"), Decimal("NaN")):
        assert math.isnan(as_plain([value], "m", allow_nan=True)[0])
    assert as_plain(-math.inf, "m", allow_nan=True) == -math.inf


def test_amounts_are_finite_numbers() -> None:
    assert as_amounts({"a": 1, "b": 0.5}, "totals") == {"a": 1, "b": 0.5}
    others: Any = {"a": np.float64(0.5), "b": np.int8(3), "c": Decimal("0.1")}
    assert told(as_amounts(others, "totals")) == told({"a": 0.5, "b": 3, "c": 0.1})
    for bad in (True, "1", None, math.nan, 2**64, [1], np.bool_(True)):
        with pytest.raises(NotEncodableError, match=r"totals\.a"):
            as_amounts({"a": bad}, "totals")  # type: ignore[dict-item]


def test_canonical_json_has_one_text_and_no_nan() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


def test_item_digests_tell_items_apart() -> None:
    assert len(item_digest("a")) == 8
    assert item_digest("a") == item_digest("a") != item_digest("b")


@pytest.mark.parametrize(
    "value",
    [
        {"k" * 10_000: {1}},
        {"a": {"k" * 10_000: [0, {1}]}},
        [{"k" * 300: {"l" * 300: {1}}}],
        {"k" * 10_000: {"n": math.nan}},
    ],
    ids=["key", "below", "keys", "leaf"],
)
def test_a_message_has_the_two_ends_of_a_long_path(value: Any) -> None:
    with pytest.raises(NotEncodableError) as caught:
        as_plain(value, "metadata")
    assert caught.value.path.startswith("metadata")
    assert len(caught.value.path) > 300
    head, found, tail = str(caught.value).partition("…")
    assert found
    assert head == caught.value.path[: len(head)]
    assert caught.value.path.endswith(tail.partition(" cannot be stored: ")[0])
    assert len(str(caught.value)) < 300
