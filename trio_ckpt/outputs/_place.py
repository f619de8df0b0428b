"""Where outputs are, as users name it: the path of a folder, or the URL of a bucket."""

from __future__ import annotations

import os
import re

from .._util.errors import OutputError
from .._util.extras import needs_extra
from .._util.text import redacted_url
from ._contract import Outputs
from ._dir import OutputDir
from ._tree import AnyPath

_SCHEMES = ("s3", "gs", "az", "file")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)?.*", re.DOTALL)  # one letter is a drive, C:


def open_outputs(path: AnyPath, *, is_read_only: bool = False) -> Outputs:
    """Open a place for outputs; a folder that is missing is made.  Blocks.

    Args:
        path: A folder, or the URL of a bucket as a str: ``s3://BUCKET/PREFIX``, ``gs://…``,
            ``az://…``, ``file:///FOLDER``.
        is_read_only: Whether a bucket is only asked whether it is there; else opening tries that
            it creates an object once only.

    Durability: the names of folders that were made survive a power cut.

    Raises:
        OutputError: it cannot be opened; the message says why.
        MissingExtraError: the library for buckets is not installed.
    """
    if not is_url(path):
        return OutputDir.open(path)
    with needs_extra("objects", "outputs in a bucket"):
        from ._objects import OutputBucket

    return OutputBucket.open(os.fspath(path), is_read_only=is_read_only)


def open_existing(path: AnyPath) -> Outputs | None:
    """Open a place for outputs without making it; None: there is no such folder.  Blocks.

    Raises:
        OutputError: it cannot be opened, or there is no such bucket.
        MissingExtraError: the library for buckets is not installed.
    """
    if not is_url(path) and not os.path.isdir(path):
        return None
    return open_outputs(path, is_read_only=True)


def is_url(path: AnyPath) -> bool:
    """Whether a place is in a bucket, else it is a folder; ``./s3:x`` is one, too.

    Raises:
        OutputError: it looks like a URL, and is none of a bucket.
    """
    text = os.fspath(path)
    match = _URL.fullmatch(text)
    if match is None:
        return False
    scheme, slashes = match[1], match[2]
    if scheme in _SCHEMES and slashes == "//":
        return True
    if scheme not in _SCHEMES and slashes != "//":
        return False  # a folder with a colon in its name
    import difflib  # few have a typo

    shown, close = redacted_url(text), difflib.get_close_matches(scheme.lower(), _SCHEMES, 1, 0.5)
    meant = f"did you mean {close[0]}://? " if close else ""
    raise OutputError(
        shown,
        f"is not the URL of a bucket; {meant}outputs go into a folder, or to s3://BUCKET/PREFIX, "
        "gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER, given as a str; write "
        f"./{shown} for a folder",
    )


def place_below(path: AnyPath, name: str) -> str:
    """The place of a name below another place."""
    text = os.fspath(path)
    if not is_url(path):
        return os.path.join(text, name)
    place, mark, query = text.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"
