"""A program imports what it uses: a small run needs no more than its own way to the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hangs import PROGRAM_S

PROGRAM = """
import sys, trio
before = set(sys.modules)
import trio_ckpt

async def main():
    async with trio_ckpt.open_run("r", store="r.ckpt", output_dir="out") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                await batch.write_json(f"{batch.index}.json", batch.index)
                batch.complete(records=1)

trio.run(main)
print("\\n".join(sorted(set(sys.modules) - before)))
"""

NOT_NEEDED = [
    "difflib",
    "email",
    "fractions",
    "gzip",
    "html",
    "importlib.metadata",
    "numpy",
    "obstore",
    "psycopg",
    "subprocess",
    "tokenize",
    "trio_ckpt._commit.archive_states",
    "trio_ckpt._commit.give_up",
    "trio_ckpt._commit.state_manager",
    "trio_ckpt._commit.stored_state",
    "trio_ckpt._runs.code",
    "trio_ckpt._runs.code_digest",
    "trio_ckpt._runs.parallel",
    "trio_ckpt._runs.steering",
    "trio_ckpt.outputs._schema",
    "trio_ckpt.outputs._structure",
    "trio_ckpt.outputs._validate",
    "trio_ckpt.remote",
    "trio_ckpt.sinks._sink",
    "trio_ckpt.state._chain",
    "trio_ckpt.state._tree.flatten",
    "trio_ckpt.state._tree.format",
    "trio_ckpt.state._tree.frame",
    "trio_ckpt.state._tree.identity",
    "trio_ckpt.stores._local.check",
    "trio_ckpt.stores._sqlite.check",
    "trio_ckpt.stores._sqlite.wal",
    "zipfile",
    "zoneinfo",
]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a small run imports beyond trio."""
    folder: Path = tmp_path_factory.mktemp("small")
    program = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", NOT_NEEDED)
def test_a_small_run_does_without(imported: set[str], module: str) -> None:
    assert module not in imported


def test_what_it_needs_is_seen(imported: set[str]) -> None:
    """Else the others could not fail."""
    assert {"trio_ckpt._commit.gate", "trio_ckpt.stores._sqlite.writer", "sqlite3"} <= imported
