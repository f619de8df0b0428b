"""A state of 256 MiB: what saving it costs a loop, and what restoring it takes.

An array of float32 in rows of 4 KiB is saved by snapshots inside a batch (benchmarks.state_ours),
with none, 1 % and all of its rows changed, where the kernel tracks writes (`pages`) and where it
cannot (`hash`).  *Stall* is how long the body was held, *total* is until the snapshot is durable.
Every part has a fresh process; the controls are of the same run and the same number of bytes.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs

from benchmarks import MIB, Options, Section, Target, median
from benchmarks.peers import PEERS_FOLDER, ensure_environment

SIZE_MIB = 256
RUNGS = ("pages", "hash")
SHARES = ("0%", "1%", "100%")
ROUNDS = 7
QUICK_ROUNDS = 3
CHAINS = (1, 10, 50, 500)
QUICK_CHAINS = (1, 10)
# The program of each peer, where it is installed from, and its rounds: gzip takes 10 s for one.
PEERS = {
    "pickle": ("safetensors", 1),
    "safetensors": ("safetensors", 5),
    "torch": ("torch", 5),
    "orbax": ("orbax", 5),
}

MAX_STALL_MS = {"pages": (0.3, 1.5, 30.0), "hash": (14.0, 18.0, 30.0)}
MAX_TOTAL_MS = (2.0, 10.0, 260.0)
MAX_MIB = 3.0
MAX_OF_READ = 1.3
MAX_OF_SHORTEST = 1.2  # what restoring a long chain may take of what a short one takes
MAX_LAG_MS = 2.0
MEMORY_OF_SIZE = 4  # what a process needs, with the state itself
DISK_OF_SIZE = 12

Figures = dict[str, Any]


class NotMeasuredError(Exception):
    """Why something is left out."""


def ours(what: str, folder: Path, **arguments: object) -> Figures:
    """One part, in a process of its own; what it wrote stays in the folder."""
    command = [sys.executable, "-m", "benchmarks.state_ours", what, "--folder", str(folder)]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    figures: Figures = json.loads(done.stdout)
    return figures


def peer(name: str, options: Options, folder: Path, mib: int) -> Figures:
    """The figures that a peer prints about itself.

    Raises:
        NotMeasuredError: it cannot be installed here, or fails.
    """
    if options.peers_cache is None:
        raise NotMeasuredError("no --peers-cache")
    environment, rounds = PEERS[name]
    try:
        requirements = PEERS_FOLDER / f"requirements-{environment}.txt"
        python = ensure_environment(options.peers_cache, requirements)
        command = [str(python), str(PEERS_FOLDER / f"{name}_state.py"), "--folder", str(folder)]
        command += ["--mib", str(mib), "--rounds", str(1 if options.is_quick else rounds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    except subprocess.CalledProcessError as error:
        raise NotMeasuredError(f"{Path(error.cmd[0]).name} failed, see above") from error
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def available_bytes() -> int:
    """Memory that can be had without swapping; where only that is known, what is free."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def need_room(folder: Path, mib: int) -> None:
    """See that a state of this size can be measured.

    Raises:
        NotMeasuredError: memory or disk are too small.
    """
    memory = available_bytes() // MIB
    disk = shutil.disk_usage(folder).free // MIB
    for name, found, needed in (
        ("memory", memory, mib * MEMORY_OF_SIZE),
        ("disk", disk, mib * DISK_OF_SIZE),
    ):
        if found < needed:
            raise NotMeasuredError(f"{needed} MiB of {name} are needed, {found} are free")


@attrs.define
class Report:
    """The lines, figures and targets so far."""

    figures: Figures = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)
    targets: list[Target] = attrs.field(factory=list)

    def limit(self, name: str, value: float, limit: float, unit: str) -> None:
        """Add a target."""
        self.targets.append(Target(name, value, limit, unit))


def middle(rows: list[Figures], key: str) -> float:
    """The median of one figure."""
    return median([row[key] for row in rows])


