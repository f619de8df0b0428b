"""torch.distributed.checkpoint: async_save of a CPU tensor, with its default writer's fsync.

python torch_state.py --mib 256 --rounds 5 --folder DIR
"""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from _state_rounds import main

warnings.filterwarnings("ignore")  # one process is what is meant


def begin(state: Any, folder: Path) -> Callable[[], None]:
    """Copy it, save it in a thread."""
    future = dcp.async_save({"weights": state}, checkpoint_id=str(folder))

    def wait() -> None:
        future.result()

    return wait


def restore(folder: Path) -> Any:
    """All of it, into a new tensor."""
    size = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata["weights"].size
    state = {"weights": torch.empty(size)}
    dcp.load(state, checkpoint_id=str(folder))
    return state["weights"]


def step(tensor: Any, share: float, rng: np.random.Generator) -> None:
    """Scattered rows, or all."""
    if share == 1:
        tensor *= 1.0001
    else:
        rows = rng.choice(len(tensor), int(len(tensor) * share), replace=False)
        tensor[torch.from_numpy(rows)] *= 1.0001


if __name__ == "__main__":
    main(
        f"torch DCP async_save {version('torch')}", begin, restore, make=torch.from_numpy, step=step
    )
