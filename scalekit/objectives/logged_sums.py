"""Which of the values that a module logs are sums over its batch, found by logging them of two batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from scalekit.objectives.batch_parts import Parts
from scalekit.objectives.constant_draws import ConstantDraws
from scalekit.objectives.lightning_step import Heard, run
from scalekit.utils.log import log
from scalekit.utils.randomness import keyed

_LOGGED_TOLERANCE = 1e-2
"""Of what is logged, in any type that computes: sums and means are further apart."""


def logged_sums(strategy: Any, module: LightningModule, parts: Parts) -> frozenset[str]:
    """What of a module's logged numbers are sums over a batch, where most are means; it says what is neither.

    Rows are run together and in parts. Of parts as they are run in a job, a mean is weighed by rows.
    """
    sums, neither = set(), []
    with suppress(Exception), strategy.standing_in(), keyed(0), ConstantDraws():  # type: ignore[no-untyped-call]
        module.eval()
        for name in ("training_step", "validation_step", "test_step"):
            if not is_overridden(name, module):
                continue
            whole, *each = (_heard(strategy, module, name, batch) for batch in (parts.whole, *parts.each))
            for key, heard in whole.items():
                kind = _kind(heard, [part[key] for part in each if key in part], parts.samples)
                sums |= {key} if kind == "sum" else set()
                neither += [key.partition(".")[2]] if kind == "neither" else []
    if sums:
        log("logged", f"{', '.join(sorted(key.partition('.')[2] for key in sums))}: sums over a batch, as measured")
    if neither:
        names = ", ".join(dict.fromkeys(neither))
        log(
            "logged",
            f"{names}: neither means nor sums over rows; each part of a global batch gives its own, and their mean is kept",
        )
    return frozenset(sums)


def _heard(strategy: Any, module: LightningModule, name: str, batch: Any) -> dict[str, Heard]:
    """What a step would log of a batch."""
    heard: dict[str, Heard] = {}
    strategy.overheard = heard
    try:
        with strategy.standing_in():
            run(strategy, module, name, strategy.to_device(batch))
    finally:
        strategy.overheard = None
    return heard


def _kind(whole: Heard, each: Sequence[Heard], samples: Sequence[int]) -> str:
    """Whether a number of a batch is put together from those of its parts as it is reduced, as a sum, or as neither."""
    values = [part.value for part in each]
    if len(values) != len(samples) or not all(map(math.isfinite, (whole.value, *values))):
        return "as reduced"
    mean = math.fsum(value * rows for value, rows in zip(values, samples, strict=True)) / sum(samples)
    reduced = {"sum": math.fsum(values), "max": max(values), "min": min(values)}.get(whole.reduced_by, mean)
    if is_near(whole.value, reduced, _LOGGED_TOLERANCE):
        return "as reduced"
    is_sum = whole.reduced_by in ("mean", "avg") and is_near(whole.value, math.fsum(values), _LOGGED_TOLERANCE)
    return "sum" if is_sum else "neither"


def is_near(one: float, other: float, tolerance: float) -> bool:
    """Whether two numbers differ by no more than a share of them."""
    return one == other or abs(one - other) <= tolerance * max(abs(one), abs(other))
