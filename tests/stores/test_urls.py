"""What `open_store` takes, and what it refuses."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trio_ckpt
from tests.monitor.client import serving
from trio_ckpt import UnknownRunError, open_run
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._maintenance.offline import open_maintenance
from trio_ckpt._util.errors import (
    StoreError,
)
from trio_ckpt.abc import BlobPayload, RunKey, Store
from trio_ckpt.cli import main
from trio_ckpt.stores import MemoryStore, open_store


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


@pytest.mark.parametrize("url", ["mysql://h/d", "ftp://b/p", "re:2025", "SQLITE:x"])
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

    async def counted(run: RunKey, payload: BlobPayload) -> str:
        put.append(payload)
        return await put_blob(run, payload)

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


SECRET_URL = "postgresql://me:sesame@host/db?password=sesame"
SHOWN_URL = "postgresql://me:***@host/db?password=***"


async def test_a_password_is_not_shown_by_what_refuses_its_url(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=re.escape(SHOWN_URL)) as caught:
        await open_store(SECRET_URL)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ["ls"],
        ["show"],
        ["show", "run", "--json"],
        ["explain", "--json"],
        ["verify", "--full", "--json"],
        ["verify", "--full", "--repair", "--yes"],
        ["doctor", "--json"],
        ["prune", "run", "--keep", "1"],
        ["export", "run", "x.zip"],
    ],
    ids=" ".join,
)
def test_a_password_is_not_shown_by_commands(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command[0], SECRET_URL, *command[1:]]
    main(words)
    output = "".join(capsys.readouterr())
    assert SHOWN_URL in output.replace("\n", "")
    assert "sesame" not in output


class _SecretStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.address = SECRET_URL


async def test_a_password_is_not_shown_by_a_run(caplog: pytest.LogCaptureFixture) -> None:
    """Not in its log, its errors, its views from outside, nor in what the REST interface says."""
    caplog.set_level("DEBUG")
    store = _SecretStore()
    async with open_run(store=store, run_id="run") as run:
        async with run.open_stream("a") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
        async with serving(run) as (client, _):
            answers = [await client.get(f"/api/runs{rest}") for rest in ("", "/run", "/none")]
    status = await read_run_status(store, "run")
    async with serving(store) as (client, _):
        answers += [await client.get(f"/api/runs{rest}") for rest in ("", "/run", "/none")]
    for answer in answers:
        assert b"sesame" not in answer.body
    assert any(SHOWN_URL.encode() in answer.body for answer in answers)
    with pytest.raises(UnknownRunError) as unknown:
        async with open_maintenance(store, "none"):
            pass
    with pytest.raises(StoreError) as unchecked:
        Store.check(store)
    await store.aclose()
    with pytest.raises(StoreError) as closed:
        await store.read_run("run")
    assert (
        "sesame" not in f"{unknown.value} {unchecked.value} {closed.value} {caplog.text} {status!r}"
    )


def test_addresses_are_read_where_stores_are_opened_and_wrapped() -> None:
    """`Store.address` may hold a password: no other file of the package reads it."""
    package = Path(trio_ckpt.__file__).parent
    reads = re.compile(r"store\.address\b|self\.address\b")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if reads.search(path.read_text())
    }
    assert {name for name in found if not name.startswith("stores/")} == {
        "_journal/store.py",  # makes the URL of it
        "engines/_item_store.py",
        "engines/_job.py",  # gives it to the processes that open the store for an item
        "remote/_worker/remote_store.py",
        "testing/_faulty.py",
    }
