"""From a strategy file to the Lightning strategy that runs it."""

from __future__ import annotations

from scalekit.config.strategy import StrategyConfig
from scalekit.distributed.world import World
from scalekit.errors import ConfigError
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.job_context import JobContext


def build_strategy(
    spec: StrategyConfig, precision: str, device: str, world: World, job: JobContext | None = None
) -> BaseStrategy:
    """The Lightning strategy of a strategy file.

    Args:
        spec: the file.
        precision: by its name.
        device: ``"cuda"`` or ``"cpu"``.
        world: the job's processes.
        job: that it runs; by default that of a Trainer which is not ScaleKit's.

    Raises:
        ConfigError: several processes under a strategy for one.
        DependencyError: DeepSpeed is missing.
    """
    job = job or JobContext()
    if spec.engine == "single":
        if world.size > 1:
            raise ConfigError(f"strategy {spec.name!r} is for one process, but there are {world.size}: use 'ddp'")
        from scalekit.strategies.single_device import SingleProcessStrategy

        return SingleProcessStrategy(spec, precision, device, job)
    if spec.engine == "ddp":
        from scalekit.strategies.ddp import ReplicatedStrategy

        return ReplicatedStrategy(spec, precision, device, job)
    if spec.engine == "fsdp2":
        from scalekit.strategies.fsdp import FullyShardedStrategy

        return FullyShardedStrategy(spec, precision, device, world, job)
    from scalekit.strategies.deepspeed import ZeroStrategy

    return ZeroStrategy(spec, precision, device, job)
