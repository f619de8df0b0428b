"""The cancel scopes around a loop: whether one of them has ended its body."""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False, repr=False)
class Surroundings:
    """The cancel scopes around a task, as they were at the last call of `remember`.

    ``with trio.move_on_after(60): async for batch in stream.batches(): ...`` ends the loop without
    notice: the body is cancelled, the scope catches that, and the program continues after the loop.
    A loop does not keep a scope open itself, so it checks those that were open when it handed out
    the batch.

    trio has no public API for the scopes around a task: it gives the nearest deadline, and the
    nurseries of a task with their scopes, but no ``with`` block.  So they are read from its private
    chain.  On a trio with another chain only the nurseries are checked: a loop in a cancelled
    ``with`` block then ends with `TokenNeverSettledError`, which says what to do, and nothing is
    lost.
    """

    _innermost: object = attrs.field(default=None, init=False)
    _scopes: list[trio.CancelScope] = attrs.field(factory=list[trio.CancelScope], init=False)

    def remember(self, task: trio.lowlevel.Task) -> None:
        """Store the scopes that are open around a task now."""
        status: object = getattr(task, "_cancel_status", None)
        if status is None or status is not self._innermost:
            self._innermost, self._scopes = status, _scopes_of(status) or _of_nurseries(task)

    def were_cancelled(self, task: trio.lowlevel.Task) -> bool:
        """Whether one of those around a task was cancelled and has been left."""
        status: object = getattr(task, "_cancel_status", None)
        if status is not None and status is self._innermost:
            return False  # it is in the same scope as before, so it has left none
        return any(scope.cancelled_caught for scope in self._scopes)


def _scopes_of(status: object) -> list[trio.CancelScope]:
    """The scopes of a chain, the innermost first; empty if the chain is not as expected."""
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
