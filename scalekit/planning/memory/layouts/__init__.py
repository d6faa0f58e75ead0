"""What each strategy keeps on a rank, gathers and reduces: one file a strategy, each says where its figures come from."""

from __future__ import annotations

from scalekit.planning.memory.layouts.base import Layout, MemoryTimeline
from scalekit.planning.memory.layouts.fsdp2 import FullyShared
from scalekit.planning.memory.layouts.replicated import Bucketed, Replicated
from scalekit.planning.memory.layouts.zero import Partitioned
from scalekit.planning.memory.layouts.zero3 import Gathered
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import StepConfig

__all__ = ["Layout", "MemoryTimeline", "layout"]


def layout(profile: Profile, setting: StepConfig) -> Layout:
    """The layout of a setting's engine."""
    if setting.strategy.engine == "fsdp2":
        return FullyShared(profile, setting)
    if setting.strategy.engine == "ddp":
        return Bucketed(profile, setting)
    if setting.strategy.stage == 3:
        return Gathered(profile, setting)
    if setting.strategy.engine == "deepspeed":
        return Partitioned(profile, setting)
    return Replicated(profile, setting)
