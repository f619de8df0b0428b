"""Tensors of torch come back as they were: to the bit, as their kind, aliased as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.frameworks.tools import restore, train, train_killed
from trio_ckpt import NotEncodableError
from trio_ckpt.state._arrays.buffers import collect
from trio_ckpt.stores import MemoryStore


def test_tensors_come_back_with_their_aliases() -> None:
    base = torch.arange(20, dtype=torch.float32).reshape(4, 5)
    was = [base[1:, ::2], base, base.t(), torch.nn.Parameter(torch.ones(3)), torch.zeros(0, 2)]
    was += [torch.tensor(1.5, requires_grad=True), base.view(torch.int32)[1:]]
    was += [torch.ones(2, dtype=torch.complex64).conj(), torch.ones(3, dtype=torch.bfloat16)]
    now = restore(collect(was))
    for is_, tensor in zip(now, was, strict=True):
        assert (type(is_), is_.dtype, is_.shape) == (type(tensor), tensor.dtype, tensor.shape)
        assert is_.requires_grad == tensor.requires_grad
        assert torch.equal(is_, tensor)
    now[1][2, 2] = 99
    assert now[0][1, 1] == now[2][2, 2] == 99


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "uint16"])
def test_small_numbers_come_back(dtype: str) -> None:
    was = torch.arange(6, dtype=torch.float32).to(getattr(torch, dtype)).reshape(2, 3)
    (now,) = restore(collect([was]))
    assert (now.dtype, now.shape) == (was.dtype, was.shape)
    assert torch.equal(now.view(torch.uint8), was.view(torch.uint8))


def test_torch_and_numpy_share_memory_again() -> None:
    was = np.zeros(100)
    tensor, now = restore(collect([torch.from_numpy(was), was]))
    tensor[3] = 5
    assert now[3] == 5


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(lambda: torch.ones(2, requires_grad=True) * 2, id="in the middle of a graph"),
        pytest.param(lambda: torch.eye(3).to_sparse(), id="sparse"),
        pytest.param(lambda: torch.empty(2, device="meta"), id="without memory"),
    ],
)
def test_what_has_no_plain_memory_is_refused_by_its_path(tensor: Any) -> None:
    with pytest.raises(NotEncodableError, match=r"state\.w"):
        collect([tensor()], ["state.w"])


def new() -> dict[str, Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(20, 300), torch.nn.ReLU(), torch.nn.Linear(300, 1))
    momenta = [torch.zeros_like(p) for p in model.parameters()]
    return {"model": dict(model.state_dict()), "momenta": momenta, "steps": 0}


def step(state: Any) -> None:
    """One of gradient descent with momentum; all changes are in place."""
    model = state["model"]
    x = torch.linspace(-1, 1, 200).reshape(10, 20) + state["steps"]
    weights = [value.requires_grad_() for value in model.values()]
    hidden = torch.relu(x @ weights[0].T + weights[1])
    loss = ((hidden @ weights[2].T + weights[3]) ** 2).mean()
    found = torch.autograd.grad(loss, weights)
    for weight, gradient, momentum in zip(weights, found, state["momenta"], strict=True):
        momentum.mul_(0.9).add_(gradient)
        with torch.no_grad():
            weight.sub_(momentum, alpha=0.01)
        weight.requires_grad_(False)


async def test_a_killed_training_ends_with_the_same_weights() -> None:
    expected = await train(MemoryStore(), new, step)
    found = await train_killed(new, step)
    assert found["steps"] == expected["steps"] == 9
    for name, weight in expected["model"].items():
        assert torch.equal(found["model"][name], weight), name
    for one, other in zip(found["momenta"], expected["momenta"], strict=True):
        assert torch.equal(one, other)
