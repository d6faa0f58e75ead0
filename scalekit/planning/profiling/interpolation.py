"""From the traces of two micro-batch sizes to that of any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from scalekit.planning.profiling.tracing import Trace

TRACED_SIZES = (2, 4)


def same_course(small: Trace, large: Trace) -> bool:
    """Whether two traces do the same, in the same order, and differ in sizes alone."""
    return (
        len(small.flops) == len(large.flops)
        and np.array_equal(small.kinds, large.kinds)
        and np.array_equal(small.subjects, large.subjects)
    )


def between(small: Trace, large: Trace, size: float) -> Trace:
    """The step at another size, on the straight line through two."""
    low, high = TRACED_SIZES
    share = (size - low) / (high - low)

    def line(name: str) -> Any:
        a, b = getattr(small, name), getattr(large, name)
        return a + (b - a) * share

    lines: Mapping[str, Any] = {name: line(name) for name in ("storage_bytes", "flops", "moved_bytes")}
    return replace(small, **lines)
