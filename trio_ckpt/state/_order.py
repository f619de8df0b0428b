"""The order of the samples of a training: another permutation in each epoch, kept by sample.

Theory of operation
===================

An order is a function, not a list: `Order.sample_at` computes which sample has a position, so a
data set of 10**9 samples takes no more memory than one of ten, on every rank.  What is saved is the
position alone: how many samples of the epoch were taken.  The size of a batch and the numbers of
ranks and workers are not in it, so each of them may change at any sample.

The permutation of an epoch is a Feistel network over the numbers below ``rows * columns``; rows is
the least number whose square is n or more, columns the least with ``rows * columns >= n`` (J. Black
and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002):

* ``left, right = divmod(position, columns)``;
* the rounds 0, 2, 4, … replace left by ``(left + mix(key[round] ^ right)) % rows``, the rounds 1,
  3, 5, … right by ``(right + mix(key[round] ^ left)) % columns``;
* the result is ``left * columns + right``.  If that is n or more, it goes through the network
  again, which makes it a permutation of the n samples; on average that happens to less than half.

`mix` is the finalizer of SplitMix64 (G. Steele, D. Lea and C. Flood, 2014).  The keys are the
SHAKE256 digest of the text ``trio_ckpt order 1: SEED EPOCH``, as big-endian numbers of 64 bits.
There are 24 rounds below 256 samples, since a round has few numbers to add there, and 8 from there
on.  None of it depends on a version of Python or NumPy, or on a machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import attrs

from .._util.arguments import whole_number

ALGORITHM = 1  # saved with the position, which means something with this algorithm alone
MAX_SAMPLES = 2**62

_MASK = 2**64 - 1
_KEY_BYTES = 8
_FEW_SAMPLES = 256
_ROUNDS_OF_FEW, _ROUNDS = 24, 8


class Order:
    """The order of samples in each epoch of a training; for a state, which it goes on from.

    It is a stateful object: put it into the state, and a resumed training goes on with the sample
    after the last one that it was trained on.  A sample counts when the state is saved in which its
    batch was taken, not when a loader fetches it.

    Args:
        n: The number of samples.
        seed: Chooses the permutations; each epoch has its own.

    Raises:
        TypeError, ValueError: `n` is not a number from 1 to 2**62, or `seed` is negative.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n = whole_number("n", n, least=1, most=MAX_SAMPLES)
        self._seed = whole_number("seed", seed)
        self._network = _Network.of(self._n, self._seed, 0)
        self._position = 0

    def __repr__(self) -> str:
        """Return the number of samples, the seed, and the place."""
        where = f"epoch={self.epoch}, position={self._position}"
        return f"<Order n={self._n} seed={self._seed} {where}>"

    @property
    def epoch(self) -> int:
        """The number of the epoch, from 0 on."""
        return self._network.epoch

    @property
    def position(self) -> int:
        """How many samples of the epoch were taken."""
        return self._position

    @property
    def left(self) -> int:
        """How many samples of the epoch are left."""
        return self._n - self._position

    def begin_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, with its own permutation.

        Args:
            epoch: Its number, from 0 on.
        """
        number = whole_number("epoch", epoch)
        self._network, self._position = _Network.of(self._n, self._seed, number), 0

    def sample_at(self, position: int) -> int:
        """Return the sample at a position of the epoch.

        Args:
            position: From 0 to n - 1.

        Raises:
            ValueError: the position is outside of the epoch.
        """
        return self._network.sample_at(whole_number("position", position, most=self._n - 1))

    def take(self, size: int, *, rank: int = 0, ranks: int = 1) -> list[int]:
        """Take the next batch of the epoch, and return the samples of one rank.

        Every rank takes the same batch, and gets each sample that no other rank gets.

        Args:
            size: How many samples the batch has, of all ranks together; at the end of the epoch
                it has those that are left.
            rank: The number of the rank that asks, from 0 on.
            ranks: How many there are.

        Returns:
            Its samples; fewer than others have, or none, at the end of the epoch.
        """
        found = next(iter(self.ahead(size, rank=rank, ranks=ranks)), list[int]())
        self.advance(size)
        return found

    def ahead(self, size: int, *, rank: int = 0, ranks: int = 1) -> Ahead:
        """Return the batches up to the end of the epoch, for a loader that fetches ahead.

        The order stays where it is: call `advance` for each batch that was trained on.

        Args:
            size: As for `take`.
            rank: As for `take`.
            ranks: As for `take`.
        """
        count = whole_number("ranks", ranks, least=1)
        number = whole_number("rank", rank, most=count - 1)
        return Ahead(partial(self._shares, whole_number("size", size, least=1), number, count))

    def _shares(self, size: int, rank: int, ranks: int) -> Iterator[list[int]]:
        """Return the shares of a rank in the batches from here on, wherever the order goes then."""
        sample_at, positions = self._network.sample_at, range(self._position, self._n)
        return (
            [sample_at(position) for position in positions[first : first + size][rank::ranks]]
            for first in range(0, len(positions), size)
        )

    def advance(self, size: int) -> None:
        """Count the next batch as taken.

        Args:
            size: As for `take`.
        """
        self._position += min(whole_number("size", size, least=1), self.left)

    def state_dict(self) -> dict[str, int]:
        """Return the place as plain values."""
        return {
            "algorithm": ALGORITHM,
            "n": self._n,
            "seed": self._seed,
            "epoch": self.epoch,
            "position": self._position,
        }

    def load_state_dict(self, saved: Mapping[str, int]) -> None:
        """Go to a place that `state_dict` returned.

        Raises:
            ValueError: it is of another number of samples, another seed or another algorithm.
        """
        own, other = self.state_dict(), dict(saved)
        for name in ("algorithm", "n", "seed"):
            if other.get(name) != own[name]:
                raise ValueError(
                    f"an order with {name}={other.get(name)} was saved, this one has "
                    f"{name}={own[name]}: its positions are those of other samples"
                )
        position = whole_number("position", other.get("position"), most=self._n)
        self.begin_epoch(whole_number("epoch", other.get("epoch")))
        self._position = position


@attrs.frozen(eq=False, repr=False)
class Ahead:
    """The batches from the place of an order to the end of its epoch; from `Order.ahead`.

    Each iteration begins at the place that the order has then, so one object serves all epochs.
    """

    _begin: Callable[[], Iterator[list[int]]]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the samples of the rank in each batch."""
        return self._begin()


