"""How people read numbers, times and names."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._util import text as text_module
from trio_ckpt._util.index_set import IndexSet


@given(st.text())
def test_any_text_is_shown_printable_and_printable_text_is_kept(text: str) -> None:
    shown = text_module.printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:sesame@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:ses@me/?#@host:5432/db?x=1", "postgresql://me:***@host:5432/db?x=1"),
        ("s3://key:sesame@host/bucket", "s3://key:***@host/bucket"),
        ("postgresql://me:1234@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:12,sesame@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:12?sesame@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:12/sesame@host/db", "postgresql://me:***@host/db"),
        ("postgresql://h/db?p%61ssword=sesame&x=1", "postgresql://h/db?p%61ssword=***&x=1"),
        ("postgresql://:sesame@/db", "postgresql://:***@/db"),
        ("postgresql://h:1,h:2/db?password=sesame&x=1", "postgresql://h:1,h:2/db?password=***&x=1"),
        ("s3://b/p?secret_access_key=sesame", "s3://b/p?secret_access_key=***"),
        ("postgresql://h/db?blobs=s3://k:sesame@b", "postgresql://h/db?blobs=s3://k:***@b"),
        ("x+y://me:sesame\n@host", "x+y://me:***@host"),
    ],
)
def test_a_url_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert text_module.redacted_url(address) == shown
    assert "sesame" not in shown
    assert text_module.redacted_url(shown) == shown


@pytest.mark.parametrize(
    "address",
    [
        "memory:",
        "sqlite:/home/me/a@b:c",
        "json:/home/me/a?token=b",
        "json:C:\\x@y",
        "./a:b@c",
        "postgresql://me@host:5432/db?lease_s=30",
        "postgresql://h:5432/db?options=a@b",
        "postgresql://h:5432,h2:5433/db?options=a@b",
        "postgresql://h:5432",
        "postgresql://h:5432?lease_s=30",
        "s3://bucket/a:b@c",
    ],
)
def test_a_url_without_secrets_is_shown_as_it_is(address: str) -> None:
    assert text_module.redacted_url(address) == address


def test_what_is_not_printed_is_written_out() -> None:
    assert text_module.printable("a\x1b[1m\n\u202e\x9bé€") == r"a\x1b[1m\n\u202e\x9bé€"
    assert text_module.printable("\ud800") == r"\ud800"


def test_names_in_a_list_are_all_different() -> None:
    keys = [("a/b", "c"), ("a", "b/c"), (" ",), ("é", "x"), ("[",)]
    assert list(text_module.stream_names(keys).values()) == [
        '["a/b", "c"]',
        '["a", "b/c"]',
        '[" "]',
        "é/x",
        "[",
    ]


@given(st.text(), st.integers(1, 20))
def test_what_is_cut_takes_at_most_so_many_columns(text: str, limit: int) -> None:
    shown = text_module.truncate(text, limit)
    assert text_module.display_width(shown) <= limit
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))


def test_a_wide_character_takes_two_columns_a_combining_one_none() -> None:
    assert [text_module.display_width(text) for text in ("abc", "日本", "e\u0301")] == [3, 4, 1]
    assert text_module.truncate("日本語", 5) == "日本…"


def test_a_long_message_is_cut() -> None:
    assert text_module.message_of("x" * 200) == "x" * 200
    assert text_module.message_of("x" * 201) == "x" * 199 + "…"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("\n", ""),
        ("403 Forbidden\nFor more information: https://x", "403 Forbidden …"),
        ("  first \r\n second", "first …"),
        ("one line\n", "one line"),
        ("a\u2028b", "a …"),
        ("a\x1b[31mb\nc", "a\\x1b[31mb …"),
        ("x" * 300 + "\ny", "x" * 199 + "…"),
    ],
)
def test_of_a_message_of_many_lines_the_first_is_shown(text: str, shown: str) -> None:
    assert text_module.message_of(text) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3_599.6, "1 h 00 min"),
        (7_500, "2 h 05 min"),
        (86_399.9, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert text_module.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1_234_567, "1,234,567"),
        (10**400, f"{10**400:,}"),
        (0.0, "0"),
        (-0.00001, "-1e-05"),
        (0.1 + 0.2, "0.3"),
        (1_234.50, "1,234.5"),
        (12.34567, "12.3457"),
        (0.00012, "0.00012"),
        (1e300, "1e+300"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert text_module.number(value) == text


def test_counts_and_amounts() -> None:
    assert text_module.plural(1, "batch") == "1 batch"
    assert text_module.plural(84_200, "batch") == "84,200 batches"
    assert text_module.plural(0, "stream") == "0 streams"
    assert text_module.amounts({"b\n": 1, "a": 0.5}) == r"a 0.5, b\n 1"
    assert text_module.batches_are(IndexSet([3])) == "batch 3 is"
    assert text_module.batches_are(IndexSet([1, 3, 4, 5])) == "batches 1, 3-5 are"


def test_times_are_utc() -> None:
    assert text_module.moment(0.0) == "1970-01-01 00:00:00 UTC"
    assert text_module.iso_moment(0.0) == "1970-01-01T00:00:00+00:00"
    assert text_module.iso_moment(None) is None
