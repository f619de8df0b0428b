"""Blobs of a store of format 2, which has one folder for those of all runs."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import hashlib
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.opening import begin
from tests.stores.tools import A, B, chain, owned, path_of_blob
from trio_ckpt._maintenance.repair import repair_folder
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.abc import Checkpoint, Finding, Store
from trio_ckpt.stores import open_store

LOCAL = pytest.mark.parametrize("scheme", ["sqlite", "json"])
PAYLOAD = b"blob" * 1000
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()


def shared(folder: Path) -> Path:
    return folder / "blobs" / DIGEST[:2] / DIGEST


async def make_shared(url: str, folder: Path) -> Store:
    """A store whose runs ``run`` and ``other`` name one blob: the payload and an attached one."""
    store = await open_store(url)
    for run_id in ("run", "other"):
        async with owned(store, run_id) as run:
            await store.put_blob(run, PAYLOAD)
            group = [Checkpoint(A, 1, b"", DIGEST), Checkpoint(B, 1, b"one", blobs=(DIGEST,))]
            assert await store.save(run, group) == [None, None]
    shared(folder).parent.mkdir()
    for run_id in ("run", "other"):
        path_of_blob(folder, DIGEST, run_id).rename(shared(folder))
        path_of_blob(folder, DIGEST, run_id).parent.rmdir()
    return store


async def findings(store: Store) -> list[Finding]:
    async with aclosing(store.check()) as found:
        return [finding async for finding in found]


@LOCAL
async def test_they_are_read_and_named_again(scheme: str, folder: Path) -> None:
    store = await make_shared(f"{scheme}:{folder}", folder)
    assert await findings(store) == []
    for run_id in ("run", "other"):
        assert (await store.history(run_id, A)).records[0].payload == PAYLOAD
        assert await store.read_blob(run_id, DIGEST) == PAYLOAD
        async with owned(store, run_id) as run:
            assert await store.save(run, [Checkpoint(B, 2, b"two", blobs=(DIGEST,))]) == [None]
    await store.aclose()


@LOCAL
async def test_they_stay_when_a_run_goes(scheme: str, folder: Path) -> None:
    """Another run may name them."""
    store = await make_shared(f"{scheme}:{folder}", folder)
    async with owned(store) as run:
        await store.drop_blobs(run, B, [1])
        await store.prune(run, keep=0)
    assert await findings(store) == []
    assert await store.read_blob("other", DIGEST) == PAYLOAD
    async with owned(store, "other") as run:
        await store.save(run, chain('["c"]', 1, 1))
        await store.prune(run, keep=0)
    (finding,) = await findings(store)
    assert (finding.what, finding.is_damage) == ("no record names it", False)
    assert shared(folder).exists()
    async with begin(store, run_id="third"):  # a repair needs a record that it can open
        pass
    await store.aclose()
    repair_folder(folder, scheme, mac_key=None, accept_loss=True)
    assert not shared(folder).exists()
    assert len(list(folder.glob(f"damaged/*/blobs/*/{DIGEST}"))) == 1


@LOCAL
async def test_one_that_is_put_again_is_the_runs_own(scheme: str, folder: Path) -> None:
    store = await make_shared(f"{scheme}:{folder}", folder)
    async with owned(store) as run:
        await store.put_blob(run, PAYLOAD)
        assert await store.save(run, [Checkpoint(B, 2, b"two", blobs=(DIGEST,))]) == [None]
        assert path_of_blob(folder, DIGEST).exists()
    shared(folder).unlink()
    assert await store.read_blob("run", DIGEST) == PAYLOAD
    with pytest.raises(StoreDamagedError):
        await store.read_blob("other", DIGEST)
    damaged = [finding for finding in await findings(store) if finding.is_damage]
    assert {finding.run_id for finding in damaged} == {"other"}
    await store.aclose()
