"""What a rank holds of a job's tensors: contiguous parts of flattened tensors, by name.

Every kind of sharding in use shares tensors out like that, so a checkpoint needs to know no more of a strategy than this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class TensorShard:
    """A contiguous part of a flattened tensor, in this rank's memory.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        data: the part's elements, in row-major order; of any shape.
        start: which element of the flattened tensor is the part's first.
        everywhere: whether every rank holds the same.
        is_copy: whether another rank holds the same, and writes it.
    """

    name: str
    shape: tuple[int, ...]
    data: Tensor
    start: int = 0
    everywhere: bool = True
    is_copy: bool = False

    @property
    def whole_bytes(self) -> int:
        """Of the whole tensor."""
        return prod(self.shape) * self.data.element_size()


@dataclass(frozen=True)
class OptimizerShard:
    """Where an optimizer keeps its state of a part of a parameter.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        holder: the tensor that the optimizer steps, by which it files its state: the parameter itself, or a flat tensor with
            parts of many.
        group: the number of the parameter group.
        start: which element of the flattened parameter is the part's first.
        offset: which element of the flattened holder is the part's first.
        elements: of the part; 0 where this rank has none.
        everywhere, is_copy: see `TensorShard`.
    """

    name: str
    shape: tuple[int, ...]
    holder: Tensor
    group: int
    start: int
    offset: int
    elements: int
    everywhere: bool
    is_copy: bool = False


def owned(parts: Iterable[TensorShard], rank: int, ranks: int) -> Iterator[TensorShard]:
    """The parts that a rank writes: its own, and an equal share of what every rank holds."""
    parts = list(parts)
    shared_bytes = sum(part.data.nbytes for part in parts if part.everywhere)
    low, high = shared_bytes * rank // ranks, shared_bytes * (rank + 1) // ranks
    done = 0
    for part in parts:
        if not part.everywhere:
            if not part.is_copy:
                yield part
            continue
        # An element belongs to the rank in whose share its first byte lies.
        elements, size = part.data.numel(), part.data.element_size()
        first, last = (min(max(-(-(edge - done) // size), 0), elements) for edge in (low, high))
        done += part.data.nbytes
        if first < last:
            yield replace(part, data=part.data.reshape(-1)[first:last], start=first, everywhere=False)
