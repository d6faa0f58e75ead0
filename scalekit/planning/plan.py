"""The plan of a job: how it will run, why, and what that was predicted to cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """How a job will run.

    Attributes:
        strategy, engine, precision, device: names.
        dtypes: of parameters, master weights, compute, reduction and optimizer state.
        world_size: ranks.
        global_batch_size, micro_batch_size: samples.
        accumulation: micro-batches an optimizer step and rank.
        activation_checkpointing: whether blocks are computed anew in the backward pass.
        samples: rows of training data; None of a stream.
        steps_per_epoch, total_steps: optimizer steps.
        loss: what it is a mean over.
        predicted: peak_bytes of a rank with its items and when it is, step_seconds; empty where the model cannot be traced.
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
    activation_checkpointing: bool
    samples: int | None
    steps_per_epoch: int | None
    total_steps: int
    loss: str
    predicted: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def flops_share(self) -> float | None:
        """The share of all devices' peak that a step would use if it took one second; None where no peak is known.

        A CPU's peak is one that ScaleKit measured in a moment, and nothing to compare a run with.
        """
        mfu = self.predicted.get("mfu") if self.device == "cuda" else None
        return None if mfu is None else mfu * self.predicted["step_seconds"]

    def as_dict(self) -> dict[str, Any]:
        """The plan as `plan.json` holds it."""
        return asdict(self)

    def __str__(self) -> str:
        types = "  ".join(f"{name.replace('_', ' ')} {value or 'none'}" for name, value in self.dtypes.items())
        checkpointing = ", activations checkpointed" if self.activation_checkpointing else ""
        lines = [
            f"strategy   {self.strategy} ({self.engine}) on {self.world_size} x {self.device}{checkpointing}",
            f"precision  {self.precision}: {types}",
            f"batch      {self.global_batch_size} samples = {self.micro_batch_size} x {self.accumulation} accumulated x "
            f"{self.world_size} ranks",
            f"steps      {self.total_steps}, "
            + (f"{self.steps_per_epoch} an epoch of {self.samples} samples" if self.samples else "of a stream"),
            f"loss       mean over {self.loss}",
            *self._expected(),
            *(f"because    {reason}" for reason in self.reasons),
        ]
        return "\n".join(lines)

    def _expected(self) -> list[str]:
        if not self.predicted:
            return []
        peak, seconds = readable(self.predicted["peak_bytes"]), self.predicted["step_seconds"]
        return [f"expected   {peak} a rank at most, {self.predicted['when']}; {seconds:.3g} s a step"]


def readable(size_bytes: float) -> str:
    """A size in GiB, or in MiB where it is smaller."""
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"
