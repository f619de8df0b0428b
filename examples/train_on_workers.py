"""Train several networks on workers; kill any of them, and the weights are the same.

On this machine, with nothing to start:

    python -m examples.train_on_workers --out trained [--networks 4] [--workers 2]

On many machines, or in three terminals of this one:

    trio-ckpt foreman jobs.ckpt --secret-file secret
    trio-ckpt worker ws://127.0.0.1:9000 --allow examples.train_on_workers --secret-file secret
    python -m examples.train_on_workers --foreman ws://127.0.0.1:9000 --secret-file secret

Each network is one work item: its widths and its seed go to a worker, the losses and a digest of
the weights come back.  What the training depends on is ``work.state``; the foreman keeps it, so a
worker that is killed is followed by another one that goes on, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import trio

from trio_ckpt import remote
from trio_ckpt._util.extras import needs_extra
from trio_ckpt.engines import map_tasks

from ._command import EXPECTED, command_of, explain, open_stderr, output_folder, whole_number
from .train import TrainState, accuracy, digest, take_step

with needs_extra("train", "the example training"):
    import numpy as np
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

INTERVAL_S = 0.5  # what a killed worker may lose
JOB_ID = "job-train-on-workers"


def new_state(item: dict[str, Any]) -> TrainState:
    """A network as its training begins."""
    return TrainState.new(64, item["hidden"], item["seed"])


@remote.task(state=new_state)
def train(item: dict[str, Any], work: remote.Work[TrainState]) -> dict[str, Any]:
    """Train one network; runs on a worker, in a thread."""
    digits: Any = load_digits()
    images, labels = digits.data / 16, digits.target
    while len(work.state.losses) < item["epochs"]:
        state = work.state
        while state.order.left:
            take_step(state, images, labels)
            work.point_sync(f"epoch {state.order.epoch}, digit {state.order.position}")
        state.losses.append(state.epoch_loss / len(images))
        state.order.begin_epoch(state.order.epoch + 1)
        state.epoch_loss = 0.0
        work.report(progress_percent=100 * len(state.losses) / item["epochs"])
    return {
        "hidden": item["hidden"],
        "losses": work.state.losses,
        "accuracy": accuracy(work.state, images, labels),
        "digest": digest(work.state),
    }


async def main(options: argparse.Namespace) -> int:
    """Submit the trainings, and print their results; returns the exit code."""
    items = [
        {"hidden": 16 + 8 * number, "seed": options.seed + number, "epochs": options.epochs}
        for number in range(options.networks)
    ]
    name = f"{__package__}.train_on_workers:train"
    job_id = f"{JOB_ID}-{options.seed}-{options.networks}-{options.epochs}"
    if options.foreman is not None:
        secret = options.secret_file.read_text(encoding="utf-8").strip()
        async with remote.connect(options.foreman, secret=secret) as client:
            found = await client.map(name, items, checkpoint_interval_s=INTERVAL_S, job_id=job_id)
    else:
        found = await map_tasks(
            name,
            items,
            workers=options.workers,
            store=options.out,
            checkpoint_interval_s=INTERVAL_S,
            job_id=job_id,
        )
    for network in found:
        loss = np.round(network["losses"][-1], 4)
        print(
            f"hidden {network['hidden']}: loss {loss}, accuracy {network['accuracy']:.3f}, "
            f"digest {network['digest'][:16]}"
        )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command_of("train_on_workers"), description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=output_folder, default=Path("trained"), help="the folder of the store"
    )
    parser.add_argument("--networks", type=whole_number(1, 1_000), default=4)
    parser.add_argument("--epochs", type=whole_number(1, 10**6), default=20)
    parser.add_argument("--seed", type=whole_number(0, 2**32), default=7)
    parser.add_argument(
        "--workers", type=whole_number(1, 256), default=2, help="processes on this machine"
    )
    parser.add_argument("--foreman", help="its URL, where there is one")
    parser.add_argument("--secret-file", type=Path, default=Path("secret"))
    return parser.parse_args()


def command() -> int:
    """Run the command; an error is one line, not a traceback."""
    options = parse()
    open_stderr()
    try:
        return trio.run(main, options)
    except EXPECTED as error:
        return explain(error)


if __name__ == "__main__":
    sys.exit(command())
