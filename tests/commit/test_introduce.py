"""A record says of its stream what the records before it do not."""

from __future__ import annotations

from tests.opening import begin
from trio_ckpt._commit.introduce import introduced, is_news
from trio_ckpt._journal.code import CodeMark
from trio_ckpt._journal.record import Record
from trio_ckpt._runs.stream import loop_cursor_of

MARK = CodeMark("work", "0011223344556677", 1)


async def test_only_the_first_record_introduces_the_stream() -> None:
    async with begin() as run, run.open_stream("s", first_index=3) as stream:
        open_stream = loop_cursor_of(stream).open_stream
        open_stream.set_code(MARK)
        first = introduced(open_stream, Record(at=1.0, index=3))
        assert first.opened is not None
        assert (first.opened.first_index, first.code) == (3, MARK)
        async for batch in stream.batches(range(2)):
            batch.complete()
        later = introduced(open_stream, Record(at=1.0, index=9))
        assert (later.opened, later.code, later.expected) == (None, None, None)


def test_only_another_digest_is_news() -> None:
    assert is_news(MARK, None)
    assert not is_news(MARK, CodeMark("renamed", MARK.digest, 9))
    assert is_news(MARK, CodeMark("work", "ffff", 1))
