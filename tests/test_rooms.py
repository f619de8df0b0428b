"""The floor plan: a room of the package imports only from rooms below it.

The imports are read from the source, not executed, so no import can hide by not being reached.
"""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

PACKAGE = Path(__file__).parents[1] / "trio_ckpt"

ROOMS: dict[str, tuple[int, int]] = {
    "_util": (1, 0),
    "_buckets": (2, 0),
    "_journal": (2, 0),
    "abc": (3, 0),
    "_tokens": (3, 0),
    "outputs": (3, 0),
    "state._tree": (3, 0),
    "state._arrays": (3, 1),
    "state": (3, 2),
    "stores._local": (3, 0),
    "stores._sqlite": (3, 1),
    "stores._json": (3, 1),
    "stores._postgres": (3, 1),
    "stores._objects": (3, 1),
    "stores": (3, 2),
    "_commit": (4, 0),
    "sinks": (4, 1),
    "_runs": (5, 0),
    "_maintenance": (6, 0),
    "progress": (6, 0),
    "blocking": (6, 0),
    "from_asyncio": (6, 0),
    "__init__": (7, 0),
    "testing": (7, 1),
    "remote._wire": (7, 1),
    "remote._foreman": (7, 2),
    "remote._worker": (7, 2),
    "remote": (7, 3),
    "engines": (8, 0),
    "monitor": (8, 0),
    "cli": (9, 0),
    "__main__": (9, 1),
}
"""Room -> (floor, step on it). A room imports only from rooms that lie lower; two at one height do
not know each other. The files of a room may import each other, but not in a circle."""


OPTIONAL = {
    "_commit.archive_states": "only a stream with a state needs it",
    "_commit.stored_state": "only a stream with a state needs it, and how states are encoded",
    "_runs.act_inbox": "only a store without a folder has an inbox",
    "_runs.code": "only a run that notes its code needs it",
    "_runs.steering": "only a run that is steered needs it",
    "outputs._validate": "only a program that validates its outputs needs it",
    "state._chain": "only a stream with a state has chains",
    "state._tree.identity": "only a stream with a state needs it, and how states are encoded",
    "stores._json.check": "no run checks its store",
    "stores._local.check": "no run checks its store",
    "stores._sqlite.check": "no run checks its store",
    "state._arrays.engine": "NumPy and what goes with it are an extra",
    "state._arrays.memory": "NumPy and what goes with it are an extra",
    "state._arrays.dirty_pages": "NumPy and what goes with it are an extra",
    "_commit.state_capture": "only a stream with a state needs it, and how states are encoded",
    "_commit.state_manager": "only a stream with a state needs it, and how states are encoded",
    "state._plan": "only a stream with a state needs it, and how states are encoded",
    "sinks._sink": "only a stream whose rows go into a database needs it",
    "sinks._stream_rows": "only a stream whose rows go into a database needs it",
    "state._tree.flatten": "only a stream with a state needs it",
    "_runs.parallel": "only programs that work on batches side by side need it",
    "_maintenance.losses": "only a run with states or outputs can have lost some",
    "stores._json.store": "a run uses one kind of store",
    "stores._postgres.store": "psycopg is an extra, and a run uses one kind of store",
    "stores._postgres.schema": "psycopg is an extra, and only its store needs it",
    "stores._objects.store": "obstore is an extra, and a run uses one kind of store",
    "sinks._postgres_driver": "psycopg is an extra, and a program uses one kind of database",
    "stores.memory": "a run uses one kind of store",
    "outputs._objects": "obstore is an extra, and most outputs are in a folder",
    "monitor": "its server is an extra, and only the command of that name needs it",
    "remote._wire.sockets": "trio-websocket is an extra, and reading jobs needs none",
}
"""What may be imported where it is needed, so that the core does without, and why."""


@attrs.frozen
class Import:
    line: int
    target: str
    at_top: bool


