"""A traceback names an error by the module that programs import it from."""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from collections.abc import Iterator

import trio_ckpt
from trio_ckpt import StreamBusyError, TrioCkptError
from trio_ckpt.outputs import OutputPathError


def load_all() -> None:
    for module in pkgutil.walk_packages(trio_ckpt.__path__, "trio_ckpt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def errors_below(kind: type[TrioCkptError]) -> Iterator[type[TrioCkptError]]:
    for error in kind.__subclasses__():
        yield error
        yield from errors_below(error)


def test_every_error_is_found_where_its_name_says() -> None:
    load_all()
    ours = [kind for kind in errors_below(TrioCkptError) if kind.__module__.startswith("trio_ckpt")]
    assert len(ours) > 60
    modules = {kind: importlib.import_module(kind.__module__) for kind in ours}
    assert [k for k in ours if getattr(modules[k], k.__name__, None) is not k] == []


def test_every_public_error_has_the_name_of_a_public_module() -> None:
    found = [getattr(trio_ckpt, name) for name in trio_ckpt.__all__]
    errors = [one for one in found if isinstance(one, type) and issubclass(one, BaseException)]
    assert len(errors) > 30
    assert [kind for kind in errors if "._" in kind.__module__] == []


def test_a_traceback_has_no_private_name() -> None:
    for error, name in (
        (StreamBusyError("busy"), "trio_ckpt.StreamBusyError: busy"),
        (OutputPathError("/a", "is bad"), "trio_ckpt.outputs.OutputPathError: output '/a' is bad"),
    ):
        assert traceback.format_exception_only(error) == [f"{name}\n"]


def test_errors_of_programs_keep_their_module() -> None:
    class MineError(TrioCkptError):
        """An error of a program."""

    assert MineError.__module__ == __name__
