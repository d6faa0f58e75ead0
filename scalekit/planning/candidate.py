"""What is asked of a plan, and one way to run a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scalekit.config.names import Checkpointing
from scalekit.config.precision import Dtypes
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import BatchSizeError
from scalekit.hardware import Hardware
from scalekit.planning.memory.estimate import Memory
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.timing.step_time import Time

MARGIN = 0.08
"""The share of a device that is left free: what no prediction knows, such as other processes and fragmentation."""


LARGEST_UNSEEN = 8
"""The largest micro-batch of a model whose activations are not known."""

CHECKPOINTED: Mapping[Checkpointing, str] = {
    "none": "",
    "selective": "selective checkpointing",
    "full": "checkpointing",
}
"""What is said of a way to run a task that computes something again."""


def called(strategy: str, recompute: Checkpointing) -> str:
    """The name of a way to run a task: its strategy, and what is recomputed."""
    return " + ".join(filter(None, (strategy, CHECKPOINTED[recompute])))


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
        recompute: what of blocks is computed again in the backward pass.
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
    recompute: Checkpointing | None = None
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
        """See `called`."""
        return called(self.setting.strategy.name, self.setting.recompute)

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


def step_config(task: PlanRequest, strategy: StrategyConfig, recompute: Checkpointing) -> StepConfig:
    """A strategy's step with micro-batches of one sample and no accumulation."""
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


def with_micro_batches(task: PlanRequest, setting: StepConfig, micro_batch_size: int) -> StepConfig:
    """The same step with micro-batches of so many samples, and the accumulation that makes the global batch of them."""
    accumulation = task.global_batch_size // (micro_batch_size * task.hardware.world_size)
    return replace(setting, micro_batch_size=micro_batch_size, accumulation=accumulation)
