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

from benchmarks import MIB, Found, Options, Section, best, median, median_ratio
from benchmarks.peers import PEERS_FOLDER, ensure_environment
from benchmarks.state_ours import SMALL_ARRAYS

SIZE_MIB = 256
QUICK_SIZE_MIB = 8
METHODS = ("pages", "hash")
SHARES = ("0%", "1%", "100%")
ROUNDS = 7
QUICK_ROUNDS = 1
LARGE_ROUNDS = 3
CHAINS = (1, 50, 500)
QUICK_CHAINS = (1, 2, 4)


@attrs.frozen
class Peer:
    """A peer: its name, where it is installed from, and its rounds; gzip takes 10 s for one."""

    label: str
    environment: str
    rounds: int


PEERS = {
    "pickle": Peer("pickle and gzip", "safetensors", 1),
    "safetensors": Peer("safetensors", "safetensors", 5),
    "torch": Peer("torch", "torch", 5),
    "orbax": Peer("Orbax", "orbax", 5),
}

MEMORY_OF_SIZE = 4  # what a process needs, with the state itself
DISK_OF_SIZE = 12

Figures = dict[str, Any]
Chains = dict[int, int]  # deltas of a full run -> deltas of this one


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
    environment, rounds = PEERS[name].environment, PEERS[name].rounds
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
    """The lines, figures and peers so far."""

    figures: Figures = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)
    peers: list[str] = attrs.field(factory=list)

    def control(self, name: str) -> str:
        """One of the controls, with its unit."""
        return f"{self.figures['controls'][name]:,.1f} ms"

    def best_peer(self, share: str, key: str) -> str:
        """The peer with the least of something when it saves so much that changed."""
        measured = {
            PEERS[name].label: middle(self.figures[name]["saves"][share], key)
            for name in PEERS
            if name in self.figures
        }
        return best(measured, " ms", least=True)

    def best_restore(self) -> str:
        """The peer that restores in the least time."""
        measured = {
            PEERS[name].label: median(self.figures[name]["restore_ms"])
            for name in PEERS
            if name in self.figures
        }
        return best(measured, " ms", least=True)


def middle(rows: list[Figures], key: str) -> float:
    """The median of one figure."""
    return median([row[key] for row in rows])


