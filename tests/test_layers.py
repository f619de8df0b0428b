"""The floor plan: a file of the package imports only from files below it.

The imports are read from the source, not executed, so no import can hide by not being reached.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

PACKAGE = Path(__file__).parents[1] / "trio_ckpt"

LAYER: dict[str, tuple[int, int]] = {
    "_errors": (0, 0),
    "_extras": (0, 1),
    "_awaits": (0, 1),
    "_arguments": (0, 0),
    "_forks": (0, 1),
    "_fsync": (0, 0),
    "_ranges": (0, 1),
    "_totals": (0, 2),
    "_values": (0, 3),
    "_records": (0, 4),
    "_progress": (0, 5),
    "_folds": (0, 6),
    "_portal": (0, 5),
    "_uninterrupted": (0, 5),
    "_threads": (0, 6),
    "_patience": (0, 6),
    "_words": (0, 7),
    "_screen": (0, 7),
    "_scopes": (0, 7),
    "_log": (0, 8),
    "_facts": (0, 8),
    "_stored": (1, 0),
    "abc": (1, 1),
    "_token": (1, 1),
    "outputs": (1, 2),
    "_registry": (2, 0),
    "_config": (2, 1),
    "_statistics": (2, 2),
    "_retry": (2, 3),
    "_http_errors": (2, 3),
    "_http_retries": (2, 4),
    "_source": (2, 4),
    "_groups": (2, 5),
    "_extent": (2, 5),
    "state": (2, 6),
    "stores": (2, 7),
    "_observe": (2, 8),
    "_coordinator": (3, 0),
    "_lane": (3, 1),
    "_submission": (3, 2),
    "_saver": (3, 3),
    "_history": (3, 3),
    "_compare": (3, 4),
    "_retention": (3, 3),
    "_chain": (3, 4),
    "_array_tools": (3, 4),
    "_attic": (3, 5),
    "_batch": (4, 0),
    "_stop": (4, 1),
    "_ways": (4, 1),
    "_staging": (4, 2),
    "_kept": (4, 1),
    "_keeper": (4, 2),
    "_partial": (4, 3),
    "_desk": (4, 3),
    "_gate": (4, 4),
    "_pins": (4, 4),
    "_walk": (4, 5),
    "_snapshots": (4, 6),
    "_compact": (4, 6),
    "_redo": (4, 6),
    "_rescan": (4, 7),
    "_leaving": (4, 7),
    "_stream_statistics": (4, 7),
    "_stream": (4, 8),
    "_verify": (4, 9),
    "_resume": (4, 10),
    "_phase": (4, 11),
    "_session": (4, 12),
    "_manifest": (4, 13),
    "_fresh": (4, 14),
    "_roster": (4, 15),
    "_waits": (4, 16),
    "_listed": (4, 16),
    "_run": (4, 17),
    "_live": (4, 18),
    "_open": (4, 19),
    "_loops": (5, 0),
    "_drift": (5, 1),
    "_state_check": (5, 1),
    "_tracing": (5, 1),
    "_look": (5, 1),
    "_machine": (5, 1),
    "_check_outputs": (5, 2),
    "_maintain": (5, 2),
    "_check": (5, 3),
    "_repair": (5, 4),
    "_archive": (5, 3),
    "_export": (5, 4),
    "_import": (5, 5),
    "_losses": (5, 5),
    "_explain_streams": (5, 6),
    "_explain": (5, 7),
    "progress": (5, 7),
    "__init__": (5, 8),
    "remote": (6, 0),
    "engines": (6, 1),
    "monitor": (6, 1),
    "testing": (6, 1),
    "cli": (7, 0),
    "__main__": (7, 1),
}
"""Module or subpackage -> (floor, place on it). One imports only what stands strictly lower; two
in the same place stand beside each other. The files of one subpackage may import each other, but
not in a circle."""


OPTIONAL = {
    "state._arrays": "NumPy and what goes with it are an extra",
    "state._memory": "the same",
    "state._merge": "the same",
    "state._pages": "the same",
    "monitor": "its server is an extra, and only the command of that name needs it",
    "remote._sockets": "trio-websocket is an extra, and reading jobs needs none",
}
"""What may be imported where it is needed, so that the core does without, and why."""


@attrs.frozen
class Import:
    line: int
    target: str
    at_top: bool


def unit(module: str) -> str:
    """The line of the table that a module belongs to: `stores._sqlite` -> `stores`."""
    return module.partition(".")[0]


def modules_of(package: Path) -> dict[str, Path]:
    """Every module of the package by its name inside it, `__init__` for the package's own."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        modules[".".join(parts)] = path
    return modules


