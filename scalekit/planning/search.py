"""Chooses what the user left on "auto": every strategy x recomputation x micro-batch that fits, ranked by predicted time.

The global batch is what the user asked for, whatever is chosen. Memory decides what is possible, time what is best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scalekit.config.precision import Dtypes
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import BatchSizeError
from scalekit.hardware import Hardware
from scalekit.planning.memory.estimate import ITEMS, Memory, predict
from scalekit.planning.plan import readable
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.profiling.tracing import UntracedError
from scalekit.planning.timing.step_time import Time, estimate

MARGIN = 0.08
"""The share of a device that is left free: what no prediction knows, such as other processes and fragmentation."""

LARGEST_UNSEEN = 8
"""The largest micro-batch of a model whose activations are not known."""


@dataclass(frozen=True)
class PlanRequest:
    """What is to be run; what is None is open.

    Attributes:
        profile: of the model.
        dtypes: of everything a step touches.
        hardware: where.
        global_batch_size: samples an optimizer step, over all ranks.
        strategies: to choose from.
        micro_batch_size: samples that one rank runs at once.
        recompute: whether blocks are computed again in the backward pass.
        moments: the optimizer's numbers for each trained one.
        margin: the share of a device that is left free.
        too_large_bytes: what was predicted for a way that has turned out not to fit.
        fill: of a number of rows, the mean length of the longest of them, as a share of the longest row of all, which memory is
            predicted for.
    """

    profile: Profile
    dtypes: Dtypes
    hardware: Hardware
    global_batch_size: int
    strategies: Sequence[StrategyConfig]
    micro_batch_size: int | None = None
    recompute: bool | None = None
    moments: int = 2
    margin: float = MARGIN
    too_large_bytes: int | None = None
    fill: Callable[[int], float] = field(default=lambda _: 1.0, compare=False)

    @property
    def limit_bytes(self) -> int:
        """What a rank may use."""
        limit = int(self.hardware.device.memory_bytes * (1 - self.margin))
        return limit if self.too_large_bytes is None else min(limit, self.too_large_bytes - 1)

    @property
    def micro_batch_sizes(self) -> list[int]:
        """Those that split a rank's share of the global batch evenly, from the smallest.

        Raises:
            BatchSizeError: the ranks cannot share the global batch.
        """
        round_size = self.hardware.world_size * (self.micro_batch_size or 1)
        if self.global_batch_size % round_size:
            raise BatchSizeError.unsplittable(
                self.global_batch_size, self.micro_batch_size or 1, self.hardware.world_size
            )
        if self.micro_batch_size is not None:
            return [self.micro_batch_size]
        share = self.global_batch_size // self.hardware.world_size
        largest = share if self.profile.problem is None else LARGEST_UNSEEN
        return [size for size in _divisors(share) if size <= largest]


def _divisors(number: int) -> list[int]:
    """All of a number's, from the smallest, in as many steps as its root."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


@dataclass(frozen=True)
class Candidate:
    """One way to run a task.

    Attributes:
        setting: strategy, micro-batch, accumulation, recomputation.
        memory: that a rank needs.
        time: of a step.
        problem: why it cannot be run; None where it can.
    """

    setting: StepConfig
    memory: Memory
    time: Time
    problem: str | None

    @property
    def name(self) -> str:
        """The strategy, and whether blocks are recomputed."""
        return self.setting.strategy.name + (" + checkpointing" if self.setting.recompute else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "strategy": self.setting.strategy.name,
            "activation_checkpointing": self.setting.recompute,
            "micro_batch_size": self.setting.micro_batch_size,
            "accumulation": self.setting.accumulation,
            "peak_bytes": self.memory.peak_bytes,
            "items": dict(self.memory.items),
            "when": self.memory.when,
            "host_bytes": self.memory.host_bytes,
            "step_seconds": self.time.seconds,
            "forward_seconds": self.time.forward_seconds,
            "parts": dict(self.time.parts),
            "tokens_per_second": self.time.tokens_per_second,
            "mfu": self.time.mfu,
            "bottleneck": self.time.bottleneck,
            "problem": self.problem,
        }


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
    left_out = {s.name: why for s in task.strategies if len(task.strategies) > 1 and (why := _pointless(s, task))}
    best: list[Candidate] = []
    for strategy in task.strategies:
        if strategy.name in left_out:
            continue
        for recompute in _recomputing(task):
            progress(strategy.name + (" with activation checkpointing" if recompute else ""))
            setting = _setting(task, strategy, recompute)
            try:
                best.append(_best(task, [_split(task, setting, size) for size in sizes]))
            except UntracedError as error:
                if not recompute or task.recompute is not None:
                    raise
                left_out[f"{strategy.name} + checkpointing"] = f"cannot be traced ({error})"
    best.sort(key=lambda c: (c.problem is not None, c.time.seconds if c.problem is None else c.memory.peak_bytes))
    fits = any(c.problem is None for c in best)
    return Forecast(task, best, left_out, [] if fits else _advice(task, best))


