"""LangGraph: a looping graph, checkpointed to SQLite after each step, durability="sync".

    python langgraph_steps.py --steps 1000 --folder DIR --loops 1

``--loops`` threads (LangGraph's word for a run) go at the same time and do ``--steps`` steps
between them, over one AsyncSqliteSaver: WAL, and SQLite's default synchronous=FULL.
"""

import argparse
import asyncio
import json
import statistics
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    """All that a run carries."""

    index: int
    steps: int


async def run(steps: int, folder: Path, loops: int) -> dict[str, object]:
    """Run the loops in ``folder``; the figures."""
    taken_ns: list[int] = []
    async with AsyncSqliteSaver.from_conn_string(str(folder / "langgraph.sqlite")) as committer:
        await committer.setup()
        await committer.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        empty_bytes = folder_bytes(folder)
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for name, share in enumerate(shares(steps, loops)):
                group.create_task(loop(committer, str(name), share, taken_ns))
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    return {
        "peer": f"langgraph {version('langgraph')}",
        "loops": loops,
        "steps": steps,
        "seconds": seconds,
        "steps_per_s": steps / seconds,
        "p50_us": statistics.median(taken_ns) / 1000,
        "cpu_s": cpu_s,
        "rss_bytes": peak_rss_bytes(),
        "db_bytes": folder_bytes(folder) - empty_bytes,
    }


async def loop(
    committer: AsyncSqliteSaver, thread_id: str, steps: int, taken_ns: list[int]
) -> None:
    """One run of ``steps`` steps; the nanoseconds from each to the next go to ``taken_ns``.

    A step's checkpoint is written between its function and the next one's, so the time from call
    to call is that of a whole durable step.
    """
    called_ns: list[int] = []

    async def step(state: State) -> dict[str, int]:
        called_ns.append(time.perf_counter_ns())
        return {"index": state["index"] + 1}

    graph = StateGraph(State)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges(
        "step", lambda state: "step" if state["index"] < state["steps"] else END
    )
    compiled = graph.compile(checkpointer=committer)
    await compiled.ainvoke(
        {"index": 0, "steps": steps},
        {"configurable": {"thread_id": thread_id}, "recursion_limit": steps + 10},
        durability="sync",
    )
    called_ns.append(time.perf_counter_ns())
    taken_ns.extend(after - before for before, after in pairwise(called_ns))


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
    print(json.dumps(asyncio.run(run(options.steps, options.folder, options.loops))))


if __name__ == "__main__":
    main()