def add_controls(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """What this machine can do."""
    found = report.figures["controls"] = ours("controls", folder, mib=mib, rounds=rounds)
    each = ", ".join(f"{name} {ms:.1f}" for name, ms in found.items())
    report.lines += [f"controls, {mib} MiB, ms: {each}", ""]


def add_saves(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """Ours: each method at each share."""
    report.lines.append(
        f"{'ms':<30} {'changed':>8} {'stall':>8} {'total':>8} {'MiB':>7} "
        f"{'writes':>7} {'faults':>7}"
    )
    for method in METHODS:
        home = folder / method
        found = report.figures[method] = ours("saves", home, mib=mib, method=method, rounds=rounds)
        shutil.rmtree(home)
        for share in SHARES:
            rows = found["saves"][share]
            stall, total = middle(rows, "stall_ms"), middle(rows, "total_ms")
            faults = middle([{"ms": row["write_ms"] - row["again_ms"]} for row in rows], "ms")
            methods = "+".join(dict.fromkeys(row["method"] for row in rows))
            report.lines.append(
                f"{f'ours, {methods}':<30} {share:>8} {stall:>8.1f} {total:>8.1f} "
                f"{middle(rows, 'mib'):>7.1f} {middle(rows, 'write_ms'):>7.1f} {faults:>7.1f}"
            )
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
        report.peers.append(found["peer"])
        for share in SHARES:
            rows = found["saves"][share]
            report.lines.append(
                f"{found['peer']:<30} {share:>8} {middle(rows, 'stall_ms'):>8.1f} "
                f"{middle(rows, 'total_ms'):>8.1f} {middle(rows, 'mib'):>7.1f}"
            )
        report.lines.append(f"{'':<30} restore {median(found['restore_ms']):.0f} ms")


def add_restores(report: Report, folder: Path, mib: int, rounds: int, chains: Chains) -> None:
    """Chains of growing length, in turns with a plain read; what their last saves took."""
    report.lines += [
        "",
        f"{'deltas of 1 %':<30} {'restore':>8} {'read':>8} {'x read':>7} {'save':>7}",
    ]
    for name, deltas in chains.items():
        home = folder / "chain"
        built = ours("chain", home, mib=mib, deltas=deltas)
        found = ours("restore", home, mib=mib, rounds=rounds)
        shutil.rmtree(home)
        assert found["digest"] == built["digest"], "what was restored is something else"
        report.figures[f"{name} deltas"] = {**built, **found, "deltas": deltas}
        restore, read = median(found["restore_ms"]), median(found["read_ms"])
        ratio = median_ratio(found["restore_ms"], found["read_ms"])
        report.lines.append(
            f"{deltas:<30} {restore:>8.1f} {read:>8.1f} {ratio:>7.2f} {built['last_save_ms']:>7.1f}"
        )


def add_small(report: Report, folder: Path, rounds: int) -> None:
    """Many small arrays, one changed, at two sizes ten times apart."""
    found = report.figures["small arrays"] = ours("small", folder, rounds=4 * rounds)
    shutil.rmtree(folder)
    head = f"{'small arrays, ms':<30} {'save':>8} {'CPU':>8} {'pickle':>8} {'CPU us each':>12}"
    report.lines += ["", head]
    for count, of_count in found.items():
        save, cpu = median(of_count["save_ms"]), median(of_count["cpu_ms"])
        pickled, each = median(of_count["pickle_ms"]), cpu / int(count) * 1000
        report.lines.append(f"{count:<30} {save:>8.1f} {cpu:>8.1f} {pickled:>8.1f} {each:>12.1f}")


def add_lag(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """How late the event loop comes back while all is saved."""
    report.lines += ["", f"{'lag of the event loop, ms':<30} {'p50':>8} {'p99':>8} {'max':>8}"]
    for method in METHODS:
        home = folder / "lag"
        found = report.figures[f"lag, {method}"] = ours(
            "lag", home, mib=mib, method=method, rounds=rounds
        )
        shutil.rmtree(home)
        for name, row in found.items():
            if method == METHODS[0] or method in name:
                report.lines.append(
                    f"{name:<30} {row['p50']:>8.2f} {row['p99']:>8.2f} {row['max']:>8.2f}"
                )


def judge(report: Report) -> dict[str, Found]:
    """What belongs to the rows of the table."""

    def of_saves(method: str, share: str, key: str) -> float:
        return middle(report.figures[method]["saves"][share], key)

    found = dict[str, Found]()
    for share, changed in (("0%", "nothing"), ("1%", "1 %"), ("100%", "all")):
        for key, control in (("stall_ms", "warm memcpy"), ("total_ms", "write+fsync")):
            what = key.partition("_")[0]
            found[f"{what} of a save by dirty pages, {changed} changed"] = Found(
                of_saves("pages", share, key), report.control(control), report.best_peer(share, key)
            )
    found["stall of a save by hashes, nothing changed"] = Found(
        of_saves("hash", "0%", "stall_ms") / report.figures["controls"]["xxh3_128"],
        report.control("xxh3_128"),
        report.best_peer("0%", "stall_ms"),
    )
    for share, changed in (("1%", "1 %"), ("100%", "all")):
        found[f"stall of a save by hashes, {changed} changed"] = Found(
            of_saves("hash", share, "stall_ms"),
            report.control("xxh3_128"),
            report.best_peer(share, "stall_ms"),
        )
    changed_bytes = report.figures["pages"]["changed_bytes"]
    found["bytes of a save, 1 % changed"] = Found(
        of_saves("pages", "1%", "mib") * MIB / changed_bytes, f"{changed_bytes / MIB:.2f} MiB"
    )
    found["size of a save by hashes, 1 % changed"] = Found(
        of_saves("hash", "1%", "mib"), f"{changed_bytes / MIB:.2f} MiB"
    )
    few, many = SMALL_ARRAYS
    small = {count: report.figures["small arrays"][str(count)] for count in SMALL_ARRAYS}
    found[f"save of {many:,} small arrays, one changed"] = Found(
        median(small[many]["save_ms"]), f"{median(small[many]['pickle_ms']):.1f} ms"
    )
    each = {count: median(small[count]["cpu_ms"]) / count * 1000 for count in SMALL_ARRAYS}
    found[f"CPU of a small array: {many:,} arrays against {few}"] = Found(
        each[many] / each[few], f"{each[few]:.1f} us"
    )
    for name in CHAINS:
        of_chain = report.figures[f"{name} deltas"]
        found[f"restore over {name:,} deltas" if name > 1 else "restore over 1 delta"] = Found(
            median_ratio(of_chain["restore_ms"], of_chain["read_ms"]),
            f"{median(of_chain['read_ms']):,.1f} ms",
            report.best_restore(),
        )
    _, few, many = (report.figures[f"{name} deltas"]["last_save_ms"] for name in CHAINS)
    found["time of a save: 500 deltas against 50"] = Found(many / few, f"{few:.1f} ms")
    idle = report.figures["lag, pages"]["idle"]["p99"]
    for method, name in (("pages", "dirty pages"), ("hash", "hashes")):
        found[f"lag of the event loop while saving by {name}, p99"] = Found(
            report.figures[f"lag, {method}"][f"saving, {method}"]["p99"], f"{idle:.2f} ms"
        )
    return found


def measure(options: Options) -> Section:
    """Run it; sizes after the first without peers, chains and lag."""
    report = Report()
    mib, rounds, chains = SIZE_MIB, ROUNDS, dict(zip(CHAINS, CHAINS, strict=True))
    if options.is_quick:
        mib, rounds = QUICK_SIZE_MIB, QUICK_ROUNDS
        chains = dict(zip(CHAINS, QUICK_CHAINS, strict=True))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="state-") as temporary:
        folder = Path(temporary)
        add_controls(report, folder / "controls", mib, rounds)
        add_saves(report, folder, mib, rounds)
        add_peers(report, options, folder, mib)
        add_restores(report, folder, mib, rounds, chains)
        add_small(report, folder / "small", rounds)
        add_lag(report, folder, mib, rounds)
        found = judge(report)
        if options.large_state_mib:
            add_large(report, folder, options.large_state_mib, LARGE_ROUNDS)
    return Section(report.figures, report.lines, found, tuple(report.peers))


def add_large(report: Report, folder: Path, mib: int, rounds: int) -> None:
    """Controls, saves and one restore of a larger state; no targets are set for it."""
    large = Report()
    try:
        need_room(folder, mib)
        add_controls(large, folder / "controls", mib, rounds)
        add_saves(large, folder, mib, rounds)
        add_restores(large, folder, mib, rounds, {1: 1})
    except NotMeasuredError as error:
        large.lines.append(f"not measured: {error}")
    report.lines += ["", f"-- {mib} MiB --", *large.lines]
    report.figures[f"{mib} MiB"] = large.figures
