"""Optimizers, parameter groups and schedules. A schedule counts optimizer steps, never micro-batches or processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scalekit.errors import ConfigError
from scalekit.log import log

Schedule = Callable[[int], float]
"""The factor on the learning rate for the step with this index, from 0."""

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "wsd")

WSD_DECAY = 0.1
"""The share of the steps in which `wsd` decays (warmup-stable-decay, arXiv 2404.06395)."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    kept = {id(p) for p in matrices}
    vectors = [p for p in trained if id(p) not in kept]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    optimizer: str | Callable[[list[dict[str, Any]]], Optimizer],
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    options: Mapping[str, Any],
    offloaded: bool = False,
    low_precision_state: bool = False,
    scaled: bool = False,
) -> Optimizer:
    """An optimizer over a model's trained parameters.

    Args:
        optimizer: one of `OPTIMIZERS`, or a function from parameter groups to an optimizer.
        learning_rate: at the schedule's factor 1.
        weight_decay: decoupled (arXiv 1711.05101, equation 12) under ``adamw``, as a gradient otherwise.
        options: further arguments of a named optimizer.
        offloaded: whether the state lives in host memory; then DeepSpeed's own CPU AdamW steps there.
        low_precision_state: whether moments have the parameters' own type.
        scaled: whether losses are scaled, which fused optimizers and clipping do not share.
    """
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise ConfigError("the model has no parameter that is trained: all are frozen")
    if callable(optimizer):
        own: Optimizer = optimizer(groups)
        return own
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, **options)
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        log("optimizer", "DeepSpeed's CPU Adam, which the first job on a machine compiles: that takes a minute or two")
        on_host: Optimizer = DeepSpeedCPUAdam(
            groups,
            lr=learning_rate,
            adamw_mode=optimizer == "adamw",
            fp32_optimizer_states=not low_precision_state,
            **options,
        )
        return on_host
    cls = torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adam
    return cls(groups, lr=learning_rate, **{"fused": not scaled, **options})


def build_schedule(schedule: str | Schedule, warmup_steps: int, total_steps: int) -> Schedule:
    """The learning rate's factor by step: a linear warm-up to 1, and then the schedule's own shape down to 0.

    Args:
        schedule: one of `SCHEDULES`, or a function of the step's index, which is then used alone.
        warmup_steps: the factor reaches 1 at this step; the first step already has a factor above 0.
        total_steps: the step at which the factor would be 0.
    """
    if callable(schedule):
        return schedule
    if warmup_steps >= total_steps and warmup_steps > 0:
        raise ConfigError(f"warmup_steps={warmup_steps} leaves nothing of the job's {total_steps} steps")
    left = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min((step - warmup_steps) / left, 1.0)
        if schedule == "linear":
            return 1.0 - progress
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        if schedule == "wsd":
            return min(1.0, (1.0 - progress) / WSD_DECAY)
        return 1.0

    return factor


def attach_schedule(optimizer: Optimizer, schedule: Schedule) -> dict[str, Any]:
    """Lightning's description of an optimizer with a schedule that moves once an optimizer step."""
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
    }
