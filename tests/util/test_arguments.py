"""Arguments are checked with their name, their value and what would be right."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from trio_ckpt._util import arguments as arguments


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text of mine")


class TestWholeNumber:
    @pytest.mark.parametrize("value", [0, 7, np.int64(7), np.uint8(7), 2**63 - 2])
    def test_integers_of_every_kind_become_ints(self, value: Any) -> None:
        number = arguments.whole_number("index", value)
        assert type(number) is int
        assert number == value

    @pytest.mark.parametrize(
        "value",
        [True, np.True_, 1.0, np.float64(1), "1", None, b"1", [1], np.arange(2), Decimal(1)],
    )
    def test_another_kind_is_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^index must be an int from 0 on, not "):
            arguments.whole_number("index", value)

    @pytest.mark.parametrize("value", [-1, 2**63 - 1, 10**400])
    def test_a_number_out_of_range_is_refused(self, value: int) -> None:
        with pytest.raises(ValueError, match=r"^index must be an int from 0 (on|to \d+), not "):
            arguments.whole_number("index", value)

    def test_the_message_names_both_bounds(self) -> None:
        with pytest.raises(ValueError, match=r"^port must be an int from 0 to 65535, not 99999$"):
            arguments.whole_number("port", 99_999, most=65_535)


class TestSeconds:
    @pytest.mark.parametrize("value", [0, 1, 2.5, np.float64(2.5), np.int32(3)])
    def test_finite_numbers_become_floats(self, value: Any) -> None:
        span = arguments.seconds("grace_s", value)
        assert type(span) is float
        assert span == value

    @pytest.mark.parametrize("value", ["30", None, True, 1j, [1], Decimal(1)])
    def test_another_kind_is_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^grace_s must be a number of seconds >= 0, not "):
            arguments.seconds("grace_s", value)

    @pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, 10**400])
    def test_a_span_that_is_none_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"^grace_s must be a number of seconds >= 0, not "):
            arguments.seconds("grace_s", value)

    def test_zero_and_infinity_are_up_to_the_caller(self) -> None:
        assert arguments.seconds("save_timeout_s", math.inf, is_endless_allowed=True) == math.inf
        with pytest.raises(ValueError, match=r"^every_s must be a number of seconds > 0, not 0$"):
            arguments.seconds("every_s", 0, is_zero_allowed=False)
        with pytest.raises(ValueError, match=r"not nan$"):
            arguments.seconds("save_timeout_s", math.nan, is_endless_allowed=True)


class TestFlag:
    def test_a_bool_is_taken(self) -> None:
        assert arguments.flag("fresh", True) is True
        assert arguments.flag("fresh", False) is False

    @pytest.mark.parametrize("value", ["no", "", 0, 1, None, [], np.True_])
    def test_what_is_only_truthy_is_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^fresh must be True or False, not "):
            arguments.flag("fresh", value)


class TestText:
    def test_a_str_is_taken(self) -> None:
        assert arguments.text("reason", "late") == "late"
        assert arguments.text("reason", "", is_empty_allowed=True) == ""

    def test_what_is_no_str_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"^reason must be a str, not 5$"):
            arguments.text("reason", 5)
        with pytest.raises(ValueError, match=r"^reason must not be empty$"):
            arguments.text("reason", "")


class TestOneOf:
    def test_a_choice_is_taken(self) -> None:
        assert arguments.one_of("verify", "size", ("off", "size")) == "size"

    @pytest.mark.parametrize("value", ["Size", None, True, 5, ["size"]])
    def test_anything_else_is_refused_with_the_choices(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"^verify must be one of 'off', 'size', not "):
            arguments.one_of("verify", value, ("off", "size"))

    def test_an_equal_value_of_another_type_is_none_of_them(self) -> None:
        with pytest.raises(ValueError, match=r"^level must be one of 0, 1, not True$"):
            arguments.one_of("level", True, (0, 1))


class TestSeveral:
    def test_any_iterable_becomes_a_tuple(self) -> None:
        assert arguments.several("names", iter(["a", "b"]), "names") == ("a", "b")
        assert arguments.several("names", {"a"}, "names") == ("a",)

    @pytest.mark.parametrize("value", ["abc", b"abc", {"a": 1}, 5, None, bytearray(b"a")])
    def test_one_text_is_not_several_letters(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^names must be a list of names of fields, not "):
            arguments.several("names", value, "names of fields")


class TestInstanceAndFunction:
    def test_the_class_itself_is_no_instance(self) -> None:
        assert arguments.instance("retry", 5, int, "an int") == 5
        with pytest.raises(TypeError, match=r"^retry must be a dict, not <class 'dict'>$"):
            arguments.instance("retry", dict, dict, "a dict")

    def test_only_what_can_be_called_is_a_function(self) -> None:
        assert arguments.function("when", len) is len
        with pytest.raises(TypeError, match=r"^when must be a function, not 5$"):
            arguments.function("when", 5)


class TestShown:
    def test_a_long_value_is_shortened(self) -> None:
        with pytest.raises(TypeError) as caught:
            arguments.flag("fresh", "x" * 10_000)
        assert len(str(caught.value)) < 150

    def test_a_value_without_a_repr_is_named_by_its_class(self) -> None:
        with pytest.raises(TypeError, match=r"not a Unprintable$"):
            arguments.flag("fresh", Unprintable())
