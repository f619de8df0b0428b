"""Sources: item j is batch first_index + j."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import NotEncodableError
from trio_ckpt._runs.source import Source, default_key
from trio_ckpt._util.plain import item_digest

PAGES = ["a", "b", "c", "d"]


def source(
    items: Any,
    *,
    first_index: int = 1,
    key: Callable[[Any], str] | None = None,
) -> Source[Any]:
    return Source(items, first_index=first_index, key=key)


def digests(items: list[Any], first_index: int = 1) -> dict[int, bytes]:
    return {first_index + at: item_digest(default_key(item)) for at, item in enumerate(items)}


def as_list(items: list[str]) -> Any:
    return items


def as_factory(items: list[str]) -> Any:
    return lambda: iter(items)


BOTH = pytest.mark.parametrize("form", [as_list, as_factory])


@BOTH
def test_item_j_is_batch_first_index_plus_j(form: Callable[[list[str]], Any]) -> None:
    pages = source(form(PAGES), first_index=3)
    got = [pages.get(index) for index in range(3, 8)]
    assert [found and found[0] for found in got] == [*PAGES, None]
    assert got[4] is None
    assert [found[1] for found in got if found] == list(digests(PAGES).values())


@BOTH
def test_there_is_nothing_before_the_first_batch(form: Callable[[list[str]], Any]) -> None:
    pages = source(form(PAGES), first_index=3)
    assert pages.get(2) is None
    assert pages.get(0) is None


def test_only_a_list_knows_its_end() -> None:
    assert source(PAGES, first_index=3).stop == 7
    assert source(range(5), first_index=0).stop == 5
    assert source(lambda: PAGES).stop is None
    assert source(None).stop is None


def test_an_open_end_gives_batches_without_items() -> None:
    pages = source(None)
    assert pages.is_open_ended
    assert pages.get(10**9) == (None, b"")
    assert not source(PAGES).is_open_ended
    assert not source(lambda: PAGES).is_open_ended


def test_a_factory_is_read_once_going_forward_and_again_going_back() -> None:
    calls = 0

    def make() -> Iterator[str]:
        nonlocal calls
        calls += 1
        yield from PAGES

    pages = source(make)
    assert calls == 0  # making a source reads nothing
    assert [pages.get(index) for index in (1, 3, 3, 4)][1:] == [
        ("c", item_digest('"c"')),
        ("c", item_digest('"c"')),
        ("d", item_digest('"d"')),
    ]
    assert calls == 1
    assert pages.get(2) == ("b", item_digest('"b"'))
    assert calls == 2
    assert [pages.get(9), pages.get(9), pages.get(4)] == [None, None, ("d", item_digest('"d"'))]


def test_what_a_second_start_could_not_read_again_is_refused() -> None:
    for items in (iter(PAGES), (page for page in PAGES), set(PAGES), 7, "abc", b"abc"):
        with pytest.raises(
            TypeError, match=r"^items must be a list, or a function that returns one, not "
        ):
            source(items)


def test_a_key_of_ones_own_names_items() -> None:
    class Page:
        def __init__(self, number: int) -> None:
            self.number = number

    pages = [Page(1), Page(2)]
    numbered = source(pages, key=lambda page: str(page.number))
    assert numbered.get(2) == (pages[1], item_digest("2"))
    with pytest.raises(NotEncodableError, match="give key="):
        source(pages).get(1)


@pytest.mark.parametrize(
    ("item", "key"), [(7, "7"), ("7", '"7"'), ({"b": 1, "a": [None]}, '{"a":[null],"b":1}')]
)
def test_the_default_key_is_canonical_json(item: object, key: str) -> None:
    assert default_key(item) == key


@pytest.mark.parametrize("items", ["abc", b"abc", bytearray(b"a"), {"a": 1}, {"a"}, 5, iter("a")])
def test_one_text_and_what_cannot_be_read_again_are_no_list(items: Any) -> None:
    with pytest.raises(
        TypeError, match="items must be a list, or a function that returns one, not"
    ):
        source(items)


@pytest.mark.parametrize(
    ("items", "instead"),
    [
        (10, "write range(10)"),
        ({"b", "a"}, "a set has no order: write sorted(...)"),
        (iter("ab"), "write list(...)"),
        ({"a": 1}, "write list(...)"),
    ],
)
def test_what_is_no_list_is_refused_with_what_to_write(items: Any, instead: str) -> None:
    with pytest.raises(TypeError) as caught:
        source(items)
    assert str(caught.value).endswith(f"they are read again on every start; {instead}")


async def test_for_without_async_is_refused_with_what_to_write() -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        with pytest.raises(TypeError, match=r"write 'async for batch in stream\.batches\("):
            for _ in stream.batches(range(2)):  # type: ignore[attr-defined]
                pass
        async for batch in stream.batches(range(2)):
            batch.complete()
    assert list(stream.progress.confirmed) == [0, 1]


async def test_a_bad_item_of_a_list_is_refused_at_once_by_its_place() -> None:
    items = [{"n": 1}, *range(2_000), {"n": [0, {1, 2}]}]
    with pytest.raises(NotEncodableError) as caught:
        await source(items).note_items()
    assert caught.value.path == "the item of batch 2002.n[1]"
    assert str(caught.value).count("cannot be stored") == 1
    assert str(caught.value).endswith("a set is not JSON-like; give key=")


def test_a_bad_item_that_a_function_returns_is_refused_by_its_place() -> None:
    pages = source(lambda: iter(["a", b"b"]), first_index=5)
    pages.get(5)
    with pytest.raises(NotEncodableError, match="the item of batch 6 cannot be stored: a bytes"):
        pages.get(6)


@BOTH
def test_what_a_key_raises_leaves_with_the_item_it_was_called_with(
    form: Callable[[list[str]], Any],
) -> None:
    pages = source(form(PAGES), key=lambda item: {"a": "1"}[item])
    pages.get(1)
    with pytest.raises(KeyError) as caught:
        pages.get(2)
    assert caught.value.__notes__ == ["key was called for batch 2 with 'b'"]


def test_a_key_is_a_str() -> None:
    with pytest.raises(TypeError, match="key must return a str, not 97, for batch 1"):
        source(PAGES, key=ord).get(1)  # type: ignore[arg-type]


def test_a_key_may_be_the_name_of_a_file_that_is_not_utf_8() -> None:
    pages = source(["a\udcff", "a\udcfe"], key=str)
    one, other = pages.get(1), pages.get(2)
    assert one is not None
    assert other is not None
    assert one[1] != other[1]


@pytest.mark.parametrize("change", [lambda items: items.append("e"), lambda items: items.pop()])
async def test_a_list_that_grows_or_shrinks_under_a_loop_is_refused(
    change: Callable[[list[Any]], Any],
) -> None:
    items: list[Any] = [*PAGES]
    pages = source(items)
    await pages.note_items()
    assert pages.get(1) == ("a", item_digest(default_key("a")))
    change(items)
    assert pages.stop == 5
    for index in (2, 5):
        with pytest.raises(RuntimeError, match="the list of items had 4 when the loop began, and"):
            pages.get(index)


async def test_a_list_whose_items_are_replaced_is_worked_on_as_it_was() -> None:
    items: list[Any] = [*PAGES]
    pages = source(items)
    await pages.note_items()
    items[:] = reversed(items)
    assert pages.get(1) == ("a", item_digest(default_key("a")))


@pytest.mark.parametrize("form", [list, tuple])
async def test_an_item_that_changes_under_a_loop_is_refused(form: Any) -> None:
    items = [0, {"n": 0}, "a", {"n": [1]}, {"n": 2}]
    pages = source(form(items))
    await pages.note_items()
    items[3]["n"].append(2)  # type: ignore[index]
    found = [pages.get(index) for index in (1, 2, 3, 5)]
    assert [one and one[0] for one in found] == [0, {"n": 0}, "a", {"n": 2}]
    with pytest.raises(RuntimeError, match="the item of batch 4 was changed since the loop began"):
        pages.get(4)
