"""How an append file is written, and that it stays so over sessions."""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from trio_ckpt import OutputError
from trio_ckpt._commit.sink_writer import SinkKind, SinkWriter
from trio_ckpt.outputs import AppendFile, Compression, load_compressor, open_outputs


def writer(compress: Compression | None, *, has_json: bool = False) -> SinkWriter:
    make = None if compress is None else load_compressor(compress)
    return SinkWriter(SinkKind(compress, None), make, None, has_json)


async def test_a_piece_is_compressed_or_stays_as_it_is() -> None:
    assert await writer(None).piece(bytearray(b"x")) == b"x"
    assert gzip.decompress(await writer("gzip").piece(bytearray(b"x"))) == b"x"


@pytest.mark.parametrize("data", [b"text", gzip.compress(b"text")])
def test_a_file_that_was_begun_in_another_way_is_refused(data: bytes, tmp_path: Path) -> None:
    has: Compression | None = None if data == b"text" else "gzip"
    other: Compression | None = "gzip" if has is None else None
    (tmp_path / "a").write_bytes(data)
    with (
        closing(open_outputs(tmp_path)) as outputs,
        closing(AppendFile.open(outputs, "a", len(data))) as sink,
    ):
        writer(has, has_json=True).check(sink)
        writer(None).check(sink)  # bytes may be compressed already
        with pytest.raises(OutputError, match=f"was begun with compress={has!r}"):
            writer(other, has_json=True).check(sink)
