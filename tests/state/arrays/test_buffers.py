"""Arrays come back as they were: values to the bit, dtype, shape, order, and who aliases whom."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from trio_ckpt._util.errors import NotEncodableError, StoreDamagedError, StoreError
from trio_ckpt.state import Layout, StateFrame, decode_frame, encode_frame
from trio_ckpt.state._arrays.buffers import Collected, check_view, collect, rebuild
from trio_ckpt.state._arrays.dtypes import describe_dtype, restore_dtype
from trio_ckpt.state._arrays.memory import (
    PAGE_BYTES,
    address_of,
    allocate,
    array,
    empty,
    full,
    ones,
    zeros,
)
from trio_ckpt.state._tree.frame import View

Array = np.ndarray[Any, Any]

evolve = msgspec.structs.replace

DTYPES = hnp.array_dtypes(
    hnp.scalar_dtypes() | hnp.byte_string_dtypes(max_len=5) | hnp.unicode_string_dtypes(max_len=5),
    min_size=1,
    max_size=3,
    allow_subarrays=True,
)
ANY_DTYPE = (
    hnp.scalar_dtypes()
    | hnp.byte_string_dtypes(min_len=1, max_len=5)
    | hnp.unicode_string_dtypes(min_len=1, max_len=5)
    | DTYPES
    | hnp.nested_dtypes(max_itemsize=100)
)


def reread(view: View, sizes: list[int]) -> View:
    """Through the bytes of a frame, as a store would."""
    names = tuple(f"b{number}" for number in range(len(sizes)))
    frame = StateFrame(
        lineage=b"l" * 8, number=0, parent=b"", tree=b"x", layout=Layout(names, (*sizes,), (view,))
    )
    layout = decode_frame(encode_frame(frame)).layout
    assert layout is not None
    check_view(layout.views[0], sizes)
    return layout.views[0]


def restore(collected: Collected) -> list[Any]:
    """Through plain bytes and copies of the buffers, as a store would."""
    sizes = [buffer.data.nbytes for buffer in collected.buffers]
    views = [reread(view, sizes) for view in collected.views]
    memory = [allocate(size) for size in sizes]
    for target, buffer in zip(memory, collected.buffers, strict=True):
        target[:] = buffer.data
    return rebuild(views, memory)


def bits(value: Array) -> bytes:
    return value.tobytes(order="A")


def assert_same(now: Array, was: Array) -> None:
    assert type(now) is np.ndarray
    assert (now.dtype, now.shape) == (was.dtype, was.shape)
    assert now.tobytes() == was.tobytes()
    assert now.flags.writeable == was.flags.writeable
    assert (now.flags.c_contiguous, now.flags.f_contiguous) >= (
        was.flags.c_contiguous and was.size > 0,
        was.flags.f_contiguous and was.size > 0,
    )


def slices(side: int) -> st.SearchStrategy[slice]:
    return st.slices(side)


@st.composite
def views_of(draw: st.DrawFn, base: Array) -> Array:
    """A view of an array: sliced with any step, transposed, perhaps as bytes or read-only."""
    view = base[(..., *(draw(slices(side)) for side in base.shape))]
    if draw(st.booleans()):
        view = view.transpose(draw(st.permutations(range(view.ndim))))
    if draw(st.booleans()) and view.ndim:
        view = view[::-1]
    if draw(st.integers(0, 5)) == 0:
        view = np.broadcast_to(view, (2, *view.shape))
    return view


@st.composite
def families(draw: st.DrawFn) -> list[Array]:
    """Arrays of some bases, with views of them."""
    found: list[Array] = []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(ANY_DTYPE)
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
        base = np.frombuffer(bytearray(4096), np.uint8)[: int(np.prod(shape)) * dtype.itemsize]
        base[:] = np.frombuffer(draw(st.randoms()).randbytes(base.size), np.uint8)
        if dtype.kind in "U" or dtype.names or dtype.kind == "b":
            base[:] = 0
        if base.nbytes == 0:
            whole = np.empty(shape, dtype)
        else:
            order = draw(st.sampled_from("CF"))
            whole = np.ndarray(shape, dtype, base.data, order=order)
        found.append(whole)
        found += draw(st.lists(views_of(whole), max_size=3))
    return draw(st.permutations(found))


@given(families())
@settings(max_examples=70, deadline=None)
def test_what_is_collected_comes_back_bit_for_bit_aliased_as_it_was(family: list[Array]) -> None:
    now = restore(collect(family))
    for is_, was in zip(now, family, strict=True):
        assert_same(is_, was)
    for i, one in enumerate(family):
        for j, other in enumerate(family):
            assert np.may_share_memory(now[i], now[j]) == np.may_share_memory(one, other)
    for is_, was in zip(now, family, strict=True):
        if was.size and was.flags.writeable and was.dtype.kind in "iufc":
            for target in (is_, was):
                target.reshape(-1)[:1] = 1
                target[(0,) * target.ndim] = 7
            for left, right in zip(now, family, strict=True):
                assert left.tobytes() == right.tobytes()


def test_nan_payloads_and_negative_zero_come_back() -> None:
    odd = np.array([0x7FF8DEADBEEF0001, 0xFFF0000000000001, 0x8000000000000000], "<u8").view("<f8")
    (now,) = restore(collect([odd]))
    assert now.view("<u8").tolist() == odd.view("<u8").tolist()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_small_floats_come_back(name: str) -> None:
    was = np.arange(6).astype(getattr(ml_dtypes, name)).reshape(2, 3)
    (now,) = restore(collect([was]))
    assert_same(now, was)


EDGES: dict[str, Callable[[], Array]] = {
    "0-d": lambda: np.array(3.5),
    "empty": lambda: np.zeros((3, 0, 2), "<i4"),
    "no bytes in an item": lambda: np.zeros(4, np.dtype([])),
    "Fortran order": lambda: np.asfortranarray(np.arange(12).reshape(3, 4)),
    "negative strides": lambda: np.arange(12).reshape(3, 4)[::-1, ::-2],
    "big-endian": lambda: np.arange(5, dtype=">f4"),
    "dates": lambda: np.array(["2026-01-01", "NaT"], "M8[D]"),
    "dates by 25 s": lambda: np.arange(4).astype("m8[25s]"),
    "bytes": lambda: np.array([b"a\0b", b""], "S3"),
    "text": lambda: np.array(["äöü", ""]),
    "long double": lambda: np.array([1, 3], np.longdouble) / 3,
    "structured": lambda: np.zeros(3, np.dtype([("x", "<f4"), ("y", "<i8", (2, 2))], align=True)),
    "a field of it": lambda: np.zeros(3, np.dtype([("x", "<f4"), ("y", "<i8")]))["y"],
    "titled": lambda: np.zeros(2, np.dtype([(("long name", "n"), "<i2")])),
    "void": lambda: np.array([b"abc", b"xyz"]).view("V3"),
    "read-only": lambda: np.broadcast_to(np.arange(3.0), (4, 3)),
    "from bytes": lambda: np.frombuffer(b"\1\2\3\4", "<u2"),
    "unaligned": lambda: np.frombuffer(bytearray(17), np.uint8)[1:].view("<f8"),
}


@pytest.mark.parametrize("make", EDGES.values(), ids=EDGES.keys())
def test_odd_arrays_come_back(make: Callable[[], Array]) -> None:
    was = make()
    (now,) = restore(collect([was]))
    assert_same(now, was)
    assert now.dtype.isalignedstruct == was.dtype.isalignedstruct
    assert now.dtype.fields == was.dtype.fields


def test_memory_is_stored_once_and_holes_only_if_an_array_is_in_them() -> None:
    big = np.zeros((1000, 1000))
    column, block = big[:, 3], big[:10, :10]
    alone = collect([column])
    assert [b.data.nbytes for b in alone.buffers] == [8000]
    assert alone.buffers[0].reason == "it was copied without its holes"
    twice = collect([column, column])
    assert [b.data.nbytes for b in twice.buffers] == [8000]
    assert twice.views[0] == twice.views[1]
    both = collect([big, column, block])
    assert [b.data.nbytes for b in both.buffers] == [big.nbytes]
    assert not both.buffers[0].reason
    assert address_of(both.buffers[0].data) == address_of(big)


def test_an_array_that_visits_bytes_twice_keeps_doing_so() -> None:
    """A Hankel matrix of strides, with holes: its anti-diagonals are one element each."""
    base = np.arange(400.0)
    was = np.lib.stride_tricks.as_strided(base, (3, 3), (800, 800))
    (now,) = restore(collect([was]))
    now[0, 1] = -1
    assert now[1, 0] == -1
    assert now[2, 2] == was[2, 2]


def test_neighbours_that_do_not_overlap_are_apart() -> None:
    base = np.arange(8)
    assert [b.data.nbytes for b in collect([base[:4], base[4:]]).buffers] == [32, 32]


class Foreign:
    """Another library's array: it shows memory whose owner NumPy does not know."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_is_stored_once_whoever_shows_it(order: Any) -> None:
    """An array that owns its memory, views of it, and foreign memory, in any order."""
    one = np.array(np.arange(12.0).reshape(3, 4), order=order)
    other, third = np.arange(5), np.frombuffer(bytearray(8), np.uint8)
    shown = np.asarray(Foreign(one))
    for arrays in (
        [one, other, one[1:], third],
        [one[1:], other, third, one],
        [other, shown, third, one],
        [one, one, third, other],
        [shown, one[::2], other, third],
        [one.T, other, third, np.frombuffer(one.data.cast("B"), np.uint8)]
        if order == "C"
        else [one.T, other, third, one],
    ):
        collected = collect(arrays)
        assert len(collected.buffers) == 3
        again = restore(collected)
        for was, now in zip(arrays, again, strict=True):
            assert np.array_equal(was, now)
            assert was.strides == now.strides
        for first, second in itertools.combinations(range(4), 2):
            shares = np.shares_memory(arrays[first], arrays[second])
            assert np.shares_memory(again[first], again[second]) == shares


