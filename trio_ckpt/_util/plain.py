"""Names and plain values: which values are accepted, and in which form they are stored."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar, cast

import msgspec

from .arguments import mapping, shown, text as text_of
from .errors import NotEncodableError, StoreDamagedError
from .exact_sum import MAX_AMOUNT, Number
from .exceptions import with_article

T = TypeVar("T")

StreamKey = tuple[str, ...]

Plain: TypeAlias = Any
"""A JSON-like value: None, a bool, a number, a str, or a list, tuple or dict of such values.

It is checked where it comes in (`as_plain`), and a program that gets one back indexes it without
a cast, so it is no union."""

# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------

MAX_RUN_ID_CHARS = 200  # fits every file system and column with room for a suffix
MAX_LABEL_CHARS = 200  # of a snapshot or a pin; a line of the history has room for it
MAX_KEY_CHARS = 1_000  # a stream's key is read with every resume
RUN_STREAM: StreamKey = ()  # the run's own stream: sessions, config, overrides
PHASE = "@phase"  # the first of the two parts of a phase's stream key
JOB_STREAM: StreamKey = ("@job",)  # of a run that is a job: its submission, not work


def check_run_id(run_id: str) -> str:
    """Check a run id, and return it.

    Raises:
        ValueError: it is empty, longer than `MAX_RUN_ID_CHARS`, ``.`` or ``..``, or has a
            path separator or control character in it.
    """
    _check_text("a run id", run_id, MAX_RUN_ID_CHARS)
    if run_id in (".", "..") or "/" in run_id or "\\" in run_id:
        raise ValueError(f"a run id has no path separators and is not '.' or '..': {run_id!r}")
    return run_id


def check_stream_key(parts: StreamKey) -> StreamKey:
    """Check the key of a user's stream, and return it.

    Raises:
        ValueError: it has no parts, a part is empty or has a control character, the first part
            begins with ``@`` (reserved for the library), or the key is too long.
    """
    if not parts:
        raise ValueError("a stream has at least one part; the run's own stream cannot be opened")
    for part in parts:
        _check_text("a part of a stream's key", part, MAX_KEY_CHARS)
    if sum(map(len, parts)) > MAX_KEY_CHARS:
        raise ValueError(f"the parts of a stream's key are over {MAX_KEY_CHARS} characters")
    if parts[0].startswith("@"):
        raise ValueError(f"streams whose first part begins with '@' are the library's: {parts!r}")
    return parts


def check_label(label: str) -> str:
    """Check the label of a saved state, and return it.

    Raises:
        ValueError: it is empty, longer than `MAX_LABEL_CHARS`, or has a control character.
    """
    _check_text("a label", label, MAX_LABEL_CHARS)
    return label


def check_point_label(label: str) -> str:
    """Check the label of a point, which may be empty, and return it.

    Raises:
        TypeError: it is not a str.
        ValueError: it is longer than `MAX_LABEL_CHARS`, or has a lone surrogate.
    """
    if len(text_of("label", label, is_empty_allowed=True)) > MAX_LABEL_CHARS:
        raise ValueError(f"label must have at most {MAX_LABEL_CHARS} characters, not {len(label)}")
    as_plain(label, "label")
    return label


def _check_text(what: str, text: object, max_chars: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    if not text:
        raise ValueError(f"{what} is empty")
    if len(text) > max_chars:
        raise ValueError(f"{what} has {len(text)} characters, over {max_chars}")
    if text.isascii() and text.isprintable():
        return  # the usual case, on the hot path
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise ValueError(f"{what} has a control character in it: {text!r}")


_key_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # as for `_canonical`


@lru_cache(maxsize=256)  # a list of runs asks for one key for each of them
def encode_key(parts: StreamKey) -> str:
    """A stream's key as stores spell it: the JSON array of its parts."""
    return _key_encoder.encode(parts)


