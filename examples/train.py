"""Train a small network on handwritten digits; killed at any moment, it ends with the same weights.

    python -m examples.train --out run [--epochs 40] [--hidden 64] [--seed 7]

The data are the 1,797 digits that ship with scikit-learn, the network is NumPy.  All that
training depends on is in one state: weights, moments, the order of the digits, the losses.  It is
saved with every epoch, as the difference to the one before, and every few steps inside an epoch.
Kill it however you like and start it again: the weights and the curve of losses are, bit for
bit, those of a run that was never interrupted.

Writes ``weights.npz`` and ``loss.png``, a plot with the points marked where a session took over.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

import trio_ckpt
from trio_ckpt._util.extras import needs_extra
from trio_ckpt.state import Order
from trio_ckpt.stores import open_store

from ._command import (
    EXIT_CANNOT,
    EXPECTED,
    command_of,
    explain,
    open_stderr,
    output_folder,
    say,
    whole_number,
)

with needs_extra("train", "the example training"):
    import matplotlib
    import numpy as np
    import numpy.typing as npt
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

Floats = npt.NDArray[np.float64]

DIGITS = 1_797
CLASSES = 10
BATCH_SIZE = 32
LEARNING_RATE = 0.002
MOMENTUM, SCALE, TINY = 0.9, 0.999, 1e-8  # of Adam (Kingma and Ba, 2015)


@attrs.define
class TrainState:
    """All that the next step depends on.

    Attributes:
        weights: By layer and part.
        means: Running means of the gradients, likewise.
        squares: Running means of their squares.
        order: Which digits come next, and how far the epoch is.
        steps: Of all epochs.
        losses: The mean loss of each epoch.
        epoch_loss: The sum of this epoch's so far.
    """

    weights: dict[str, Floats]
    means: dict[str, Floats]
    squares: dict[str, Floats]
    order: Order
    steps: int = 0
    losses: list[float] = attrs.field(factory=list[float])
    epoch_loss: float = 0.0

    @classmethod
    def new(cls, inputs: int, hidden: int, seed: int) -> TrainState:
        """The state at the beginning of training."""
        rng = np.random.default_rng(seed)
        weights = {
            "hidden.weight": rng.normal(0, np.sqrt(2 / inputs), (inputs, hidden)),
            "hidden.bias": np.zeros(hidden),
            "output.weight": rng.normal(0, np.sqrt(2 / hidden), (hidden, CLASSES)),
            "output.bias": np.zeros(CLASSES),
        }
        means, squares = (
            {name: np.zeros_like(weight) for name, weight in weights.items()} for _ in range(2)
        )
        return cls(weights, means, squares, Order(DIGITS, seed))


def gradients(
    weights: dict[str, Floats], images: Floats, labels: npt.NDArray[np.int64]
) -> tuple[float, dict[str, Floats]]:
    """The loss (cross-entropy, mean) of some digits, and its gradients.

    Args:
        weights: Of the network: one hidden layer, ReLU.
        images: Shape (n, 64).
        labels: Shape (n,).
    """
    active = np.maximum(images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    scores = active @ weights["output.weight"] + weights["output.bias"]
    scores -= scores.max(axis=1, keepdims=True)
    chances = np.exp(scores)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(chances[rows, labels]).mean())
    chances[rows, labels] -= 1
    chances /= len(labels)
    back = (chances @ weights["output.weight"].T) * (active > 0)
    return loss, {
        "hidden.weight": images.T @ back,
        "hidden.bias": back.sum(axis=0),
        "output.weight": active.T @ chances,
        "output.bias": chances.sum(axis=0),
    }


def take_step(state: TrainState, images: Floats, labels: npt.NDArray[np.int64]) -> None:
    """Train on the next digits of the epoch; everything changes in place."""
    chosen = state.order.take(BATCH_SIZE)
    loss, found = gradients(state.weights, images[chosen], labels[chosen])
    state.steps += 1
    state.epoch_loss += loss * len(chosen)
    for name, gradient in found.items():
        mean, square = state.means[name], state.squares[name]
        mean += (1 - MOMENTUM) * (gradient - mean)
        square += (1 - SCALE) * (gradient**2 - square)
        unbiased = mean / (1 - MOMENTUM**state.steps)
        spread = np.sqrt(square / (1 - SCALE**state.steps)) + TINY
        state.weights[name] -= LEARNING_RATE * unbiased / spread


async def train(
    stream: trio_ckpt.Stream[TrainState], images: Floats, labels: npt.NDArray[np.int64], epochs: int
) -> None:
    """Every epoch that is left, from the digit at which a killed session had its snapshot."""
    async for batch in stream.batches(range(epochs)):
        state = stream.state
        if batch.resumed_from is None:
            state.order.begin_epoch(batch.index)
            state.epoch_loss = 0.0
        async with stream.snapshots(every_s=0.05) as snapshot:
            while state.order.left:
                take_step(state, images, labels)
                await snapshot.point(f"digit {state.order.position}")
        state.losses.append(state.epoch_loss / len(images))
        batch.complete(records=len(images), metadata={"loss": state.losses[-1]})


def accuracy(state: TrainState, images: Floats, labels: npt.NDArray[np.int64]) -> float:
    """The share of digits that are read right."""
    weights = state.weights
    active = np.maximum(images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    scores = active @ weights["output.weight"] + weights["output.bias"]
    return float((scores.argmax(axis=1) == labels).mean())


async def resume_points(store: Path, run_id: str) -> list[int]:
    """The epochs in which a later session took over."""
    opened = await open_store(store)
    try:
        sessions = await trio_ckpt.read_sessions(opened, run_id)
        ends = [
            checkpoint.at
            async for checkpoint in trio_ckpt.read_history(opened, run_id, ("train",))
            if checkpoint.kind == "batch"
        ][::-1]
    finally:
        await opened.aclose()
    points = [sum(end < session.began for end in ends) for session in sessions[1:]]
    return [point for point in points if point < len(ends)]  # a session with nothing left did none


def plot(losses: Sequence[float], resumed: Sequence[int], path: Path) -> None:
    """The curve of losses, with a mark where a session took over."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, color="tab:blue", label="loss")
    for number, epoch in enumerate(resumed):
        label = "resumed" if number == 0 else None
        axes.axvline(epoch + 1, color="tab:orange", linestyle="--", label=label)
    axes.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="Handwritten digits")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def digest(state: TrainState) -> str:
    """A digest of the final weights and losses."""
    hasher = hashlib.sha256()
    for name in sorted(state.weights):
        hasher.update(state.weights[name].tobytes())
    hasher.update(np.array(state.losses).tobytes())
    return hasher.hexdigest()


