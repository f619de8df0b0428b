"""The synchronous objects have what those of trio have, with the arguments of those."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from typing import Any

import pytest

import trio_ckpt
from tests.hangs import PROGRAM_S
from trio_ckpt import Batch, Collection, Partition, Run, Snapshots, Stream, blocking
from trio_ckpt.blocking import (
    BlockingBatch,
    BlockingCollection,
    BlockingPartition,
    BlockingRun,
    BlockingSnapshots,
    BlockingStream,
)
from trio_ckpt.blocking._methods import HeldField

PAIRS = [
    (Run, BlockingRun),
    (Stream, BlockingStream),
    (Batch, BlockingBatch),
    (Snapshots, BlockingSnapshots),
    (Collection, BlockingCollection),
    (Partition, BlockingPartition),
]
NOT_NEEDED = {"point_sync"}
"""What only programs with a loop of their own need."""
OWN = {"beside"}
"""What only synchronous programs need."""


def public(kind: type) -> set[str]:
    """The names of a class, with the attributes that its docstring lists."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    found = {name for name in dir(kind) if not name.startswith("_")}
    for part in re.findall(r"^Attributes:\n((?: .*\n?|\n)+)", doc, re.MULTILINE):
        found |= set(re.findall(r"^    (\w+):", part, re.MULTILINE))
    return found


@pytest.mark.parametrize(("of_trio", "ours"), PAIRS)
def test_a_synchronous_object_has_all_of_the_one_of_trio(of_trio: type, ours: type) -> None:
    assert public(of_trio) - public(ours) - NOT_NEEDED == set()
    assert public(ours) - public(of_trio) - OWN == set()


def fields() -> list[tuple[type, str, HeldField[Any]]]:
    return [
        (of_trio, name, value)
        for of_trio, ours in PAIRS
        for name, value in vars(ours).items()
        if isinstance(value, HeldField)
    ]


def type_in_trio(of_trio: type, name: str) -> object:
    """The type of an attribute; None: its class does not say it where it can be read."""
    member = inspect.getattr_static(of_trio, name, None)
    if isinstance(member, property):
        return typing.get_type_hints(member.fget)["return"]
    said = inspect.get_annotations(of_trio).get(name)
    return None if said is None else eval(said, vars(sys.modules[of_trio.__module__]))


@pytest.mark.parametrize(("of_trio", "name", "field"), fields())
def test_an_attribute_has_the_type_that_it_has_in_trio(
    of_trio: type, name: str, field: HeldField[Any]
) -> None:
    expected = type_in_trio(of_trio, name)
    if hasattr(field, "__orig_class__") and expected is not None:
        assert typing.get_args(field.__orig_class__) == (expected,)


def test_the_types_of_most_attributes_are_compared() -> None:
    compared = [
        name
        for of_trio, name, field in fields()
        if hasattr(field, "__orig_class__") and type_in_trio(of_trio, name) is not None
    ]
    assert len(compared) > 20


def parameters(function: Any) -> list[tuple[str, object, object]]:
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize(
    ("of_trio", "ours"),
    [(Run.open_stream, BlockingRun.open_stream), (Stream.batches, BlockingStream.batches)],
)
def test_overloads_are_those_of_trio(of_trio: Any, ours: Any) -> None:
    theirs = [parameters(overload) for overload in typing.get_overloads(of_trio)]
    assert [parameters(overload) for overload in typing.get_overloads(ours)] == theirs
    assert len(theirs) == 2


@pytest.mark.parametrize(
    ("of_trio", "ours"),
    [
        (trio_ckpt.open_run, blocking.open_run),
        (trio_ckpt.open_collection, blocking.open_collection),
        (Collection.claim, BlockingCollection.claim),
        (trio_ckpt.run_batches, blocking.run_batches),
        (Stream.snapshots, BlockingStream.snapshots),
        (Stream.finish, BlockingStream.finish),
        (Batch.write_json, BlockingBatch.write_json),
        (Run.wait_confirmed, BlockingRun.wait_confirmed),
        (Run.phase, BlockingRun.phase),
    ],
)
def test_arguments_are_those_of_trio(of_trio: Any, ours: Any) -> None:
    assert parameters(ours) == parameters(of_trio)


def test_without_anyio_the_message_names_the_extra() -> None:
    program = "import sys; sys.modules['anyio'] = None; import trio_ckpt.blocking"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )
    assert done.returncode == 1
    assert "MissingExtraError: trio_ckpt.blocking needs anyio" in done.stderr
    assert "pip install 'trio-ckpt[blocking]'" in done.stderr
