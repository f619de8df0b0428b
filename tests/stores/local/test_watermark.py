"""The watermark of a run lies beside its records, and a loss of records is detected by it."""

from __future__ import annotations

import logging
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.stores.tools import A, chain, make
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.abc import Finding, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local.watermark import (
    Watermark,
    decode_watermark,
    encode_watermark,
    read_watermark,
    watermark_path,
)

SCHEMES = pytest.mark.parametrize("scheme", ["sqlite", "json"])
SEEN = Watermark("run/ä\n", 3, 1, 42)


async def damages(store: Store) -> list[Finding]:
    async with aclosing(store.check()) as findings:
        return [finding async for finding in findings if finding.is_damage]


def test_a_watermark_decodes_to_what_was_encoded() -> None:
    assert decode_watermark(encode_watermark(SEEN)) == SEEN


def test_every_altered_bit_of_a_watermark_is_detected() -> None:
    content = encode_watermark(SEEN)
    for at in range(8 * len(content)):
        altered = bytearray(content)
        altered[at // 8] ^= 1 << at % 8
        assert decode_watermark(bytes(altered)) is None


def test_a_watermark_has_the_same_length_at_any_progress() -> None:
    """So that it is replaced by one write."""
    assert len(encode_watermark(Watermark("r", 1, 0, 0))) == len(
        encode_watermark(Watermark("r", 10**9, 7, 10**12))
    )


@pytest.mark.parametrize("content", [b"", bytes(121)])
def test_a_watermark_that_power_loss_emptied_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.seen"
    path.write_bytes(content)
    assert read_watermark(path) is None


@SCHEMES
async def test_the_watermark_equals_what_was_acknowledged(scheme: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run, path = RunKey("run", 0, owner), watermark_path(folder, "run")
        assert read_watermark(path) == Watermark("run", 1, 0, 0)
        await store.save(run, chain(A, 1, 3))
        assert read_watermark(path) == Watermark("run", 1, 0, 3)
        await store.save(run, [*chain(A, 4, 4), *chain(A, 9, 9)])  # one of them fails
        assert read_watermark(path) == Watermark("run", 1, 0, 4)
        await store.save(RunKey("run", 1, owner), chain(A, 1, 2))
        assert read_watermark(path) == Watermark("run", 1, 1, 6)
    async with store.lock_run("run") as owner:
        assert read_watermark(path) == Watermark("run", 2, 1, 6)
        await store.prune(RunKey("run", 1, owner), keep=1)
        assert read_watermark(path) == Watermark("run", 2, 1, 2)
        assert await damages(store) == []
        await store.prune(RunKey("run", 1, owner), keep=0)
        assert read_watermark(path) == Watermark("run", 2, 1, 0)
    assert await damages(store) == []
    await store.aclose()


@SCHEMES
async def test_an_older_copy_is_noticed_and_said_at_the_start(
    scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "store"
    await make(folder, *chain(A, 1, 2), scheme=scheme)
    names = ["state.db"] if scheme == "sqlite" else ["runs/run/checkpoint.json"]
    names += [str(path.relative_to(folder)) for path in folder.glob("runs/run/journal.*")]
    older = {name: (folder / name).read_bytes() for name in names}
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), chain(A, 3, 5)) == [None] * 3
    await store.aclose()
    for path in folder.glob("runs/run/*"):
        path.unlink()
    for name, content in older.items():
        (folder / name).write_bytes(content)
    store = await open_store(f"{scheme}:{folder}")
    (damage,) = await damages(store)
    assert "has 2 checkpoints in 1 generation, 5 in 1 were acknowledged" in damage.what
    caplog.clear()
    async with store.lock_run("run"):
        pass
    await store.aclose()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "acknowledged: there were 5 in 1 generation, there are 2 in 1;" in record.getMessage()


@SCHEMES
async def test_a_run_that_is_gone_is_noticed(scheme: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = await open_store(f"{scheme}:{folder}")
    for name in ("run", "other"):
        async with store.lock_run(name) as owner:
            await store.save(RunKey(name, 0, owner), chain(A, 1, 1))
    await store.aclose()
    if scheme == "json":
        for path in folder.glob("runs/other/*"):
            path.unlink()
        (folder / "runs" / "other").rmdir()
    else:
        import sqlite3

        with sqlite3.connect(folder / "state.db") as connection:
            for table in ("runs WHERE id = 2", "streams WHERE id = 2", "heads WHERE stream = 2"):
                connection.execute(f"DELETE FROM {table}")
            connection.execute("DELETE FROM log WHERE stream = 2")
        connection.close()
    store = await open_store(f"{scheme}:{folder}")
    (damage,) = await damages(store)
    assert damage.what == "run 'other' is gone, with 1 checkpoint"
    await store.aclose()


async def test_a_lost_database_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await make(folder, *chain(A, 1, 2))
    for make_it_so in ((folder / "state.db").write_bytes, lambda _: (folder / "state.db").unlink()):
        make_it_so(b"")
        with pytest.raises(StoreDamagedError, match="with 2 checkpoints of run 'run': restore"):
            await open_store(f"sqlite:{folder}")


async def test_a_watermark_that_cannot_be_written_fails_no_save(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await make(folder)
    path = watermark_path(folder, "run")
    path.unlink()
    path.mkdir()
    store = await open_store(f"sqlite:{folder}")
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), chain(A, 1, 1)) == [None]
    await store.aclose()


async def test_a_store_whose_database_was_replaced_under_it_takes_no_more(tmp_path: Path) -> None:
    """What it would save would go into the old file, which has no name any more."""
    folder = tmp_path / "store"
    await make(folder, *chain(A, 1, 1))
    store = await open_store(f"sqlite:{folder}")
    assert len(await store.list_runs()) == 1
    copy = folder / "copy"
    copy.write_bytes((folder / "state.db").read_bytes())
    copy.rename(folder / "state.db")
    with pytest.raises(Exception, match=r"state\.db was replaced since the store was opened"):
        async with store.lock_run("run"):
            pass
    assert len(await store.list_runs()) == 1  # reading goes on, in the new one
    await store.aclose()
