"""A strict JSON parser (RFC 8259) with limits: pure.

It refuses what the standard library accepts: NaN and infinities, numbers that would
become one, a key that an object has twice, lone surrogates.  Nesting is measured before
parsing, so a hostile document cannot exhaust the stack.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any, NoReturn, TypeAlias

from .._util.plain import MAX_DEPTH

Json: TypeAlias = Any  # a parsed document: dict, list, str, int, float, bool or None

MAX_JSON_BYTES = 64 * 2**20  # parsed, a document takes some ten times as much memory
MAX_NUMBER_CHARS = 1_000  # longer than any float; the time to parse an int grows as the square

# A string, or the rest of an unfinished one.  Possessive: one pass for any input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The bytes are not a valid JSON document, or exceed a limit; the text says why."""


def parse_json(data: bytes) -> Json:
    """Parse a JSON document.

    Raises:
        JsonError: it is empty, too large, not UTF-8, not JSON, nested deeper than
            `MAX_DEPTH`, or has an invalid number, a key twice, a lone surrogate.
    """
    if len(data) > MAX_JSON_BYTES:
        raise JsonError(f"has {len(data):,} bytes, over {MAX_JSON_BYTES:,}")
    text = _decode(data)
    if _depth(data) > MAX_DEPTH:
        raise JsonError(f"is nested deeper than {MAX_DEPTH}")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise JsonError(f"is not JSON: {error.msg} ({where})") from error
    if _SURROGATE.search(text):
        _refuse_lone_surrogates(value)
    return value


def _decode(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
    if not text.strip():
        raise JsonError("is empty")
    if text.startswith("\ufeff"):
        raise JsonError("begins with a byte order mark, which JSON does not allow")
    return text


def _depth(data: bytes) -> int:
    """Return the greatest nesting depth; it is exact up to the first error."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return 0  # the usual case: it cannot be too deep
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    return max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"an object has the key {key[:100]!r} twice")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"has {name} in it, which is not a number in JSON")


def _float(text: str) -> float:
    value = float(_short(text))
    if not math.isfinite(value):
        raise JsonError(f"has the number {text[:50]} in it, which no float can hold")
    return value


def _int(text: str) -> int:
    return int(_short(text))


def _short(text: str) -> str:
    if len(text) > MAX_NUMBER_CHARS:
        raise JsonError(f"has a number of {len(text):,} characters, over {MAX_NUMBER_CHARS:,}")
    return text


def _refuse_lone_surrogates(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise JsonError("a string in it has a lone surrogate") from error