def add_controls(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """What this machine can do."""
    found = report.figures["controls"] = ours("controls", folder, mib=mib, rounds=rounds)
    each = ", ".join(f"{name} {ms:.1f}" for name, ms in found.items())
    report.lines += [f"controls, {mib} MiB, ms: {each}", ""]


def add_saves(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """Ours: each rung at each share."""
    report.lines.append(
        f"{'ms':<30} {'changed':>8} {'stall':>8} {'total':>8} {'MiB':>7} "
        f"{'writes':>7} {'faults':>7}"
    )
    for rung in RUNGS:
        home = folder / rung
        found = report.figures[rung] = ours("saves", home, mib=mib, rung=rung, rounds=rounds)
        shutil.rmtree(home)
        for place, share in enumerate(SHARES):
            rows = found["saves"][share]
            stall, total = middle(rows, "stall_ms"), middle(rows, "total_ms")
            faults = middle([{"ms": row["write_ms"] - row["again_ms"]} for row in rows], "ms")
            rungs = "+".join(dict.fromkeys(row["rung"] for row in rows))
            report.lines.append(
                f"{f'ours, {rungs}':<30} {share:>8} {stall:>8.1f} {total:>8.1f} "
                f"{middle(rows, 'mib'):>7.1f} {middle(rows, 'write_ms'):>7.1f} {faults:>7.1f}"
            )
            report.limit(f"{rung}, {share}: stall", stall, MAX_STALL_MS[rung][place], "ms")
            if rung == "pages":
                report.limit(f"{rung}, {share}: total", total, MAX_TOTAL_MS[place], "ms")
            if share == "1%":
                report.limit(f"{rung}, {share}: written", middle(rows, "mib"), MAX_MIB, "MiB")
        report.lines.append(f"{'':<30} memory above the state: {found['memory_mib']:.0f} MiB")


def add_peers(report: Report, options: Options, folder: Path, mib: int) -> None:
    """The peers, in the same table."""
    for name in PEERS:
        try:
            found = report.figures[name] = peer(name, options, folder / name, mib)
        except NotMeasuredError as error:
            report.lines.append(f"{name:<30} not measured: {error}")
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        for share in SHARES:
            rows = found["saves"][share]
            report.lines.append(
                f"{found['peer']:<30} {share:>8} {middle(rows, 'stall_ms'):>8.1f} "
                f"{middle(rows, 'total_ms'):>8.1f} {middle(rows, 'mib'):>7.1f}"
            )
        report.lines.append(f"{'':<30} restore {median(found['restore_ms']):.0f} ms")


def add_restores(
    report: Report, folder: Path, mib: int, rounds: int, chains: tuple[int, ...]
) -> None:
    """Chains of growing length, in turns with a plain read."""
    report.lines += ["", f"{'deltas of 1 %':<30} {'restore':>8} {'read':>8} {'x read':>7}"]
    first = 0.0
    for deltas in chains:
        home = folder / "chain"
        built = ours("chain", home, mib=mib, deltas=deltas)
        found = ours("restore", home, mib=mib, rounds=rounds)
        shutil.rmtree(home)
        assert found["digest"] == built["digest"], "what was restored is something else"
        report.figures[f"{deltas} deltas"] = {**built, **found}
        pairs = zip(found["restore_ms"], found["read_ms"], strict=True)
        ratio = median([restore / read for restore, read in pairs])
        restore, read = median(found["restore_ms"]), median(found["read_ms"])
        first = first or restore
        report.lines.append(f"{deltas:<30} {restore:>8.1f} {read:>8.1f} {ratio:>7.2f}")
        report.limit(f"restore over {deltas} deltas, of a read", ratio, MAX_OF_READ, "x")
    report.limit(f"{chains[-1]} deltas, of 1", restore / first, MAX_OF_SHORTEST, "x")


def add_lag(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """How late the event loop comes back while all is saved."""
    report.lines += ["", f"{'lag of the event loop, ms':<30} {'p50':>8} {'p99':>8} {'max':>8}"]
    for rung in RUNGS:
        home = folder / "lag"
        found = report.figures[f"lag, {rung}"] = ours(
            "lag", home, mib=mib, rung=rung, rounds=rounds
        )
        shutil.rmtree(home)
        for name, row in found.items():
            if rung == RUNGS[0] or rung in name:
                report.lines.append(
                    f"{name:<30} {row['p50']:>8.2f} {row['p99']:>8.2f} {row['max']:>8.2f}"
                )
        report.limit(
            f"lag while saving, {rung}: p99", found[f"saving, {rung}"]["p99"], MAX_LAG_MS, "ms"
        )


def measure(options: Options) -> Section:
    """Run it; sizes after the first without peers, chains and lag."""
    report = Report()
    rounds = QUICK_ROUNDS if options.is_quick else ROUNDS
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="state-") as temporary:
        folder = Path(temporary)
        add_controls(report, folder / "controls", SIZE_MIB, rounds)
        add_saves(report, folder, SIZE_MIB, rounds)
        add_peers(report, options, folder, SIZE_MIB)
        chains = QUICK_CHAINS if options.is_quick else CHAINS
        add_restores(report, folder, SIZE_MIB, rounds, chains)
        add_lag(report, folder, SIZE_MIB, rounds)
        if options.large_state_mib:
            add_large(report, folder, options.large_state_mib, QUICK_ROUNDS)
    return Section(report.figures, report.lines, report.targets)


def add_large(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """Controls, saves and one restore of a larger state; no targets are set for it."""
    large = Report()
    try:
        need_room(folder, mib)
        add_controls(large, folder / "controls", mib, rounds)
        add_saves(large, folder, mib, rounds)
        add_restores(large, folder, mib, rounds, (1,))
    except NotMeasuredError as error:
        large.lines.append(f"not measured: {error}")
    report.lines += ["", f"-- {mib} MiB --", *large.lines]
    report.figures[f"{mib} MiB"] = large.figures
