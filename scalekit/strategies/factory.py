"""Engines carry strategies out: each is one of Lightning's strategies, with ScaleKit's promises added."""

from __future__ import annotations

from scalekit.config.strategy import StrategyConfig
from scalekit.distributed.world import World
from scalekit.errors import ConfigError
from scalekit.strategies.base import BaseStrategy


def build_strategy(spec: StrategyConfig, precision: str, device: str, world: World) -> BaseStrategy:
    """The engine that carries a strategy out.

    Raises:
        ConfigError: several processes under a strategy for one.
        DependencyError: DeepSpeed is missing.
    """
    if spec.engine == "single":
        if world.size > 1:
            raise ConfigError(f"strategy {spec.name!r} is for one process, but there are {world.size}: use 'ddp'")
        from scalekit.strategies.single_device import SingleProcessStrategy

        return SingleProcessStrategy(spec, precision, device)
    if spec.engine == "ddp":
        from scalekit.strategies.ddp import ReplicatedStrategy

        return ReplicatedStrategy(spec, precision, device)
    if spec.engine == "fsdp2":
        from scalekit.strategies.fsdp import FullyShardedStrategy

        return FullyShardedStrategy(spec, precision, device)
    from scalekit.strategies.deepspeed import ZeroStrategy

    return ZeroStrategy(spec, precision, device)
