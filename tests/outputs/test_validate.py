"""What passes a validator and what does not, and how it is said."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import attrs
import jsonschema
import pytest

from trio_ckpt import OutputError, OutputInvalidError
from trio_ckpt.outputs import Output, OutputDir, RawCheck, Validator, check_outputs

T = TypeVar("T")


class Kind(enum.Enum):
    TITLE = "title"
    BODY = "body"


class Level(enum.IntEnum):
    LOW = 1


@attrs.frozen
class Line:
    text: str
    number: int = attrs.field(default=1, validator=attrs.validators.gt(0))


@attrs.frozen
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class Word:
    text: str
    score: float = 1.0


@attrs.frozen
class Page:
    """Everything that an attribute may be."""

    lines: list[Line]
    a_float: float = 0.0
    a_bool: bool = False
    at: datetime | None = None
    on: date | None = None
    kind: Kind = Kind.BODY
    level: Level = Level.LOW
    choice: Literal["a", 1] = "a"
    number_or_text: int | str = 0
    line_or_text: Line | str = ""
    scores: dict[str, float] = attrs.Factory(dict)
    corner: tuple[int, int] = (0, 0)
    many: tuple[int, ...] = ()
    tags: set[str] = attrs.Factory(set)
    queue: deque[str] = attrs.Factory(deque)
    counts: Counter[str] = attrs.Factory(Counter)
    anything: Any = None
    inner: list[Page] = attrs.Factory(list)
    box: Box[int] | None = None
    word: Word | None = None
    even: int = attrs.field(default=0)

    @even.validator
    def _check(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value % 2:
            raise ValueError("is odd")


def refuse(validate: Any, value: object) -> OutputInvalidError:
    with pytest.raises(OutputInvalidError) as caught:
        Validator.of(validate).check("page-0017.json", json.dumps(value).encode())
    return caught.value


def accept(validate: Any, value: object) -> None:
    Validator.of(validate).check("page.json", json.dumps(value).encode())


# ---------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "a_float": [1, 1.5, -0.0],
    "a_bool": [True],
    "at": ["2025-01-31T12:00:00Z", "2025-01-31T12:00:00+01:00", None],
    "on": ["2025-01-31"],
    "kind": ["title"],
    "level": [1],
    "choice": ["a", 1],
    "number_or_text": [1, "1"],
    "line_or_text": ["x", {"text": "x"}],
    "scores": [{"a": 1, "b": 0.5}],
    "corner": [[1, 2]],
    "many": [[], [1, 2, 3]],
    "tags": [["a", "b"]],
    "queue": [["a", "b"]],
    "counts": [{"a": 1}],
    "anything": [None, {"x": [1, "a"]}],
    "inner": [[{"lines": [], "inner": [{"lines": []}]}]],
    "box": [{"content": 1}],
    "word": [{"text": "a", "score": 1}],
    "unknown": [{"keys": "are allowed"}],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_fits_a_class_is_accepted(name: str) -> None:
    for value in GOOD[name]:
        accept(Page, {"lines": [], name: value})


BAD: dict[str, list[tuple[Any, str, str]]] = {
    "lines": [
        ("abc", "lines", '"abc" is not an array'),
        ({"text": "a"}, "lines", "an object is not an array"),
        (["a"], "lines[0]", '"a" is not an object'),
        ([{"text": 12}], "lines[0].text", "12 is not a str"),
        ([{"text": "a"}, {}], "lines[1].text", "required, but missing"),
        ([{"text": "a", "number": "12"}], "lines[0].number", '"12" is not an int'),
        ([{"text": "a", "number": True}], "lines[0].number", "true is not an int"),
        ([{"text": "a", "number": 1.0}], "lines[0].number", "1.0 is not an int"),
        ([{"text": "a", "number": None}], "lines[0].number", "null is not an int"),
        ([{"text": "a", "number": 0}], "lines[0].number", "'number' must be > 0: 0"),
    ],
    "a_float": [
        ("1.5", "a_float", '"1.5" is not a float'),
        (False, "a_float", "false is not a float"),
        (10**400, "a_float", f"1{'0' * 38}… exceeds the range"),
    ],
    "a_bool": [(1, "a_bool", "1 is not a bool"), ("yes", "a_bool", '"yes" is not a bool')],
    "at": [
        ("yesterday", "at", '"yesterday" is not an ISO 8601 datetime'),
        (1738324800, "at", "1738324800 is not an ISO 8601 datetime"),
    ],
    "kind": [
        ("TITLE", "kind", '"TITLE" is not a value of Kind'),
        (None, "kind", "null is not a value of Kind"),
    ],
    "level": [
        (True, "level", "true is not a value of Level"),
        (1.0, "level", "1.0 is not a value of Level"),
        (2, "level", "2 is not a value of Level"),
    ],
    "choice": [(True, "choice", "true is not one of 'a', 1"), ("b", "choice", '"b" is not one of')],
    "number_or_text": [(1.5, "number_or_text", "1.5 fits none of int | str")],
    "line_or_text": [({"number": 1}, "line_or_text.text", "required, but missing")],
    "scores": [
        ({"a": 1, "b": "x"}, "scores.b", '"x" is not a float'),
        ({"a b": None}, 'scores["a b"]', "null is not a float"),
        ([], "scores", "an array is not an object"),
    ],
    "corner": [
        ([1], "corner", "has 1 item, not 2"),
        ([1, "2"], "corner[1]", '"2" is not an int'),
    ],
    "many": [([1, None], "many[1]", "null is not an int")],
    "tags": [("ab", "tags", '"ab" is not an array')],
    "queue": [
        ("ab", "queue", '"ab" is not an array'),
        (["a", 1], "queue[1]", "1 is not a str"),
    ],
    "counts": [({"a": 1, "b": "2"}, "counts.b", '"2" is not an int')],
    "inner": [([{"lines": [], "even": 1}], "inner[0].even", "is odd")],
    "box": [({"content": "1"}, "box.content", '"1" is not an int')],
    "word": [({"text": "a", "score": "1"}, "word.score", '"1" is not a float')],
    "even": [(3, "even", "is odd")],
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_coerced_and_the_field_is_named(name: str) -> None:
    for value, field, reason in BAD[name]:
        error = refuse(Page, {"lines": [], name: value})
        assert (error.field, error.reason[: len(reason)]) == (field, reason)


def test_the_message_names_file_field_and_reason() -> None:
    error = refuse(Line, {})
    assert str(error) == "page-0017.json: text: required, but missing"
    assert (error.path, error.field, error.reason) == (
        "page-0017.json",
        "text",
        "required, but missing",
    )
    assert isinstance(error, OutputError)
    assert isinstance(error, ValueError)
    assert str(refuse(Line, [])) == "page-0017.json: an array is not an object"


def test_of_several_problems_the_first_is_named_the_others_counted() -> None:
    lines = [{"text": "a"}, {}, {"text": 1, "number": "x"}]
    error = refuse(Page, {"lines": lines, "a_bool": 1})
    assert (error.field, error.reason) == ("lines[1].text", "required, but missing (and 3 more)")
    assert refuse(list_of_ints(), {"content": ["x"] * 5_000}).reason.endswith("(and 4,999 more)")
    scores = {"a": 1, "b": "x", "c": [], "d": True}
    error = refuse(Page, {"lines": [], "scores": scores})
    assert (error.field, error.reason) == ("scores.b", '"x" is not a float (and 2 more)')


def test_the_problems_of_a_large_document_take_no_memory() -> None:
    check = Validator.of(list_of_ints()).check
    data = json.dumps({"content": ["x"] * 20_000}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(OutputInvalidError, match="and 19,999 more"):
            check("page.json", data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(data)


def list_of_ints() -> Any:
    return Box[list[int]]


def test_a_union_takes_the_first_that_fits_and_an_int_before_a_float() -> None:
    made: list[Any] = []
    both = attrs.make_class("Both", {"value": attrs.field(type=float | int)})
    accept([both, made.append], {"value": 1})
    accept([both, made.append], {"value": 1.0})
    assert [type(both.value) for both in made] == [int, float]


def test_a_class_refuses_a_lone_surrogate_and_a_key_twice() -> None:
    with pytest.raises(OutputInvalidError, match=r"page\.json: an object has the key 'text' twice"):
        Validator.of(Line).check("page.json", b'{"text": "a", "text": "b"}')


# ---------------------------------------------------------------------------------------
# Schemas
# ---------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "required": ["lines", "title"],
    "properties": {"lines": {"type": "array", "items": {"$ref": "#/$defs/line"}}},
    "$defs": {"line": {"type": "object", "required": ["text"]}},
}


def test_a_schema_decides_and_the_field_is_named() -> None:
    accept(SCHEMA, {"lines": [{"text": 1}], "title": 1, "more": 1})
    for value, field, reason in [
        ({}, "lines", "required, but missing (and 1 more)"),
        ({"lines": [{"text": ""}, {}], "title": ""}, "lines[1].text", "required, but missing"),
        ({"lines": [1, 2], "title": ""}, "lines[0]", "1 is not of type 'object' (and 1 more)"),
    ]:
        error = refuse(SCHEMA, value)
        assert (error.field, error.reason) == (field, reason)
    assert len(refuse({"type": "object"}, ["x" * 1_000]).reason) == 300


def test_the_draft_is_the_one_that_the_schema_names() -> None:
    tuples = {"items": [{"type": "integer"}]}  # until draft 2019-09; no schema since
    accept({"$schema": "http://json-schema.org/draft-07/schema#", **tuples}, [1, "a"])
    with pytest.raises(ValueError, match="not a JSON Schema"):
        Validator.of(tuples)
    for unknown in ("http://json-schema.org/draft-99/schema#", 7):
        with pytest.raises(ValueError, match="not a known draft"):
            Validator.of({"$schema": unknown})


@pytest.mark.parametrize(
    "reference",
    ["http://example.invalid/schema.json", "#/$defs/nowhere", "other.json", "#anchor"],
)
def test_a_reference_that_leads_out_of_the_schema_is_an_error_at_once(reference: str) -> None:
    for schema in (
        {"$ref": reference},
        {"properties": {"a": {"items": {"anyOf": [{"$ref": reference}]}}}},
    ):
        with pytest.raises(ValueError, match="the schema refers to"):
            Validator.of(schema)


def test_a_reference_that_is_only_data_is_none() -> None:
    accept({"const": {"$ref": "#/nowhere"}}, {"$ref": "#/nowhere"})
    accept({"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "object"})


def test_a_schema_that_refers_to_itself_is_refused() -> None:
    assert "without end" in refuse({"$ref": "#"}, {}).reason


DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": r"^\D+$"}, "\u0663"),  # a digit, but none of ECMA's
        ({"$defs": {"a": {"pattern": r"^\D+$"}}, "$ref": "#/$defs/a"}, "\u0663"),
        ({"patternProperties": {r"\d": False}}, {"\u0663": 1}),
        ({"multipleOf": 0.1}, 0.3),
        ({"$schema": DRAFT_7, "not": {"contentMediaType": "application/json"}}, "a"),
        ({"$schema": DRAFT_7, "oneOf": [{"type": "string"}, {"contentEncoding": "base64"}]}, "a"),
        ({"not": {"dependencies": {"a": ["b"]}}}, {"a": 1}),
        (
            {
                "$schema": "https://json-schema.org/draft/2019-09/schema",
                "additionalProperties": {"type": "string"},
                "unevaluatedProperties": False,
            },
            {"a": "x"},
        ),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "items": {"$ref": "#/$defs/a"}}, [1]),
    ],
)
def test_what_libraries_read_otherwise_is_decided_by_jsonschema(
    monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any], value: Any
) -> None:
    fast = refuse(schema, value)
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    slow = refuse(schema, value)
    assert (fast.field, fast.reason) == (slow.field, slow.reason)


def test_what_jsonschema_rs_accepts_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"$defs": {"text": {"type": "string"}}, "items": {"$ref": "#/$defs/text"}}
    validator, calls = Validator.of([SCHEMA, shared]), list[object]()

    def iter_errors(_: object, value: object) -> tuple[()]:
        calls.append(value)
        return ()

    monkeypatch.setattr(jsonschema.Draft202012Validator, "iter_errors", iter_errors)
    validator.check("page.json", b'{"title": 1, "lines": [{"text": 1}]}')
    assert not calls
    validator.check("page.json", b'{"lines": []}')
    assert calls == [{"lines": []}]


def test_a_schema_that_is_changed_later_changes_nothing() -> None:
    schema: dict[str, Any] = {"type": "object"}
    validator = Validator.of(schema)
    schema["type"] = "array"
    validator.check("page.json", b"{}")
    assert schema == {"type": "array"}


# ---------------------------------------------------------------------------------------
# Callables and sequences
# ---------------------------------------------------------------------------------------


def test_a_callable_gets_the_document_or_the_instance_made_before_it() -> None:
    seen: list[Any] = []
    accept([seen.append, Line, SCHEMA_ANY, seen.append], {"text": "a", "more": 1})
    assert seen == [{"text": "a", "more": 1}, Line("a")]


SCHEMA_ANY: dict[str, Any] = {}


def no_placeholder(line: Line) -> bool:
    return "TODO" not in line.text


def test_a_callable_refuses_by_false_or_by_raising() -> None:
    accept([Line, no_placeholder], {"text": "done"})
    error = refuse([Line, no_placeholder], {"text": "TODO"})
    assert (error.field, error.reason) == ("", "no_placeholder refuses it")

    def raises(problem: Exception) -> Callable[[Any], None]:
        def check(_: Any) -> None:
            raise problem

        return check

    cause = ValueError("a sentinel")
    error = refuse(raises(cause), {})
    assert error.reason == "a sentinel"
    assert error.__cause__ is cause
    assert refuse(raises(KeyError("x")), {}).reason == "KeyError: 'x'"
    for answer in (None, True, 0, []):  # only False is a refusal
        accept(lambda _, answer=answer: answer, {})


def test_checks_run_in_order_and_the_first_that_refuses_ends_it() -> None:
    seen: list[Any] = []
    assert refuse([{"type": "array"}, seen.append], {}).reason == "{} is not of type 'array'"
    assert refuse([[Line], [seen.append]], {}).field == "text"
    assert seen == []


async def asynchronous(_: Any) -> bool:
    return True


class AsyncCallable:
    async def __call__(self, _: Any) -> bool:
        return True


class Plain:
    pass


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        3,
        "schema.json",
        b"{}",
        int,
        dict,
        Plain,
        list[int],
        asynchronous,
        AsyncCallable(),
        [Line, 3],
        attrs.make_class("Odd", {"x": attrs.field(type=complex)}),
        attrs.make_class("Lost", {"x": attrs.field(type="Nowhere")}),
    ],
    ids=repr,
)
def test_nonsense_is_refused_at_once(nonsense: Any) -> None:
    with pytest.raises(TypeError):
        Validator.of(nonsense)


def test_an_empty_sequence_or_a_broken_schema_is_refused_at_once() -> None:
    for nonsense in ([], (), [[]], {"type": "no type"}):
        with pytest.raises(ValueError, match=r"validates nothing|not a JSON Schema"):
            Validator.of(nonsense)


def test_a_validator_is_a_validator() -> None:
    validator = Validator.of(Line)
    assert Validator.of(validator) is validator
    assert refuse([validator, no_placeholder], {"text": "TODO"}).reason.startswith("no_placeholder")


@pytest.mark.parametrize(("module", "validate"), [("cattrs", Line), ("jsonschema", {})])
def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, validate: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}: pip install 'trio-ckpt\[validate\]'"):
        Validator.of(validate)
    Validator.of(no_placeholder)


def test_the_libraries_are_imported_only_where_they_are_used() -> None:
    code = (
        "import sys, trio_ckpt.outputs as o; o.Validator.of(print);"
        "assert not {'cattrs', 'jsonschema', 'jsonschema_rs', 'referencing'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_share_a_validator() -> None:
    validator = Validator.of([Page, SCHEMA_ANY, {"required": ["lines"]}])
    inner: dict[str, Any] = {"lines": [{"text": "a"}] * 20, "inner": []}
    good = json.dumps({**inner, "inner": [inner] * 5}).encode()
    bad = json.dumps({**inner, "inner": [inner, {"lines": [{"text": 1}]}]}).encode()
    begin, problems = threading.Barrier(8), list[object]()

    def work() -> None:
        begin.wait()
        for _ in range(20):
            try:
                validator.check("good.json", good)
                try:
                    validator.check("bad.json", bad)
                except OutputInvalidError as error:
                    if error.field != "inner[1].lines[0].text":
                        raise
                else:
                    raise AssertionError("it was accepted")
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# ---------------------------------------------------------------------------------------
# Outputs
# ---------------------------------------------------------------------------------------


def test_every_json_output_is_validated_and_no_other(outdir: OutputDir) -> None:
    good = outdir.write("a/1.json", b'{"text": "a"}')
    bad = outdir.write("2.JSON", b'{"text": 1}')
    image = outdir.write("1.png", b"\x89PNG")
    lines = outdir.write("1.jsonl", b"{}\n{}\n")
    validator = Validator.of(Line)
    check_outputs(outdir, [image, good, lines], validator)
    with pytest.raises(OutputInvalidError, match=r"^2\.JSON: text: 1 is not a str$"):
        check_outputs(outdir, [good, bad], validator)


def test_a_batch_without_json_does_not_slip_by(outdir: OutputDir) -> None:
    image = outdir.write("1.png", b"\x89PNG")
    for listed in ([], [image]):
        with pytest.raises(OutputInvalidError, match=r"^no JSON output to validate$"):
            check_outputs(outdir, listed, Validator.of(Line))


def is_a_picture(path: str, content: bytes) -> bool:
    return not path.endswith(".png") or content.startswith(b"\x89PNG")


def test_an_output_that_is_not_json_is_seen_by_raw_checks(outdir: OutputDir) -> None:
    seen: dict[str, bytes] = {}
    validator = Validator.of([Line, RawCheck(seen.__setitem__), RawCheck(is_a_picture)])
    json_output = outdir.write("1.json", b'{"text": "a"}')
    image, text = outdir.write("a/1.png", b"\x89PNG"), outdir.write("1.txt", b"")
    check_outputs(outdir, [image, json_output, text], validator)
    assert seen == {"a/1.png": b"\x89PNG", "1.txt": b""}
    bad = outdir.write("2.png", b"<html>")
    with pytest.raises(OutputInvalidError, match=r"^2\.png: is_a_picture refuses it$"):
        check_outputs(outdir, [bad, json_output], validator)


def test_a_raw_check_refuses_by_raising(outdir: OutputDir) -> None:
    def refuse(path: str, content: bytes) -> None:
        raise ValueError(f"{len(content)} bytes are too few")

    with pytest.raises(OutputInvalidError, match=r"^1\.txt: 2 bytes are too few$"):
        check_outputs(outdir, [outdir.write("1.txt", b"ab")], Validator.of(RawCheck(refuse)))


def test_each_kind_of_check_needs_an_output(outdir: OutputDir) -> None:
    document, image = outdir.write("1.json", b'{"text": "a"}'), outdir.write("1.png", b"\x89PNG")
    raw = RawCheck(is_a_picture)
    for listed in ([], [document]):
        with pytest.raises(OutputInvalidError, match=r"^no output to validate that is not JSON$"):
            check_outputs(outdir, listed, Validator.of(raw))
    with pytest.raises(OutputInvalidError, match=r"^no JSON output to validate$"):
        check_outputs(outdir, [image], Validator.of([raw, Line]))


def test_an_output_over_the_limit_of_a_raw_check_is_not_read(outdir: OutputDir) -> None:
    output = outdir.write("1.bin", b"abc")
    check_outputs(outdir, [output], Validator.of(RawCheck(is_a_picture, limit_bytes=3)))
    with pytest.raises(OutputInvalidError, match=r"^1\.bin: has 3 bytes, over 2$"):
        check_outputs(outdir, [output], Validator.of(RawCheck(is_a_picture, limit_bytes=2)))


def test_a_raw_check_is_a_plain_function() -> None:
    with pytest.raises(TypeError, match="is async"):
        RawCheck(asynchronous)


def test_what_is_validated_is_what_was_hashed(outdir: OutputDir, root: Path) -> None:
    output = outdir.write("1.json", b'{"text": "a"}')
    (root / "1.json").write_bytes(b'{"text": "b"}')
    with pytest.raises(OutputInvalidError, match="altered since it was hashed"):
        check_outputs(outdir, [output], Validator.of(Line))
    (root / "1.json").unlink()
    with pytest.raises(OutputError, match="No such file"):
        check_outputs(outdir, [output], Validator.of(Line))


def test_an_output_that_is_too_large_is_not_read(outdir: OutputDir) -> None:
    output = Output("huge.json", 2**40, 0, hashlib.sha256(b"").hexdigest())
    with pytest.raises(OutputInvalidError, match=r"has 1,099,511,627,776 bytes, over 67,108,864"):
        check_outputs(outdir, [output], Validator.of(Line))


def test_times_are_aware_or_not_as_they_were_written() -> None:
    made: list[Page] = []
    accept([Page, made.append], {"lines": [], "at": "2025-01-31T12:00:00Z", "on": "2025-01-31"})
    assert made[0].at == datetime(2025, 1, 31, 12, tzinfo=UTC)
    assert made[0].on == date(2025, 1, 31)
    assert made[0].kind is Kind.BODY


def leave(_: object) -> None:
    raise SystemExit(3)


@attrs.define
class Leaving:
    n: int = attrs.field(default=0)

    @n.validator
    def _leave(self, attribute: attrs.Attribute[int], value: int) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("validate", "name"), [(leave, "SystemExit"), (Leaving, "KeyboardInterrupt")]
)
def test_a_check_that_ends_programs_refuses_its_output(validate: Any, name: str) -> None:
    error = refuse(validate, {"n": 1})
    assert error.reason == f"its check raised {name}"
    assert type(error.__cause__).__name__ == name


def test_a_raw_check_that_ends_programs_refuses_its_output() -> None:
    check = RawCheck(lambda path, data: leave(path), limit_bytes=10)
    with pytest.raises(OutputInvalidError, match="its check raised SystemExit"):
        Validator.of(check).check("a.bin", b"x")
