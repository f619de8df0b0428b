"""Leaves: values that contain no others, with one function for each direction.

An encoder returns the value of the tagged node, or raises ValueError with the problem.  A decoder
trusts nothing that a store returned: bad input raises one of `BAD_LEAF`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from .errors import MissingHereError
from .format import Tag, Tree, Value

MAX_FRACTION_BITS = 2**16  # decoding computes its greatest common divisor: 1 ms at this size
INTS = range(-(2**63), 2**64)  # the integers of MessagePack

BAD_LEAF = (
    ValueError,  # and all exceptions of msgspec
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


# ---------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------


def encode_int(value: int) -> Tree:
    """Encode an int of any size: itself if MessagePack holds it."""
    if value in INTS:
        return value
    return {Tag.BIG_INT: value.to_bytes(value.bit_length() // 8 + 1, signed=True)}


def decode_int(tree: Tree) -> int:
    """Decode an int."""
    if type(tree) is int:
        return tree
    (data,) = msgspec.convert(tree, dict[int, bytes]).values()
    if Tag.BIG_INT not in tree:
        raise ValueError("not an int")
    return int.from_bytes(data, signed=True)


def _decode_complex(tree: Tree) -> complex:
    real, imaginary = tree
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("a complex number is not made of two floats")
    return complex(real, imaginary)


def _encode_fraction(value: Fraction) -> Tree:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_FRACTION_BITS:
        raise ValueError(f"a fraction of more than {MAX_FRACTION_BITS} bits")
    return [encode_int(value.numerator), encode_int(value.denominator)]


def _decode_fraction(tree: Tree) -> Fraction:
    numerator, denominator = map(decode_int, tree)
    if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
        raise ValueError(f"a fraction of more than {MAX_FRACTION_BITS} bits")
    return Fraction(numerator, denominator)


def _decode_range(tree: Tree) -> range:
    start, stop, step = map(decode_int, tree)
    return range(start, stop, step)


# ---------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------

_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}")  # no dots: no paths up


def _encode_zone(zone: tzinfo | None) -> Tree:
    if zone is None:
        return None
    if type(zone) is timezone:
        return {Tag.TIMEZONE: _encode_timezone(zone)}
    if type(zone) is ZoneInfo:
        return {Tag.ZONEINFO: _encode_zoneinfo(zone)}
    raise ValueError(f"its zone is a {type(zone).__qualname__}; use zoneinfo.ZoneInfo")


def _decode_zone(tree: Tree) -> tzinfo | None:
    if tree is None:
        return None
    ((tag, value),) = tree.items()
    return _decode_timezone(value) if tag == Tag.TIMEZONE else _decode_zoneinfo(value)


def _encode_timezone(zone: timezone) -> Tree:
    offset = zone.utcoffset(None)
    plain = timezone(offset)
    name = zone.tzname(None)
    # A zone named like an unnamed one differs only in its arguments for copy and pickle.
    is_named = len(zone.__getinitargs__()) > 1  # type: ignore[attr-defined]  # typeshed has it not
    if not is_named and name != plain.tzname(None):
        raise ValueError("a time zone of unknown make")
    return [offset.days, offset.seconds, offset.microseconds, name if is_named else None]


def _decode_timezone(tree: Tree) -> timezone:
    days, seconds, micros, name = msgspec.convert(tree, tuple[int, int, int, str | None])
    offset = timedelta(days, seconds, micros)
    return timezone(offset) if name is None else timezone(offset, name)


def _encode_zoneinfo(zone: ZoneInfo) -> Tree:
    key: Value = zone.key  # None if it was made from a file
    if key is None or _ZONE_KEY.fullmatch(key) is None:
        raise ValueError("a time zone without a key of the time zone database")
    return key


def _decode_zoneinfo(tree: Tree) -> ZoneInfo:
    key = msgspec.convert(tree, str)
    if _ZONE_KEY.fullmatch(key) is None:
        raise ValueError("not the key of a time zone")
    try:
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise MissingHereError(f"there is no time zone {key!r} here: install tzdata") from error


def _encode_datetime(value: datetime) -> Tree:
    return [
        *(value.year, value.month, value.day, value.hour, value.minute, value.second),
        *(value.microsecond, value.fold, _encode_zone(value.tzinfo)),
    ]


def _decode_datetime(tree: Tree) -> datetime:
    *numbers, fold, zone = tree
    plain = datetime(*msgspec.convert(numbers, tuple[int, int, int, int, int, int, int]))
    return plain.replace(fold=_fold(fold), tzinfo=_decode_zone(zone))


def _encode_time(value: time) -> Tree:
    zone = _encode_zone(value.tzinfo)
    return [value.hour, value.minute, value.second, value.microsecond, value.fold, zone]


def _decode_time(tree: Tree) -> time:
    *numbers, fold, zone = tree
    hour, minute, second, micros = msgspec.convert(numbers, tuple[int, int, int, int])
    return time(hour, minute, second, micros, fold=_fold(fold), tzinfo=_decode_zone(zone))


def _fold(value: Tree) -> int:
    if type(value) is not int:
        raise TypeError("the fold of a time is not an int")
    return value


# ---------------------------------------------------------------------------------------
# Paths and the rest
# ---------------------------------------------------------------------------------------

_PATHS: tuple[type[PurePath], ...] = (Path, PurePosixPath, PureWindowsPath)


def _encode_path(value: PurePath) -> Tree:
    kind = 0 if isinstance(value, Path) else _PATHS.index(type(value))
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return [kind, text.encode("utf-8", "surrogateescape")]  # ValueError if that fails too
    return [kind, text]


def _decode_path(tree: Tree) -> PurePath:
    kind, text = tree
    if type(text) is bytes:
        text = text.decode("utf-8", "surrogateescape")
    if type(text) is not str or type(kind) is not int or kind not in range(len(_PATHS)):
        raise ValueError("a path of unknown kind")
    return _PATHS[kind](text)


_Three = tuple[int, int, int]

_LEAVES: tuple[tuple[type, int, Callable[[Value], Tree], Callable[[Tree], Value]], ...] = (
    (complex, Tag.COMPLEX, lambda value: [value.real, value.imag], _decode_complex),
    (datetime, Tag.DATETIME, _encode_datetime, _decode_datetime),
    (
        date,
        Tag.DATE,
        lambda value: [value.year, value.month, value.day],
        lambda tree: date(*msgspec.convert(tree, _Three)),
    ),
    (time, Tag.TIME, _encode_time, _decode_time),
    (
        timedelta,
        Tag.TIMEDELTA,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda tree: timedelta(*msgspec.convert(tree, _Three)),
    ),
    (timezone, Tag.TIMEZONE, _encode_timezone, _decode_timezone),
    (ZoneInfo, Tag.ZONEINFO, _encode_zoneinfo, _decode_zoneinfo),
    (Decimal, Tag.DECIMAL, str, lambda tree: Decimal(msgspec.convert(tree, str))),
    (Fraction, Tag.FRACTION, _encode_fraction, _decode_fraction),
    (
        UUID,
        Tag.UUID,
        lambda value: value.bytes,
        lambda tree: UUID(bytes=msgspec.convert(tree, bytes)),
    ),
    (
        range,
        Tag.RANGE,
        lambda value: [encode_int(part) for part in (value.start, value.stop, value.step)],
        _decode_range,
    ),
    *((kind, Tag.PATH, _encode_path, _decode_path) for kind in (type(Path()), *_PATHS[1:])),
)
"""For each exact type its tag and its two functions: a subclass would come back as its base."""

LEAF_ENCODERS: dict[type, tuple[int, Callable[[Value], Tree]]] = {
    kind: (tag, encode) for kind, tag, encode, _ in _LEAVES
}
LEAF_DECODERS: dict[int, Callable[[Tree], Value]] = {
    Tag.BIG_INT: lambda tree: int.from_bytes(msgspec.convert(tree, bytes), signed=True),
    **{tag: decode for _, tag, _, decode in _LEAVES},
}