@attrs.frozen
class _Network:
    """The permutation of one epoch.

    Attributes:
        epoch: Its number.
        n: The number of samples.
        rows, columns: The sides of the domain.
        keys: One for each round.
    """

    epoch: int
    n: int
    rows: int
    columns: int
    keys: tuple[int, ...]

    @classmethod
    def of(cls, n: int, seed: int, epoch: int) -> _Network:
        rows = math.isqrt(n - 1) + 1
        rounds = _ROUNDS_OF_FEW if n < _FEW_SAMPLES else _ROUNDS
        return cls(epoch, n, rows, -(-n // rows), _keys(seed, epoch, rounds))

    def sample_at(self, position: int) -> int:
        n, rows, columns, keys = self.n, self.rows, self.columns, self.keys
        while True:
            left, right = divmod(position, columns)
            for at in range(0, len(keys), 2):
                left = (left + _mix(keys[at] ^ right)) % rows
                right = (right + _mix(keys[at + 1] ^ left)) % columns
            position = left * columns + right
            if position < n:
                return position


def _keys(seed: int, epoch: int, rounds: int) -> tuple[int, ...]:
    text = f"trio_ckpt order {ALGORITHM}: {seed} {epoch}"
    data = hashlib.shake_256(text.encode()).digest(rounds * _KEY_BYTES)
    starts = range(0, len(data), _KEY_BYTES)
    return tuple(int.from_bytes(data[start : start + _KEY_BYTES]) for start in starts)


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)
