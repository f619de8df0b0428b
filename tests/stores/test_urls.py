"""What `open_store` takes, and what it refuses."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ckpt._errors import (
    StoreError,
)
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
async def test_a_wrong_kind_is_told_the_right_one(folder: Path, kinds: tuple[str, str]) -> None:
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
