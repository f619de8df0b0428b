"""The sources have nothing with which what is stored or sent could be executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trio_ckpt"

UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code"}
UNSAFE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}  # not re.compile

# Modules that are imported by a name that is no constant, and where the name comes from.
BY_NAME = {
    "_util/lazy.py": "the tables of public names in the package's own __init__ files",
    "cli/_app.py": "the table of commands",
    "outputs/_schema.py": "two names in that file",
    "remote/_worker/work.py": "the command line of the worker, which lists what may run",
    "state/_arrays/compress.py": "the table of compressors",
    "state/_arrays/frameworks.py": "the table of frameworks",
}


def complaints(source: str, name: str) -> Iterator[str]:
    """What a source has that it must not have."""
    constant = set[ast.expr]()  # what is called with a constant
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from _complaints_of_imports([alias.name for alias in names])
            case ast.ImportFrom(module=str(module), level=0):  # else it is a file of the package
                yield from _complaints_of_imports([module])
            case ast.Call(func=func, args=args, keywords=keywords):
                if args and isinstance(args[0], ast.Constant):
                    constant.add(func)
                yield from ("starts a shell" for keyword in keywords if keyword.arg == "shell")
            case ast.Name() | ast.Attribute():  # after the call that it is in
                words = ast.unparse(node)
                if words in UNSAFE:
                    yield f"has {words}"
                by_name = words.rpartition(".")[2] == "import_module" and name not in BY_NAME
                if by_name and node not in constant:
                    yield "imports by a name that is no constant"
            case _:
                pass


def _complaints_of_imports(modules: list[str]) -> Iterator[str]:
    yield from (f"imports {m}" for m in modules if m.partition(".")[0] in UNSAFE_MODULES)


def test_nothing_that_is_stored_or_sent_can_be_executed() -> None:
    """No pickle, no import by a stored name, no shell."""
    found = {
        f"{name}: {complaint}"
        for path in PACKAGE.rglob("*.py")
        for name in [path.relative_to(PACKAGE).as_posix()]
        for complaint in complaints(path.read_text(encoding="utf-8"), name)
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import os, marshal",
        "eval(payload)",
        "os.system(name)",
        "subprocess.run(command, shell=True)",
        "importlib.import_module(record.name)",
        "import_module(f'{package}.x')",
        "run_blocking(importlib.import_module, name)",
    ],
)
def test_what_must_not_be_there_is_noticed(source: str) -> None:
    assert list(complaints(source, "stores/_json/store.py"))


def test_names_are_imported_only_from_where_the_table_says() -> None:
    """A row whose file imports nothing by name any more is taken out."""
    for name in BY_NAME:
        assert "import_module" in (PACKAGE / name).read_text(encoding="utf-8")
