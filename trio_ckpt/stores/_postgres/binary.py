"""Parameters of statements in PostgreSQL's binary format, each of a fixed type.

psycopg chooses between int2, int4 and int8 by the value, so that one statement would be prepared
many times.  https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-FORMAT-CODES
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

BYTEA, INT8, INT4, TEXT, FLOAT8 = 17, 20, 23, 25, 701  # the types' numbers, in pg_type.dat
INT4S, INT8S, BYTEAS, TEXTS = 1007, 1016, 1001, 1009  # of their arrays

_INT4, _INT8, _FLOAT8 = struct.Struct("!i"), struct.Struct("!q"), struct.Struct("!d")
_EMPTY, _HEAD = struct.Struct("!iiI"), struct.Struct("!iiIii")
_NULL = b"\xff\xff\xff\xff"


def int4(value: int) -> bytes:
    """Pack an integer of 32 bits."""
    return _INT4.pack(value)


def int8(value: int) -> bytes:
    """Pack an integer of 64 bits."""
    return _INT8.pack(value)


def float8(value: float) -> bytes:
    """Pack a float."""
    return _FLOAT8.pack(value)


def int4s(values: Sequence[int]) -> bytes:
    """Pack an array of integers of 32 bits."""
    pairs = [number for value in values for number in (4, value)]
    return _head(len(values), INT4) + struct.pack(f"!{'ii' * len(values)}", *pairs)


def int8s(values: Sequence[int]) -> bytes:
    """Pack an array of integers of 64 bits."""
    pairs = [number for value in values for number in (8, value)]
    return _head(len(values), INT8) + struct.pack(f"!{'iq' * len(values)}", *pairs)


def byteas(values: Sequence[bytes]) -> bytes:
    """Pack an array of bytes."""
    return _joined(values, BYTEA)


def texts(values: Sequence[str | None]) -> bytes:
    """Pack an array of texts, some of them NULL."""
    return _joined([None if value is None else value.encode() for value in values], TEXT)


def _joined(values: Sequence[bytes | None], kind: int) -> bytes:
    parts = [_head(len(values), kind)]
    for value in values:
        parts += (_NULL,) if value is None else (_INT4.pack(len(value)), value)
    return b"".join(parts)


def _head(count: int, kind: int) -> bytes:
    """Pack the head of an array of one dimension; its elements follow, each after its size."""
    return _HEAD.pack(1, 1, kind, count, 1) if count else _EMPTY.pack(0, 0, kind)
