"""The configuration: equal ones are equal whatever their form, changes are named by field."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import pytest

from trio_ckpt import NotEncodableError
from trio_ckpt._runs.config import (
    MAX_CONFIG_BYTES,
    canonical_config,
    config_digest,
    diff_config,
    without_fields,
)


class Mode(enum.Enum):
    FAST = "fast"


@attrs.frozen
class Limits:
    pages: int = 10


@attrs.define
class Config:
    repos: Any = ("a", "b")
    limits: Limits = attrs.field(factory=Limits)


def test_attrs_and_mapping_of_the_same_are_the_same() -> None:
    plain = {"limits": {"pages": 10}, "repos": ["a", "b"]}
    assert canonical_config(Config()) == plain
    assert config_digest(canonical_config(Config())) == config_digest(canonical_config(plain))


def test_the_order_of_keys_and_of_sets_says_nothing() -> None:
    one = canonical_config({"a": 1, "b": {"y", "x", "z"}})
    other = canonical_config({"b": frozenset(("z", "x", "y")), "a": 1})
    assert one == other
    assert config_digest(one) == config_digest(other)
    assert config_digest(one) != config_digest(canonical_config({"a": 2, "b": {"y", "x", "z"}}))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (PurePosixPath("a/b"), "a/b"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (Mode.FAST, "fast"),
        ({Mode.FAST, 2}, ["fast", 2]),
        (set("qwertyuiop"), sorted("qwertyuiop")),
        ((1, (2.5, None)), [1, [2.5, None]]),
        (True, True),
    ],
)
def test_each_kind_has_one_form(value: object, plain: object) -> None:
    assert canonical_config({"field": value}) == {"field": plain}


def test_no_config_is_an_empty_one() -> None:
    assert canonical_config(None) == canonical_config({}) == {}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "config.field"),
        (float("nan"), "config.field"),
        ({"deep": [1, b"bytes"]}, "config.field.deep[1]"),
        ({object()}, "config.field"),
        ({float("inf"), 1.0}, "config.field"),
        ({1: "a key that is no text"}, "config.field"),
        (2**80, "config.field"),
    ],
)
def test_anything_else_is_refused_with_its_key(value: object, path: str) -> None:
    with pytest.raises(NotEncodableError) as caught:
        canonical_config({"field": value})
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize("config", [[1, 2], "text", 7, Path("a")])
def test_a_config_has_fields(config: object) -> None:
    with pytest.raises(NotEncodableError, match="must be an attrs instance, a dataclass"):
        canonical_config(config)


def test_excluded_fields_do_not_count_whatever_they_hold() -> None:
    config = {"kept": 1, "key": object(), "pool": {object()}}
    assert canonical_config(config, ("key", "pool")) == {"kept": 1}


def test_a_nested_field_is_excluded_by_its_dotted_name() -> None:
    config = {"github": {"started": object(), "org": "one"}, "started": 1}
    assert canonical_config(config, ["github.started"]) == {"github": {"org": "one"}, "started": 1}


@pytest.mark.parametrize(
    "name", ["absent", "kept.absent", "", "config", "config.kept", "nested.n.x"]
)
def test_an_unknown_field_cannot_be_excluded(name: str) -> None:
    with pytest.raises(ValueError, match=f"exclude names '{name}', which is not a field of config"):
        canonical_config({"kept": 1, "nested": {"n": 1}}, [name])


def test_a_field_is_excluded_from_a_stored_config() -> None:
    stored = {"a": 1, "b": {"x": 1, "y": {"z": 2}}, "c": [1]}
    assert without_fields(stored, ["a", "b.y.z", "c.d", "absent.x"]) == {
        "b": {"x": 1, "y": {}},
        "c": [1],
    }
    assert stored == {"a": 1, "b": {"x": 1, "y": {"z": 2}}, "c": [1]}


def test_a_dataclass_is_a_config() -> None:
    @dataclasses.dataclass
    class Settings:
        folder: Path
        depth: int = 2

    assert canonical_config(Settings(Path("a"))) == {"folder": "a", "depth": 2}


def test_a_config_that_holds_itself_is_refused() -> None:
    config: dict[str, Any] = {}
    config["self"] = [config]
    with pytest.raises(NotEncodableError, match="nested deeper"):
        canonical_config(config)


def test_a_table_of_data_is_no_config() -> None:
    with pytest.raises(NotEncodableError, match=f"over {MAX_CONFIG_BYTES} bytes"):
        canonical_config({"data": "x" * MAX_CONFIG_BYTES})


def test_the_callers_mapping_is_left_alone() -> None:
    config = {"kept": 1, "key": 2}
    canonical_config(config, ("key",))
    assert config == {"kept": 1, "key": 2}


def test_the_diff_names_fields_sorted_with_nested_ones_dotted() -> None:
    was = {"b": 1, "a": {"x": 1, "y": [1, 2]}, "same": {"z": None}, "gone": "text"}
    now = {"b": True, "a": {"x": 1, "y": [1, 3]}, "same": {"z": None}, "new": {"n": 0}}
    assert diff_config(was, now) == (
        ("a.y", "[1,2]", "[1,3]"),
        ("b", "1", "true"),
        ("gone", '"text"', "absent"),
        ("new", "absent", '{"n":0}'),
    )
    assert diff_config(was, was) == ()
    assert diff_config({"a": "absent"}, {}) == (("a", '"absent"', "absent"),)
