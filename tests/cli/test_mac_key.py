"""A store that is sealed with a key, from the command line: the key is in a file, never typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.cli.test_verify_full import alter
from tests.cli.tools import Terminal
from trio_ckpt.cli._app import COMMANDS
from trio_ckpt.cli._options import MAC_KEY_VAR
from trio_ckpt.stores import open_store, read_mac_key

KEY = b"a key of 32 characters, as hex.."


def key_file(folder: Path, key: bytes = KEY) -> Path:
    path = folder / f"{key[:5].decode()}.key"
    path.write_bytes(key + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    async def work() -> None:
        store = await open_store(tmp_path / "s", mac_key=read_mac_key(key_file(tmp_path)))
        async with (
            trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
            run.open_stream("a") as stream,
        ):
            async for batch in stream.batches(range(3)):
                batch.complete(records=1)
        await store.aclose()

    trio.run(work)
    return tmp_path / "s"


READS = [["show"], ["explain"], ["history"], ["history", "--stream", "a"], ["watch"], ["doctor"]]


@pytest.mark.parametrize("typed", READS, ids=" ".join)
def test_with_the_key_it_reads(
    run: Terminal, sealed: Path, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *rest = typed
    option = ["--mac-key-file", key_file(sealed.parent)]
    said = run(command, sealed, *rest, *option)
    assert "MAC key" not in said.out + said.err
    assert said.code == (1 if command == "doctor" and said.code == 1 else 0)
    monkeypatch.setenv(MAC_KEY_VAR, str(key_file(sealed.parent)))
    assert run(command, sealed, *rest).code == said.code


@pytest.mark.parametrize("typed", READS, ids=" ".join)
def test_without_the_key_or_with_another_it_says_so(
    run: Terminal, sealed: Path, tmp_path: Path, typed: list[str]
) -> None:
    command, *rest = typed
    for option in ([], ["--mac-key-file", key_file(tmp_path, b"other" * 5)]):
        said = run(command, sealed, *rest, *option)
        assert said.code != 0
        assert "sealed with another MAC key" in said.out + said.err


def test_commands_that_write_seal_with_it(run: Terminal, sealed: Path, tmp_path: Path) -> None:
    """And `export` and `import` with another one are how a key is changed."""
    old, new = key_file(tmp_path), key_file(tmp_path, b"newer" * 8)
    with_old = ["--mac-key-file", old]
    retried = run("retry", sealed, "r", "--stream", "a", "--batches", "1", "--yes", *with_old)
    assert retried.code == 0
    assert run("export", sealed, "r", tmp_path / "r.zip", "--no-outputs", *with_old).code == 0
    into = tmp_path / "t"
    assert run("import", into, tmp_path / "r.zip", "--mac-key-file", new).code == 0
    assert run("show", into, "--mac-key-file", new).code == 0
    assert run("show", into, *with_old).code == 6
    assert run("reset", into, "r", "--yes", "--mac-key-file", new).code == 0


def test_a_key_that_others_may_read_is_refused(run: Terminal, sealed: Path, tmp_path: Path) -> None:
    path = key_file(tmp_path)
    path.chmod(0o644)
    said = run("show", sealed, "--mac-key-file", path)
    assert said.code == 6
    assert "may be read by others: chmod 600" in said.err
    assert run("show", sealed, "--mac-key-file", tmp_path / "none").code == 4


def test_every_command_on_a_store_takes_its_file_never_the_key_itself(
    run: Terminal,
) -> None:
    for command in COMMANDS:
        said = run(command, "--help").out
        assert ("--mac-key-file" in said) == (command not in ("new", "worker")), command
        assert "--mac-key " not in said
        assert "--mac-key=" not in said


def test_a_sealed_store_is_repaired_with_its_key(run: Terminal, sealed: Path) -> None:
    """Its records are believed by that key, and what is rewritten is sealed with it."""
    alter(sealed, '["a"]', 2)
    option = ["--mac-key-file", key_file(sealed.parent)]
    assert run("verify", sealed, "--full", *option).code == 1
    assert run("verify", sealed, "--repair", "--yes", *option).code == 0
    assert run("verify", sealed, "--full", *option).code == 0


@pytest.mark.parametrize("key", [None, b"another key of 32 characters...."])
def test_without_its_key_nothing_of_a_sealed_store_is_repaired(
    run: Terminal, sealed: Path, key: bytes | None
) -> None:
    """Every record looks damaged then, and none may be given up for that."""
    before = (sealed / "state.db").read_bytes()
    option = [] if key is None else ["--mac-key-file", key_file(sealed.parent, key)]
    said = run("verify", sealed, "--repair", "--accept-loss", "--yes", *option)
    assert said.code != 0
    assert (sealed / "state.db").read_bytes() == before
    with_key = ["--mac-key-file", key_file(sealed.parent)]
    assert run("verify", sealed, "--full", *with_key).code == 0
