"""What a shadow would save: how changed arrays pack, plain and as the XOR with what they were.

    python -m benchmarks.shadow

The arrays are weights, normally distributed, and each is changed as an optimiser would: every
element, by a share of itself or by a step.  Printed is the packed size over the plain one.
"""

import numpy as np
import numpy.typing as npt

from benchmarks import MIB
from trio_ckpt.state._arrays.compress import Compressor
from trio_ckpt.state._arrays.engine import open_compressor

ELEMENTS = 4 * MIB
Floats = npt.NDArray[np.floating]


def packed_share(compressor: Compressor, array: npt.NDArray[np.generic]) -> float:
    """Of its size, packed in pieces of 1 MiB."""
    data = array.view(np.uint8)
    pieces = [data[at : at + MIB] for at in range(0, data.nbytes, MIB)]
    return sum(len(compressor.pack(piece, array.itemsize)) for piece in pieces) / data.nbytes


def main() -> None:
    """Print the table."""
    compressor, rng = open_compressor(), np.random.default_rng(0)
    weights = (rng.standard_normal(ELEMENTS) * 0.02).astype(np.float32)
    changes: dict[str, Floats] = {
        f"each by {share:g} of itself": weights * (1 + share * rng.standard_normal(ELEMENTS))
        for share in (1e-2, 1e-3, 1e-4, 1e-5)
    }
    for step in (1e-3, 1e-4):
        changes[f"each by a step of up to {step:g}"] = weights + step * rng.uniform(-1, 1, ELEMENTS)
    print(f"{'float32':32} {'plain':>6} {'XOR':>6}")
    for name, changed in changes.items():
        now = changed.astype(np.float32)
        xor = now.view(np.uint32) ^ weights.view(np.uint32)
        print(
            f"{name:32} {packed_share(compressor, now):6.2f} {packed_share(compressor, xor):6.2f}"
        )


if __name__ == "__main__":
    main()
