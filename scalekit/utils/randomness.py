"""Random draws that depend on a key alone, whatever was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_by(*key: int) -> None:
    """Seeds torch's, NumPy's and Python's generators, those of CPUs."""
    seeds = np.random.SeedSequence(key).generate_state(2, np.uint64)
    torch.default_generator.manual_seed(int(seeds[0] >> 1))
    np.random.seed(int(seeds[1] & 0xFFFFFFFF))
    random.seed(int(seeds[1]))


@contextmanager
def restored() -> Iterator[None]:
    """Leaves these generators as they were. NumPy takes 0.2 ms for it: enter it once for many rows."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torchs)


@contextmanager
def keyed(*key: int) -> Iterator[None]:
    """Seeds these generators by a key, and leaves them as they were."""
    with restored():
        seed_by(*key)
        yield
