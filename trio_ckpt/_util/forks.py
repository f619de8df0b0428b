"""What a process forked inside a run must not have: locks, descriptors, connections, handlers.

Theory of operation.  fork(2) copies every descriptor, and close-on-exec does nothing for a child
that never calls exec: the workers of a ``ProcessPoolExecutor`` are such children.  A lock of
flock(2), or of ``F_OFD_SETLK``, belongs to the open file, so a child that outlives its killed
parent would keep the run locked, the port of a monitor taken and the connection of a worker open.
So each descriptor that stays open after a call is registered here, and the child replaces it by
one of ``/dev/null``.  Its number stays in use: an object of the parent that the child still
reaches can neither write to nor close a file that the child has opened since.

A descriptor is opened and registered, and closed and removed, under one lock that a fork takes as
well.  Without it a fork between the two would copy a descriptor that is not registered, and the
child would share a lock that is put on the open file later.

A connection of SQLite may not even be closed in the child
(https://www.sqlite.org/howtocorrupt.html, 2.6): closing one that was forked inside a transaction
rolls it back in memory that is shared with the parent.  So the child never closes one: it leaks a
reference to each.  Their descriptors hold no lock: those of POSIX are the parent's alone.

Threads do not survive a fork either, so a wait for one would last for ever.  Each trio run and
each worker thread stores the process that it began in (see `trio_ckpt._util.threads`), and
`need_process` refuses it in any other.

Forks that Python makes are noticed (`os.fork`, `multiprocessing`, ``preexec_fn``).  Those of a
library in C that calls fork(2) itself, and never exec, are not.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import ParamSpec, Protocol, TypeVar

from .errors import ForkedProcessError

P = ParamSpec("P")
T = TypeVar("T")

_guard = threading.RLock()  # held while a process is forked
_descriptors: set[int] = set()
_files: weakref.WeakSet[HasDescriptor] = weakref.WeakSet()
_connections: weakref.WeakSet[object] = weakref.WeakSet()
_actions: list[Callable[[], object]] = []
_generation = 0  # forks between the first process and this one


def this_process() -> int:
    """A number that differs between this process and its forked parents and children."""
    return _generation


def need_process(process: int) -> None:
    """Check that this is the process in which `this_process` returned a number.

    Raises:
        ForkedProcessError: this is a forked child of that process.
    """
    if process != _generation:
        raise ForkedProcessError


def open_unshared(func: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    """Open a descriptor that no forked child keeps; `close_unshared` closes it."""
    with _guard:
        fd = func(*args, **kwargs)
        if fd >= 0:  # a function in C returns an error as a negative number
            _descriptors.add(fd)
    return fd


def close_unshared(fd: int) -> None:
    """Close a descriptor that `open_unshared` has opened."""
    with _guard:
        _descriptors.discard(fd)
        os.close(fd)


class HasDescriptor(Protocol):
    """A socket or a pipe; its descriptor is negative once it is closed."""

    def fileno(self) -> int:
        """The number of its descriptor."""
        ...


def unshare(file: HasDescriptor) -> None:
    """Keep the descriptor of a socket or a pipe from forked children."""
    _files.add(file)


def make_unshared(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make an object that a forked child leaves open."""
    with _guard:
        made = make(*args, **kwargs)
        _connections.add(made)
    return made


def leave_open(connection: object) -> None:
    """Keep an object from ever being finalized, also when the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


@contextmanager
def in_children(action: Callable[[], object]) -> Generator[None]:
    """Let each child that is forked in the block call a function first."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def _begin_child() -> None:
    global _generation
    _generation += 1
    null: int | None = None
    with suppress(OSError):  # without one they are closed
        null = os.open(os.devnull, os.O_RDWR)
    for fd in (*_descriptors, *[file.fileno() for file in _files]):
        with suppress(OSError):
            if null is None:
                os.close(fd)
            else:
                os.dup2(null, fd, inheritable=False)
    if null is not None:
        os.close(null)
    for connection in tuple(_connections):
        leave_open(connection)
    for action in _actions:
        with suppress(OSError, ValueError, TypeError):
            action()
    _descriptors.clear()
    _files.clear()
    _connections.clear()
    _actions.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_begin_child
    )
