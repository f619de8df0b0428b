"""Blocks of bytes, compressed if that saves enough.

Theory of operation
===================

A *block* is a head of ten bytes and a body::

    u8   codec        0 raw, 1 bitshuffle + LZ4 in a Blosc2 chunk, 2 zstd
    u8   itemsize     of the elements, 1 to 255; what bitshuffle sorted by
    u32  raw_nbytes   little-endian; at most MAX_BLOCK_BYTES
    u32  body_nbytes  little-endian

The codec is chosen for each block by compressing a sample.  Bitshuffle puts the first
bits of all elements together, then the second ones, …: in similar numbers the first bits
are equal, which LZ4 compresses at 1 GB/s.  zstd output is smaller, at a third to a tenth of the
speed; it is for slow links.  Both come with the extra ``arrays``; without it blocks are raw,
since zlib would be much slower (50 ms/MiB on floats).

Declared sizes are not trusted: a body is unpacked into exactly as much memory as the caller
allows, and a longer or shorter one is damaged.  zstd is read as a stream, because
its one-shot call trusts the size in the frame.  A Blosc2 chunk can name foreign filters and
codecs, which the library would load; only chunks with the head that this module
writes are passed to it.
"""

from __future__ import annotations

import importlib
import struct
from typing import Literal

import attrs
import numpy as np

from ..._util.errors import StoreDamagedError, StoreError
from ..._util.extras import MissingExtraError
from .._tree.format import Module
from .memory import Bytes

Link = Literal["fast", "slow"]

RAW, BITSHUFFLE_LZ4, ZSTD = 0, 1, 2
MAX_BLOCK_BYTES = 2**24
HEAD = struct.Struct("<BBII")

SAMPLE_BYTES = 2**14
SAMPLES = 2
PAYS_BELOW = 0.9
"""The share of the size that must be saved: less is not worth the time of unpacking."""

# The head of a Blosc2 chunk, README_CHUNK_FORMAT.rst of c-blosc2: version, version of LZ4,
# flags, typesize, nbytes, blocksize, cbytes; then filters, codec, their parameters; flags.
_CHUNK_HEAD = struct.Struct("<BBBBIII15sB")
_CHUNK_FLAGS = frozenset({0x25, 0x35})  # extended head, LZ4, streams of a block split or not
_CHUNK_PIPE = bytes([2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])  # bitshuffle, LZ4, no more
_CHUNK_SPECIAL = frozenset({0x00, 0x10})  # ordinary, or all zeros
_ZSTD_LEVEL = 3


@attrs.frozen
class Compressor:
    """The installed codecs, and the link that they are for.

    Attributes:
        link: ``"fast"``, a disk: bitshuffle and LZ4; ``"slow"``, a network: zstd, too.
    """

    link: Link
    _blosc2: Module = attrs.field(repr=False)
    _zstandard: Module = attrs.field(repr=False)

    def pack(self, data: Bytes, itemsize: int) -> bytes:
        """Return these bytes as a block, see `pack_parts`."""
        return b"".join(self.pack_parts(data, itemsize))

    def pack_parts(self, data: Bytes, itemsize: int) -> tuple[bytes, bytes | memoryview]:
        """Return the head and the body of a block; the body is `data` itself if it is raw.

        It blocks, and releases the GIL in the long parts.

        Args:
            data: At most `MAX_BLOCK_BYTES`.
            itemsize: The size of their elements in bytes.

        Raises:
            ValueError: there are more bytes.
        """
        if data.nbytes > MAX_BLOCK_BYTES:
            raise ValueError(f"a block has at most {MAX_BLOCK_BYTES} bytes, not {data.nbytes}")
        itemsize = itemsize if 1 <= itemsize <= 255 else 1
        codec = self._choose(data, itemsize)
        body: bytes | memoryview = data.data
        if codec != RAW:
            body = self._pack(codec, data, itemsize)
            is_ours = codec == ZSTD or _is_our_chunk(body, itemsize, data.nbytes)
            if not is_ours or len(body) > PAYS_BELOW * data.nbytes:
                codec, body = RAW, data.data
        return HEAD.pack(codec, itemsize, data.nbytes, len(body)), body

    def unpack(self, block: bytes | memoryview, target: Bytes) -> None:
        """Unpack a block into memory.

        Raises:
            StoreDamagedError: it is not a block, or not one of exactly that many bytes.
            MissingExtraError, StoreError: it needs a library that is not installed.
        """
        view = memoryview(block)
        codec, itemsize, raw_nbytes = read_head(view)
        body = view[HEAD.size :]
        if raw_nbytes != target.nbytes:
            raise StoreDamagedError(
                f"a block says that it holds {raw_nbytes} bytes instead of {target.nbytes}"
            )
        if codec == RAW:
            target[:] = np.frombuffer(body, np.uint8)
        elif codec == BITSHUFFLE_LZ4:
            self._unpack_blosc(body, itemsize, target)
        else:
            self._unpack_zstd(body, target)

    def unpacked(self, block: bytes | memoryview, nbytes: int) -> Bytes:
        """Return the read-only contents of a block; not copied if it is raw.

        Raises:
            StoreDamagedError, StoreError: as for `unpack`.
        """
        view = memoryview(block)
        codec, _itemsize, raw_nbytes = read_head(view)
        if codec == RAW and raw_nbytes == nbytes:
            return np.frombuffer(view[HEAD.size :], np.uint8)
        data = np.empty(nbytes, np.uint8)
        self.unpack(view, data)
        return data

    def _choose(self, data: Bytes, itemsize: int) -> int:
        """Return the codec that makes a sample smallest; raw if none saves enough."""
        best, least = RAW, PAYS_BELOW
        sample = _sample(data, itemsize)
        codecs = [BITSHUFFLE_LZ4] if self._blosc2 is not None else []
        if self.link == "slow" and self._zstandard is not None:
            codecs.append(ZSTD)
        for codec in codecs if sample.nbytes else ():
            share = len(self._pack(codec, sample, itemsize)) / sample.nbytes
            if share < least:
                best, least = codec, share
        return best

    def _pack(self, codec: int, data: Bytes, itemsize: int) -> bytes:
        if codec == ZSTD:
            packed: bytes = self._zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)
            return packed
        blosc2 = self._blosc2
        chunk: bytes = blosc2.compress2(
            data,
            typesize=itemsize,
            codec=blosc2.Codec.LZ4,
            clevel=5,
            filters=[blosc2.Filter.BITSHUFFLE],
            filters_meta=[0],
            nthreads=1,
        )
        return chunk

    def _unpack_blosc(self, body: memoryview, itemsize: int, target: Bytes) -> None:
        if self._blosc2 is None:
            raise MissingExtraError("a state that is packed with blosc2", "blosc2", "arrays")
        if not _is_our_chunk(body, itemsize, target.nbytes):
            raise StoreDamagedError("a block holds a Blosc2 chunk of another kind")
        try:
            self._blosc2.decompress2(body, dst=target, nthreads=1)
        except (RuntimeError, ValueError) as error:
            raise StoreDamagedError(f"a block cannot be unpacked: {error}") from error

    def _unpack_zstd(self, body: memoryview, target: Bytes) -> None:
        if self._zstandard is None:
            raise StoreError("the state is packed with zstd: pip install zstandard")
        filled = 0
        try:
            with self._zstandard.ZstdDecompressor().stream_reader(body) as reader:
                room = target.data
                while filled < target.nbytes:
                    count = reader.readinto(room[filled:])
                    if not count:
                        break
                    filled += count
                is_longer = bool(reader.read(1))
        except self._zstandard.ZstdError as error:
            raise StoreDamagedError(f"a block cannot be unpacked: {error}") from error
        if filled != target.nbytes or is_longer:
            raise StoreDamagedError("a block holds more or fewer bytes than it says")


