"""The tree form of a state, and its bytes: plain MessagePack with tagged nodes.

A *tree* is what MessagePack holds without extensions: None, bool, int of 64 bits, float, str,
bytes, list, and dict with str keys.  All else is a *tagged node*: a dict whose one key is an int
from `Tag`, ``{Tag.TUPLE: [1, 2]}``.  A plain dict never has an int for a key, so a tree
describes itself, and nothing in it names code to run.

The format, byte by byte
========================

====== ====================================================================================
offset what
====== ====================================================================================
0      the version, `FORMAT_VERSION` (01)
1      one MessagePack value, and nothing behind it
====== ====================================================================================

The value is made of these MessagePack types only, each in the shortest form that holds it; sizes
and numbers are big-endian.  So two trees are equal exactly if their bytes are.

=============================== ===========================================================
first byte                      what
=============================== ===========================================================
00-7f, cc-cf, d0-d3, e0-ff      an int from -2**63 to 2**64 - 1
a0-bf, d9-db                    a str: its length in bytes, UTF-8 without surrogates
c0, c2, c3                      None, False, True
c4-c6                           bytes: their length, then they
cb                              a float: 8 bytes of IEEE 754, every bit of them kept
90-9f, dc, dd                   a list: how many items, then they
80-8f, de, df                   a dict: how many pairs, then key and value in turn; either
                                all keys are str, each once, or there is one pair whose key is
                                an int of `Tag`: a tagged node
=============================== ===========================================================

32-bit floats (ca), extensions (c7-c9, d4-d8) and c1 are refused.

The values of tagged nodes:

===================== ===== ===========================================================
tag                   key   value
===================== ===== ===========================================================
TUPLE                 1     list of the items
SET, FROZENSET        2, 3  list of the items, ordered by their bytes in this format
DICT                  4     a dict whose keys are not all str: list of key, value, key, …
BIG_INT               5     bytes: two's complement, big-endian
COMPLEX               6     [real, imaginary], floats
BYTEARRAY             7     bytes
FLOATS                8     a list of floats alone: bytes, cb and 8 bytes of each
DATETIME              9     [year, month, day, hour, minute, second, µs, fold, zone or None]
DATE                  10    [year, month, day]
TIME                  11    [hour, minute, second, µs, fold, zone or None]
TIMEDELTA             12    [days, seconds, µs]
TIMEZONE              13    [days, seconds, µs, name or None], the offset from UTC
ZONEINFO              14    str: the key, as ``Europe/Paris``
PATH                  15    [kind, text]; kind 0 Path, 1 PurePosixPath, 2 PureWindowsPath;
                            text is a str, or bytes where the file's name is not UTF-8
ENUM                  16    [class, value of the member]
DECIMAL               17    str
FRACTION              18    [numerator, denominator]
UUID                  19    16 bytes
OBJECT                20    [class, {field: value}], of an attrs class or a dataclass
NAMED_TUPLE           21    [class, {field: value}]
UNSET                 22    None: a field that had no value
ARRAY                 23    int: the number of the array, which is kept apart
ARRAY_ITEM            24    int: the number of an array of no dimensions, a NumPy scalar
OBJECT_ARRAY          25    [[size of each dimension], [items in C order]]
SAME                  26    int: the same object again, see below
RANDOM                27    [version, 625 32-bit little-endian words as bytes, next gauss]
BIT_GENERATOR         28    [name, [state …], seed]; seed is [entropy, spawn key, pool size,
                            children], or None where there is none
GENERATOR             29    the bit generator
RANDOM_STATE          30    [bit generator, has gauss, gauss]
DEQUE                 31    [longest or None, [items]]
ORDERED_DICT          32    list of key, value, key, …
COUNTER               33    list of key, value, key, …
DEFAULT_DICT          34    [name of the factory or None, [key, value, key, …]]
RANGE                 35    [start, stop, step]
NUMPY_SCALAR          36    [dtype as NumPy or ml_dtypes writes it, its bytes]
STATEFUL              37    [name, class, what the object gave, its ``_metadata`` or None]; the
                            name is the object's place in the state as the program gave it
===================== ===== ===========================================================

A class is the str ``module:qualified name``.  It is looked up among the classes in the
program's own state, and never imported.

Mutable objects are numbered from 0 in the order in which their nodes begin: lists, dicts, and
those of `MUTABLE`.  SAME names the number of one that is complete already.  What is inside a set
or in a key of a dict has no number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from ..._util.errors import NotEncodableError, StoreDamagedError
from ..._util.plain import kind_of as kind_of

Tree: TypeAlias = Any  # recursive: None, bool, int, float, str, bytes, list, dict; see above
Value: TypeAlias = Any  # a value of the program's state, of any type
Module: TypeAlias = Any  # a library that is imported only where a state needs it

FORMAT_VERSION = 1
MAX_TREE_BYTES = 2**29  # half a GiB beside the arrays; a restore takes about four times that
MAX_TREE_NODES = 4_000_000  # an empty dict is 1 byte saved and 64 in memory: 256 MiB at worst
MAX_TREE_DEPTH = 400  # a state of the greatest depth is under 200, its deltas under 350


class Tag:
    """The keys of tagged nodes: part of the format, never given a new meaning."""

    TUPLE: Final = 1
    SET: Final = 2
    FROZENSET: Final = 3
    DICT: Final = 4
    BIG_INT: Final = 5
    COMPLEX: Final = 6
    BYTEARRAY: Final = 7
    FLOATS: Final = 8
    DATETIME: Final = 9
    DATE: Final = 10
    TIME: Final = 11
    TIMEDELTA: Final = 12
    TIMEZONE: Final = 13
    ZONEINFO: Final = 14
    PATH: Final = 15
    ENUM: Final = 16
    DECIMAL: Final = 17
    FRACTION: Final = 18
    UUID: Final = 19
    OBJECT: Final = 20
    NAMED_TUPLE: Final = 21
    UNSET: Final = 22
    ARRAY: Final = 23
    ARRAY_ITEM: Final = 24
    OBJECT_ARRAY: Final = 25
    SAME: Final = 26
    RANDOM: Final = 27
    BIT_GENERATOR: Final = 28
    GENERATOR: Final = 29
    RANDOM_STATE: Final = 30
    DEQUE: Final = 31
    ORDERED_DICT: Final = 32
    COUNTER: Final = 33
    DEFAULT_DICT: Final = 34
    RANGE: Final = 35
    NUMPY_SCALAR: Final = 36
    STATEFUL: Final = 37


def tag_of(node: Tree) -> int | None:
    """Return the tag of a tagged node; None: it is a plain dict."""
    for key in node:
        return key if type(key) is int else None
    return None


TAGS = frozenset(number for name, number in vars(Tag).items() if name.isupper())

MUTABLE = frozenset(
    (
        *(Tag.SET, Tag.DICT, Tag.BYTEARRAY, Tag.FLOATS, Tag.OBJECT, Tag.OBJECT_ARRAY),
        *(Tag.RANDOM, Tag.BIT_GENERATOR, Tag.GENERATOR, Tag.RANDOM_STATE),
        *(Tag.DEQUE, Tag.ORDERED_DICT, Tag.COUNTER, Tag.DEFAULT_DICT, Tag.STATEFUL),
    )
)
"""The tags of numbered objects, which are restored with their identity."""


class DecodeLimits(msgspec.Struct, frozen=True):
    """Limits that a decoder checks before it allocates memory.

    Attributes:
        max_bytes: The size of the encoded tree.
        max_nodes: The number of values in it, keys included.
        max_depth: The number of lists and dicts around one value.
    """

    max_bytes: int = MAX_TREE_BYTES
    max_nodes: int = MAX_TREE_NODES
    max_depth: int = MAX_TREE_DEPTH


LIMITS = DecodeLimits()

# ---------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()

pack: Callable[[Tree], bytes] = _encoder.encode
"""The MessagePack bytes of a tree.  Equal bytes are equal trees: type for type, bit for bit."""


def encode_tree(tree: Tree) -> bytes:
    """Encode a tree.

    Raises:
        NotEncodableError: its bytes are more than `MAX_TREE_BYTES`.
    """
    body = pack(tree)
    if len(body) >= MAX_TREE_BYTES:
        raise NotEncodableError("state", f"it has {len(body)} bytes beside its arrays; use arrays")
    return bytes((FORMAT_VERSION,)) + body


def decode_tree(data: bytes, limits: DecodeLimits = LIMITS) -> Tree:
    """Decode the bytes of a tree.

    All lengths and counts are checked before anything is built.

    Raises:
        StoreDamagedError: `encode_tree` does not make such bytes, or they exceed a limit.
    """
    if len(data) > limits.max_bytes:
        raise StoreDamagedError(f"a saved state has {len(data)} bytes, over {limits.max_bytes}")
    if not data or data[0] != FORMAT_VERSION:
        found = f"version {data[0]}" if data else "nothing"
        raise StoreDamagedError(f"a saved state is of version {FORMAT_VERSION}, not {found}")
    try:
        _scan(data, limits)
        tree = _decoder.decode(memoryview(data)[1:])
    except IndexError as error:
        raise StoreDamagedError("a saved state ends too early") from error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise StoreDamagedError(f"a saved state cannot be read: {error}") from error
    if bytes((FORMAT_VERSION,)) + pack(tree) != data:
        raise StoreDamagedError("a saved state has a key twice, or a number in a longer form")
    return tree


def _sizes_of_scalars() -> bytes:
    """Return the length of the whole value for each first byte; 0: more bytes decide."""
    sizes = bytearray(256)
    for first in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        sizes[first] = 1
    for length in range(0x20):
        sizes[0xA0 + length] = 1 + length
    for first, size in zip((0xCC, 0xCD, 0xCE, 0xCF), (2, 3, 5, 9), strict=True):
        sizes[first] = sizes[first + 4] = size
    sizes[0xCB] = 9
    return bytes(sizes)


_SCALAR_SIZES = _sizes_of_scalars()
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes and str
_COUNTS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}  # list and dict


def _scan(data: bytes, limits: DecodeLimits) -> None:
    """Check that `data` is a tree within the limits; builds nothing.

    Raises:
        StoreDamagedError: it is not.
        IndexError: it ends too early.
    """
    at, end = 1, len(data)
    nodes, left = 0, 1  # left: the values that the innermost container still lacks
    pairs = 0  # the number of pairs of the innermost container, 0 for a list
    outer: list[tuple[int, int]] = []
    while True:
        while not left:
            if not outer:
                if at != end:
                    raise _damaged("ends too early or too late", at)
                return
            left, pairs = outer.pop()
        nodes += 1
        if nodes > limits.max_nodes:
            raise _damaged(f"has more than {limits.max_nodes} values", at)
        first = data[at]
        if pairs and not left % 2 and not 0xA0 <= first <= 0xBF:  # a key that is not a short str
            is_tag = pairs == 1 and first in TAGS
            if not is_tag and not 0xD9 <= first <= 0xDB:
                raise _damaged("has a key that is neither a str nor a tag", at)
        left -= 1
        size = _SCALAR_SIZES[first]
        if size:
            at += size
        elif first in _LENGTHS:
            at += 1 + _LENGTHS[first]
            at += int.from_bytes(data[at - _LENGTHS[first] : at])
        else:
            at, count, is_dict = _scan_head(data, at, first)
            if count * (1 + is_dict) > end - at:
                raise _damaged("counts more values than it has bytes", at)
            outer.append((left, pairs))
            if len(outer) > limits.max_depth:
                raise _damaged(f"is nested deeper than {limits.max_depth}", at)
            left, pairs = count * (1 + is_dict), count * is_dict


def _scan_head(data: bytes, at: int, first: int) -> tuple[int, int, bool]:
    """Read the head of a container: the start of its values, their count, whether it is a dict."""
    if first & 0xE0 == 0x80:
        return at + 1, first & 0x0F, first < 0x90
    size = _COUNTS.get(first)
    if size is None:
        raise _damaged(f"has a value of the kind {first:02x}", at)
    stop = at + 1 + size
    return stop, int.from_bytes(data[at + 1 : stop]), first >= 0xDE


def _damaged(problem: str, at: int) -> StoreDamagedError:
    return StoreDamagedError(f"a saved state {problem}, at byte {at}")


# ---------------------------------------------------------------------------------------
# Lists of floats
# ---------------------------------------------------------------------------------------

_FLOAT_BYTES = 9  # cb and the 8 of the float


def pack_floats(items: list[Value]) -> bytes | None:
    """Return the value of a FLOATS node, 3 ns an item; None: the list has other items, or none.

    If every ninth byte is cb, all are floats: the first is, so the second begins after it,
    and so on.
    """
    if not items or type(items[0]) is not float or type(items[-1]) is not float:
        return None
    try:
        packed = pack(items)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    body = packed[-_FLOAT_BYTES * len(items) :]
    head = len(packed) - len(body)
    if head != len(_list_head(len(items))) or not _are_floats(body, len(items)):
        return None
    return body


def unpack_floats(body: bytes) -> list[float]:
    """Return the floats of a FLOATS node.

    Raises:
        ValueError: `pack_floats` does not make such bytes.
    """
    count, rest = divmod(len(body), _FLOAT_BYTES)
    if rest or not _are_floats(body, count):
        raise ValueError("a list of floats holds something else")
    floats: list[float] = _decoder.decode(_list_head(count) + body)
    return floats


def _are_floats(body: bytes, count: int) -> bool:
    return body[::_FLOAT_BYTES] == b"\xcb" * count


def _list_head(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 + count,))
    return (b"\xdc" + count.to_bytes(2)) if count < 2**16 else (b"\xdd" + count.to_bytes(4))
