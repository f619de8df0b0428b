"""Random generators by value: Python's and NumPy's, from a fixed list of names.

NumPy's setters do not check their arguments: a position behind the end of a generator's block would
read foreign memory.  So every number is checked here against the layout of its generator.
"""

from __future__ import annotations

import random
import struct
import sys

import attrs
import msgspec

from ..._util.extras import pip_command
from .errors import MissingHereError
from .format import Module, Tree, Value, kind_of
from .leaves import decode_int, encode_int

MAX_SEED_WORDS = 4096  # of entropy, spawn key and pool; NumPy's own seeds have 1 to 8

_MT_WORDS = 624
_STATE = struct.Struct(f"<{_MT_WORDS + 1}I")


def encode_random(value: random.Random) -> Tree:
    """Return the value of a RANDOM node."""
    version, words, gauss = value.getstate()
    return [version, _STATE.pack(*words), gauss]


def decode_random(tree: Tree) -> random.Random:
    """Decode the value of a RANDOM node."""
    version, words, gauss = msgspec.convert(tree, tuple[int, bytes, float | None])
    if len(words) != _STATE.size:
        raise ValueError("words of a random generator of the wrong length")
    result = random.Random(0)  # noqa: S311  # not for secrets
    result.setstate((version, _STATE.unpack(words), gauss))
    return result


# ---------------------------------------------------------------------------------------
# NumPy
# ---------------------------------------------------------------------------------------


@attrs.frozen
class _Words:
    """An array of unsigned words, saved as little-endian bytes."""

    dtype: str
    count: int

    def encode(self, value: Value) -> Tree:
        return value.astype(self.dtype).tobytes()

    def decode(self, tree: Tree) -> Value:
        numpy = import_numpy()
        if type(tree) is not bytes or len(tree) != self.count * numpy.dtype(self.dtype).itemsize:
            raise ValueError("words of a random generator of the wrong length")
        return numpy.frombuffer(tree, self.dtype).astype(self.dtype[1:])


@attrs.frozen
class _Number:
    """An int from 0 up to, not including, `end`."""

    end: int

    def encode(self, value: Value) -> Tree:
        return encode_int(int(value))

    def decode(self, tree: Tree) -> Value:
        number = decode_int(tree)
        if not 0 <= number < self.end:
            raise ValueError("a number of a random generator out of its range")
        return number


_Layout = dict[str, "_Words | _Number"]
_TAIL: _Layout = {"has_uint32": _Number(2), "uinteger": _Number(2**32)}
_PCG: _Layout = {"state.state": _Number(2**128), "state.inc": _Number(2**128), **_TAIL}
_LAYOUTS: dict[str, _Layout] = {
    "PCG64": _PCG,
    "PCG64DXSM": _PCG,
    "MT19937": {"state.key": _Words("<u4", _MT_WORDS), "state.pos": _Number(_MT_WORDS + 1)},
    "Philox": {
        "state.counter": _Words("<u8", 4),
        "state.key": _Words("<u8", 2),
        "buffer": _Words("<u8", 4),
        "buffer_pos": _Number(5),
        **_TAIL,
    },
    "SFC64": {"state.state": _Words("<u8", 4), **_TAIL},
}


def import_numpy() -> Module:
    """Import NumPy, when a saved state needs it.

    Raises:
        MissingHereError: it is not installed.
    """
    try:
        import numpy
    except ImportError as error:
        raise MissingHereError(f"it needs NumPy: {pip_command('arrays')}") from error
    return numpy


def numpy_random_kind(value: object) -> str | None:
    """Return ``bit_generator``, ``generator`` or ``random_state``; None: it is another value."""
    numpy: Module = sys.modules.get("numpy")
    found = None if numpy is None else sys.modules.get("numpy.random")
    if numpy is None or found is None:
        return None
    kind = type(value)
    if kind is numpy.random.Generator:
        return "generator"
    if kind is numpy.random.RandomState:
        return "random_state"
    return "bit_generator" if isinstance(value, numpy.random.BitGenerator) else None


