"""Arrays of jax come back as they were; one that is kept is saved once, for it never changes."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from tests.frameworks.tools import restore, train, train_killed
from tests.opening import begin
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.state._arrays.buffers import collect
from trio_ckpt.stores import MemoryStore


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "bool"])
def test_arrays_come_back(dtype: str) -> None:
    was = jax.numpy.arange(6).astype(dtype).reshape(2, 3)
    collected = collect([was])
    (now,) = restore(collected)
    assert isinstance(now, jax.Array)
    assert (now.dtype, now.shape) == (was.dtype, was.shape)
    assert bool((now == was).all())
    assert collected.buffers[0].root is was


def new() -> dict[str, Any]:
    key = jax.random.key_data(jax.random.key(1))
    return {"w": jax.numpy.linspace(0, 1, 50_000), "key": key, "steps": 0}


def step(state: Any) -> None:
    key, use = jax.random.split(jax.random.wrap_key_data(state["key"]))
    state["w"] = state["w"] + jax.random.normal(use, state["w"].shape)
    state["key"] = jax.random.key_data(key)


async def test_a_killed_training_ends_with_the_same_arrays() -> None:
    expected = await train(MemoryStore(), new, step)
    found = await train_killed(new, step)
    assert found["steps"] == expected["steps"] == 9
    assert bool((found["w"] == expected["w"]).all())
    assert bool((found["key"] == expected["key"]).all())


async def test_an_array_that_is_kept_is_saved_once() -> None:
    state: dict[str, Any] = {"w": jax.numpy.ones(100_000), "n": 0}
    async with (
        begin(MemoryStore()) as run,
        run.open_stream("s", state=state) as stream,
    ):
        async for batch in stream.batches(range(3)):
            stream.state["n"] += 1
            batch.complete()
        assert loop_cursor_of(stream).open_stream.state_manager is not None
        (report,) = loop_cursor_of(stream).open_stream.state_manager.reports.values()
        assert (report.method, report.changed_bytes) == ("identity", 0)
