"""A captured state is encoded beside the event loop where it is large."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt._commit import state_capture
from trio_ckpt.state import _plan
from trio_ckpt.stores import MemoryStore


@pytest.mark.parametrize("keys", [100, 10_000])
async def test_a_large_tree_is_taken_apart_and_compared_in_a_thread(
    keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, list[int]] = {"flatten_state": [], "diff_tree": [], "encode_tree": []}

    def noted(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            where[name].append(threading.get_ident())
            return func(*args)

        return call

    async with (
        begin(MemoryStore()) as run,
        run.open_stream("s", state={f"key{n}": n for n in range(keys)}) as stream,
    ):
        for module, name in (
            (_plan, "flatten_state"),
            (state_capture, "diff_tree"),
            (state_capture, "encode_tree"),
        ):
            monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
        for n in range(3):
            stream.state["key7"] = -n
            await stream.save()
        await stream.finish()
    is_large = keys > 1_000
    assert where["flatten_state"]
    assert bool(where["diff_tree"]) is is_large  # a small one is saved whole
    for threads in where.values():
        assert all((thread != threading.get_ident()) is is_large for thread in threads)
