"""Strategies: how one block of every update becomes one block of the next model.

A strategy is a function `reduce(block, weights)`: `block` (n, k) float32 holds the same k values of n
updates, in device order; `weights` (n,) float64 are positive; the answer is (k,) float64. It may not
look at other blocks, so that memory is a block and not a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def weighted_mean(block: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the updates weighted by examples (federated averaging, McMahan et al. 2017).

    Added in float64, one update after the other in the order of the rows. Weights that are whole
    numbers (examples) below 2**29 make every product exact, so that the bits depend on nothing else. A
    matrix product would leave the order to BLAS and its threads.
    """
    import numpy as np

    # einsum runs along the values and so adds row by row, except where there is only one value: then it
    # runs along the updates and adds them in an order of its own.
    wide = block if block.shape[1] > 1 else np.repeat(block, 2, axis=1)
    total: NDArray[np.float64] = np.einsum("n,nk->k", weights, wide)[: block.shape[1]]
    total /= weights.sum()
    return total