def room_of(module: str) -> str | None:
    """The room that a module lies in, the innermost: `stores._json.writer` -> `stores._json`."""
    name = module
    while name and name not in ROOMS:
        name = name.rpartition(".")[0]
    return name or None


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
    # The blocks of `needs_extra`; and the names of a package that are imported lazily.
    kinds = (ast.With, ast.If) if path.name == "__init__.py" else (ast.With,)
    blocks = [node for node in tree.body if isinstance(node, kinds)]
    top = {id(node) for node in (*tree.body, *(line for block in blocks for line in block.body))}
    folder = path.relative_to(package.parent).parent.parts
    for node in ast.walk(tree):
        for base, name in asked_for(node, folder):
            if base[:1] != (package.name,):
                continue
            # `from trio_ckpt import abc` may take a module or a name: it is one if we know it.
            whole, target = ".".join((*base[1:], *name)), ".".join(base[1:])
            if whole in modules or whole in ROOMS:
                target = whole
            line = getattr(node, "lineno", 0)
            yield Import(line=line, target=target or "__init__", at_top=id(node) in top)


def violations(package: Path) -> list[str]:
    """Every breach of the floor plan in a package, as text; empty if there is none."""
    modules = modules_of(package)
    found = [f"{name}: in no room" for name in modules if room_of(name) is None]
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        room = room_of(name)
        if room is None:
            continue
        for found_import in own_imports(path, package, modules):
            target = found_import.target
            where = f"{path.relative_to(package)}:{found_import.line}"
            graph[name].add(target)
            if not found_import.at_top and target not in OPTIONAL:
                found.append(f"{where}: the import of {target} is hidden, it belongs at the top")
            other = room_of(target)
            if other is None:
                found.append(f"{where}: imports {target}, which is in no room")
            elif other != room and ROOMS[other] >= ROOMS[room]:
                found.append(f"{where}: imports {target}, which is not below {room}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    return found


def test_every_room_imports_only_from_rooms_below_it() -> None:
    assert (PACKAGE / "__init__.py").is_file()
    assert violations(PACKAGE) == []


def test_every_room_stands_in_the_drawing_of_the_package() -> None:
    drawing = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
    assert drawing is not None
    drawn = set(re.findall(r"\w+", drawing))
    assert [room for room in ROOMS if room.rpartition(".")[2] not in drawn] == [
        "__init__",
        "__main__",
    ]


def test_no_two_classes_of_the_package_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for module, path in modules_of(PACKAGE).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


TESTS = Path(__file__).parent
MAX_NAME = 60
"""How many letters the claim of a test has at most, without the word test."""
MAX_TEST_LINES = 900
"""How long a file of tests is at most; a longer one has two topics."""


def test_the_name_of_a_test_is_a_claim_of_at_most_60_letters() -> None:
    names = {
        node.name
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    claims = {name.removeprefix("test_") for name in names if name.startswith("test_")}
    assert len(claims) > 2000
    assert {claim for claim in claims if len(claim) > MAX_NAME} == set()


def test_no_file_of_tests_has_two_topics() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {path for path, lines in lengths.items() if lines > MAX_TEST_LINES} == set()


MAX_LINES = 520
"""How long a file of the package is at most."""

MAX_BODY_LINES = 70
"""How long a function is at most, without its signature and its docstring."""


def test_no_file_of_the_package_is_too_long() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert len(lengths) > 100
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_function_of_the_package_is_too_long() -> None:
    bodies = {
        f"{path.stem}.{node.name}": node.body[1:] if ast.get_docstring(node) else node.body
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    lengths = {
        name: (body[-1].end_lineno or 0) - body[0].lineno + 1
        for name, body in bodies.items()
        if body
    }
    assert len(lengths) > 2000
    assert {name: lines for name, lines in lengths.items() if lines > MAX_BODY_LINES} == {}


def test_each_file_of_the_law_has_its_file_of_tests() -> None:
    files = {path.stem for path in (PACKAGE / "_commit").glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in (TESTS / "commit").glob("test_*.py")}
    assert len(files) > 10
    assert files - tests == set()


PRIVATE_ROOMS = [room for room in ROOMS if re.search(r"(^|\.)_[^_]", room)]


@pytest.mark.parametrize("room", PRIVATE_ROOMS)
def test_a_private_room_says_what_it_is_for_and_does_no_more(room: str) -> None:
    source = (PACKAGE / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    (docstring,) = ast.parse(source).body
    assert isinstance(docstring, ast.Expr)
    assert "may not know" in source


MOST_WITHOUT_MAP = 15


def test_a_large_room_maps_its_files() -> None:
    """Its docstring names each, or has a pattern such as ``recover_*`` for several."""
    unnamed = list[str]()
    for init in PACKAGE.rglob("__init__.py"):
        files = [path.stem.strip("_") for path in init.parent.glob("*.py") if path != init]
        docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        patterns = [word.strip("_") for word in re.findall(r"\w+\*?", docstring)]
        unnamed += [
            f"{init.parent.name}/{file}"
            for file in files
            if len(files) > MOST_WITHOUT_MAP
            and not any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)
        ]
    assert unnamed == []


def build(folder: Path, files: Mapping[str, str]) -> Path:
    package = folder / "trio_ckpt"
    for name, source in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


BAD = {
    "up": ({"_util/errors.py": "from trio_ckpt._runs.run import R"}, "_runs.run, which is not"),
    "up, by its module": (
        {"_util/errors.py": "import trio_ckpt._runs.run"},
        "_runs.run, which is not below",
    ),
    "up, from its room": (
        {"_util/errors.py": "from trio_ckpt._runs import run"},
        "_runs, which is not",
    ),
    "up, relative": ({"_util/errors.py": "from .._runs.run import R"}, "which is not below"),
    "up, from an inner room": (
        {"stores/_json/store.py": "from ..._commit.gate import Gate"},
        "_commit.gate, which is not below stores._json",
    ),
    "up, from a public room": (
        {"stores/__init__.py": "from .._commit.gate import Gate"},
        "_commit.gate, which is not below stores",
    ),
    "from an inner room to its own": (
        {"stores/_json/store.py": "from ..memory import MemoryStore"},
        "stores.memory, which is not below stores._json",
    ),
    "between inner rooms": (
        {"stores/_json/check.py": "from .._sqlite.check import x"},
        "stores._sqlite.check, which is not below stores._json",
    ),
    "beside": (
        {"monitor/__init__.py": "from trio_ckpt.engines import x"},
        "engines, which is not below",
    ),
    "the public names": (
        {"_runs/run.py": "from trio_ckpt import Batch"},
        "__init__, which is not below _runs",
    ),
    "the package": ({"_runs/run.py": "import trio_ckpt"}, "__init__, which is not below _runs"),
    "in a function": (
        {"_runs/run.py": "def f():\n    from trio_ckpt._util.errors import E"},
        "_runs/run.py:2: the import of _util.errors is hidden",
    ),
    "for typing": (
        {"_runs/run.py": "if TYPE_CHECKING:\n    from trio_ckpt._util.errors import E"},
        "_runs/run.py:2: the import of _util.errors is hidden",
    ),
    "up, lazily": (
        {"stores/__init__.py": "if TYPE_CHECKING:\n    from .._runs.run import R"},
        "_runs.run, which is not below stores",
    ),
    "by name": (
        {"_util/errors.py": "importlib.import_module('trio_ckpt._runs.run')"},
        "_runs.run, which is not below",
    ),
    "an unknown file": ({"_helpers.py": ""}, "_helpers: in no room"),
    "an unknown room": ({"more/_x.py": ""}, "more._x: in no room"),
    "a circle in a room": (
        {
            "_runs/run.py": "from .stream import S",
            "_runs/stream.py": "from trio_ckpt._runs.run import R",
        },
        "a circle: ",
    ),
}


@pytest.mark.parametrize(("files", "complaint"), BAD.values(), ids=BAD.keys())
def test_a_breach_is_found(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    assert complaint in "\n".join(violations(build(tmp_path, files)))


def test_a_good_package_has_no_violations(tmp_path: Path) -> None:
    good = {
        "__init__.py": "from trio_ckpt import abc\nif TYPE_CHECKING:\n"
        "    from ._runs.run import open_run as open_run",
        "_util/errors.py": "import trio",
        "abc.py": "from trio_ckpt._util import errors\nfrom trio_ckpt._util.errors import E",
        "_journal/store.py": "from .._util.errors import E",
        "stores/__init__.py": "from ._json.store import J\nfrom trio_ckpt.stores import memory",
        "stores/memory.py": "from .._journal.store import Store",
        "stores/_json/store.py": "from ..._journal import store\nfrom .._local.files import F",
        "stores/_local/files.py": "from ..._util.errors import E\ndef f():\n    import psycopg",
        "_runs/stream.py": "import trio_ckpt._util.errors",
        "_runs/run.py": "from .stream import Stream\nfrom trio_ckpt.stores import open_store",
        "engines/__init__.py": "from trio_ckpt.remote import connect",
        "__main__.py": "from trio_ckpt.cli import main",
    }
    assert violations(build(tmp_path, good)) == []