def decode_key(text: str) -> StreamKey:
    """Decode a stream's key, the inverse of `encode_key`.

    Raises:
        StoreDamagedError: it is not the key of a user's stream or of the library's own.
    """
    try:
        parts = msgspec.json.decode(text, type=tuple[str, ...])
        if parts not in (RUN_STREAM, JOB_STREAM):
            check_stream_key(parts[1:] if parts[0] == PHASE and len(parts) == 2 else parts)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreDamagedError(f"the name of a stream cannot be read: {text[:50]!r}") from error
    return parts


# ---------------------------------------------------------------------------------------
# Plain values: metadata, cursors, items and plain state consist of them
# ---------------------------------------------------------------------------------------

ITEM_DIGEST_BYTES = 8  # only the items of one list are compared; a collision hides one change
MAX_DEPTH = 100  # deeper than usual documents, shallower than the interpreter's stack
_INT_RANGE = range(-(2**63), 2**64)  # the ints of MessagePack
_INT_DIGITS = 20  # an int of 64 bits has at most so many


def kind_of(value: object) -> type[object]:
    """The exact type of a value, for comparison; type checkers do not narrow the value by it."""
    return type(value)


class _NotPlainError(Exception):
    """The problem of a leaf in `as_plain`, before the path of the leaf is known."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self.place = ""


def as_plain(value: object, path: str, *, allow_nan: bool = False, depth: int = 0) -> Plain:
    """A JSON-like value as it is stored: a copy that shares nothing with the given value.

    The copy equals what a store gives back: a tuple becomes a list, as in JSON, and a number of
    another type (a NumPy scalar, a Decimal, a member of an IntEnum) the int or float of its value.

    Args:
        value: None, a bool, a number, a str, or a list, tuple or dict of such values.
        path: The name of the value in messages.
        allow_nan: Whether NaN and infinity are allowed.
        depth: How deep the value is nested in what is stored.

    Raises:
        NotEncodableError: a leaf cannot be stored: NaN or infinity, an int over 64 bits, a str
            with a lone surrogate, a key that is not a str, any other type, nesting deeper than
            `MAX_DEPTH`; the error names the path of the first such leaf.
    """
    try:
        return _plain(value, depth, allow_nan)
    except _NotPlainError as error:
        raise NotEncodableError(f"{path}{error.place}", error.problem) from None


def _plain(value: Plain, depth: int, allow_nan: bool) -> Plain:
    kind = kind_of(value)
    if kind is str:
        if not value.isascii():
            _check_unicode(value)
    elif kind is int:
        if value not in _INT_RANGE:
            raise _NotPlainError("an int of more than 64 bits")
    elif kind is float:
        if not (allow_nan or math.isfinite(value)):
            raise _NotPlainError(f"{value!r} is not a finite number")
    elif kind is dict or kind is list or kind is tuple:
        if depth >= MAX_DEPTH:
            raise _NotPlainError(f"nested deeper than {MAX_DEPTH}")
        return (_plain_dict if kind is dict else _plain_list)(value, depth + 1, allow_nan)
    elif kind is not bool and value is not None:
        return _plain(_leaf_of(value), depth, allow_nan)
    return value


def _plain_dict(value: dict[object, object], depth: int, allow_nan: bool) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for key, item in value.items():
        if type(key) is not str:
            raise _NotPlainError(f"its key {shown(key)} is not a str")
        if not key.isascii():
            _check_unicode(key)
        try:
            plain[key] = _plain(item, depth, allow_nan)
        except _NotPlainError as error:
            error.place = f".{key}{error.place}"
            raise
    return plain


def _plain_list(value: Sequence[object], depth: int, allow_nan: bool) -> list[Plain]:
    plain: list[Plain] = []
    for item in value:
        try:
            plain.append(_plain(item, depth, allow_nan))
        except _NotPlainError as error:
            error.place = f"[{len(plain)}]{error.place}"
            raise
    return plain


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NotPlainError(f"{text[:50]!r} has a lone surrogate in it") from None


def _leaf_of(value: Any) -> bool | int | float | str:
    """The plain leaf with the value of an object of another type."""
    numpy = sys.modules.get("numpy")  # if it is not imported, no value is of its types
    if numpy is not None and isinstance(value, numpy.generic):
        leaf: Any = float(value) if isinstance(value, numpy.longdouble) else value.item()
        if isinstance(leaf, bool | int | float | str):
            return leaf
    elif isinstance(value, int):
        return int(value)
    elif isinstance(value, float):
        return float(value)
    elif isinstance(value, Decimal) and not value.is_snan():
        return _number_of(value)
    raise _NotPlainError(f"{with_article(kind_of(value).__qualname__)} is not JSON-like")


def _number_of(value: Decimal) -> int | float:
    """The int that equals a decimal number, else the nearest float."""
    if value.is_finite() and value.adjusted() < _INT_DIGITS and value == int(value):
        return int(value)
    number = float(value)
    if math.isinf(number) and value.is_finite():
        raise _NotPlainError(f"{shown(value)} is greater than every float")
    return number


def copy_plain(value: Plain) -> Plain:
    """A copy of the lists, tuples and dicts in a value; other objects are shared."""
    kind = kind_of(value)
    if kind is dict:
        return {key: copy_plain(item) for key, item in value.items()}
    if kind is list:
        return [copy_plain(item) for item in value]
    if kind is tuple:
        return tuple(map(copy_plain, value))
    return value


def nan_as_null(value: Plain) -> Plain:
    """A copy of a plain value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Plain]", value)
        return {key: nan_as_null(item) for key, item in pairs.items()}
    if isinstance(value, list | tuple):
        return [nan_as_null(item) for item in cast("Sequence[Plain]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_metadata(metadata: Mapping[str, Plain]) -> dict[str, Plain]:
    """Metadata of a batch or a stream as it is stored; NaN is allowed.

    Raises:
        NotEncodableError: a value is not JSON-like.
        TypeError: `metadata` is not a mapping.
    """
    plain: dict[str, Plain] = as_plain(mapping("metadata", metadata), "metadata", allow_nan=True)
    return plain


def as_amounts(
    amounts: Mapping[str, Number], path: str, *, least: float = -math.inf
) -> dict[str, Number]:
    """Amounts as they are stored: each is a finite number under a name.

    A NumPy scalar or a Decimal counts as the int or float of its value.

    Raises:
        NotEncodableError: an amount is not such a number, is below `least`, or is greater than
            `MAX_AMOUNT`; the error names the first.
        TypeError: `amounts` is not a mapping.
    """
    plain: dict[str, Number] = as_plain(mapping(path, amounts), path)
    for name, amount in plain.items():
        if type(amount) not in (int, float):
            raise NotEncodableError(f"{path}.{name}", f"an amount is a number, not {amount!r}")
        if amount < least:
            raise NotEncodableError(f"{path}.{name}", f"an amount is >= {least}, not {amount!r}")
        if abs(amount) > MAX_AMOUNT:
            problem = f"an amount is at most {MAX_AMOUNT:.0e}, not {amount!r}"
            raise NotEncodableError(f"{path}.{name}", problem)
        if not name:
            raise NotEncodableError(path, "an amount has a name, not ''")
    return plain


_canonical = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode  # json.dumps would make an encoder for each call


def canonical_json(value: object) -> str:
    """The canonical JSON text of a plain value: sorted keys, no spaces."""
    return _canonical(value)


def item_digest(key: str) -> bytes:
    """The digest of an item's key, which a record stores to notice a source that changed."""
    # A key of the program may be the name of a file that is not UTF-8.
    return hashlib.blake2b(
        key.encode(errors="surrogatepass"), digest_size=ITEM_DIGEST_BYTES
    ).digest()


def call_key(key: Callable[[T], str], item: T, path: str) -> str:
    """Call the program's key function for an item.

    An exception of the function leaves as the same object, with a note that shows the item.

    Raises:
        TypeError: the function does not return a str.
    """
    try:
        name = cast("object", key(item))
    except Exception as error:
        error.add_note(f"key was called for {path} with {shown(item)}")
        raise
    if not isinstance(name, str):
        raise TypeError(f"key must return a str, not {shown(name)}, for {path}")
    return name
