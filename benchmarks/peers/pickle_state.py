"""pickle and gzip at level 6, as the seed of this project had it: all of it, in line.

python pickle_state.py --mib 256 --rounds 5 --folder DIR
"""

import gzip
import pickle
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _state_rounds import main, sync_tree

LEVEL = 6


def begin(state: Any, folder: Path) -> Callable[[], None]:
    """Save it; nothing is left to wait for."""
    folder.mkdir()
    with gzip.open(folder / "state.pkl.gz", "wb", compresslevel=LEVEL) as file:
        pickle.dump(state, file, protocol=pickle.HIGHEST_PROTOCOL)
    sync_tree(folder)
    return lambda: None


def restore(folder: Path) -> Any:
    """All of it."""
    with gzip.open(folder / "state.pkl.gz") as file:
        return pickle.load(file)


if __name__ == "__main__":
    main(f"pickle + gzip-{LEVEL} (Python {platform.python_version()})", begin, restore)