def test_a_buffer_keeps_its_memory_alive_and_cannot_be_written() -> None:
    collected = collect([np.full(100_000, 7.0)])
    (buffer,) = collected.buffers
    assert not buffer.data.flags.writeable
    assert bytes(buffer.data) == np.full(100_000, 7.0).tobytes()


def test_only_memory_that_can_never_change_has_a_root() -> None:
    raw = bytes(64)
    readonly = np.zeros(8)
    readonly.flags.writeable = False  # its owner may turn that back
    roots = [b.root for b in collect([np.frombuffer(raw, "<f8"), readonly]).buffers]
    assert roots == [raw, None]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (np.array([object()]), "not of a fixed size"),
        (np.zeros(2, np.dtypes.StringDType()), "not of a fixed size"),
        (np.ma.masked_array([1, 2], [0, 1]), "more than its elements"),
        (np.rec.array([(1,)]), "more than its elements"),
        ([1, 2], "no array"),
    ],
)
def test_what_cannot_be_stored_is_named(value: object, complaint: str) -> None:
    with pytest.raises(NotEncodableError, match=rf"state\.w.*{complaint}"):
        collect([value], ["state.w"])


VIEW = View("numpy", 0, "<f8", (3, 2), (16, 8), 0, writeable=True, device="cpu")
BAD_VIEWS = {
    "beyond the end": evolve(VIEW, shape=(4, 2)),
    "before the begin": evolve(VIEW, strides=(-16, 8)),
    "offset": evolve(VIEW, offset=1),
    "negative offset": evolve(VIEW, offset=-8),
    "negative side": evolve(VIEW, shape=(-1, 2)),
    "overflow": evolve(VIEW, shape=(2**32, 2**33), strides=(0, 0)),
    "overflow in many sides": evolve(VIEW, shape=(2,) * 64, strides=(0,) * 64),
    "too many sides": evolve(VIEW, shape=(1,) * 65, strides=(0,) * 65),
    "sides without strides": evolve(VIEW, shape=(1, 1, 1)),
    "no such buffer": evolve(VIEW, buffer=1),
    "negative buffer": evolve(VIEW, buffer=-1),
    "a bool for a number": evolve(VIEW, buffer=False),
    "bytes of no buffer": evolve(VIEW, buffer=None),
    "unknown kind": evolve(VIEW, kind="cupy"),
    "objects": evolve(VIEW, dtype="|O8"),
    "a huge item": evolve(VIEW, dtype="|V999999999999"),
    "an expression": evolve(VIEW, dtype="f8,f8"),
    "a name": evolve(VIEW, dtype="ml:__import__"),
    "torch, unknown": evolve(VIEW, kind="torch", dtype="torch:save"),
    "torch, numpy's": evolve(VIEW, kind="torch", dtype="<f8"),
    "a side less": evolve(VIEW, shape=(3,)),
    "a device without end": evolve(VIEW, device="x" * 101),
    "deep": evolve(VIEW, dtype=msgspec.json.decode('["array",' * 99 + '"<f8"' + ",[1]]" * 99)),
}