async def main(options: argparse.Namespace) -> int:
    """Train, and leave weights and plot behind; returns the exit code."""
    digits: Any = load_digits()
    images: Floats = digits.data / 16
    labels: npt.NDArray[np.int64] = digits.target
    store = options.out / "train.ckpt"
    config = {"hidden": options.hidden, "seed": options.seed, "epochs": options.epochs}
    async with trio_ckpt.open_run(
        "digits", store=store, config=config, tunable=["epochs"], output_dir=options.out
    ) as run:
        initial = TrainState.new(images.shape[1], options.hidden, options.seed)
        async with run.open_stream("train", state=initial) as stream:
            await train(stream, images, labels, options.epochs)
            state = stream.state
        code = run.exit_code
    np.savez(options.out / "weights.npz", **state.weights)  # type: ignore[arg-type]  # its stub
    plot(state.losses, await resume_points(store, "digits"), options.out / "loss.png")
    share = accuracy(state, images, labels)
    print(f"{len(state.losses)} epochs, loss {state.losses[-1]:.6f}, {share:.1%} of digits right")
    print(f"digest {digest(state)}")
    return code


def command() -> int:
    """Run the command; an error is one line, not a traceback."""
    parser = argparse.ArgumentParser(prog=command_of("train"), description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=output_folder, required=True, help="the folder to work in")
    parser.add_argument("--epochs", type=whole_number(1, 10**6), default=40)
    parser.add_argument("--hidden", type=whole_number(1, 10**4), default=64)
    parser.add_argument("--seed", type=whole_number(0, 2**32), default=7)
    options = parser.parse_args()
    open_stderr()
    try:
        return trio.run(main, options)
    except trio_ckpt.ConfigChangedError as error:
        say(f"{error}: give another --out")
        return EXIT_CANNOT
    except EXPECTED as error:
        return explain(error)


if __name__ == "__main__":
    sys.exit(command())
