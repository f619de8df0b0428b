"""Collections of synchronous programs: several threads, stops, signals and the last phase."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.blocking.test_ends import run_program
from tests.hangs import HANG_S
from tests.interrupts import Tracer, interrupt, no_memory
from trio_ckpt import PartitionsLeftError, RunStoppedError, blocking, partition_of
from trio_ckpt.blocking import BlockingBatch, BlockingCollection, BlockingPartition
from trio_ckpt.blocking._program import Block
from trio_ckpt.stores import MemoryStore

ITEMS = 40


@contextmanager
def take_part(store: MemoryStore, **options: Any) -> Iterator[BlockingCollection]:
    settings: dict[str, Any] = {"partitions": 8, "items": ITEMS, "handle_signals": False}
    with blocking.open_collection("crawl", store=store, **settings | options) as collection:
        yield collection


def do_items(partition: BlockingPartition, done: list[int]) -> None:
    with partition.run.open_stream("pages") as stream:
        for batch in stream.batches(list(partition.range)):
            done.append(batch.item)
            batch.complete(records=1)


def do_all(collection: BlockingCollection, done: list[int]) -> None:
    while True:
        with collection.claim() as partition:
            if partition is None:
                return
            do_items(partition, done)


def test_each_item_is_done_once_and_the_last_phase_once() -> None:
    store, done, ends = MemoryStore(), list[int](), list[str]()
    for _ in range(2):
        with take_part(store) as collection:
            do_all(collection, done)
            with collection.finish() as run:
                if run is not None:
                    ends.append(run.run_id)
            assert collection.exit_code == 0
    assert sorted(done) == list(range(ITEMS))
    assert ends == ["crawl"]


def test_threads_claim_partitions_side_by_side() -> None:
    store, done = MemoryStore(), list[int]()
    meeting = threading.Barrier(3, timeout=HANG_S)  # so each thread owns one at that moment

    def work(collection: BlockingCollection) -> None:
        with collection.claim() as partition:
            assert partition is not None
            assert partition.holds("a") == (partition.index == partition_of("a", 8))
            meeting.wait()
            do_items(partition, done)
        do_all(collection, done)

    with take_part(store) as collection:
        with ThreadPoolExecutor(3) as pool:
            for one in [pool.submit(work, collection) for _ in range(3)]:
                one.result()
        with collection.finish():
            pass
        assert collection.exit_code == 0
    assert sorted(done) == list(range(ITEMS))


def test_a_stop_ends_the_partition_and_a_start_goes_on() -> None:
    store, done = MemoryStore(), list[int]()

    def stop() -> None:
        with take_part(store) as collection, collection.claim() as partition:
            assert partition is not None
            with partition.run.open_stream("pages") as stream:
                for batch in stream.batches(list(partition.range)):
                    done.append(batch.item)
                    batch.complete()
                    collection.request_stop()

    with pytest.raises(RunStoppedError) as stopped:
        stop()
    assert stopped.value.exit_code == 75
    assert len(done) == 1
    with take_part(store) as collection:
        do_all(collection, done)
    assert sorted(done) == list(range(ITEMS))


def test_a_stop_of_one_partition_ends_its_own_calls_alone() -> None:
    going_on, both, done = threading.Event(), threading.Barrier(2, timeout=HANG_S), list[int]()

    def stop_one(collection: BlockingCollection, pool: ThreadPoolExecutor) -> None:
        with collection.claim() as partition:
            assert partition is not None
            with partition.run.open_stream("pages") as stream:
                for batch in stream.batches(list(partition.range)):
                    both.wait()

                    def wait(batch: BlockingBatch[int] = batch) -> None:
                        with batch.waiting():
                            partition.run.request_stop()

                    with pytest.raises(RunStoppedError):
                        pool.submit(wait).result(HANG_S)
                    going_on.set()
                    batch.complete()

    def go_on(collection: BlockingCollection) -> None:
        with collection.claim() as partition:
            assert partition is not None
            both.wait()
            assert going_on.wait(HANG_S)
            do_items(partition, done)

    with (
        ThreadPoolExecutor(3) as pool,
        take_part(MemoryStore(), grace_s=0) as collection,  # its end ends what hangs
    ):
        stopped, other = pool.submit(stop_one, collection, pool), pool.submit(go_on, collection)
        assert isinstance(stopped.exception(HANG_S), RunStoppedError)
        assert other.exception(HANG_S) is None
    assert len(done) == ITEMS // 8


def test_what_is_left_keeps_the_last_phase_from_beginning() -> None:
    with take_part(MemoryStore()) as collection:
        with pytest.raises(KeyError), collection.claim():
            raise KeyError("a bug of the program")
        do_all(collection, [])
        with pytest.raises(PartitionsLeftError), collection.finish():
            pass
        assert collection.exit_code == 75


@pytest.mark.parametrize("act", [interrupt, no_memory])
def test_an_interrupt_of_a_claim_at_any_line_releases_it(act: Callable[[], None]) -> None:
    """A program that goes on has the partition no more, and claims the next one."""
    for at in itertools.count():
        tracer, done = Tracer(at, act, only=Block.__enter__.__code__), list[int]()
        with take_part(MemoryStore()) as collection:
            try:
                with tracer.tracing(), collection.claim() as partition:
                    assert partition is not None
                    do_items(partition, done)
            except (KeyboardInterrupt, MemoryError):
                do_all(collection, done)
        assert len(done) in ((ITEMS // 8,) if not tracer.where else (ITEMS, ITEMS * 7 // 8))
        if not tracer.where:
            assert at > 20
            break


def test_a_coordinator_of_another_loop_is_refused() -> None:
    refused = pytest.raises(ValueError, match="coordinator must be None")
    with refused, take_part(MemoryStore(), coordinator=object()):
        pass


STOPPABLE = """
import os, signal, sys
from trio_ckpt import blocking

def main():
    with blocking.open_collection(
        "crawl", store="crawl.ckpt", partitions=3, items=9, resume_command="again"
    ) as collection:
        while True:
            with collection.claim() as partition:
                if partition is None:
                    return collection.exit_code
                with partition.run.open_stream("pages") as stream:
                    for batch in stream.batches(list(partition.range)):
                        for number in sys.argv[1:]:
                            os.kill(os.getpid(), getattr(signal, number))
                        print("item", batch.item)
                        batch.complete()

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("signals", "code"), [(["SIGTERM"], 75), (["SIGINT"], 75), (["SIGTERM", "SIGTERM"], 143)]
)
def test_signals_stop_a_process_and_the_next_one_goes_on(
    signals: list[str], code: int, tmp_path: Path
) -> None:
    stopped = run_program(STOPPABLE, tmp_path, *signals)
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    first = stopped.stdout.splitlines()
    assert len(first) == (1 if code == 75 else 0)
    done = run_program(STOPPABLE, tmp_path)
    assert done.returncode == 75 or sorted(first + done.stdout.splitlines()) == [
        f"item {item}" for item in range(9)
    ]
