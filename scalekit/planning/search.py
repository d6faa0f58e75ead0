"""Chooses what the user left on "auto": every strategy x recomputation x micro-batch that fits, ranked by predicted time.

The global batch is what the user asked for, whatever is chosen. Memory decides what is possible, time what is best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalekit.config.names import CHECKPOINTINGS, Checkpointing
from scalekit.planning.advice import advice, pointless
from scalekit.planning.candidate import Candidate, PlanRequest, called, step_config, with_micro_batches
from scalekit.planning.memory.estimate import ITEMS, Memory, predict
from scalekit.planning.plan import readable
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.profiling.tracing import UntracedError
from scalekit.planning.timing.step_time import Time, estimate


@dataclass(frozen=True)
class Forecast:
    """What a task would cost, every way that it could be run.

    Attributes:
        task: what was asked.
        candidates: the best micro-batch of each strategy with and without recomputation; those that fit come first, the
            fastest at the head.
        left_out: strategies that are no way to run it, and why.
        advice: what to change, where nothing fits.
    """

    task: PlanRequest
    candidates: list[Candidate]
    left_out: dict[str, str]
    advice: list[str]

    @property
    def chosen(self) -> Candidate | None:
        """The fastest that fits; None where nothing does."""
        return next((c for c in self.candidates if c.problem is None), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        chosen, profile = self.chosen, self.task.profile
        return {
            "model": profile.subject.name,
            "parameters": profile.elements,
            "trained_parameters": profile.trained_elements,
            "hardware": self.task.hardware.name,
            "world_size": self.task.hardware.world_size,
            "global_batch_size": self.task.global_batch_size,
            "tokens_per_sample": profile.subject.tokens,
            "device_bytes": self.task.hardware.device.memory_bytes,
            "limit_bytes": self.task.limit_bytes,
            "margin": self.task.margin,
            "untraced": profile.problem,
            "chosen": None if chosen is None else chosen.as_dict(),
            "candidates": [candidate.as_dict() for candidate in self.candidates],
            "left_out": self.left_out,
            "advice": self.advice,
        }


def choose(task: PlanRequest, progress: Callable[[str], None] = lambda _: None) -> Forecast:
    """Predicts every candidate and ranks them.

    What cannot be traced with recomputation is left out with it, and said; where nothing else was asked, or nothing can be
    traced, states alone are predicted.

    Args:
        task: what is to be run.
        progress: is told what is looked at.

    Raises:
        BatchSizeError: the global batch cannot be split.
    """
    try:
        return _forecast(task, progress)
    except UntracedError as error:
        return _forecast(replace(task, profile=replace(task.profile, problem=str(error))), progress)


def _forecast(task: PlanRequest, progress: Callable[[str], None]) -> Forecast:
    sizes = task.micro_batch_sizes
    left_out = {s.name: why for s in task.strategies if len(task.strategies) > 1 and (why := pointless(s, task))}
    best: list[Candidate] = []
    for strategy in task.strategies:
        if strategy.name in left_out:
            continue
        for recompute in _recomputing(task):
            progress(called(strategy.name, recompute))
            setting = step_config(task, strategy, recompute)
            try:
                best.append(_best(task, [with_micro_batches(task, setting, size) for size in sizes]))
            except UntracedError as error:
                if recompute == "none" or task.recompute is not None:
                    raise
                left_out[called(strategy.name, recompute)] = f"cannot be traced ({error})"
    best.sort(key=lambda c: (c.problem is not None, c.time.seconds if c.problem is None else c.memory.peak_bytes))
    fits = any(c.problem is None for c in best)
    return Forecast(task, best, left_out, [] if fits else advice(task, best))


def _recomputing(task: PlanRequest) -> Sequence[Checkpointing]:
    if task.recompute is not None:
        return [task.recompute]
    return CHECKPOINTINGS if task.profile.can_recompute else ["none"]


def _best(task: PlanRequest, settings: Sequence[StepConfig]) -> Candidate:
    """The fastest of those that fit, which are the smaller ones; else the smallest."""
    fitting = settings[: _how_many_fit(task, settings)]
    if not fitting:
        return _candidate(task, settings[0])
    fastest = min(fitting, key=lambda setting: _time(task, setting).seconds)
    return _candidate(task, fastest)


def _how_many_fit(task: PlanRequest, settings: Sequence[StepConfig]) -> int:
    """How many of the settings fit, by bisection: memory grows with the micro-batch.

    The last one has no accumulation, which takes memory of its own, so that it is looked at first.
    """

    def fits(setting: StepConfig) -> bool:
        return _problem(task, setting, predict(task.profile, setting)) is None

    if fits(settings[-1]):
        return len(settings)
    low, high = 0, len(settings) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(settings[middle]):
            low = middle + 1
        else:
            high = middle
    return low


def _candidate(task: PlanRequest, setting: StepConfig) -> Candidate:
    memory = predict(task.profile, setting)
    return Candidate(setting, memory, _time(task, setting), _problem(task, setting, memory))


def _time(task: PlanRequest, setting: StepConfig) -> Time:
    return estimate(task.profile, setting, task.hardware, task.fill)


def _problem(task: PlanRequest, setting: StepConfig, memory: Memory) -> str | None:
    if memory.peak_bytes > task.limit_bytes:
        over = readable(memory.peak_bytes - task.limit_bytes)
        largest = max(ITEMS, key=lambda name: memory.items[name]).replace("_", " ")
        return f"{over} over the limit, most of it {largest}"
    host = memory.host_bytes * task.hardware.devices_per_node
    if host > task.hardware.host_memory_bytes:
        return f"needs {readable(host)} of a node's {readable(task.hardware.host_memory_bytes)} of host memory"
    return None
