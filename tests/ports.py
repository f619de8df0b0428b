"""Ports that belong to a test: the kernel gives them to no other process meanwhile."""

from __future__ import annotations

import socket


def keep_port() -> socket.socket:
    """A socket that keeps a port of 127.0.0.1 for this test, until it is closed.

    It is bound and does not listen.  A server that is started on its port can: both have
    ``SO_REUSEADDR``, as servers have it (socket(7)).  Until one does, a connection is refused.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


def port_of(kept: socket.socket) -> int:
    """The port that a socket has."""
    return int(kept.getsockname()[1])
