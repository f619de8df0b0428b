"""Tensors and variables of TensorFlow come back as they were, as their kind."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow

from tests.frameworks.tools import restore, train, train_killed
from trio_ckpt.state._arrays.buffers import collect
from trio_ckpt.stores import MemoryStore


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "bool"])
def test_tensors_come_back(dtype: str) -> None:
    plain = tensorflow.reshape(tensorflow.range(6, dtype=tensorflow.float32), (2, 3))
    was = tensorflow.cast(plain, dtype)
    collected = collect([was])
    (now,) = restore(collected)
    assert isinstance(now, tensorflow.Tensor)
    assert (now.dtype, now.shape) == (was.dtype, was.shape)
    assert now.numpy().tobytes() == was.numpy().tobytes()
    assert collected.buffers[0].root is was


def test_variables_come_back_and_can_be_assigned() -> None:
    was = tensorflow.Variable([1.5, 2.5])
    (now,) = restore(collect([was]))
    assert isinstance(now, tensorflow.Variable)
    now.assign_add([1.0, 1.0])
    assert now.numpy().tolist() == [2.5, 3.5]
    assert was.numpy().tolist() == [1.5, 2.5]


def new() -> dict[str, Any]:
    tensorflow.random.set_seed(3)
    weights = tensorflow.Variable(tensorflow.linspace(0.0, 1.0, 50_000))
    return {"w": weights, "mean": tensorflow.constant(0.0), "steps": 0}


def step(state: Any) -> None:
    """The variable in place; the tensor is replaced."""
    state["w"].assign(tensorflow.sin(state["w"] * 1.7 + state["steps"]))
    state["mean"] = tensorflow.reduce_mean(state["w"])


async def test_a_killed_training_ends_with_the_same_tensors() -> None:
    expected = await train(MemoryStore(), new, step)
    found = await train_killed(new, step)
    assert found["steps"] == expected["steps"] == 9
    assert found["w"].numpy().tobytes() == expected["w"].numpy().tobytes()
    assert found["mean"].numpy() == expected["mean"].numpy()
