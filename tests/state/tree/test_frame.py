"""Frames: what is not one is refused, whatever it looks like."""

from __future__ import annotations

import msgspec
import pytest

from tests.fuzz.samples import make_chain
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.state import decode_frame, encode_frame, tree_of
from trio_ckpt.state._arrays.engine import ArrayEngine
from trio_ckpt.state._arrays.restore import Assembly


def test_a_frame_of_another_version_is_refused() -> None:
    engine = ArrayEngine()
    frame = decode_frame(make_chain(engine)[0])
    engine.close()
    with pytest.raises(StoreDamagedError, match="version 1, not 2"):
        decode_frame(encode_frame(msgspec.structs.replace(frame, version=2)))


def test_a_chain_without_its_full_frame_has_no_tree() -> None:
    engine = ArrayEngine()
    frames = [decode_frame(payload) for payload in make_chain(engine)]
    engine.close()
    with pytest.raises(StoreDamagedError):
        tree_of(frames[:-1])
    with pytest.raises(StoreDamagedError, match="no whole"):
        Assembly([msgspec.structs.replace(frames[0], layout=frames[-1].layout)])
