"""safetensors: all of it, in line, with an fsync.

python safetensors_state.py --mib 256 --rounds 5 --folder DIR
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _state_rounds import main, sync_tree
from safetensors.numpy import load_file, save_file


def begin(state: Any, folder: Path) -> Callable[[], None]:
    """Save it; nothing is left to wait for."""
    folder.mkdir()
    save_file({"weights": state}, folder / "state.safetensors")
    sync_tree(folder)
    return lambda: None


def restore(folder: Path) -> Any:
    """All of it."""
    return load_file(folder / "state.safetensors")["weights"]


if __name__ == "__main__":
    main(f"safetensors {version('safetensors')}", begin, restore)
