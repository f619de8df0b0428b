"""Orbax: AsyncCheckpointer with its standard handler, of a JAX array; fsynced afterwards.

python orbax_state.py --mib 256 --rounds 5 --folder DIR
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from _state_rounds import main, sync_tree

_checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())


def begin(state: Any, folder: Path) -> Callable[[], None]:
    """Copy it, save it in threads."""
    _checkpointer.save(folder, args=ocp.args.StandardSave({"weights": state}))

    def wait() -> None:
        _checkpointer.wait_until_finished()
        sync_tree(folder)

    return wait


def restore(folder: Path) -> Any:
    """All of it."""
    found = _checkpointer.restore(folder)["weights"]
    return jax.block_until_ready(found)


def step(array: Any, share: float, rng: np.random.Generator) -> Any:
    """Another array with scattered rows changed, or all."""
    if share == 1:
        changed = array * 1.0001
    else:
        rows = rng.choice(len(array), int(len(array) * share), replace=False)
        changed = array.at[jnp.asarray(rows)].multiply(1.0001)
    return jax.block_until_ready(changed)


if __name__ == "__main__":
    name = f"Orbax async {version('orbax-checkpoint')}"
    main(name, begin, restore, make=jnp.asarray, step=step)
    _checkpointer.close()
