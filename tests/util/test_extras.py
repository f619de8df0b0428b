"""A library of an extra that is missing is named, with the command that installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hangs import PROGRAM_S
from trio_ckpt import MissingExtraError, TrioCkptError
from trio_ckpt._util.extras import needs_extra

ROOT = Path(__file__).parents[2]

HEAD = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import trio
import trio_ckpt
from trio_ckpt import remote, stores
SECRET = "a secret of 16 bytes or more"
"""

PROGRAMS: dict[str, tuple[str, str, str]] = {
    "the monitor": ("starlette", "monitor", "from trio_ckpt import monitor"),
    "its server": ("hypercorn", "monitor", "from trio_ckpt import monitor"),
    "its metrics": ("prometheus_client", "monitor", "import trio_ckpt.monitor"),
    "a foreman": (
        "trio_websocket",
        "remote",
        "async def main():\n"
        "    store = await stores.open_store('memory:')\n"
        "    await remote.serve_foreman(store, secret=SECRET, port=0)\n"
        "trio.run(main)",
    ),
    "a client": (
        "trio_websocket",
        "remote",
        "async def main():\n"
        "    async with remote.connect('ws://127.0.0.1:1', secret=SECRET): pass\n"
        "trio.run(main)",
    ),
    "a worker": (
        "wsproto",
        "remote",
        "async def main():\n"
        "    await remote.run_worker('ws://127.0.0.1:1', secret=SECRET, allow=['json'])\n"
        "trio.run(main)",
    ),
    "map_tasks": (
        "trio_websocket",
        "remote",
        "from trio_ckpt.engines import map_tasks\n"
        "trio.run(map_tasks, 'examples.squares:square', [1])",
    ),
    "an array in whole pages": (
        "numpy",
        "arrays",
        "from trio_ckpt import state\nstate.zeros(3)",
    ),
    "a state with arrays": (
        "xxhash",
        "arrays",
        "import numpy\n"
        "async def main():\n"
        "    async with trio_ckpt.open_run('r', store='memory:') as run:\n"
        "        async with run.open_stream('s', state={'a': numpy.zeros(3)}): pass\n"
        "trio.run(main)",
    ),
    "an attrs class": (
        "cattrs",
        "validate",
        "import attrs\nfrom trio_ckpt.outputs import Validator\n"
        "Validator.of(attrs.make_class('C', ['x']))",
    ),
    "a JSON Schema": (
        "jsonschema",
        "validate",
        "from trio_ckpt.outputs import Validator\nValidator.of({})",
    ),
    "a file compressed by zstd": (
        "zstandard",
        "zstd",
        "from trio_ckpt.outputs import load_compressor\nload_compressor('zstd')",
    ),
    "spans": ("opentelemetry", "otel", "trio_ckpt.trace_batches()"),
    "the example crawler": ("lxml", "crawler", "import examples.crawler"),
    "the example collector": ("h11", "crawler", "import examples.collector"),
    "the example training": ("sklearn", "train", "import examples.train"),
    "the training on workers": ("sklearn", "train", "import examples.train_on_workers"),
    "a display": (
        "rich",
        "cli",
        "from trio_ckpt.progress import _live\nwith _live('r', sys.stderr, is_standard=True): pass",
    ),
}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=PROGRAM_S
    )


@pytest.mark.parametrize(("missing", "extra", "code"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_what_is_missing_is_named_with_its_command(missing: str, extra: str, code: str) -> None:
    done = run_python(HEAD.format(missing=[missing]) + code)
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError" in last, done.stderr
    assert last.endswith(f"needs {missing}: pip install 'trio-ckpt[{extra}]'")


@pytest.mark.parametrize(
    ("missing", "extra", "typed"),
    [
        ("starlette", "monitor", ["monitor", "s.ckpt"]),
        ("trio_websocket", "remote", ["foreman", "s.ckpt"]),
        ("trio_websocket", "remote", ["worker", "ws://127.0.0.1:1", "--allow", "json"]),
    ],
)
def test_a_command_says_it_in_one_line_and_exits_with_8(
    missing: str, extra: str, typed: list[str]
) -> None:
    code = HEAD.format(missing=[missing])
    done = run_python(f"{code}\nfrom trio_ckpt.cli import main\nsys.exit(main({typed!r}))")
    assert done.returncode == 8, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"needs {missing}: pip install 'trio-ckpt[{extra}]'")


def test_an_error_of_the_package_itself_is_no_missing_extra() -> None:
    with pytest.raises(ImportError) as caught, needs_extra("monitor", "the monitor"):
        from trio_ckpt._util.errors import NoSuchError  # type: ignore[attr-defined]  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


def test_it_is_an_error_of_the_library_and_of_imports() -> None:
    with pytest.raises(MissingExtraError) as caught, needs_extra("otel", "a span"):
        import no_such_library.below  # type: ignore[import-not-found]  # noqa: F401
    error = caught.value
    assert isinstance(error, TrioCkptError)
    assert isinstance(error, ModuleNotFoundError)
    assert (error.name, error.extra) == ("no_such_library", "otel")
