"""A client in the process of its foreman: the same protocol, over memory instead of a network."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from .._util.log import get_logger
from .._util.network import check_secret, new_secret
from .._util.nursery import open_service_nursery
from ._client import Client, open_client
from ._foreman.foreman import Foreman, ForemanCore, core_of
from ._foreman.peers import Terms, serve_peer
from ._wire.errors import ConnectionLostError

log = get_logger(__name__)

FRAMES = 16  # on their way in one direction: then the sender waits


@attrs.define(eq=False)
class MemorySocket:
    """One end of a connection in memory."""

    _out: trio.MemorySendChannel[bytes]
    _into: trio.MemoryReceiveChannel[bytes]

    async def send(self, frame: bytes) -> None:
        """Send one frame.

        Raises:
            ConnectionLostError: one of the ends is closed.
        """
        try:
            await self._out.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLostError("the connection is closed") from error

    async def receive(self) -> bytes:
        """Receive one frame.

        Raises:
            ConnectionLostError: one of the ends is closed.
        """
        try:
            return await self._into.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise ConnectionLostError("the connection is closed") from error

    def close(self) -> None:
        """Close this end; frames that were sent still arrive."""
        self._out.close()
        self._into.close()


def socket_pair() -> tuple[MemorySocket, MemorySocket]:
    """Return the two ends of a connection."""
    there_out, here_into = trio.open_memory_channel[bytes](FRAMES)
    here_out, there_into = trio.open_memory_channel[bytes](FRAMES)
    return MemorySocket(here_out, here_into), MemorySocket(there_out, there_into)


@asynccontextmanager
async def connect_inside(foreman: Foreman, name: str) -> AsyncGenerator[Client]:
    """Stay connected to a foreman of this process for the length of a block.

    Args:
        foreman: The foreman, which is running.
        name: The name of the client in logs.

    Cancellation: as for `connect`.
    """
    key = check_secret(new_secret())  # of this connection alone
    async with open_client(partial(_dial, core_of(foreman), Terms(key), name), key, name) as client:
        yield client


@asynccontextmanager
async def _dial(core: ForemanCore, terms: Terms, name: str) -> AsyncGenerator[MemorySocket]:
    here, there = socket_pair()

    async def serve() -> None:
        try:
            await serve_peer(core, terms, there, name)
        except Exception:
            log.exception("the connection of %s could not be handled", name)
        finally:
            there.close()

    async with open_service_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            yield here
        finally:
            here.close()
