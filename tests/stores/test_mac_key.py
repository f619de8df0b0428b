"""A store that is sealed with a key: who has it not can read, and can change nothing unseen.

What a seal cannot see is a store that was put back to what it once was: there is no witness.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trio_ckpt
from tests.maintenance.export_tools import everything
from trio_ckpt._journal.record import Record, Seal, encode_record
from trio_ckpt._maintenance.export import export_run
from trio_ckpt._maintenance.import_ import import_run
from trio_ckpt._util.errors import StoreDamagedError, StoreError
from trio_ckpt._util.plain import RUN_STREAM
from trio_ckpt.abc import Store
from trio_ckpt.stores import open_store, read_mac_key

KEY, OTHER = b"k" * 32, b"o" * 32
STREAM = ("a",)


@asynccontextmanager
async def opened(folder: Path, key: bytes | None = KEY) -> AsyncGenerator[Store]:
    store = await open_store(folder, mac_key=key)
    try:
        yield store
    finally:
        await store.aclose()


async def work(folder: Path, *, run_id: str = "r", batches: int = 3, fresh: bool = False) -> None:
    """A run of two streams, sealed with the key."""
    async with (
        opened(folder) as store,
        trio_ckpt.open_run(run_id, store=store, handle_signals=False, fresh=fresh) as run,
    ):
        for name in ("a", "b"):
            async with run.open_stream(name) as stream:
                async for batch in stream.batches(range(batches)):
                    batch.complete(records=batch.index + 1)


async def records_of(folder: Path, run_id: str = "r") -> int:
    async with opened(folder) as store:
        view = await store.load_run(run_id)
    assert view is not None
    return view.streams[STREAM].progress.records


def change(folder: Path, *statements: str, values: Sequence[Any] = ()) -> None:
    """A record by an attacker who has the folder and not the key."""
    with closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, values)


def row(run: str = "r", generation: int = 1, key: str = "a", place: int = 1) -> str:
    """A row of the log: of those of a stream the oldest has place 0."""
    return (
        "(SELECT log.id FROM log JOIN streams ON streams.id = log.stream "
        f"JOIN runs ON runs.id = run WHERE run_id = '{run}' "
        f"AND streams.generation = {generation} AND streams.stream = '[\"{key}\"]' "
        f"ORDER BY log.id LIMIT 1 OFFSET {place})"
    )


def swap(one: str, other: str) -> list[str]:
    """Exchange the payloads of two rows."""
    return [
        f"CREATE TEMP TABLE held AS SELECT payload FROM log WHERE id = {one}",
        f"UPDATE log SET payload = (SELECT payload FROM log WHERE id = {other}) WHERE id = {one}",
        f"UPDATE log SET payload = (SELECT payload FROM held) WHERE id = {other}",
    ]


NO_FOLD = "DELETE FROM folds"  # a resume reads it, and the records after it alone
ALTERED = "CAST(substr(payload, 1, 20) || X'00' || substr(payload, 22) AS BLOB)"
CHANGES = {
    "a byte is altered": [f"UPDATE log SET payload = {ALTERED} WHERE id = {row()}"],
    "two records of a stream change places": swap(row(place=0), row(place=1)),
    "two records of two streams change places": swap(row(key="a"), row(key="b")),
    "two records of two runs change places": swap(row(), row(run="other", generation=0)),
    "a record of an older generation comes back": swap(row(generation=0), row(generation=1)),
    "an older record is put in the place of a newer one": [
        f"UPDATE log SET payload = (SELECT payload FROM log WHERE id = {row(place=0)}) "
        f"WHERE id = {row(place=2)}"
    ],
    "a record is emptied": [f"UPDATE log SET payload = X'' WHERE id = {row()}"],
}


@pytest.mark.parametrize("statements", CHANGES.values(), ids=CHANGES)
async def test_what_is_changed_without_the_key_is_noticed(
    statements: list[str], tmp_path: Path
) -> None:
    await work(tmp_path)
    await work(tmp_path, fresh=True)
    await work(tmp_path, run_id="other")
    change(tmp_path, NO_FOLD, *statements)
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        await records_of(tmp_path)


async def test_a_record_that_is_sealed_without_the_key_is_reported(tmp_path: Path) -> None:
    """The form of a seal is public: who forges a record seals it without a key, or with another."""
    await work(tmp_path)
    for key, said in (
        (None, "with this MAC key: it is sealed without"),
        (OTHER, "sealed with another MAC key"),
    ):
        sealed = Seal("r", 0, STREAM, key).close(1, encode_record(Record(at=1.0, index=0)))
        change(tmp_path, NO_FOLD)
        change(
            tmp_path,
            f"UPDATE log SET payload = ? WHERE id = {row(generation=0, place=0)}",
            values=[sealed],
        )
        with pytest.raises(StoreDamagedError, match=said):
            await records_of(tmp_path)


async def test_a_fold_that_is_altered_is_noticed(tmp_path: Path) -> None:
    await work(tmp_path)
    change(tmp_path, f"UPDATE folds SET payload = {ALTERED}")
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        await records_of(tmp_path)


async def test_text_in_the_place_of_bytes_is_damage(tmp_path: Path) -> None:
    """And what it says stands on no line of its own."""
    await work(tmp_path)
    evil = "CAST(X'FF0A1B5B33316D' AS TEXT)"
    change(tmp_path, f"UPDATE folds SET payload = {evil}")
    with pytest.raises(StoreDamagedError) as caught:
        await records_of(tmp_path)
    assert str(caught.value).isprintable()


async def test_a_fold_of_another_stream_or_time_is_noticed(tmp_path: Path) -> None:
    await work(tmp_path)
    change(tmp_path, "UPDATE folds SET payload = (SELECT payload FROM folds LIMIT 1)")
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        await records_of(tmp_path)


@pytest.mark.parametrize("key", [None, OTHER])
async def test_a_wrong_or_missing_key_is_said_by_every_reader(
    key: bytes | None, tmp_path: Path
) -> None:
    await work(tmp_path)
    async with opened(tmp_path, key) as store:
        assert [run.run_id for run in await store.list_runs()] == ["r"]  # nothing sealed is in it
        with pytest.raises(StoreDamagedError, match="another MAC key"):
            await store.load_run("r")
        with pytest.raises(StoreDamagedError, match="another MAC key"):
            async with trio_ckpt.open_run("r", store=store, handle_signals=False):
                pass
        with pytest.raises(StoreDamagedError, match="another MAC key"):
            await export_run(store, "r", tmp_path / "r.zip")


async def test_a_key_for_a_store_that_has_none_is_reported(tmp_path: Path) -> None:
    async with (
        opened(tmp_path, None) as store,
        trio_ckpt.open_run("r", store=store, handle_signals=False),
    ):
        pass
    async with opened(tmp_path) as store:
        with pytest.raises(
            StoreDamagedError, match="with this MAC key: it is sealed without a key"
        ):
            await store.load_run("r")


# -- blobs --------------------------------------------------------------------------------


async def save_arrays(folder: Path) -> None:
    state = {"weights": np.random.default_rng(1).random(200_000)}
    async with (
        opened(folder) as store,
        trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
        run.open_stream("a", state=state) as stream,
    ):
        async for batch in stream.batches(range(1)):
            batch.complete()


async def test_arrays_in_a_blob_are_bound_to_its_name_with_a_key(tmp_path: Path) -> None:
    """Their own digests detect damage; an attacker can make those fit."""
    pytest.importorskip("xxhash")
    await save_arrays(tmp_path)
    (path,) = [path for path in (tmp_path / "blobs").glob("*/*") if path.stat().st_size > 2**16]
    whole = path.stat().st_size
    async with opened(tmp_path) as store:
        store_reads = store.read_blob

        async def altered(
            run_id: str, digest: str, offset: int = 0, size: int | None = None
        ) -> bytes:
            """As if the digests of the pieces fitted: only the whole is another."""
            part = await store_reads(run_id, digest, offset, size)
            return part[:-1] + b"?" if size == whole else part

        store.read_blob = altered  # type: ignore[method-assign]
        with pytest.raises(StoreDamagedError, match=r"was altered: restore a copy"):
            async with (
                trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
                run.open_stream("a", state={"weights": np.zeros(200_000)}),
            ):
                pass


# -- what a seal cannot see ---------------------------------------------------------------


async def test_newest_records_that_are_cut_off_are_not_noticed(tmp_path: Path) -> None:
    """Not promised, as SECURITY.md says: only a witness outside of the store could detect it."""
    await work(tmp_path)
    assert await records_of(tmp_path) == 6
    second = row(generation=0)
    change(
        tmp_path,
        NO_FOLD,
        "UPDATE heads SET sequence = 2, last = "
        f"{second} WHERE stream = (SELECT stream FROM log WHERE id = {second})",
    )
    assert await records_of(tmp_path) == 3


async def test_a_whole_store_that_is_put_back_is_not_noticed(tmp_path: Path) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    await work(store)
    shutil.copytree(store, copy)
    await work(store, batches=5)
    assert await records_of(store) == 15
    shutil.rmtree(store)
    shutil.copytree(copy, store)
    assert await records_of(store) == 6


# -- another key --------------------------------------------------------------------------


async def test_a_run_gets_another_key_by_export_and_import(tmp_path: Path) -> None:
    await work(tmp_path / "old")
    async with opened(tmp_path / "old") as old:
        await export_run(old, "r", tmp_path / "r.zip")
        before = await everything(old, "r")
    async with opened(tmp_path / "new", OTHER) as new:
        await import_run(new, tmp_path / "r.zip")
        after = await everything(new, "r")
        assert {key: after[key] for key in after if key != RUN_STREAM} == {
            key: before[key] for key in before if key != RUN_STREAM
        }
    async with opened(tmp_path / "new", KEY) as wrong:
        with pytest.raises(StoreDamagedError, match="another MAC key"):
            await wrong.load_run("r")


# -- the key itself -----------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"", b"x" * 65])
async def test_a_key_that_is_none_is_refused(key: bytes, tmp_path: Path) -> None:
    """An empty key would protect nothing, without an error."""
    with pytest.raises(ValueError, match="1 to 64 bytes"):
        await open_store(tmp_path / "s", mac_key=key)
    with pytest.raises(TypeError, match="is bytes"):
        await open_store(tmp_path / "s", mac_key="text")  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_a_key_is_read_from_a_file_that_only_its_user_may_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b" 0123456789abcdef\n")
    path.chmod(0o600)
    assert read_mac_key(path) == b"0123456789abcdef"
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(StoreError, match="may be read by others"):
            read_mac_key(path)
    path.chmod(0o600)
    for content in (b"", b"short", b"x" * 65, b"x" * 10_000):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="holds no key"):
            read_mac_key(path)


def test_seals_with_and_without_a_key_are_as_they_ever_were() -> None:
    """Stores that are there must be read: these bytes are part of the format."""
    assert Seal("r", 0, STREAM, None).close(1, b"x").hex() == "a157bd7723fd6aa3179ef24688ec2ab378"
    assert Seal("r", 0, STREAM, KEY).close(-2, b"x").hex() == "65337f14702e3dfba640b9a6c202e68a78"
