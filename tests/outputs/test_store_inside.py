"""The store's folder may lie below that of the outputs, and no output is ever written into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ckpt import BatchFailedError, OutputError, open_run
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt.stores import open_store

NAMES = [
    *("data.ckpt/state.db", "./data.ckpt//state.db", "link/state.db", "data.ckpt/lock/new"),
    *("data.ckpt/blobs/x", "data.ckpt/runs/r/checkpoint.json"),
]


async def write(url: str, folder: Path, name: str, way: str) -> None:
    async with open_run("r", store=url, output_dir=folder) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            if way == "write":
                await batch.write_text(name, "x")
            if way == "append":
                batch.append_json(name, "x")
            batch.complete(outputs=[name] if way == "adopt" else [])


@pytest.mark.parametrize("kind", ["sqlite", "json"])
@pytest.mark.parametrize("spelling", ["data", "./data", "link"])
async def test_one_folder_for_both_is_refused_before_anything_is_written(
    spelling: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(OutputError, match="is the folder of the store, too"):
        await write(f"{kind}:{tmp_path}/data", tmp_path / spelling, "x", "write")


@pytest.mark.parametrize("kind", ["sqlite", "json"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["write", "append", "adopt"])
async def test_no_output_goes_into_the_store(
    way: str, name: str, kind: str, tmp_path: Path
) -> None:
    url = f"{kind}:{tmp_path}/data.ckpt"
    (tmp_path / "link").symlink_to("data.ckpt")
    with pytest.raises((OutputError, BatchFailedError)):
        await write(url, tmp_path, name, way)
    store = await open_store(url)
    assert [finding async for finding in check_all(store) if finding.is_damage] == []
    await store.aclose()
