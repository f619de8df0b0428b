"""Whether what stood around a task was cancelled and has ended since.

``with trio.move_on_after(60): async for batch in stream.batches(): ...`` ends the loop
without a word to it: the body is cancelled, the scope catches that, and the program goes
on behind the loop.  A loop holds no scope open itself, so it looks at those that were
open when it handed out the batch.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio


@attrs.define(eq=False)
class Surroundings:
    """The cancel scopes around a task, as they were when it was last looked at."""

    _innermost: Any = attrs.field(default=None, init=False)
    _scopes: list[trio.CancelScope] = attrs.field(factory=list[trio.CancelScope], init=False)

    def look(self, task: trio.lowlevel.Task) -> None:
        """Remember the scopes that are open around a task now."""
        status: Any = getattr(task, "_cancel_status", None)  # trio has no public way to them
        if status is self._innermost:
            return
        self._innermost, self._scopes = status, []
        while status is not None:  # from the innermost one out
            self._scopes.append(status._scope)
            status = status._parent

    def were_cancelled(self) -> bool:
        """Whether one of them was cancelled and has been left."""
        return any(scope.cancelled_caught for scope in self._scopes)