def asked_for(
    node: ast.AST, folder: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The module, and the name taken from it if any, of each import that a node makes.

    A node makes one by a statement, or by a call that imports by name. Names come split at their
    dots; `folder` is the package that the file is in, where relative imports start.
    """
    match node:
        case ast.Import(names=names):
            yield from ((tuple(alias.name.split(".")), ()) for alias in names)
        case ast.ImportFrom(module=source, names=names, level=level):
            base = tuple(source.split(".")) if source else ()
            if level:
                base = folder[: len(folder) - level + 1] + base
            yield from ((base, (alias.name,)) for alias in names)
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            relative = name.startswith(".")
            yield (folder if relative else ()) + tuple(name.strip(".").split(".")), ()


def own_imports(path: Path, package: Path, modules: Collection[str]) -> Iterator[Import]:
    """Every import in a file that asks for a module of the package itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    blocks = [node for node in tree.body if isinstance(node, ast.With)]  # of `needs_extra`
    top = {id(node) for node in (*tree.body, *(line for block in blocks for line in block.body))}
    folder = path.relative_to(package.parent).parent.parts
    for node in ast.walk(tree):
        for base, name in asked_for(node, folder):
            if base[:1] != (package.name,):
                continue
            # `from trio_ckpt import abc` may take a module or a name: it is one if we know it.
            whole, target = ".".join((*base[1:], *name)), ".".join(base[1:])
            if whole in modules or whole in LAYER:
                target = whole
            line = getattr(node, "lineno", 0)
            yield Import(line=line, target=target or "__init__", at_top=id(node) in top)


def violations(package: Path) -> list[str]:
    """Every breach of the floor plan in a package, as text; empty if there is none."""
    modules = modules_of(package)
    found = [f"{name}: not in the table" for name in modules if unit(name) not in LAYER]
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        if unit(name) not in LAYER:
            continue
        for found_import in own_imports(path, package, modules):
            target = found_import.target
            where = f"{path.relative_to(package)}:{found_import.line}"
            graph[name].add(target)
            if not found_import.at_top and target not in OPTIONAL:
                found.append(f"{where}: the import of {target} is hidden, it belongs at the top")
            if unit(target) not in LAYER:
                found.append(f"{where}: imports {target}, which is not in the table")
            elif unit(target) != unit(name) and LAYER[unit(target)] >= LAYER[unit(name)]:
                found.append(f"{where}: imports {target}, which is not below {name}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    return found


def test_every_file_imports_only_from_files_below_it() -> None:
    assert (PACKAGE / "__init__.py").is_file()
    assert violations(PACKAGE) == []


def build(folder: Path, files: Mapping[str, str]) -> Path:
    package = folder / "trio_ckpt"
    for name, source in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


BAD = {
    "up": ({"_errors.py": "from trio_ckpt._run import open_run"}, "_run, which is not below"),
    "up, by its module": ({"_errors.py": "import trio_ckpt._run"}, "_run, which is not below"),
    "up, from the root": ({"_errors.py": "from trio_ckpt import _run"}, "_run, which is not below"),
    "up, relative": ({"_errors.py": "from ._run import open_run"}, "_run, which is not below"),
    "up, from a subpackage": (
        {"stores/_json.py": "from .._saver import Saver"},
        "_saver, which is not below stores._json",
    ),
    "up, from its root": (
        {"stores/__init__.py": "from .._saver import Saver"},
        "_saver, which is not below stores",
    ),
    "later on the same floor": (
        {"_stream.py": "from trio_ckpt._run import Run"},
        "_run, which is not below _stream",
    ),
    "beside": (
        {"monitor/__init__.py": "from trio_ckpt.engines import x"},
        "engines, which is not below",
    ),
    "the public names": (
        {"_run.py": "from trio_ckpt import Batch"},
        "__init__, which is not below _run",
    ),
    "the package": ({"_run.py": "import trio_ckpt"}, "__init__, which is not below _run"),
    "in a function": (
        {"_run.py": "def f():\n    from trio_ckpt._errors import E"},
        "_run.py:2: the import of _errors is hidden",
    ),
    "for typing": (
        {"_run.py": "if TYPE_CHECKING:\n    from trio_ckpt._errors import E"},
        "_run.py:2: the import of _errors is hidden",
    ),
    "by name": (
        {"_errors.py": "importlib.import_module('trio_ckpt._run')"},
        "_run, which is not below",
    ),
    "an unknown file": ({"_helpers.py": ""}, "_helpers: not in the table"),
    "an unknown subpackage": ({"more/_x.py": ""}, "more._x: not in the table"),
    "a circle in a subpackage": (
        {
            "stores/__init__.py": "from trio_ckpt.stores._json import J",
            "stores/_json.py": "from trio_ckpt.stores import S",
        },
        "a circle: ",
    ),
}


@pytest.mark.parametrize(("files", "complaint"), BAD.values(), ids=BAD.keys())
def test_a_breach_is_found(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    assert complaint in "\n".join(violations(build(tmp_path, files)))


def test_a_good_package_has_no_violations(tmp_path: Path) -> None:
    good = {
        "__init__.py": "from trio_ckpt._run import open_run as open_run\nfrom trio_ckpt import abc",
        "_errors.py": "import trio",
        "abc.py": "from trio_ckpt import _errors\nfrom trio_ckpt._errors import E",
        "stores/__init__.py": "from ._json import J\nfrom trio_ckpt.stores import _memory",
        "stores/_json.py": "from .. import abc\nfrom trio_ckpt.stores._memory import M",
        "stores/_memory.py": "from ..abc import Store\ndef f():\n    import psycopg",
        "_stream.py": "import trio_ckpt._errors",
        "_run.py": "from trio_ckpt._stream import Stream\nfrom trio_ckpt.stores import open_store",
        "engines/__init__.py": "from trio_ckpt.remote import connect",
        "__main__.py": "from trio_ckpt.cli import main",
    }
    assert violations(build(tmp_path, good)) == []
