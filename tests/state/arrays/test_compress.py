"""Blocks come back as they were, smaller where that pays, and nothing is believed of them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from trio_ckpt._util.errors import StoreDamagedError, StoreError
from trio_ckpt._util.extras import MissingExtraError
from trio_ckpt.state._arrays import compress
from trio_ckpt.state._arrays.compress import (
    BITSHUFFLE_LZ4,
    HEAD,
    MAX_BLOCK_BYTES,
    RAW,
    ZSTD,
    Compressor,
    open_compressor,
    read_head,
)
from trio_ckpt.state._arrays.memory import Bytes

pytest.importorskip("blosc2")
zstandard = pytest.importorskip("zstandard")

FAST, SLOW = open_compressor(), open_compressor("slow")
BARE = Compressor("fast", None, None)


def there_and_back(compressor: Compressor, data: Bytes, itemsize: int) -> bytes:
    block = compressor.pack(data, itemsize)
    target = np.full(data.size + 9, 0xA5, np.uint8)
    SLOW.unpack(block, target[: data.size])
    assert (target[: data.size] == data).all()
    assert (target[data.size :] == 0xA5).all()
    assert len(block) <= data.size + HEAD.size
    return block


DATA = st.one_of(
    st.binary(max_size=5000),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 20_000)).map(
        lambda pair: (pair[0] * pair[1])[: pair[1]]
    ),
    st.tuples(st.integers(0, 99), st.integers(0, 9000)).map(
        lambda pair: np.random.default_rng(pair[0]).normal(size=pair[1]).astype("<f4").tobytes()
    ),
)


@pytest.mark.parametrize("compressor", [FAST, SLOW, BARE], ids=["fast", "slow", "bare"])
@given(data=DATA, itemsize=st.sampled_from([0, 1, 2, 3, 4, 8, 16, 255, 300]))
@settings(max_examples=80, deadline=None)
def test_any_bytes_come_back(compressor: Compressor, data: bytes, itemsize: int) -> None:
    there_and_back(compressor, np.frombuffer(data, np.uint8), itemsize)


def test_the_codec_is_the_one_that_pays() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1000, 2**16).view(np.uint8)
    text = np.frombuffer(b"".join(b"line %d of a text\n" % n for n in range(9999)), np.uint8)
    dice = rng.integers(0, 256, 2**18, np.uint8)
    codecs = {
        (name, link): there_and_back(compressor, data, itemsize)[0]
        for name, data, itemsize in (("text", text, 1), ("counts", counts, 8), ("dice", dice, 1))
        for link, compressor in (("fast", FAST), ("slow", SLOW), ("bare", BARE))
    }
    assert {name for name, codec in codecs.items() if codec == BITSHUFFLE_LZ4} >= {
        ("counts", "fast"),
        ("text", "fast"),
    }
    assert codecs["text", "slow"] == ZSTD
    assert {codecs["dice", link] for link in ("fast", "slow", "bare")} == {RAW}
    assert {codecs[name, "bare"] for name in ("text", "counts")} == {RAW}
    block = there_and_back(FAST, np.zeros(2**20, np.uint8), 4)
    assert len(block) < 100


def test_a_sample_that_lies_costs_nothing() -> None:
    data = np.random.default_rng(1).integers(0, 256, 2**20, np.uint8)
    data[2**18 - 2**14 : 2**18 + 2**14] = data[-(2**18) - 2**14 : -(2**18) + 2**14] = 0
    assert there_and_back(FAST, data, 1)[0] == RAW


@pytest.mark.parametrize("codec", [RAW, BITSHUFFLE_LZ4, ZSTD])
def test_a_block_is_of_exactly_the_bytes_that_are_asked_for(codec: int) -> None:
    data = np.zeros(1 if codec == RAW else 5000, np.uint8)
    block = HEAD.pack(RAW, 1, 1, 1) + b"x"
    if codec != RAW:
        block = (FAST if codec == BITSHUFFLE_LZ4 else SLOW).pack(data, 1)
    for size in (0, data.size - 1, data.size + 1, 2 * data.size):
        with pytest.raises(StoreDamagedError):
            SLOW.unpack(block, np.zeros(size, np.uint8))


def test_a_block_has_a_largest_size() -> None:
    with pytest.raises(ValueError, match="at most"):
        FAST.pack(np.zeros(MAX_BLOCK_BYTES + 1, np.uint8), 1)


def test_what_is_declared_is_not_believed() -> None:
    """zstandard's max_output_size is ignored where the frame states a size."""
    bomb = zstandard.ZstdCompressor().compress(bytes(2**24))
    for stated in (100, MAX_BLOCK_BYTES):
        block = HEAD.pack(ZSTD, 1, stated, len(bomb)) + bomb
        with pytest.raises(StoreDamagedError):
            SLOW.unpack(block, np.zeros(100, np.uint8))
    short = zstandard.ZstdCompressor().compress(bytes(99))
    with pytest.raises(StoreDamagedError, match="more or fewer"):
        SLOW.unpack(HEAD.pack(ZSTD, 1, 100, len(short)) + short, np.zeros(100, np.uint8))