def encode_bit_generator(value: Value) -> Tree:
    """Return the value of a BIT_GENERATOR node."""
    name = type(value).__name__
    if name not in _LAYOUTS or type(value).__module__.partition(".")[0] != "numpy":
        raise ValueError(f"the bit generator {name} is not one of {', '.join(_LAYOUTS)}")
    state: dict[str, Value] = value.state
    fields: list[Tree] = []
    for field, kind in _LAYOUTS[name].items():
        found: Value = state
        for step in field.split("."):
            found = found[step]
        fields.append(kind.encode(found))
    return [name, fields, _encode_seed(value.seed_seq)]


def decode_bit_generator(tree: Tree) -> Value:
    """Decode the value of a BIT_GENERATOR node."""
    name, fields, seed = msgspec.convert(tree, tuple[str, list[Tree], Tree])
    layout = _LAYOUTS[name]
    state: dict[str, Value] = {"bit_generator": name, "state": {}}
    for (field, kind), part in zip(layout.items(), fields, strict=True):
        outer, _, inner = field.partition(".")
        into = state[outer] if inner else state
        into[inner or outer] = kind.decode(part)
    numpy = import_numpy()
    if seed is not None:
        result = getattr(numpy.random, name)(_decode_seed(numpy, seed))
    elif name == "MT19937":
        result = numpy.random.RandomState(0)._bit_generator  # the only kind without a seed
    else:
        raise ValueError("a random generator without a seed")
    result.state = state
    return result


def _encode_seed(seed: Value) -> Tree:
    """Encode the seed for `Generator.spawn`; None: there is none, as in an old RandomState."""
    numpy: Module = sys.modules["numpy"]
    if seed is None:
        return None
    if type(seed) is not numpy.random.SeedSequence:
        raise ValueError(f"its seed is a {type(seed).__qualname__}; use a SeedSequence")
    entropy: Value = seed.entropy
    if entropy is not None:
        is_one = isinstance(entropy, int)
        words = [encode_int(int(word)) for word in ([entropy] if is_one else entropy)]
        if len(words) > MAX_SEED_WORDS // 2:
            raise ValueError(f"its seed has more than {MAX_SEED_WORDS // 2} words")
        entropy = words[0] if is_one else words
    key = [encode_int(int(word)) for word in seed.spawn_key]
    return [entropy, key, int(seed.pool_size), int(seed.n_children_spawned)]


def _decode_seed(numpy: Module, tree: Tree) -> Value:
    entropy, key, pool_size, children = msgspec.convert(tree, tuple[Tree, list[Tree], int, int])
    words = [decode_int(word) for word in (entropy if kind_of(entropy) is list else [entropy or 0])]
    if entropy is not None:
        entropy = words if kind_of(entropy) is list else words[0]
    spawn_key = [decode_int(word) for word in key]
    if len(words) + len(spawn_key) + pool_size > MAX_SEED_WORDS or any(
        word < 0 or word.bit_length() > 32 * MAX_SEED_WORDS for word in (*words, *spawn_key)
    ):
        raise ValueError("the seed of a random generator out of its range")
    if children not in range(2**32):
        raise ValueError("the children of a random generator out of their range")
    return numpy.random.SeedSequence(
        entropy, spawn_key=spawn_key, pool_size=pool_size, n_children_spawned=children
    )


def encode_legacy(value: Value) -> list[Tree]:
    """Return the fields of a RandomState beside its bit generator."""
    state: dict[str, Value] = value.get_state(legacy=False)
    return [int(state["has_gauss"]), float(state["gauss"])]


def decode_legacy(bits: Value, fields: list[Tree]) -> Value:
    """Build a RandomState from a bit generator and the result of `encode_legacy`."""
    has_gauss, gauss = msgspec.convert(fields, tuple[int, float])
    if has_gauss not in (0, 1):
        raise ValueError("a flag of a random generator is neither 0 nor 1")
    numpy = import_numpy()
    result = numpy.random.RandomState(bits)
    state = result.get_state(legacy=False)
    result.set_state({**state, "has_gauss": has_gauss, "gauss": gauss})
    return result
