"""Kills a program that writes rows, at every call into its database, and counts what is wrong.

``python -m tests.sinks.kills 200`` does so in SQLite and, where it is installed, in PostgreSQL;
``--keep`` keeps the figures for the documentation.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.hangs import PROGRAM_S
from tests.proof import keep_row
from tests.sinks.program import connect, make_tables, read_rows, undisturbed
from tests.stores.postgres.servers import find_programs, running_server

ROOT = Path(__file__).parents[2]
POINTS = 40  # from the opening to the third batch of a session
STEP = 3  # each point is reached, also by a few kills from the first to the last


def run_program(database: str, store: str, point: int) -> int:
    """Run the program until it is killed at a point, or ends; returns its exit code."""
    command = [sys.executable, "-m", "tests.sinks.program", database, store, str(point)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PROGRAM_S, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(done.stderr.decode())
    return done.returncode


def sweep(database: str, folder: Path, kills: int) -> Counter[str]:
    """Kill the program so often, a run after the other; returns the counts of what was found."""
    make_tables(database)
    found, number = Counter({"kills": 0, "runs": 0, "wrong": 0}), 0
    while found["kills"] < kills:
        store = str(folder / f"{found['runs']}.ckpt")
        is_over = False
        while not is_over:
            point = number * STEP % POINTS + 1 if found["kills"] < kills else 0
            number += 1
            is_over = run_program(database, store, point) == 0
            found["kills"] += not is_over
        found["runs"] += 1
        found["wrong"] += read_rows(database) != undisturbed()
        empty(database)
    return found


def empty(database: str) -> None:
    """Let the next run begin with an empty database."""
    connection = connect(database)
    for statement in (
        "DELETE FROM pages",
        "UPDATE counted SET batches = 0",
        "DELETE FROM trio_ckpt_markers",
    ):
        connection.execute(statement)
    connection.commit()
    connection.close()


def sweep_and_keep(kind: str, database: str, folder: Path, kills: int, *, is_kept: bool) -> None:
    found = sweep(database, folder, kills)
    print(kind, dict(found))
    if is_kept:
        name = f"sinks: kill -9 at every statement, {kind}"
        keep_row(
            name, {"kills": kills, "runs": found["runs"], "runs with wrong rows": found["wrong"]}
        )


def main(kills: int, *, is_kept: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        sweep_and_keep("SQLite", f"{name}/rows.db", Path(name), kills, is_kept=is_kept)
    if find_programs() is not None:
        with running_server("fsync=off") as server, tempfile.TemporaryDirectory() as name:
            sweep_and_keep("PostgreSQL", server.url(), Path(name), kills, is_kept=is_kept)


if __name__ == "__main__":
    main(int(sys.argv[1]), is_kept="--keep" in sys.argv)
