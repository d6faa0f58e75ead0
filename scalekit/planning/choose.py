"""Chooses what the user left on "auto", and says why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scalekit.errors import BatchSizeError

LARGEST_AUTO_MICRO_BATCH = 8


@dataclass(frozen=True)
class Plan:
    """How a job will run.

    Attributes:
        strategy, engine, precision, device: names.
        dtypes: of parameters, master weights, compute, reduction and optimizer state.
        world_size: ranks.
        global_batch_size, micro_batch_size: samples.
        accumulation: micro-batches an optimizer step and rank.
        samples: rows of training data.
        steps_per_epoch, total_steps: optimizer steps.
        loss: what it is a mean over.
        reasons: for each choice that was left to ScaleKit.
    """

    strategy: str
    engine: str
    precision: str
    device: str
    dtypes: dict[str, str | None]
    world_size: int
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    samples: int
    steps_per_epoch: int
    total_steps: int
    loss: str
    reasons: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The plan as `plan.json` holds it."""
        return asdict(self)

    def layout(self) -> dict[str, Any]:
        """What a checkpoint's parts and counters depend on; a job resumes under the same alone."""
        names = ("strategy", "precision", "world_size", "micro_batch_size", "accumulation", "total_steps")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        types = "  ".join(f"{name.replace('_', ' ')} {value or 'none'}" for name, value in self.dtypes.items())
        lines = [
            f"strategy   {self.strategy} ({self.engine}) on {self.world_size} x {self.device}",
            f"precision  {self.precision}: {types}",
            f"batch      {self.global_batch_size} samples = {self.micro_batch_size} x {self.accumulation} accumulated x "
            f"{self.world_size} ranks",
            f"steps      {self.total_steps}, {self.steps_per_epoch} an epoch of {self.samples} samples",
            f"loss       mean over {self.loss}",
            *(f"because    {reason}" for reason in self.reasons),
        ]
        return "\n".join(lines)


def choose_strategy(strategy: str, world_size: int, reasons: list[str]) -> str:
    """Turns ``"auto"`` into a name."""
    if strategy != "auto":
        return strategy
    name = "single" if world_size == 1 else "ddp"
    reasons.append(f"strategy {name}: {world_size} rank{'s' * (world_size > 1)}, and memory is not predicted yet")
    return name


def choose_micro_batch(micro_batch_size: int | str, global_batch_size: int, world_size: int, reasons: list[str]) -> int:
    """Turns ``"auto"`` into the largest size up to 8 that splits the global batch evenly.

    Raises:
        BatchSizeError: none does.
    """
    if isinstance(micro_batch_size, int):
        return micro_batch_size
    if global_batch_size % world_size:
        near = max(global_batch_size // world_size, 1) * world_size
        raise BatchSizeError(
            f"global_batch_size={global_batch_size} cannot be split over {world_size} ranks; the nearest that can: "
            f"{near}, {near + world_size}"
        )
    share = global_batch_size // world_size
    size = max(n for n in range(1, LARGEST_AUTO_MICRO_BATCH + 1) if share % n == 0)
    reasons.append(
        f"micro-batch {size}: the largest up to {LARGEST_AUTO_MICRO_BATCH} that splits {share} samples a rank"
    )
    return size
