"""Names, and plain values: what may come from outside, and in what form it is kept."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from ._errors import NotEncodableError, StoreDamagedError
from ._totals import Number

StreamKey = tuple[str, ...]

# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------

MAX_RUN_ID_CHARS = 200  # fits every file system and column with room for a suffix
MAX_LABEL_CHARS = 200  # of a snapshot or a pin; a line of the history has room for it
MAX_KEY_CHARS = 1_000  # a stream's key is read with every resume
RUN_STREAM: StreamKey = ()  # the run's own stream: sessions, config, overrides
JOB_STREAM: StreamKey = ("@job",)  # of a run that is a job: what it is to do, which is no work


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it is a good one.

    Raises:
        ValueError: it is empty, longer than `MAX_RUN_ID_CHARS`, ``.`` or ``..``, or has a
            path separator or control character in it.
    """
    _check_text("a run id", run_id, MAX_RUN_ID_CHARS)
    if run_id in (".", "..") or "/" in run_id or "\\" in run_id:
        raise ValueError(f"a run id has no path separators and is not '.' or '..': {run_id!r}")
    return run_id


def check_stream_key(parts: StreamKey) -> StreamKey:
    """Return `parts` if they are a good key for a user's stream.

    Raises:
        ValueError: there are none, one is empty, has a control character, or the first
            begins with ``@`` (those are the library's); or they are too long together.
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
    """Return `label` if it is a good name of a saved state.

    Raises:
        ValueError: it is empty, longer than `MAX_LABEL_CHARS`, or has a control character.
    """
    _check_text("a label", label, MAX_LABEL_CHARS)
    return label


def _check_text(what: str, text: object, max_chars: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    if not text:
        raise ValueError(f"{what} is empty")
    if len(text) > max_chars:
        raise ValueError(f"{what} has {len(text)} characters, over {max_chars}")
    if text.isascii() and text.isprintable():
        return  # nearly every name, and a token's creation passes here
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise ValueError(f"{what} has a control character in it: {text!r}")


def encode_key(parts: StreamKey) -> str:
    """A stream's key as stores know it: the JSON array of its parts."""
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def decode_key(text: str) -> StreamKey:
    """The inverse of `encode_key`.

    Raises:
        StoreDamagedError: it is no key.
    """
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise StoreDamagedError(f"the name of a stream cannot be read: {text[:50]!r}") from error


# ---------------------------------------------------------------------------------------
# Plain values: what metadata, cursors, items and plain state are made of
# ---------------------------------------------------------------------------------------

ITEM_DIGEST_BYTES = 8  # of the items in one list; a chance hit shows one change less
MAX_DEPTH = 100  # deeper than any sane document, shallower than the interpreter's stack
_PLAIN_LEAVES = (bool, type(None))
_PLAIN_CONTAINERS = (dict, list, tuple)
_INT_RANGE = range(-(2**63), 2**64)  # what MessagePack holds


def check_plain(value: Any, path: str, depth: int = 0) -> None:
    """See that `value` is JSON-like: it will come back equal from a store.

    Raises:
        NotEncodableError: naming the path of the first leaf that is not: NaN, infinity,
            an int over 64 bits, a str with a lone surrogate, a key that is not a str, any
            other type, nesting deeper than `MAX_DEPTH`.
    """
    kind = cast("Any", type(value))  # a class that is not narrowed: it is compared only
    if kind is str:
        _check_unicode(value, path)
        return
    if kind in _PLAIN_LEAVES:
        return
    if depth >= MAX_DEPTH and kind in _PLAIN_CONTAINERS:
        raise NotEncodableError(path, f"nested deeper than {MAX_DEPTH}")
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise NotEncodableError(path, f"its key {key!r} is not a str")
            _check_unicode(key, path)
            check_plain(item, f"{path}.{key}", depth + 1)
    elif kind is list or kind is tuple:
        for position, item in enumerate(value):
            check_plain(item, f"{path}[{position}]", depth + 1)
    elif kind is float:
        if not math.isfinite(value):
            raise NotEncodableError(path, f"{value!r} is not a finite number")
    elif kind is not int:
        raise NotEncodableError(path, f"a {type(value).__qualname__} is not JSON-like")
    elif value not in _INT_RANGE:
        raise NotEncodableError(path, "an int of more than 64 bits")


def _check_unicode(text: str, path: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotEncodableError(path, f"{text[:50]!r} has a lone surrogate in it") from error


def check_amounts(amounts: Mapping[str, Number], path: str) -> dict[str, Number]:
    """Return `amounts` as a dict if every one is a finite number under a str.

    Raises:
        NotEncodableError: naming the first that is not.
    """
    for name, amount in amounts.items():
        if type(amount) not in (int, float):
            raise NotEncodableError(f"{path}.{name}", "an amount is an int or a float")
    plain = dict(amounts)
    check_plain(plain, path)
    return plain


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def item_digest(key: str) -> bytes:
    """What a record remembers of its item, to notice a source that changed."""
    return hashlib.blake2b(key.encode(), digest_size=ITEM_DIGEST_BYTES).digest()
