"""What the tests of states and snapshots share: a model in training."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import numpy as np

from tests.opening import begin
from trio_ckpt import Batch
from trio_ckpt.abc import Store
from trio_ckpt.state import Plan, encode_tree


@attrs.define
class Model:
    weights: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    step: int = 0
    losses: list[float] = attrs.field(factory=list[float])
    table: dict[str, Any] = attrs.field(factory=dict[str, Any])
    rng: random.Random = attrs.field(factory=lambda: random.Random(5))
    cache: list[int] = attrs.field(factory=list[int], metadata={"exclude": True})


def new_model() -> Model:
    return Model(np.zeros((300, 200)), np.zeros(200, np.float32))


def step(model: Model) -> None:
    """Change some of everything, as the model's own generator says."""
    model.step += 1
    rng = model.rng
    model.losses.append(rng.random() if rng.random() < 0.9 else float("nan"))
    for _ in range(rng.randrange(4)):
        model.weights[rng.randrange(len(model.weights))] += rng.random()
    if rng.random() < 0.3:
        model.table[f"k{rng.randrange(5)}"] = [rng.random(), (1, {2, 3}), -0.0]
    if rng.random() < 0.2:
        model.table[f"a{rng.randrange(3)}"] = np.arange(rng.randrange(3_000), dtype=np.int16)
    if rng.random() < 0.1:
        model.table.pop(next(iter(model.table), ""), None)
    if rng.random() < 0.1:
        model.weights = np.vstack([model.weights, model.weights[:1]])
    if rng.random() < 0.1:
        model.bias = np.asfortranarray(model.weights[:50])
    model.cache.append(model.step)


def bits(model: Model) -> tuple[bytes, list[bytes]]:
    """What tells two states apart, bit for bit."""
    flat = Plan.of(model).flatten(model)
    return encode_tree(flat.tree), [
        leaf.value.tobytes() + repr((leaf.value.dtype, leaf.value.shape)).encode()
        for leaf in flat.arrays
    ]


# -- snapshots never answer for what is confirmed ------------------------------------------------


async def count(
    store: Store, handle: Callable[[Any, Batch[Any]], Awaitable[None]], **settings: Any
) -> Any:
    """A stream of three batches with a counter as its state; what it ends with."""
    async with begin(store, **settings) as run, run.open_stream("s", state={"n": 0}) as stream:
        async for batch in stream.batches(range(3)):
            await handle(stream, batch)
        return stream.state["n"]


async def snap(stream: Any, n: int) -> None:
    stream.state["n"] = n
    async with stream.snapshots(every_s=0.0) as snapshot:
        assert await snapshot.point(f"at {n}")
