"""DBOS: durable steps on SQLite, with its default settings.

    python dbos_steps.py --steps 1000 --folder DIR --loops 1

``--loops`` workflows run at the same time and do ``--steps`` steps between them. They are plain
functions, which DBOS runs on threads: here that was a quarter faster than its async ones.
"""

import argparse
import json
import sqlite3
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import sqlalchemy
from dbos import DBOS

# Under Python 3.12 and later, DBOS 3.4 stamps rows by unixepoch('subsec') (its
# _migration.get_sqlite_timestamp_expr), which is NULL in SQLite before 3.42, so it cannot launch.
SUBSEC_SINCE = (3, 42)


@DBOS.step()
def step(index: int) -> int:
    """One tiny step; its result is committed before the call returns."""
    return index


@DBOS.workflow()
def loop(steps: int) -> list[int]:
    """Steps one after another; the nanoseconds of each."""
    taken_ns = []
    for index in range(steps):
        started_ns = time.perf_counter_ns()
        step(index)
        taken_ns.append(time.perf_counter_ns() - started_ns)
    return taken_ns


def run(steps: int, folder: Path, loops: int) -> dict[str, object]:
    """Run the loops in ``folder``; the figures."""
    database = folder.absolute() / "dbos.sqlite"
    url = f"sqlite:///{database}"
    if sqlite3.sqlite_version_info < SUBSEC_SINCE:
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", supply_subsec)
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    empty_bytes = folder_bytes(folder)
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    handles = [DBOS.start_workflow(loop, share) for share in shares(steps, loops)]
    taken_ns = [each for handle in handles for each in handle.get_result()]
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    DBOS.destroy()
    return {
        "peer": f"dbos {version('dbos')}",
        "loops": loops,
        "steps": steps,
        "seconds": seconds,
        "steps_per_s": steps / seconds,
        "p50_us": statistics.median(taken_ns) / 1000,
        "cpu_s": cpu_s,
        "rss_bytes": peak_rss_bytes(),
        "db_bytes": folder_bytes(folder) - empty_bytes,
    }


def supply_subsec(connection: sqlite3.Connection, _record: object) -> None:
    """Replace SQLite's unixepoch by one that knows 'subsec'; it costs DBOS microseconds."""
    connection.create_function("unixepoch", -1, lambda *_modifiers: round(time.time(), 3))


def shares(steps: int, loops: int) -> list[int]:
    """``steps`` in ``loops`` parts that differ by one at most."""
    return [steps // loops + (index < steps % loops) for index in range(loops)]


def folder_bytes(folder: Path) -> int:
    """The size of the database's files together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_rss_bytes() -> int:
    """The most memory held so far; ru_maxrss would count that of the parent before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Print the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--loops", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(run(options.steps, options.folder, options.loops)))


if __name__ == "__main__":
    main()
