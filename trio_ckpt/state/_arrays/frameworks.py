"""Tensors of other libraries: converted to memory, and back to the same kind.

A restored tensor is on the device that it was on.

torch
    Tensors and parameters on the CPU are saved from their own memory, so tensors that share
    a storage share it again.  Those on other devices are copied to the CPU.
jax, tensorflow
    Their arrays do not change, so they are saved from a copy or a view; a TensorFlow variable
    from its value at that moment.
"""

from __future__ import annotations

import importlib
import sys
from typing import Literal, cast

import attrs
import numpy as np

from ..._util.errors import StoreDamagedError, StoreError
from .._tree.format import Module, Value
from .._tree.frame import Kind, View
from .memory import Array, Bytes

TORCH_DTYPES = frozenset(
    (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("bfloat16", "float16", "float32", "float64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
)


@attrs.frozen(eq=False, repr=False)
class Strided:
    """Memory with a shape, as it underlies a tensor.

    Attributes:
        address: The address of the first element.
        base: The first address of the memory that it is in.
        itemsize: Bytes per element.
        shape: The length of each dimension.
        strides: In bytes.
        keep: The object that keeps the memory alive.
    """

    address: int
    base: int
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    keep: object


def open_torch(tensor: Value) -> tuple[Strided, str, str, bool]:
    """Return a torch tensor's memory, dtype (``torch:float32``), device and `requires_grad`.

    Raises:
        ValueError: it has no strided memory of its own, or is in the middle of a graph.
    """
    torch: Module = sys.modules["torch"]
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type == "meta" or name not in TORCH_DTYPES:
        raise ValueError(f"a torch tensor of {tensor.layout} {name} on {tensor.device}")
    if not tensor.is_leaf:
        raise ValueError("a torch tensor in the middle of a graph; detach() it")
    device, has_gradient = str(tensor.device), bool(tensor.requires_grad)
    plain = tensor.detach()
    plain = plain.resolve_conj().resolve_neg().cpu()
    size = plain.element_size()
    storage = plain.untyped_storage()
    strided = Strided(
        address=plain.data_ptr(),
        base=storage.data_ptr(),
        itemsize=size,
        shape=tuple(plain.shape),
        strides=tuple(stride * size for stride in plain.stride()),
        keep=storage,
    )
    return strided, f"torch:{name}", device, has_gradient


def torch_itemsize(dtype: str) -> int:
    """Return the bytes per element of ``torch:float32``, without torch.

    Raises:
        StoreDamagedError: there is no such dtype.
    """
    name = dtype.removeprefix("torch:")
    if name not in TORCH_DTYPES or name == dtype:
        raise StoreDamagedError("a saved dtype is invalid: an unknown name")
    if name == "bool" or name.startswith("float8"):
        return 1
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def to_numpy(value: Value) -> Array:
    """Return the elements of a jax or TensorFlow tensor, which may be its own memory."""
    if hasattr(value, "numpy"):
        return np.asarray(value.numpy())
    return np.asarray(value)


def build_torch(view: View, memory: Bytes) -> object:
    """Return the torch tensor of a view over the memory of its buffer."""
    torch = load("torch")
    dtype = cast("str", view.dtype)
    item = torch_itemsize(dtype)
    if view.offset % item or any(stride % item for stride in view.strides):
        raise StoreDamagedError("a saved torch tensor is not aligned to its elements")
    storage = torch.from_numpy(memory).untyped_storage()
    tensor = torch.empty(0, dtype=getattr(torch, dtype.removeprefix("torch:")))
    strides = tuple(stride // item for stride in view.strides)
    tensor.set_(storage, view.offset // item, view.shape, strides)
    if view.device != "cpu":
        tensor = tensor.to(view.device)
    if view.kind == "torch.parameter":
        return torch.nn.Parameter(tensor, requires_grad=view.writeable)
    return tensor.requires_grad_(view.writeable)


def build_other(kind: Kind, array: Array) -> object:
    """Return a jax or TensorFlow tensor with the elements of an array."""
    if kind == "jax":
        return load("jax").numpy.array(array)
    tensorflow = load("tensorflow")
    made = tensorflow.convert_to_tensor(array)
    return tensorflow.Variable(made) if kind == "tensorflow.variable" else made


def load(library: Literal["torch", "jax", "tensorflow"]) -> Module:
    """Import one of the supported tensor libraries.

    Raises:
        StoreError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise StoreError(f"the state holds tensors of {library}: pip install {library}") from error
