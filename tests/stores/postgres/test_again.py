"""A run in PostgreSQL is done again from the records of its last generation."""

from __future__ import annotations

from pathlib import Path

from tests.opening import begin


async def test_a_generation_begins_from_the_last_one(url: str, tmp_path: Path) -> None:
    written: list[str] = []
    for again, items in ((False, {"a": "1", "b": "1"}), (True, {"a": "1", "b": "2", "c": "1"})):
        async with (
            begin(url, output_dir=tmp_path, again=again) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(sorted(items)):
                was, value = batch.previous, items[batch.item]
                if was is not None and was.metadata["v"] == value:
                    batch.unchanged()
                    continue
                written.append(batch.item + value)
                await batch.write_text(f"{batch.item}.txt", value)
                batch.complete(metadata={"v": value})
    assert written == ["a1", "b1", "b2", "c1"]
    assert (tmp_path / ".archive/r-0/b.txt").read_text() == "1"
