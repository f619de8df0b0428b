"""Values that users hold: made, compared, matched, copied and pickled as data classes are."""

from __future__ import annotations

import copy
import pickle

import msgspec
import pytest

from trio_ckpt import (
    Again,
    ErrorInfo,
    GiveUp,
    Listed,
    Output,
    Phase,
    Then,
)

ERROR = ErrorInfo("ValueError", "no")
VALUES = [
    Again(2.0, pauses=True),
    GiveUp(Then.SKIP, retryable=False),
    Listed(new=(("a",),), unlisted=(("b", "c"),)),
    Output("a.json", 2, 3, "00"),
    Phase("fetch", False, ERROR),
    ERROR,
]
by_name = pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)


@by_name
def test_a_copy_is_equal_and_has_the_same_hash(value: msgspec.Struct) -> None:
    for other in (
        copy.copy(value),
        copy.deepcopy(value),
        pickle.loads(pickle.dumps(value)),
        msgspec.structs.replace(value),
        type(value)(**{name: getattr(value, name) for name in value.__struct_fields__}),
        type(value)(*[getattr(value, name) for name in type(value).__match_args__]),
    ):
        assert (other, hash(other), repr(other)) == (value, hash(value), repr(value))


@by_name
def test_no_field_of_a_value_can_be_set(value: msgspec.Struct) -> None:
    for name in value.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_a_value_says_its_fields_and_matches_by_them() -> None:
    assert repr(VALUES[0]) == "Again(after_s=2.0, pauses=True, defers=False)"
    match VALUES[0], VALUES[4]:
        case Again(after_s, True), Phase(name, False, ErrorInfo(kind)):
            assert (after_s, name, kind) == (2.0, "fetch", "ValueError")
        case _:
            pytest.fail("they do not match")
    assert msgspec.structs.replace(VALUES[0], after_s=3.0) == Again(3.0, pauses=True)
    assert Again(2.0) not in VALUES
