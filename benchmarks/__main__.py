"""Run the benchmarks, print what they found, and say which targets are met.

python -m benchmarks [--only tokens,steps,...] [--quick] [--folder DIR] [--peers-cache DIR]
                     [--json FILE] [--keep] [--large-state-mib 2048]
"""

import argparse
import compileall
import json
import os
import platform
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from benchmarks import (
    Options,
    Section,
    answers,
    blocking,
    crawl,
    frontier,
    item_end,
    json_store,
    list_runs,
    maps,
    notes,
    outputs,
    pages,
    postgres,
    resume,
    start,
    state,
    steps,
    targets,
    tokens,
    viewers,
)
from benchmarks.kept import Run, keep_run

SECTIONS: dict[str, Callable[[Options], Section]] = {
    "tokens": tokens.measure,
    "steps": steps.measure,
    "notes": notes.measure,
    "blocking": blocking.measure,
    "start": start.measure,
    "resume": resume.measure,
    "frontier": frontier.measure,
    "answers": answers.measure,
    "outputs": outputs.measure,
    "pages": pages.measure,
    "json": json_store.measure,
    "state": state.measure,
    "crawl": crawl.measure,
    "viewers": viewers.measure,
    "maps": maps.measure,
    "items": item_end.measure,
    "lists": list_runs.measure,
    "postgres": postgres.measure,
}


def compile_modules() -> None:
    """Write the bytecode of what is measured, as an installation does.

    The peers and trio have theirs; where Python is told to write none, each fresh process would
    compile all modules of a checkout, and a start would take twice as long.
    """
    root = Path(__file__).parent.parent
    for name in ("trio_ckpt", "benchmarks", "examples"):
        compileall.compile_dir(root / name, quiet=1)


def machine() -> dict[str, str | int]:
    """What was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = text.partition("model name")[2].partition("\n")[0].strip(" \t:")
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count() or 0,
        "load": f"{os.getloadavg()[0]:.1f}",  # of others: in a busy run the ratios waver, too
    }


def versions() -> dict[str, str]:
    """Of what was measured, and of what it is built on."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in ("trio-ckpt", "trio", "attrs", "msgspec"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "not installed"
    return found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default=",".join(SECTIONS), help="names with commas between")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    parser.add_argument("--peers-cache", type=Path, help="where the peers are installed once")
    parser.add_argument(
        "--large-state-mib", type=int, default=0, metavar="MIB", help="also measure this state"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--keep", action="store_true", help="show this run in docs/explanation/performance.md"
    )
    options = parser.parse_args()
    if options.keep and options.quick:
        parser.error("a quick run is not kept: its sizes are not those of the table")
    options.only = options.only.split(",")
    if unknown := set(options.only) - SECTIONS.keys():
        parser.error(f"no such benchmarks: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Run what was asked for."""
    arguments = parse_arguments()
    options = Options(
        folder=arguments.folder.absolute(),
        is_quick=arguments.quick,
        peers_cache=arguments.peers_cache,
        large_state_mib=0 if arguments.quick else arguments.large_state_mib,
    )
    run = Run(
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=machine(),
        versions=versions(),
        peers=[],
        found={},
    )
    compile_modules()
    figures: dict[str, object] = {}
    failed = list[str]()
    for name in arguments.only:
        print(f"\n== {name} ==", flush=True)
        try:
            section = SECTIONS[name](options)
        except Exception:  # the others are worth their time all the same
            traceback.print_exc()
            failed.append(name)
            continue
        print("\n".join([*section.lines, *targets.verdicts(name, section.found)]), flush=True)
        run.found |= section.found
        run.peers += (peer for peer in section.peers if peer not in run.peers)
        figures[name] = section.figures
        if arguments.json is not None:
            report = {**msgspec.to_builtins(run), "quick": options.is_quick, "figures": figures}
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if failed:
        sys.exit(f"sections that failed: {', '.join(failed)}")
    if arguments.keep:
        keep_run(run)
        print("\nkept; python docs/diagrams.py shows it")


if __name__ == "__main__":
    main()
