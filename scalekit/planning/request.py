"""From settings, as `fit` and `plan` take them, to a task that can be planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalekit.config.names import CHECKPOINTINGS, OPTIMIZERS
from scalekit.config.precision import dtypes_for
from scalekit.config.strategy import StrategyConfig, names
from scalekit.errors import UnknownNameError
from scalekit.hardware import Hardware, fastest_precision
from scalekit.planning.candidate import MARGIN, PlanRequest
from scalekit.planning.profiling.profile import ProfiledModel, profile


def plan_request(
    subject: ProfiledModel,
    hardware: Hardware,
    *,
    global_batch_size: int,
    strategy: str = "auto",
    precision: str = "auto",
    micro_batch_size: int | str = "auto",
    activation_checkpointing: str = "auto",
    optimizer: Any = "adamw",
    optimizer_options: Any = None,
    margin: float = MARGIN,
) -> PlanRequest:
    """Profiles a model, and puts beside it what is asked of it; see `scalekit.plan` for the settings.

    Raises:
        UnknownNameError: no such strategy, precision or optimizer.
        ModelError: the model cannot be built on fake tensors.
    """
    types = dtypes_for(precision if precision != "auto" else usual_precision(hardware))
    found = profile(subject, types, like_a_gpu=hardware.device.kind == "cuda")
    has_scalars = any(not parameter.shape for parameter in found.parameters)
    return PlanRequest(
        profile=found,
        dtypes=types,
        hardware=hardware,
        global_batch_size=global_batch_size,
        strategies=candidates(strategy, precision, has_scalars),
        micro_batch_size=None if micro_batch_size == "auto" else int(micro_batch_size),
        recompute=next((each for each in CHECKPOINTINGS if each == activation_checkpointing), None),
        moments=_moments(optimizer, optimizer_options or {}),
        margin=margin,
    )


def usual_precision(hardware: Hardware) -> str:
    """What ``"auto"`` means: what the device computes fastest, by its figures or as this machine's CPU was measured."""
    return fastest_precision(hardware.device)


def candidates(strategy: str, precision: str, has_scalars: bool = False) -> Sequence[StrategyConfig]:
    """The strategies to choose from: the one named, or all that can run a model in a precision.

    Args:
        strategy: a name, or ``"auto"``.
        precision: of the job.
        has_scalars: whether the model has parameters that are single numbers, which PyTorch's FSDP2 does not shard.
    """
    if strategy != "auto":
        return [StrategyConfig.load(strategy)]
    known = [StrategyConfig.load(name) for name in names()]
    known = [each for each in known if not has_scalars or each.engine != "fsdp2"]
    return [each for each in known if precision != "16-mixed" or each.engine in ("single", "ddp")]


def _moments(optimizer: Any, options: Any) -> int:
    """The numbers that an optimizer keeps for each trained one; a user's own is taken for an Adam."""
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
    if optimizer == "sgd":
        return 1 if options.get("momentum") else 0
    return 2
