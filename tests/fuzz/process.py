"""The process of one target.  It imports nothing of ours but under atheris' eyes.

What is imported before is not instrumented, and then libFuzzer sees nothing of what an input
reaches: a run without the word "cov:" in what it says was guided by nothing.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

FRESH_SEEDS = 300  # in the corpus, where a target makes its own
OWN_SHARE = 0.5  # of the inputs, made as the tests make them
WRITE_EVERY = 100_000


def main() -> None:
    """The process of one target; the rest of the command line is libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=["trio_ckpt"]):
        from tests.fuzz.case import MAX_INPUT_BYTES
        from tests.fuzz.plain import damaged
        from tests.fuzz.table import TARGETS

    logging.disable(logging.CRITICAL)
    folder, name = Path(os.environ["FUZZ_FOLDER"]), sys.argv.pop(1)
    tempfile.tempdir = str(folder)  # libFuzzer ends the process, and no code cleans up after it
    target = TARGETS[name]
    reader = target.open()
    corpus = folder / "corpus"
    corpus.mkdir()
    rng = random.Random(name)
    made = [reader.fresh(rng) for _ in range(FRESH_SEEDS)] if reader.fresh else []
    for number, data in enumerate([*reader.seeds, *made]):
        (corpus / f"{number:04}").write_bytes(data[:MAX_INPUT_BYTES])
    ends: Counter[str] = Counter()
    count = 0

    def test_one_input(data: bytes) -> None:
        nonlocal count
        ends[target.try_one(reader, data)] += 1
        count += 1
        if not count % WRITE_EVERY:
            (folder / "ends.json").write_text(json.dumps(ends))

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        # libFuzzer forgets good inputs that reach nothing new in Python: C reads most of them.
        own = random.Random(seed)
        if own.random() > OWN_SHARE:
            return bytes(atheris.Mutate(data, len(data)))
        return damaged(own, reader)[:max_size]

    arguments = [sys.argv[0], *sys.argv[1:], str(corpus)]
    atheris.Setup(arguments, test_one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
