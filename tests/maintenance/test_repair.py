"""A repair mends what can be mended, says what is lost, and keeps what it replaces."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.opening import begin
from trio_ckpt._maintenance import recover_sqlite
from trio_ckpt._maintenance.repair import RepairReport, repair_all, repair_folder
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt._util.errors import StoreError
from trio_ckpt.abc import Finding, FindingKind
from trio_ckpt.stores import open_store
from trio_ckpt.stores._sqlite import schema

SCHEMES = pytest.mark.parametrize("scheme", ["sqlite", "json"])
SIZE = 60_000  # bytes of an array of so many floats are a blob of their own


class StoppedError(Exception):
    """The stream is left before its end: a complete one keeps only its newest state."""


async def train(url: str, count: int = 3) -> None:
    """A stream whose batches build on a state with a big array, and one whose batches do not."""
    with suppress(StoppedError):
        await _train(url, count)


async def _train(url: str, count: int) -> None:
    async with begin(url) as run:
        async with run.open_stream("free") as free:
            async for batch in free.batches(range(5)):
                batch.complete(records=1)
        rng = np.random.default_rng(1)
        async with run.open_stream("model", state={"w": rng.random(SIZE), "n": 0}) as model:
            async for batch in model.batches(range(9)):
                if batch.index == count:
                    raise StoppedError
                model.state["w"] = np.random.default_rng(batch.index).random(SIZE)
                model.state["n"] += 1
                batch.complete()


async def find(url: str) -> list[Finding]:
    store = await open_store(url, create=False)
    async with aclosing(check_all(store)) as findings:
        found = [finding async for finding in findings if finding.is_damage]
    await store.aclose()
    return found


async def repair(url: str, **settings: Any) -> RepairReport:
    return await repair_all(url, await find(url), **settings)


async def confirmed(url: str, key: str) -> list[int]:
    store = await open_store(url, create=False)
    view = await store.load_run("r")
    await store.aclose()
    assert view is not None
    return list(view.streams[key,].progress.confirmed)


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("blobs/*/*"), key=lambda path: path.stat().st_mtime_ns)


@SCHEMES
async def test_a_sound_store_is_left_alone(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}:{tmp_path / 's'}"
    await train(url)
    report = await repair(url)
    assert report == RepairReport((), (), ())
    assert not (tmp_path / "s" / "damaged").exists()


@SCHEMES
async def test_an_output_folder_that_is_gone_is_no_damage_of_the_store(
    scheme: str, tmp_path: Path
) -> None:
    url = f"{scheme}:{tmp_path / 's'}"
    async with begin(url, output_dir=tmp_path / "out") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete(outputs=[await batch.write_json("a.json", {})])
    shutil.rmtree(tmp_path / "out")
    (gone,) = await find(url)
    assert gone.kind is FindingKind.OUTPUT
    async with begin(url, run_id="other"):  # a repair of the store needs all of its runs
        report = await repair(url)
    assert report == RepairReport((), (), (gone,))


@SCHEMES
async def test_a_damaged_state_goes_back_to_the_newest_whole_one(
    scheme: str, tmp_path: Path
) -> None:
    url = f"{scheme}:{tmp_path / 's'}"
    await train(url)
    newest = blobs(tmp_path / "s")[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert any(finding.kind is FindingKind.STATE for finding in await find(url))
    report = await repair(url)
    assert report.left == ()
    assert await confirmed(url, "model") == [0, 1]
    (kept,) = (tmp_path / "s").glob(f"damaged/*/blobs/*/{newest.name}")
    assert kept.read_bytes() != content
    await train(url)
    assert await confirmed(url, "model") == [0, 1, 2]
    assert await find(url) == []


@SCHEMES
async def test_a_state_that_is_nowhere_whole_begins_again_only_if_asked(
    scheme: str, tmp_path: Path
) -> None:
    url = f"{scheme}:{tmp_path / 's'}"
    await train(url)
    for path in blobs(tmp_path / "s"):
        path.write_bytes(b"")
    report = await repair(url)
    assert report.left
    assert any("--accept-loss starts it again" in part.what for part in report.not_done)
    assert await confirmed(url, "model") == [0, 1, 2]
    report = await repair(url, accept_loss=True)
    assert report.left == ()
    assert await confirmed(url, "model") == []
    await train(url)
    assert await confirmed(url, "model") == [0, 1, 2]


async def test_blobs_whose_names_are_lost_are_named_again(tmp_path: Path) -> None:
    """The next owner would remove a blob that no record names."""
    url = f"sqlite:{tmp_path / 's'}"
    await train(url)
    before = [path.name for path in blobs(tmp_path / "s")]
    with closing(sqlite3.connect(tmp_path / "s" / "state.db")) as connection, connection:
        connection.execute("DELETE FROM attached")
        connection.execute("DELETE FROM heads")
    report = await repair(url)
    assert report.left == ()
    await train(url, 4)
    assert set(before[-1:]) <= {path.name for path in blobs(tmp_path / "s")}
    assert await find(url) == []


def test_a_database_that_cannot_be_made_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "new")) as connection:
        connection.execute("CREATE TABLE runs (id)")
    made = list[sqlite3.Connection]()

    def connect(path: Path) -> sqlite3.Connection:
        made.append(schema.connect(path))
        return made[0]

    monkeypatch.setattr(recover_sqlite, "connect", connect)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        recover_sqlite._make(tmp_path / "new")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        _ = made[0].total_changes


async def test_a_run_whose_row_is_lost_is_found_by_its_seals(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 's'}"
    await train(url)
    with closing(sqlite3.connect(tmp_path / "s" / "state.db")) as connection, connection:
        connection.execute("DELETE FROM runs")
    assert any("run 'r' is gone" in finding.what for finding in await find(url))
    report = await repair(url)
    assert report.left == ()
    assert not any(part.is_loss for part in report.done)
    assert await confirmed(url, "free") == [0, 1, 2, 3, 4]


async def test_a_garbled_line_costs_one_batch(tmp_path: Path) -> None:
    url = f"json:{tmp_path / 's'}"
    await train(url)
    path = tmp_path / "s" / "runs" / "r" / "checkpoint.json"
    lines = path.read_bytes().split(b"\n")
    start = next(n for n, line in enumerate(lines) if line.startswith(b'"stream": "[\\"free'))
    at = next(n for n, line in enumerate(lines) if n > start and b'"sequence":3,' in line)
    lines[at] = lines[at][:40] + b"#" + lines[at][41:]
    path.write_bytes(b"\n".join(lines))
    report = await repair(url)
    assert report.left == ()
    assert [part.is_loss for part in report.done].count(True) >= 1
    assert await confirmed(url, "free") == [0, 1, 3, 4]
    assert await confirmed(url, "model") == [0, 1, 2]


async def test_a_repair_that_dies_before_the_end_leaves_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, database = f"sqlite:{tmp_path / 's'}", tmp_path / "s" / "state.db"
    await train(url)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE heads SET sequence = sequence - 1")
    before = database.read_bytes()

    def dies(*_: object) -> None:
        raise OSError(5, "the power went")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(Exception, match="the power went"):
            await repair(url)
    assert database.read_bytes() == before
    assert (await repair(url)).left == ()
    assert await confirmed(url, "free") == [0, 1, 2, 3, 4]


async def test_a_store_with_another_key_is_not_touched(tmp_path: Path) -> None:
    """All its records look damaged, and none is."""
    folder = tmp_path / "s"
    store = await open_store(folder, mac_key=b"a key")
    async with begin(store) as run, run.open_stream("s") as s:
        async for batch in s.batches(range(2)):
            batch.complete()
    await store.aclose()
    before = (folder / "state.db").read_bytes()
    with pytest.raises(Exception, match="not one record can be opened: it is sealed with another"):
        await repair(str(folder), accept_loss=True)
    assert (folder / "state.db").read_bytes() == before


@pytest.mark.parametrize("name", ["lock", "blobs"])
async def test_a_repair_goes_into_no_link(tmp_path: Path, name: str) -> None:
    """The command opens the store first, which refuses, too; a repair must not rely on that."""
    store = await open_store(tmp_path / "s")
    await store.aclose()
    (tmp_path / "s" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "s" / name).symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").iterdir())
    with pytest.raises(StoreError, match=f"{name} is a symbolic link: refused"):
        repair_folder(tmp_path / "s", "sqlite", mac_key=None, accept_loss=False)
    assert sorted((tmp_path / "elsewhere").iterdir()) == before
