"""What each engine keeps on a rank, gathers and reduces: one file an engine, each says where its figures come from."""

from __future__ import annotations

from scalekit.planning.layouts.fsdp2 import FullyShared
from scalekit.planning.layouts.layout import Course, Layout
from scalekit.planning.layouts.replicated import Bucketed, Replicated
from scalekit.planning.layouts.zero import Partitioned
from scalekit.planning.layouts.zero3 import Gathered
from scalekit.planning.profile import Profile
from scalekit.planning.setting import Setting

__all__ = ["Course", "Layout", "layout"]


def layout(profile: Profile, setting: Setting) -> Layout:
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
