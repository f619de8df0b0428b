"""What earlier versions left behind is read and continued, or refused in plain words."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import trio_ckpt
from tests.formats.write import BIG, CURRENT, LEFT, PAGES, STORES, begin_weights, work
from trio_ckpt import Status, StoreVersionError
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import RecordKind
from trio_ckpt._maintenance.import_ import import_run
from trio_ckpt.abc import Store
from trio_ckpt.stores import open_store

READ = ["sqlite-2", "json-2", "sqlite-3", "json-3"]
REFUSED = ["sqlite-1", "json-1"]


def unpack(name: str, folder: Path) -> str:
    """The URL of a fixture, unpacked; its outputs lie beside it."""
    with zipfile.ZipFile(STORES / f"{name}.zip") as archive:
        archive.extractall(folder)
    return f"{name.split('-')[0]}:{folder / 'store'}"


async def check_what_was_saved(store: Store) -> None:
    """Every fact that the program of the fixtures left behind, by hand."""
    view = await store.load_run("old")
    assert view is not None
    pages = view.streams["päge", "a/b"].progress
    assert pages.status is Status.INTERRUPTED
    assert list(pages.confirmed) == [1, 3, 4]
    assert list(pages.skipped) == [2]
    assert pages.skips[2].error.message == "is blank"
    assert pages.records == 6
    assert pages.totals["cost_usd"].value == pytest.approx(0.3)
    lines = view.streams["lines",].progress
    assert (lines.status, lines.cursor) == (Status.COMPLETE, {"after": 2})
    async for page in read_pages(store, "old", view.generation, ("lines",)):
        batches = [record for _, record in page if record.kind is RecordKind.BATCH]
        assert [record.metadata for record in batches] == [{"big": BIG}] * 3
    assert list(view.streams["site",].progress.confirmed) == [0, 1, 2]


@pytest.mark.parametrize("name", READ)
async def test_a_store_of_this_format_is_read_and_gone_on_with(name: str, tmp_path: Path) -> None:
    store = await open_store(unpack(name, tmp_path))
    await check_what_was_saved(store)
    expected = np.zeros((40, 25))
    expected[:4] = np.array([1.0, 2.0, 3.0, 4.0])[:, None]
    async with (
        trio_ckpt.open_run("old", store=store, output_dir=tmp_path / "out") as run,
        run.open_stream("train", state=begin_weights()) as stream,
    ):
        np.testing.assert_array_equal(stream.state["weights"], expected)
        assert (stream.state["epoch"], stream.state["names"]) == (4, ["a", "b"])
    await work(store, tmp_path / "out", pages=PAGES)
    view = await store.load_run("old")
    assert view is not None
    assert view.streams["päge", "a/b"].progress.status is Status.COMPLETE
    for page in (1, 3, 4, 5, 6):
        path = tmp_path / f"out/pages/{page}.json"
        assert json.loads(path.read_text()) == {"page": page}
    assert (tmp_path / "out/lines.jsonl").read_bytes() == b'{"line":0}\n{"line":1}\n{"line":2}\n'
    await store.aclose()


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_a_run_exported_then_is_imported_now(kind: str, tmp_path: Path) -> None:
    store = await open_store(f"{kind}:{tmp_path / 'store'}")
    await import_run(store, STORES / "archive-1.zip", output_dir=tmp_path / "out")
    await check_what_was_saved(store)
    assert len(list((tmp_path / "out/pages").iterdir())) == PAGES - LEFT - 1
    await store.aclose()


@pytest.mark.parametrize("name", REFUSED)
async def test_a_format_that_is_not_read_is_refused_as_such(name: str, tmp_path: Path) -> None:
    """Never as damage, and nothing of it is changed."""
    url = unpack(name, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreVersionError, match=r"has format 1, .* reads format 3: no release"):
        await open_store(url)
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_there_is_a_fixture_of_every_format() -> None:
    """A change that raises a version runs `tests.formats.write`, and keeps the older fixtures."""
    known = {path.stem for path in STORES.iterdir()}
    assert known == {*READ, *REFUSED, "archive-1"}
    assert set(CURRENT.values()) <= known - set(REFUSED)
