"""A shuffled order without a list of it: any place of it is computed by itself, of 10 rows or of 10^12.

A Feistel network permutes the numbers below a * b that are just above the length; what falls beyond the length is permuted
again until it falls within, which leaves a permutation of the length (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002, sections 3 and 4). The order is for training, not for secrets.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8

Numbers = NDArray[np.uint64]


def shuffled(places: NDArray[np.int64], length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows that stand at some places of an epoch's order.

    Args:
        places: from 0, below `length`, shape [places].
        length: of the data, at most 2^62.
        seed, epoch: of the order.

    Returns:
        Rows, shape [places]; over all places, every row once.
    """
    keys = _keys(seed, epoch)
    rows = _permute(places.astype(np.uint64), length, keys)
    while (beyond := rows >= length).any():
        rows[beyond] = _permute(rows[beyond], length, keys)
    return rows.astype(np.int64)


@lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> Numbers:
    return np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64).astype(np.uint64)


def _permute(numbers: Numbers, length: int, keys: Numbers) -> Numbers:
    """One pass of the network over a * b numbers, at most about 2 * sqrt(length) more than the length."""
    a = np.uint64(math.isqrt(length - 1) + 1)
    b = np.uint64(-(-length // int(a)))
    high, low = numbers // b, numbers % b
    for number, key in enumerate(keys):
        if number % 2:
            low = (low + _mixed(high ^ key) % b) % b
        else:
            high = (high + _mixed(low ^ key) % a) % a
    return high * b + low


def _mixed(numbers: Numbers) -> Numbers:
    """SplitMix64's mix (Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 14)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
