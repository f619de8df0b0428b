"""What a saved state may lack: a place in the program's state, or something of its machine."""

from __future__ import annotations

from ..._util.errors import TrioCkptError


class StateChangedError(TrioCkptError, ValueError):
    """A saved state does not fit the program's state.

    Attributes:
        path: The place in the state, ``state.model.layers[3]``.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"the saved state does not fit the program's at {path}: {problem}")
        self.path = path


class MissingHereError(Exception):
    """A leaf needs what this machine lacks; the builder turns it into a `StateChangedError`."""
