"""Compressed append files: each piece that is appended is a member that can be read alone.

A gzip file may have several members (RFC 1952, section 2.2), a zstd file several frames (RFC 8878,
section 3.1), and the usual tools read them one after another.  So a cut tail takes whole members
with it, and a file is readable at any moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from .._util.arguments import one_of
from .._util.extras import needs_extra

Compression: TypeAlias = Literal["gzip", "zstd"]

GZIP_LEVEL = 6  # that of the command gzip
ZSTD_LEVEL = 3  # that of the command zstd

_BEGINNINGS: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BEGINNING_BYTES = max(map(len, _BEGINNINGS))


def load_compressor(kind: Compression) -> Callable[[bytes | bytearray], bytes]:
    """Return a function that makes a member of bytes; threads may call it at the same time.

    Raises:
        MissingExtraError: the library that compresses is not installed.
        ValueError: there is no such compression.
    """
    if one_of("compress", kind, get_args(Compression)) == "gzip":
        return _gzip
    with needs_extra("zstd", "compression by zstd"):
        import zstandard

    # A compressor is for one thread, and costs less than what it is for.
    return lambda data: zstandard.ZstdCompressor(ZSTD_LEVEL).compress(data)


def compression_of(beginning: bytes) -> Compression | None:
    """How a file with this beginning is compressed; None: in no way that is known."""
    for known, kind in _BEGINNINGS.items():
        if beginning.startswith(known):
            return kind
    return None


def _gzip(data: bytes | bytearray) -> bytes:
    import gzip  # few runs compress

    return gzip.compress(data, GZIP_LEVEL, mtime=0)  # a second attempt leaves the same bytes