@pytest.mark.parametrize("view", BAD_VIEWS.values(), ids=BAD_VIEWS.keys())
def test_a_view_that_does_not_fit_is_refused(view: View) -> None:
    assert reread(VIEW, [48]) == VIEW
    with pytest.raises(StoreDamagedError):
        reread(view, [48])


@given(ANY_DTYPE)
@settings(max_examples=60, deadline=None)
def test_a_dtype_comes_back_from_plain_words(dtype: np.dtype[Any]) -> None:
    plain = msgspec.json.decode(msgspec.json.encode(describe_dtype(dtype)))
    assert restore_dtype(plain) == dtype


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    view = View("tensorflow", 0, "<f8", (1,), (8,), 0, writeable=False, device="cpu")
    with pytest.raises(StoreError, match="install tensorflow"):
        rebuild([view], [allocate(8)])


# -- arrays in pages --------------------------------------------------------------------


def test_arrays_in_pages_are_like_those_of_numpy() -> None:
    made = [
        zeros((300, 200)),
        ones(100_000, "<i4"),
        full((2, 80_000), 2.5, order="F"),
        empty((0, 3)),
    ]
    made += [array(np.asfortranarray(np.arange(90_000).reshape(300, 300))), zeros(3)]
    like = [np.zeros((300, 200)), np.ones(100_000, "<i4"), np.full((2, 80_000), 2.5, order="F")]
    like += [np.empty((0, 3)), np.asfortranarray(np.arange(90_000).reshape(300, 300)), np.zeros(3)]
    for now, was in zip(made, like, strict=True):
        assert_same(now, was)
        assert now.nbytes < 2**16 or address_of(now) % PAGE_BYTES == 0


def test_objects_are_not_put_in_pages() -> None:
    with pytest.raises(ValueError, match="Python objects"):
        empty(3, object)
