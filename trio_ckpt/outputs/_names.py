"""The names of outputs and the lines of append files: pure."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

import msgspec

from .._util.errors import OutputError
from .._util.plain import as_plain

AnyPath = str | os.PathLike[str]

ARCHIVE = ".archive"  # the folder below the root where `fresh=True` moves old outputs
MAX_PATH_CHARS = 4_096  # Linux's PATH_MAX: other programs could not open a longer path
LINES_DIGEST_BYTES = 16
TEMP_STEM_BYTES = 100  # of the goal's name in a temporary one: well below NAME_MAX, 255

TEMP_NAME = re.compile(r"\..*\.ckpt-tmp-[0-9a-f]{16}", re.DOTALL)
_BAD_CHARS = re.compile("[\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_json = msgspec.json.Encoder()


class OutputPathError(OutputError, ValueError):
    """The path is not valid for an output."""


def relative_path(root: str, path: AnyPath) -> str:
    """Return the canonical name of an output: relative to `root`, with ``/``, no empty parts.

    Args:
        root: The output folder, absolute.
        path: Relative to it, or absolute and below it.

    Raises:
        OutputPathError: it is empty, too long, not below `root`, or has ``..``, a
            backslash, a control character, or a name that is reserved for the library.
    """
    text = os.fspath(path)
    if text.startswith("/"):
        prefix = root.rstrip("/") + "/"
        if not text.startswith(prefix):
            raise OutputPathError(text, f"is not below the output folder {root!r}")
        text = text[len(prefix) :]
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise OutputPathError(text, "is not the name of a file")
    if len(text) > MAX_PATH_CHARS:
        raise OutputPathError(text, f"has {len(text)} characters, over {MAX_PATH_CHARS}")
    if ".." in parts:
        raise OutputPathError(text, "has '..' in it")
    if _BAD_CHARS.search(text):
        raise OutputPathError(text, "has a backslash, a control character or a surrogate in it")
    if parts[0] == ARCHIVE or any(map(TEMP_NAME.fullmatch, parts)):
        raise OutputPathError(text, "is reserved for the library")
    return "/".join(parts)


def temp_name(name: str) -> str:
    """Return a new temporary name for a file that is to become `name`, in the same folder."""
    stem = name.encode()[:TEMP_STEM_BYTES].decode(errors="ignore")
    return f".{stem}.ckpt-tmp-{os.urandom(8).hex()}"


def above(name: str) -> str:
    """Return the folder of an output, ``""`` for the root."""
    return name.rpartition("/")[0]


def below(folder: str, name: str) -> str:
    """Join a folder and a name: the inverse of `above`."""
    return f"{folder}/{name}" if folder else name


def encode_lines(records: Iterable[object], path: str = "records") -> bytes:
    """Encode plain values as JSON lines (UTF-8, compact), each ended by a newline.

    Args:
        records: One value per line.
        path: The name of the records in an error.

    Raises:
        NotEncodableError: a value is not JSON-like; NaN and infinity are not.
    """
    lines = as_plain(list(records), path)  # msgspec would write NaN as null
    return _json.encode_lines(lines)


def lines_digest(data: bytes) -> bytes:
    """Return the digest that a record keeps of appended lines (BLAKE2b, RFC 7693)."""
    return hashlib.blake2b(data, digest_size=LINES_DIGEST_BYTES).digest()
