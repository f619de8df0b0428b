"""Plain values as state: dicts, lists, numbers, text, in MessagePack."""

from __future__ import annotations

from typing import Any

import msgspec

from .._errors import StoreDamagedError
from .._values import check_plain
from ..abc import StateCodec


class PlainCodec(StateCodec[Any]):
    """Encodes JSON-like values whole.  A tuple comes back as a list."""

    def encode(self, state: Any) -> bytes:
        """The bytes of `state`.

        Raises:
            NotEncodableError: with the path of the leaf that is not JSON-like.
        """
        check_plain(state, "state")
        return msgspec.msgpack.encode(state)

    def decode(self, payload: bytes) -> Any:
        """The state that `encode` made these bytes of.

        Raises:
            StoreDamagedError: it made no such bytes.
        """
        try:
            return msgspec.msgpack.decode(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise StoreDamagedError(f"a saved state cannot be read: {error}") from error
