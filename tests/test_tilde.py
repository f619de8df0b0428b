"""A ``~`` that no shell has expanded is refused wherever a path is taken, and makes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.tools import Terminal
from trio_ckpt import OutputError, StoreError, export_run, import_run, open_run
from trio_ckpt.outputs import OutputDir
from trio_ckpt.stores import JsonStore, MemoryStore, SqliteStore, read_mac_key

TYPED = ["~/x", "~", "~guest/x"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def one_run() -> MemoryStore:
    store = MemoryStore()
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
    return store


@pytest.mark.parametrize("path", TYPED)
async def test_an_archive_is_neither_written_nor_read_there(path: str) -> None:
    store = await one_run()
    with pytest.raises(ValueError, match=r"^path must be a path without '~'"):
        await export_run(store, "r", path)
    with pytest.raises(ValueError, match=r"^path must be a path without '~'"):
        await import_run(MemoryStore(), path)
    assert os.listdir() == []


@pytest.mark.parametrize("path", TYPED)
async def test_an_import_makes_no_such_folder(path: str) -> None:
    await export_run(await one_run(), "r", "r.zip")
    store = MemoryStore()
    with pytest.raises(ValueError, match=r"^output_dir must be a path without '~'"):
        await import_run(store, "r.zip", output_dir=path)
    assert os.listdir() == ["r.zip"]
    assert await store.load_run("r") is None


@pytest.mark.parametrize("kind", [SqliteStore, JsonStore])
async def test_a_store_makes_no_such_folder(kind: type[SqliteStore | JsonStore]) -> None:
    with pytest.raises(StoreError, match=r"os\.path\.expanduser"):
        await kind.open("~/x")
    assert os.listdir() == []


def test_folders_of_outputs_and_files_of_keys_are_refused() -> None:
    with pytest.raises(OutputError, match=r"os\.path\.expanduser"):
        OutputDir.open(Path("~/out"))
    with pytest.raises(ValueError, match=r"^path must be a path without '~'"):
        read_mac_key("~/key")
    assert os.listdir() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", "~/gh.ckpt"),
        ("ls", "sqlite:~/gh.ckpt"),
        ("ls", "gh.ckpt", "--mac-key-file=~/key"),
        ("doctor", "~/gh.ckpt"),
        ("export", "gh.ckpt", "r", "~/r.zip"),
        ("export", "gh.ckpt", "r", "r.zip", "--output-dir=~/out"),
        ("import", "gh.ckpt", "~/r.zip"),
        ("import", "gh.ckpt", "r.zip", "--output-dir=~/out"),
        ("compact", "gh.ckpt", "r", "--archive=~/old.ckpt", "--yes"),
        ("verify", "gh.ckpt", "r", "--output-dir=~/out"),
        ("foreman", "jobs.ckpt", "--secret-file=~/secret"),
        ("monitor", "gh.ckpt", "--tls-cert=~/cert"),
    ],
)
def test_the_command_refuses_it(run: Terminal, arguments: tuple[str, ...]) -> None:
    said = run(*arguments)
    assert said.code == 2
    assert "~" in said.err
    assert os.listdir() == []


def test_a_variable_is_no_shell_either(run: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_CKPT_MAC_KEY_FILE", "~/key")
    said = run("ls", "gh.ckpt")
    assert said.code == 2
    assert "~/key" in said.err
