"""Whether what stood around a task was cancelled and has ended since.

``with trio.move_on_after(60): async for batch in stream.batches(): ...`` ends the loop
without a word to it: the body is cancelled, the scope catches that, and the program goes
on behind the loop.  A loop holds no scope open itself, so it looks at those that were
open when it handed out the batch.

trio has no public way to the scopes around a task: it tells the nearest deadline, and the
nurseries of a task with their scopes, and no ``with`` block.  So they are read from its private
chain.  On a trio that has another chain the nurseries are what is left: a loop in a cancelled
``with`` block then ends with `TokenNeverSettledError`, which says what to do, and nothing is lost.
"""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class Surroundings:
    """The cancel scopes around a task, as they were when it was last looked at."""

    _innermost: object = attrs.field(default=None, init=False)
    _scopes: list[trio.CancelScope] = attrs.field(factory=list[trio.CancelScope], init=False)

    def look(self, task: trio.lowlevel.Task) -> None:
        """Remember the scopes that are open around a task now."""
        status: object = getattr(task, "_cancel_status", None)
        if status is None or status is not self._innermost:
            self._innermost, self._scopes = status, _scopes_of(status) or _of_nurseries(task)

    def were_cancelled(self) -> bool:
        """Whether one of them was cancelled and has been left."""
        return any(scope.cancelled_caught for scope in self._scopes)


def _scopes_of(status: object) -> list[trio.CancelScope]:
    """The scopes of a chain, from the innermost one out; none of one that is not as expected."""
    found = list[trio.CancelScope]()
    while status is not None:
        scope: object = getattr(status, "_scope", None)
        if not isinstance(scope, trio.CancelScope):
            return []
        found.append(scope)
        status = getattr(status, "_parent", None)
    return found


def _of_nurseries(task: trio.lowlevel.Task) -> list[trio.CancelScope]:
    return [nursery.cancel_scope for nursery in task.child_nurseries]
