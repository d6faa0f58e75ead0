"""Engines carry strategies out: each is one of Lightning's strategies, with ScaleKit's promises added."""

from __future__ import annotations

from scalekit.engines.engine import Engine
from scalekit.errors import ConfigError
from scalekit.strategies import Strategy
from scalekit.world import World


def engine(spec: Strategy, precision: str, device: str, world: World) -> Engine:
    """The engine that carries a strategy out.

    Raises:
        ConfigError: several processes under a strategy for one.
        DependencyError: DeepSpeed is missing.
    """
    if spec.engine == "single":
        if world.size > 1:
            raise ConfigError(f"strategy {spec.name!r} is for one process, but there are {world.size}: use 'ddp'")
        from scalekit.engines.single import SingleEngine

        return SingleEngine(spec, precision, device)
    if spec.engine == "ddp":
        from scalekit.engines.ddp import DDPEngine

        return DDPEngine(spec, precision, device)
    if spec.engine == "fsdp2":
        from scalekit.engines.fsdp import FSDPEngine

        return FSDPEngine(spec, precision, device)
    from scalekit.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(spec, precision, device)
