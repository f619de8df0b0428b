"""A training in torch whose loader has workers, killed five times an epoch: the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.opening import begin
from trio_ckpt.state import Order
from trio_ckpt.stores import MemoryStore

SAMPLES, SIZE, EPOCHS, KILLS = 90, 8, 2, 5
BATCHES = -(-SAMPLES // SIZE)


def new() -> dict[str, Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    seen = torch.zeros(EPOCHS, SAMPLES, dtype=torch.int64)
    return {"model": model, "optimizer": optimizer, "order": Order(SAMPLES, 7), "seen": seen}


def step(state: dict[str, Any], numbers: torch.Tensor, data: torch.Tensor) -> None:
    state["optimizer"].zero_grad()
    (state["model"](data) - data.sum(1, keepdim=True)).pow(2).mean().backward()
    state["optimizer"].step()
    state["seen"][state["order"].epoch][numbers] += 1
    state["order"].advance(SIZE)


async def train(store: MemoryStore, workers: int, die_after: int = -1) -> dict[str, Any]:
    """Train what is left, or die after so many batches of this session."""
    data = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1))
    samples = TensorDataset(torch.arange(SAMPLES), data)
    taken, given = 0, new()
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=given["order"].ahead(SIZE),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    async with begin(store) as run, run.open_stream("train", state=given) as stream:
        async for batch in stream.batches(range(EPOCHS)):
            if batch.resumed_from is None:
                stream.state["order"].begin_epoch(batch.index)
            async with stream.snapshots(every_s=0) as snapshot:
                for numbers, found in loader:
                    if taken == die_after:
                        raise KeyboardInterrupt
                    step(stream.state, numbers, found)
                    taken += 1
                    await snapshot.point()
                    await snapshot.wait()
            batch.complete()
        state: dict[str, Any] = stream.state
        return state


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are processors
@pytest.mark.parametrize("workers", [0, 2, 4])
async def test_kills_beside_workers_of_a_loader_change_no_weight(workers: int) -> None:
    expected = await train(MemoryStore(), 0)
    store = MemoryStore()
    for _ in range(EPOCHS * KILLS):
        with pytest.raises(KeyboardInterrupt):
            await train(store, workers, BATCHES // KILLS)
        store = store.after_crash()
    found = await train(store, workers)
    assert set(found["seen"].ravel().tolist()) == {1}
    for name, weight in expected["model"].state_dict().items():
        assert torch.equal(found["model"].state_dict()[name], weight), name
