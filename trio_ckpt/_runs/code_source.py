"""The source of a program in pieces: its functions and classes, and what each of them uses.

Theory of operation
===================

A file is parsed once, and one pass over its syntax tree finds all functions and classes.  This
ensures that a digest of many functions of one file costs no pass for each of them.  A piece is
digested once, however many streams use it.

The passes keep their place in a list and not on the stack of calls: a long sum is as deep as it is
long, and a limit of Python must not end the start of a run.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, cast

import attrs
import msgspec

MAX_SOURCE_CHARS = 5_000_000  # of a file, which is parsed

_INSTALLED = {"site-packages", "dist-packages"}  # also of other environments on the path
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

Use = tuple[str, tuple[str, ...]]


def write_words(hasher: hashlib.blake2b, words: Iterable[str]) -> None:
    """Digest words, each with its length, so that no two lists of words are the same bytes."""
    for word in words:
        data = word.encode(errors="surrogatepass")
        hasher.update(b"%d:" % len(data) + data)


def shown_constant(value: object) -> str:
    """A plain constant as text; an integer in base 16, as Python limits decimal ones."""
    return hex(value) if type(value) is int else repr(value)


class Piece(msgspec.Struct, frozen=True, eq=False):
    """A function, a class or a lambda of a program.

    Attributes:
        digest: The digest of its syntax tree, hexadecimal.
        uses: The names that it uses, with the attributes that it takes of them.
    """

    digest: str
    uses: tuple[Use, ...]


@attrs.define(eq=False, repr=False)
class SourceFile:
    """A file of a program.

    Attributes:
        variables: The names that some function of it assigns by ``global`` or ``nonlocal``: what
            they stand for depends on what the program has done already.
    """

    variables: frozenset[str]
    _functions: dict[tuple[str, int], list[ast.AST]]
    _classes: dict[str, list[ast.AST]]
    _pieces: dict[int, Piece] = attrs.field(factory=dict[int, Piece], init=False)

    def pieces_of(self, code: types.CodeType) -> list[Piece]:
        """The source of a function; of lambdas on one line all, as nothing tells them apart."""
        found = self._functions.get((code.co_name, code.co_firstlineno), ())
        return [self._piece(node) for node in found]

    def pieces_of_class(self, qualname: str) -> list[Piece]:
        """The source of a class."""
        return [self._piece(node) for node in self._classes.get(qualname, ())]

    def _piece(self, node: ast.AST) -> Piece:
        if id(node) not in self._pieces:
            hasher = hashlib.blake2b(digest_size=16)
            write_words(hasher, _words(node))
            self._pieces[id(node)] = Piece(hasher.hexdigest(), _uses(node))
        return self._pieces[id(node)]


@attrs.define(eq=False, repr=False)
class Sources:
    """The files of a program, each parsed once."""

    _files: dict[str, SourceFile | None] = attrs.field(
        factory=dict[str, "SourceFile | None"], init=False
    )

    def file(self, path: str | None) -> SourceFile | None:
        """A file of the program; None: it is outside, or cannot be read."""
        if path is None:
            return None
        if path not in self._files:
            self._files[path] = None if is_outside(path) else _read(path)
        return self._files[path]

    def file_of(self, module: types.ModuleType | None) -> SourceFile | None:
        """The file of a module; None: it has none, it is outside, or it cannot be read."""
        return None if module is None else self.file(names_of(module).get("__file__"))


# -- what is of the program ----------------------------------------------------------------------


@functools.cache
def _outside() -> tuple[str, ...]:
    """The folders of the standard library, and of what is installed."""
    paths = sysconfig.get_paths()
    wanted = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [os.path.dirname(os.path.dirname(__file__))]  # this library is none of the program
    folders += [paths[name] for name in wanted if name in paths]
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


def is_outside(path: str) -> bool:
    """Whether a file is of the standard library, or is installed."""
    real = os.path.realpath(path)
    return real.startswith(_outside()) or bool(_INSTALLED & set(real.split(os.sep)))


def names_of(module: types.ModuleType) -> dict[str, Any]:
    """The names of a module, without loading what it loads when it is first used."""
    found: dict[str, Any] = types.ModuleType.__getattribute__(module, "__dict__")
    return found


def is_outside_module(module: types.ModuleType) -> bool:
    """Whether a module is of the standard library, or is installed."""
    names = names_of(module)
    path = names.get("__file__")
    if not isinstance(path, str):  # built in, or a folder without __init__.py, or a notebook
        return names.get("__name__") in sys.builtin_module_names
    return is_outside(path)


# -- syntax trees ---------------------------------------------------------------------------------


def _read(path: str) -> SourceFile | None:
    import linecache  # few runs note their code

    text = "".join(linecache.getlines(path))
    if not text or len(text) > MAX_SOURCE_CHARS:
        return None
    try:
        return _index(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError):
        return None


def _index(tree: ast.AST) -> SourceFile:
    variables = set[str]()
    functions = dict[tuple[str, int], list[ast.AST]]()
    classes = dict[str, list[ast.AST]]()
    todo: deque[tuple[ast.AST, str]] = deque([(tree, "")])
    while todo:
        node, prefix = todo.popleft()
        if isinstance(node, ast.Global | ast.Nonlocal):
            variables.update(node.names)
        elif isinstance(node, ast.Lambda):
            functions.setdefault(("<lambda>", node.lineno), []).append(node)
        elif isinstance(node, ast.ClassDef):
            classes.setdefault(prefix + node.name, []).append(node)
            prefix += node.name + "."
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            functions.setdefault((node.name, first), []).append(node)
            prefix += node.name + ".<locals>."
        todo.extend((child, prefix) for child in ast.iter_child_nodes(node))
    return SourceFile(frozenset(variables), functions, classes)


def _words(root: ast.AST) -> Iterator[str]:
    """A piece of source as words, without positions, comments, docstrings and its own name."""
    todo: list[ast.AST | str] = [root]
    while todo:
        part = todo.pop()
        if isinstance(part, str):
            yield part
        else:
            todo += reversed(list(_parts(part, is_named=part is not root)))


def _parts(node: ast.AST, *, is_named: bool) -> Iterator[ast.AST | str]:
    """What a node of a syntax tree is made of, in order.

    Args:
        node: The node.
        is_named: Whether its name counts, if it is a function or a class.
    """
    yield type(node).__name__
    for field, value in ast.iter_fields(node):
        if value is None or value == [] or (field == "name" and not is_named):
            continue  # an empty field may be one that other versions of Python do not have
        yield field
        parts = cast("list[object]", value) if isinstance(value, list) else [value]
        if field == "body" and isinstance(node, _NAMED) and ast.get_docstring(node) is not None:
            parts = parts[1:]
        for part in parts:
            yield part if isinstance(part, ast.AST) else shown_constant(part)
    yield "end"


def _uses(node: ast.AST) -> tuple[Use, ...]:
    found = set[Use]()
    inner = set[int]()
    for part in ast.walk(node):
        attributes = list[str]()
        at: ast.AST = part
        while isinstance(at, ast.Attribute):
            attributes.append(at.attr)
            at = at.value
            inner.add(id(at))
        if isinstance(at, ast.Name) and id(part) not in inner:
            found.add((at.id, tuple(reversed(attributes))))
    return tuple(sorted(found))
