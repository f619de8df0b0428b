"""What `open_store` takes, and what it refuses."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trio_ckpt import open_run
from trio_ckpt._util.errors import (
    StoreError,
)
from trio_ckpt.abc import BlobPayload, Store
from trio_ckpt.stores import open_store


@pytest.mark.parametrize("url", ["plain", "sqlite:plain", "./plain", Path("plain")])
async def test_url_of_a_folder(
    url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store(url)
    monkeypatch.chdir("/")
    assert store.url == f"sqlite:{tmp_path / 'plain'}"
    async with store.lock_run("run"):  # a later chdir changes nothing
        pass
    await store.aclose()
    await (await open_store(store.url)).aclose()


@pytest.mark.parametrize("url", ["C:\\x", "./re:2025", "sqlite:re:2025", "a/b:c", "10:30"])
async def test_colon_in_a_folder(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await (await open_store(url)).aclose()
    assert (tmp_path / url.removeprefix("sqlite:") / "state.db").exists()


@pytest.mark.parametrize("url", ["postgresql://h/d", "s3://b/p", "re:2025", "SQLITE:x"])
async def test_unknown_scheme(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StoreError, match=r"no stores of kind '.*:'; known are sqlite:.*json:.*memory:"
    ):
        await open_store(url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", ["", "sqlite:", "sqlite:///x", "json:", "json://x", "memory:x", "a\0b"]
)
async def test_url_that_names_nothing(url: str) -> None:
    with pytest.raises(StoreError):
        await open_store(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (" ", "names no folder"),
        ("\t", "names no folder"),
        ("json: ", "names no folder"),
        (":memory:", "write 'memory:'"),
        ("sqlite::memory:", "write 'memory:'"),
        ("~/x.ckpt", r"os\.path\.expanduser"),
        ("~", r"os\.path\.expanduser"),
        ("~guest/x.ckpt", r"os\.path\.expanduser"),
        ("sqlite:~/x.ckpt", r"os\.path\.expanduser"),
        ("json:~/x.ckpt", r"os\.path\.expanduser"),
        (Path("~/x.ckpt"), r"os\.path\.expanduser"),
    ],
)
async def test_what_is_typed_by_mistake_makes_no_folder(
    url: str | Path, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=said):
        await open_store(url)
    assert not list(tmp_path.iterdir())


async def test_a_folder_that_is_named_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await (await open_store("./~")).aclose()
    assert (tmp_path / "~" / "state.db").exists()


async def test_url_of_readable_files(folder: Path) -> None:
    store = await open_store(f"json:{folder}")
    assert store.url == f"json:{folder}"
    await store.aclose()
    await (await open_store(store.url, create=False)).aclose()
    assert (folder / "store.json").exists()


@pytest.mark.parametrize("kinds", [("sqlite", "json"), ("json", "sqlite")])
async def test_store_of_another_kind(folder: Path, kinds: tuple[str, str]) -> None:
    """A folder is one kind of store; opened as the other it is refused and left as it is."""
    await (await open_store(f"{kinds[0]}:{folder}")).aclose()
    before = sorted(folder.rglob("*"))
    with pytest.raises(StoreError, match="is not a trio_ckpt"):
        await open_store(f"{kinds[1]}:{folder}")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_a_folder_is_opened_as_what_is_in_it(folder: Path, kind: str, create: bool) -> None:
    await (await open_store(f"{kind}:{folder}")).aclose()
    before = sorted(folder.rglob("*"))
    for url in (str(folder), folder):
        store = await open_store(url, create=create)
        assert store.url == f"{kind}:{folder}"
        await store.aclose()
    assert {path for path in before if path.is_file()} <= set(folder.rglob("*"))


@pytest.mark.parametrize("kinds", [("sqlite", "json"), ("json", "sqlite")])
async def test_a_wrong_kind_is_refused_with_the_right_one(
    folder: Path, kinds: tuple[str, str]
) -> None:
    await (await open_store(f"{kinds[0]}:{folder}")).aclose()
    right = f"it is a {kinds[0]} store: {kinds[0]}:{folder}$"
    with pytest.raises(StoreError, match=right):
        await open_store(f"{kinds[1]}:{folder}", create=False)


async def test_a_stranger_of_the_name_of_a_marker_makes_no_store(folder: Path) -> None:
    folder.mkdir()
    (folder / "store.json").write_text("{}")
    with pytest.raises(StoreError, match=r"is not a trio_ckpt store: it holds 'store\.json'"):
        await open_store(folder)


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
async def test_settings_arrive(scheme: str, folder: Path) -> None:
    store = await open_store(f"{scheme}:{folder}", mac_key=b"key", durability="process")
    assert (store.mac_key, store.durability) == (b"key", "process")
    await store.aclose()
    assert (await open_store("memory:", mac_key=b"key")).mac_key == b"key"


def count_blobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is put as a blob from here on."""
    put: list[object] = []
    put_blob = store.put_blob

    async def counted(payload: BlobPayload) -> str:
        put.append(payload)
        return await put_blob(payload)

    monkeypatch.setattr(store, "put_blob", counted)
    return put


@pytest.mark.parametrize("url", ["sqlite:s", "json:s", "memory:"])
async def test_from_which_size_on_a_record_is_a_file_is_a_setting(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts: dict[int, int] = {}
    for limit in (1_000, 100_000):
        store = await open_store(url, inline_limit_bytes=limit)
        put = count_blobs(store, monkeypatch)
        async with open_run(f"r{limit}", store=store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete(metadata={"note": "x" * 5_000})
        counts[limit] = len(put)
        await store.aclose()
    assert counts == {1_000: 3, 100_000: 0}


@pytest.mark.parametrize("url", ["sqlite:s", "json:s", "memory:"])
@pytest.mark.parametrize("limit", [0, -1, 1.5, math.nan, True, "1000", None, 2**26 + 1])
async def test_a_wrong_size_is_refused_and_makes_no_store(
    url: str, limit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=r"^inline_limit_bytes must be an int from 1"):
        await open_store(url, inline_limit_bytes=limit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"durability": "none"}, {"durability": 5}, {"create": "no"}])
@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_a_wrong_option_is_refused_and_makes_no_store(
    kind: str, option: dict[str, Any], tmp_path: Path
) -> None:
    name = next(iter(option))
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must be "):
        await open_store(f"{kind}:{tmp_path / 's'}", **option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [10_000, 2**20])
async def test_small_arrays_are_files_where_records_are(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path / "s", inline_limit_bytes=limit)
    put = count_blobs(store, monkeypatch)
    state = {"a": np.random.default_rng(1).normal(size=5_000)}  # 40 kB
    async with open_run("r", store=store) as run, run.open_stream("s", state=state) as stream:
        async for batch in stream.batches(range(2)):
            stream.state["a"] += 1
            batch.complete()
    history = await store.history("r", '["s"]')
    with_arrays = [stored for stored in history.records if stored.blobs]
    assert len(with_arrays) == len(put) == (3 if limit == 10_000 else 0)
    await store.aclose()
