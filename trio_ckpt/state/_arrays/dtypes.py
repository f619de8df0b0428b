"""dtypes as plain values: how they are stored, and restored without importing by name.

A plain dtype is its array-protocol text (``"<f4"``, ``"|S3"``, ``"<M8[ns]"``, ``"|V8"``); a dtype
of ml_dtypes is ``"ml:bfloat16"``, from a fixed list.  A structured one is ``["struct",
itemsize, is_aligned, [[name, title or None, offset, dtype], …]]``, a field that is an array
``["array", dtype, [side, …]]``.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np

from ..._util.errors import StoreDamagedError, StoreError

Plain = str | list[object]
DType: TypeAlias = "np.dtype[np.generic]"
_Fields: TypeAlias = "Mapping[str, tuple[DType, int, *tuple[object, ...]]]"

ML_DTYPES = frozenset(
    (
        *("int2", "int4", "uint2", "uint4", "bfloat16"),
        *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e3m4", "float8_e4m3"),
        *("float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
)
MAX_DEPTH = 32  # of nested structured dtypes
MAX_FIELDS = 4096
MAX_ITEM_BYTES = 2**31 - 1  # NumPy's own limit

_TEXT = re.compile(
    r"[<>|](b1|[iu][1248]|f2|f4|f8|f12|f16|c8|c16|c24|c32|[SUV][0-9]{1,10}"
    r"|[mM]8(\[[0-9]{0,9}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as|generic)\])?)"
)


@functools.lru_cache(maxsize=1024)
def _text_of(dtype: DType) -> str:
    """Return the text of a dtype without fields; it is asked for each array of each save."""
    if dtype.hasobject or dtype.kind == "T":
        raise ValueError(f"dtype {dtype} is not of a fixed size")
    if dtype.name in ML_DTYPES and dtype.type.__module__ == "ml_dtypes":
        return f"ml:{dtype.name}"
    if not _TEXT.fullmatch(dtype.str) or np.dtype(dtype.str) != dtype:
        raise ValueError(f"dtype {dtype} is unknown here")
    return dtype.str


def describe_dtype(dtype: DType) -> Plain:
    """Return a dtype of fixed size as a plain value.

    Raises:
        ValueError: it has none: objects, variable-width strings, dtypes of other libraries.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ["array", describe_dtype(base), list(shape)]
    if dtype.names is None or dtype.fields is None:
        return _text_of(dtype)
    fields: list[object] = []
    for name in dtype.names:
        kind, offset, *title = cast("_Fields", dtype.fields)[name]
        fields.append([name, title[0] if title else None, offset, describe_dtype(kind)])
    return ["struct", dtype.itemsize, dtype.isalignedstruct, fields]


def restore_dtype(plain: object) -> DType:
    """Restore a dtype from the result of `describe_dtype`.

    Raises:
        StoreDamagedError: `describe_dtype` does not make such a value.
        StoreError: it is one of ml_dtypes, which is not installed.
    """
    try:
        return _restore(plain, 0)
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise StoreDamagedError(f"a saved dtype is invalid: {error}") from error


def _restore(plain: object, depth: int) -> DType:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} times")
    if isinstance(plain, str):
        return _named(plain)
    row = _row(plain)
    if row[:1] == ["array"] and len(row) == 3:
        return _sides(_restore(row[1], depth + 1), [_whole(side) for side in _row(row[2])])
    if row[:1] == ["struct"] and len(row) == 4 and type(row[2]) is bool:
        return _struct(_whole(row[1]), row[2], _row(row[3]), depth)
    raise ValueError("neither a name nor a structure")


def _row(value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise ValueError("a value that is not a list")
    return list(cast("Sequence[object]", value))


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ITEM_BYTES:
        raise ValueError("a size that is not a whole number")
    return value


def _named(text: str) -> DType:
    if text.startswith("ml:"):
        if text[3:] not in ML_DTYPES:
            raise ValueError("an unknown name")
        try:
            ml_dtypes = importlib.import_module("ml_dtypes")
        except ImportError as error:
            raise StoreError(
                f"the state holds arrays of {text[3:]}: pip install ml_dtypes"
            ) from error
        extended: DType = np.dtype(getattr(ml_dtypes, text[3:]))
        return extended
    if not _TEXT.fullmatch(text):
        raise ValueError("an unknown text")
    return np.dtype(text)


def _sides(base: DType, sides: list[int]) -> DType:
    total = base.itemsize
    for side in sides:
        total *= side
        if total > MAX_ITEM_BYTES or len(sides) > MAX_DEPTH:
            raise ValueError("an array that is too large")
    found: DType = np.dtype(cast("Any", (base, tuple(sides))))
    return found


def _struct(itemsize: int, is_aligned: bool, fields: list[object], depth: int) -> DType:
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"more than {MAX_FIELDS} fields")
    names: list[str] = []
    titles: list[str | None] = []
    offsets: list[int] = []
    formats: list[DType] = []
    for row in fields:
        name, title, offset, kind = _row(row)
        if not isinstance(name, str) or not isinstance(title, str | None):
            raise ValueError("a field without a name")
        names.append(name)
        titles.append(title)
        offsets.append(_whole(offset))
        formats.append(_restore(kind, depth + 1))
    layout: dict[str, object] = {
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "itemsize": itemsize,
    }
    if any(title is not None for title in titles):
        layout["titles"] = titles
    found: DType = np.dtype(cast("Any", layout), align=is_aligned)
    return found