def chunk() -> bytearray:
    return bytearray(FAST.pack(np.arange(5000, dtype="<i4").view(np.uint8), 4))


@pytest.mark.parametrize(
    ("at", "value", "what"),
    [
        (0, 2, "the first format"),
        (2, 0x15, "BloscLZ"),
        (2, 0x37, "a copy, not packed"),
        (3, 8, "another typesize"),
        (16, 32, "a foreign filter"),
        (17, 4, "a second filter"),
        (22, 160, "a foreign codec, which would be loaded"),
        (31, 0x40, "memory that was never written"),
        (31, 0x20, "a run of NaN"),
        (31, 0x01, "a dictionary"),
    ],
)
def test_a_chunk_with_another_head_is_never_handed_to_blosc2(
    monkeypatch: pytest.MonkeyPatch, at: int, value: int, what: str
) -> None:
    block = chunk()
    assert block[0] == BITSHUFFLE_LZ4
    target = np.zeros(20_000, np.uint8)
    FAST.unpack(bytes(block), target)
    block[HEAD.size + at] = value
    monkeypatch.setattr("blosc2.decompress2", lambda *_args, **_kw: pytest.fail(what))
    with pytest.raises(StoreDamagedError, match="another kind"):
        FAST.unpack(bytes(block), target)


def test_a_damaged_body_is_an_error() -> None:
    block = chunk()
    block[HEAD.size + 40 :] = bytes(len(block) - HEAD.size - 40)
    with pytest.raises(StoreDamagedError):
        FAST.unpack(bytes(block), np.zeros(20_000, np.uint8))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        HEAD.pack(RAW, 1, 5, 4) + bytes(4),
        HEAD.pack(RAW, 1, 4, 5) + bytes(5),
        HEAD.pack(3, 1, 4, 4) + bytes(4),
        HEAD.pack(RAW, 0, 4, 4) + bytes(4),
        HEAD.pack(ZSTD, 1, 2**32 - 1, 4) + bytes(4),
        HEAD.pack(RAW, 1, 4, 4) + bytes(5),
    ],
)
def test_a_head_that_is_none_is_refused(block: bytes) -> None:
    with pytest.raises(StoreDamagedError):
        read_head(memoryview(block))


@pytest.mark.parametrize(
    ("compressor", "kind", "says"),
    [
        (FAST, MissingExtraError, r"needs blosc2: pip install 'trio-ckpt\[arrays\]'"),
        (SLOW, StoreError, "packed with zstd: pip install zstandard"),
    ],
)
def test_a_missing_library_is_named(
    compressor: Compressor, kind: type[Exception], says: str
) -> None:
    text = np.frombuffer(b"the quick brown fox jumps " * 999, np.uint8)
    with pytest.raises(kind, match=says):
        BARE.unpack(compressor.pack(text, 1), np.zeros(text.size, np.uint8))


def test_without_the_libraries_it_opens_and_packs_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(compress.importlib, "import_module", refuse)
    block = open_compressor("slow").pack(np.zeros(100, np.uint8), 1)
    assert block == struct.pack("<BBII", RAW, 1, 100, 100) + bytes(100)
