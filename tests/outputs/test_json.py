"""JSON is read as RFC 8259 has it, and under limits."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._util.plain import MAX_DEPTH
from trio_ckpt.outputs import _json
from trio_ckpt.outputs._json import JsonError, parse_json

REFUSED = {
    "empty": (b"", "is empty"),
    "only spaces": (b" \n", "is empty"),
    "not UTF-8": (b'{"a": "\xff"}', "is not UTF-8: byte 7 is 0xff"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "cut off": (b'{"a": [1,', r"is not JSON: .*\(line 1, column 10\)"),
    "zeros after a power cut": (b"\0" * 64, "is not JSON"),
    "two documents": (b"{} {}", "is not JSON: Extra data"),
    "NaN": (b"[NaN]", "NaN in it"),
    "Infinity": (b'{"a": Infinity}', "Infinity in it"),
    "-Infinity": (b"-Infinity", "-Infinity in it"),
    "a float that is infinite": (b"[1e999]", "1e999 in it, which no float can hold"),
    "a key twice": (b'[{"a": {"k": 1, "k": 1}}]', "the key 'k' twice"),
    "a key twice, once escaped": (b'{"k": 1, "\\u006b": 1}', "the key 'k' twice"),
    "an endless number": (b"1" * 1_001, "a number of 1,001 characters, over 1,000"),
    "an endless float": (b"0." + b"1" * 1_000, "a number of 1,002 characters"),
    "a lone surrogate": (b'["\\uD800"]', "lone surrogate"),
    "a lone surrogate as a key": (b'{"\\uDfff": 1}', "lone surrogate"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_json_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(JsonError, match=reason):
        parse_json(data)


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + b"1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b"[[1],", b"]")])
def test_nesting_has_a_limit(opening: bytes, closing: bytes) -> None:
    deepest = MAX_DEPTH - opening.count(b"]")
    parse_json(nested(deepest, opening, closing))
    for depth in (deepest + 2, 100_000):
        with pytest.raises(JsonError, match=f"nested deeper than {MAX_DEPTH}"):
            parse_json(nested(depth, opening, closing))
    with pytest.raises(JsonError, match="nested deeper"):
        parse_json(opening * 200_000)  # and never closed


def test_brackets_side_by_side_or_in_strings_do_not_nest() -> None:
    for value in (["[{" * 500], [{"]": []}] * 500, {'"[' * 300: "\\" * 301 + "["}):
        assert parse_json(json.dumps(value).encode()) == value


def test_a_string_that_never_ends_takes_linear_time() -> None:
    with pytest.raises(JsonError, match="Unterminated string"):
        parse_json(b'"' + b'\\"' * 2_000_000 + b"[" * 200)  # hours, if it were quadratic


def test_the_size_has_a_limit_that_is_seen_before_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_json, "MAX_JSON_BYTES", 2**20)
    parse_json(b" " * (2**20 - 1) + b"1")
    data = b" " * 2**20 + b"1"
    tracemalloc.start()
    with pytest.raises(JsonError, match="has 1,048,577 bytes, over 1,048,576"):
        parse_json(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN, st.booleans())
def test_every_plain_value_comes_back_equal(value: object, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    found = parse_json(data)
    assert found == value
    assert json.dumps(found) == json.dumps(value)  # 1 == True == 1.0, but not here
