"""Run the benchmarks, print what they found, and say which targets are met.

python -m benchmarks [--only tokens,steps,...] [--quick] [--folder DIR] [--peers-cache DIR]
                     [--json FILE] [--large-state-mib 2048]
"""

import argparse
import json
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attrs

from benchmarks import (
    Options,
    Section,
    answers,
    crawl,
    frontier,
    json_store,
    maps,
    pages,
    resume,
    start,
    state,
    steps,
    targets,
    tokens,
    viewers,
)

SECTIONS: dict[str, Callable[[Options], Section]] = {
    "tokens": tokens.measure,
    "steps": steps.measure,
    "start": start.measure,
    "resume": resume.measure,
    "frontier": frontier.measure,
    "answers": answers.measure,
    "pages": pages.measure,
    "json": json_store.measure,
    "state": state.measure,
    "crawl": crawl.measure,
    "viewers": viewers.measure,
    "maps": maps.measure,
}


def machine() -> dict[str, object]:
    """What was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = text.partition("model name")[2].partition("\n")[0].strip(" \t:")
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
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
    options = parser.parse_args()
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
    sections: dict[str, object] = {}
    report: dict[str, object] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.is_quick,
        "machine": machine(),
        "versions": versions(),
        "sections": sections,
    }
    for name in arguments.only:
        print(f"\n== {name} ==", flush=True)
        section = SECTIONS[name](options)
        print("\n".join([*section.lines, *targets.verdicts(name, section.found)]), flush=True)
        sections[name] = attrs.asdict(section)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwritten: {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
