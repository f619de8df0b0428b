"""What a program pays before its first batch: the import, and the memory of a small run.

The import is timed beyond that of trio, in fresh processes.  The memory is the peak of a fresh
process that runs 64 loops, beside one that only imports trio.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import Found, Options, Section, median

LOOPS = 64
BATCHES_PER_LOOP = 100
QUICK_BATCHES_PER_LOOP = 2
REPEATS = 9
QUICK_REPEATS = 1

IMPORTS = """
import time
started_s = time.perf_counter()
import trio
had_trio_s = time.perf_counter()
from trio_ckpt import open_run  # a name is imported when it is asked for
print(had_trio_s - started_s, time.perf_counter() - had_trio_s)
"""
# ru_maxrss would count the memory of the parent before the exec.
PEAK = """
with open("/proc/self/status") as status:
    print(int(status.read().partition("VmHWM:")[2].split()[0]) * 1024)
"""
TRIO = f"import trio\n{PEAK}"
RUN = f"""
import sys, trio
from benchmarks.steps import run_loops
trio.run(run_loops, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
assert "numpy" not in sys.modules, "the figure is to be without NumPy"
{PEAK}"""


def printed(code: str, *arguments: object) -> list[float]:
    """The numbers that a fresh process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [float(word) for word in done.stdout.split()]


def measure(options: Options) -> Section:
    """Run it."""
    repeats = QUICK_REPEATS if options.is_quick else REPEATS
    batches = QUICK_BATCHES_PER_LOOP if options.is_quick else BATCHES_PER_LOOP
    trio_s, ours_s = zip(*(printed(IMPORTS) for _ in range(repeats)), strict=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="start-") as folder:
        (trio_bytes,) = printed(TRIO)
        (run_bytes,) = printed(RUN, Path(folder) / "store", LOOPS, batches)
    trio_ms, ours_ms = median(trio_s) * 1000, median(ours_s) * 1000
    trio_mb, run_mb = trio_bytes / 1e6, run_bytes / 1e6
    return Section(
        {
            "import_trio_s": trio_s,
            "import_beyond_trio_s": ours_s,
            "trio_bytes": trio_bytes,
            "run_bytes": run_bytes,
        },
        [
            f"import trio {trio_ms:.0f} ms, trio_ckpt beyond it {ours_ms:.0f} ms",
            f"peak memory: trio alone {trio_mb:.1f} MB, a run of {LOOPS} loops {run_mb:.1f} MB",
        ],
        {
            "import beyond trio": Found(ours_ms, f"{trio_ms:.0f} ms"),
            "peak memory of a small run": Found(run_mb, f"{trio_mb:.1f} MB"),
        },
    )
