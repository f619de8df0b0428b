"""NumPy's scalars by value: a dtype with a short name, and the bytes."""

from __future__ import annotations

import re

import msgspec

from .errors import MissingHereError
from .format import Module, Tree, Value
from .random_state import import_numpy

_PLAIN = re.compile(
    r"[<>|=](b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SUV]\d{1,9}|[mM]8(\[\d{0,9}[a-zA-Zμ]{1,2}\])?)"
)
_EXTENDED = re.compile(r"bfloat16|float[4-8]_[a-z0-9]{4,12}|u?int[124]")


def encode_scalar(value: Value) -> Tree:
    """Return the value of a NUMPY_SCALAR node; None: its dtype has no short name (a record)."""
    dtype = value.dtype
    if type(value).__module__ == "ml_dtypes":
        name: str = dtype.name
        return [name, value.tobytes()] if _EXTENDED.fullmatch(name) else None
    if dtype.names is not None or not _PLAIN.fullmatch(dtype.str) or type(value) is not dtype.type:
        return None
    # NumPy stores an empty str or bytes as one character.
    return [dtype.str, value.tobytes()[: dtype.itemsize]]


def decode_scalar(tree: Tree) -> Value:
    """Decode the value of a NUMPY_SCALAR node."""
    name, data = msgspec.convert(tree, tuple[str, bytes])
    numpy = import_numpy()
    if _PLAIN.fullmatch(name):
        dtype = numpy.dtype(name)
    elif _EXTENDED.fullmatch(name):
        dtype = numpy.dtype(getattr(_import_ml_dtypes(), name, None) or "")
    else:
        raise ValueError("the type of a NumPy scalar is not a known one")
    if len(data) != dtype.itemsize:
        raise ValueError("a NumPy scalar has the wrong number of bytes")
    # An item of no bytes, such as an empty str, cannot be read from a buffer.
    return numpy.frombuffer(data, dtype)[0] if data else numpy.zeros((), dtype)[()]


def _import_ml_dtypes() -> Module:
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingHereError("it needs more types of numbers: pip install ml_dtypes") from error
    return ml_dtypes