def open_compressor(link: Link = "fast") -> Compressor:
    """Open a compressor with the installed codecs.  Importing blosc2 takes 0.5 s."""
    blosc2, zstandard = _load("blosc2"), _load("zstandard")
    if blosc2 is not None:
        blosc2.set_releasegil(True)  # off by default: it would block the event loop
    return Compressor(link, blosc2, zstandard)


def read_head(block: memoryview) -> tuple[int, int, int]:
    """Read a block's codec, itemsize and declared size in bytes.

    Raises:
        StoreDamagedError: it is not a block.
    """
    if len(block) < HEAD.size:
        raise StoreDamagedError("a block ends within its head")
    codec, itemsize, raw_nbytes, body_nbytes = HEAD.unpack_from(block)
    if codec not in (RAW, BITSHUFFLE_LZ4, ZSTD) or not itemsize or raw_nbytes > MAX_BLOCK_BYTES:
        raise StoreDamagedError("a block has an invalid head")
    if body_nbytes != len(block) - HEAD.size or (codec == RAW and body_nbytes != raw_nbytes):
        raise StoreDamagedError("a block is longer or shorter than it says")
    return codec, itemsize, raw_nbytes


def is_raw(head: memoryview, body: memoryview) -> bool:
    """Return whether a head says that the body is the bytes themselves."""
    codec, itemsize, *sizes = HEAD.unpack(head)
    return codec == RAW and itemsize > 0 and sizes == [len(body), len(body)]


def _is_our_chunk(chunk: bytes | memoryview, itemsize: int, nbytes: int) -> bool:
    """Return whether a Blosc2 chunk has the head that `Compressor.pack` gives it."""
    if len(chunk) < _CHUNK_HEAD.size:
        return False
    head = _CHUNK_HEAD.unpack_from(chunk)
    version, version_lz, flags, typesize, raw, block, packed, pipe, special = head
    return (
        (version, version_lz, typesize, raw, packed) == (5, 1, itemsize, nbytes, len(chunk))
        and flags in _CHUNK_FLAGS
        and 0 < block <= nbytes
        and pipe == _CHUNK_PIPE
        and special in _CHUNK_SPECIAL
    )


def _load(library: str) -> Module:
    try:
        return importlib.import_module(library)
    except ImportError:
        return None


def _sample(data: Bytes, itemsize: int) -> Bytes:
    """Return some bytes from the middle of each part, whole elements."""
    size = SAMPLE_BYTES // itemsize * itemsize
    if data.nbytes <= SAMPLES * size:
        return data
    step = data.nbytes // SAMPLES
    starts = [(n * step + (step - size) // 2) // itemsize * itemsize for n in range(SAMPLES)]
    return np.concatenate([data[start : start + size] for start in starts])
