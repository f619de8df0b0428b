"""Modules, optimizers, schedulers, generators and loaders of torch, as they are in a state."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]

from tests.frameworks.tools import train, train_killed
from tests.opening import begin
from trio_ckpt import StateChangedError
from trio_ckpt.stores import MemoryStore

SCHEDULERS: dict[str, Any] = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 20),
    "steps": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6]),
    "a function": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n),
    "in turn": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
        ],
        [4],
    ),
    "restarts": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, 3
    ),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.001, momentum=0.9, nesterov=True),
    "adam": lambda weights: torch.optim.Adam(weights, 0.05, amsgrad=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.05),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, 0.05),
    "lbfgs": lambda weights: torch.optim.LBFGS(weights, 0.05, max_iter=2, history_size=3),
    "adafactor": lambda weights: torch.optim.Adafactor(weights, 0.05),
}


@attrs.define
class Training:
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    generator: torch.Generator
    values: dict[str, int] = attrs.field(factory=lambda: {"steps": 0})

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def __setitem__(self, name: str, value: int) -> None:
        self.values[name] = value


def new(optimizer: str = "adam", scheduler: str = "restarts", hidden: int = 300) -> Training:
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, hidden), torch.nn.BatchNorm1d(hidden), torch.nn.Linear(hidden, 1)
    )
    made = OPTIMIZERS[optimizer](model.parameters())
    return Training(model, made, SCHEDULERS[scheduler](made), torch.Generator().manual_seed(5))


def step(state: Training) -> None:
    x = torch.randn(10, 20, generator=state.generator)

    def closure() -> torch.Tensor:
        state.optimizer.zero_grad()
        loss: torch.Tensor = (state.model(x) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    state.optimizer.step(closure)  # type: ignore[arg-type]
    state.scheduler.step()


def same(one: Training, other: Training) -> None:
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert one.scheduler.get_last_lr() == other.scheduler.get_last_lr()
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
async def test_a_killed_training_goes_on_with_the_same_optimizer(optimizer: str) -> None:
    expected = await train(MemoryStore(), lambda: new(optimizer), step)
    found = await train_killed(lambda: new(optimizer), step)
    assert found["steps"] == expected["steps"] == 9
    same(found, expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
async def test_a_killed_training_goes_on_with_the_same_scheduler(scheduler: str) -> None:
    expected = await train(MemoryStore(), lambda: new("adam", scheduler), step)
    same(await train_killed(lambda: new("adam", scheduler), step), expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda: new(hidden=301), r"(?s)at state\.model: .*size mismatch"),
        (lambda: new("sgd"), r"at state\.optimizer: .*Adam was saved, the program gives a SGD"),
        (lambda: new(scheduler="steps"), r"at state\.scheduler: .*WarmRestarts was saved"),
    ],
    ids=["another size", "another optimizer", "another scheduler"],
)
async def test_what_changed_is_refused_by_its_place(change: Any, match: str) -> None:
    store = MemoryStore()
    await train(store, new, step)
    with pytest.raises(StateChangedError, match=match):
        await train(store, change, step)
    same(await train(store, new, step), await train(MemoryStore(), new, step))


async def test_a_module_of_another_dtype_is_refused_not_converted() -> None:
    store = MemoryStore()
    await train(store, new, step)

    def half() -> Training:
        state = new()
        state.model.bfloat16()
        return state

    with pytest.raises(
        StateChangedError, match=r"state\.model\['0\.weight'\].*float32 \(300, 20\)"
    ):
        await train(store, half, step)


async def test_only_the_rows_that_changed_of_an_embedding_are_written() -> None:
    table = torch.nn.Embedding(20_000, 64)
    async with begin() as run, run.open_stream("s", state=table) as stream:
        async for batch in stream.batches(range(4)):
            with torch.no_grad():
                table.weight[batch.index] += 1
            batch.complete()
            await batch.confirm()
            report = stream.statistics().state
            assert report is not None
            assert 0 < report.arrays["state.weight"].changed_bytes <= 4 * 4096


async def test_tied_weights_are_saved_once() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(50, 50), "b": torch.nn.Linear(50, 50)})
    model["b"].weight = model["a"].weight
    async with begin() as run, run.open_stream("s", state={"m": model}) as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
        report = stream.statistics().state
        assert report is not None
        assert "state.m['a.weight']" in report.arrays
        assert "state.m['b.weight']" not in report.arrays


class Squares(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, at: int) -> int:
        return at


def new_loader(workers: int) -> Any:
    return StatefulDataLoader(
        Squares(), batch_size=4, shuffle=True, num_workers=workers,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


async def read(store: MemoryStore, loader: Any, die_at: int = -1) -> list[int]:
    """Read an epoch, with a snapshot after each of its ten batches; returns what was read."""
    state: dict[str, Any] = {"loader": loader, "seen": []}
    async with begin(store) as run, run.open_stream("s", state=state) as stream:
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=0) as snapshot:
                for found in loader:
                    if len(stream.state["seen"]) == 4 * die_at:
                        raise KeyboardInterrupt
                    stream.state["seen"] += found.tolist()
                    await snapshot.point()
                    await snapshot.wait()
            batch.complete()
        return list(stream.state["seen"])


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
@pytest.mark.parametrize("workers", [0, 2])
async def test_a_stateful_loader_goes_on_in_the_middle_of_an_epoch(workers: int) -> None:
    """torchdata says where it is: what its workers fetched ahead is fetched again."""
    store = MemoryStore()
    for die_at in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            await read(store, new_loader(workers), die_at)
        store = store.after_crash()
    if workers:
        with pytest.raises(StateChangedError, match=r"at state\.loader: its state_dict\(\) raised"):
            await read(store, new_loader(workers - 1))
    assert sorted(await read(store, new_loader(workers))) == list(range(40))


async def test_a_gradient_scaler_comes_back() -> None:
    store = MemoryStore()
    for scale in (2.0**16, 3.0):
        scaler = torch.amp.GradScaler("cpu")
        async with begin(store) as run, run.open_stream("s", state={"scaler": scaler}) as stream:
            assert scaler.get_scale() == scale
            scaler.scale(torch.ones(1))  # which makes its number
            scaler.update(3.0)
            await stream.save()
        store = store.after_crash()