def _recomputing(task: PlanRequest) -> list[bool]:
    if task.recompute is not None:
        return [task.recompute]
    return [False, True] if task.profile.can_recompute else [False]


def _setting(task: PlanRequest, strategy: StrategyConfig, recompute: bool) -> StepConfig:
    hardware = task.hardware
    return StepConfig(
        strategy=strategy,
        dtypes=task.dtypes,
        world_size=hardware.world_size,
        node_size=hardware.devices_per_node,
        micro_batch_size=1,
        accumulation=1,
        recompute=recompute,
        moments=task.moments,
        kind=hardware.device.kind,
        context_bytes=hardware.device.context_bytes,
    )


def _split(task: PlanRequest, setting: StepConfig, micro_batch_size: int) -> StepConfig:
    accumulation = task.global_batch_size // (micro_batch_size * task.hardware.world_size)
    return replace(setting, micro_batch_size=micro_batch_size, accumulation=accumulation)


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


def _pointless(strategy: StrategyConfig, task: PlanRequest) -> str | None:
    """Why a strategy is no way to run a task on its hardware; None where it is one."""
    hardware = task.hardware
    alone = hardware.world_size == 1
    if strategy.engine == "single":
        return None if alone else "is for one process"
    if "nvme" in strategy.offload.values():
        return "needs a fast local drive: choose it by name where you have one"
    if alone and not strategy.offload:
        return "shares out among several processes, and there is one"
    if hardware.nodes == 1 and strategy.second_shard(hardware.devices_per_node) > 1:
        return "saves traffic between nodes, and there is one"
    return None


def _advice(task: PlanRequest, candidates: Iterable[Candidate]) -> list[str]:
    """The nearest ways to make it fit."""
    nearest = min(candidates, key=lambda c: c.memory.peak_bytes, default=None)
    if nearest is None:
        return []
    memory, items = nearest.memory, nearest.memory.items
    needed = readable(memory.peak_bytes / (1 - task.margin))
    advice = [f"the least is {nearest.name} with micro-batch {nearest.setting.micro_batch_size}: {needed} a device"]
    advice += _smaller_micro_batch(task, nearest)
    over = memory.peak_bytes - task.limit_bytes
    by_tokens = items["activations"] + items["head_and_temporaries"]
    if task.profile.subject.tokens > 1 and by_tokens > over:
        share = 1 - over / by_tokens
        tokens = int(task.profile.subject.tokens * share) // 64 * 64
        if tokens:
            advice.append(f"fewer tokens: sequence_length={tokens} would about fit ({nearest.name})")
    states = sum(items[name] for name in ("master_weights", "gradients", "optimizer_state"))
    if states > max(over, memory.peak_bytes // 100) and task.profile.trained_elements == task.profile.elements:
        advice.append(f"LoRA: with the weights frozen, {readable(states)} of their states go away ({nearest.name})")
    advice += _more_devices(task, nearest)
    return advice


def _smaller_micro_batch(task: PlanRequest, nearest: Candidate) -> list[str]:
    """Where the user has named one."""
    if nearest.setting.micro_batch_size == 1:
        return []
    peak = predict(task.profile, _split(task, nearest.setting, 1)).peak_bytes
    if peak > task.limit_bytes:
        return []
    return [f"smaller micro-batches: micro_batch_size=1 needs {readable(peak)} ({nearest.name})"]


def _more_devices(task: PlanRequest, nearest: Candidate) -> list[str]:
    """How many devices it would take, where sharing out helps."""
    shared = next((s for s in task.strategies if "parameters" in s.shards and not s.offload), None)
    world = task.hardware.world_size
    while shared is not None and world < 4096:
        world *= 2
        setting = replace(
            _setting(task, shared, task.profile.traces_recomputed), world_size=world, node_size=min(world, 8)
        )
        if predict(task.profile, setting).peak_bytes <= task.limit_bytes:
            return [f"more devices: {world} of them, under {shared.name} with micro-batch 1"]
    return []
