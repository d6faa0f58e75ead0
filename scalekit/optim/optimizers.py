"""Optimizers, parameter groups and schedules. A schedule counts optimizer steps, never micro-batches or processes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scalekit.errors import ConfigError, UnknownNameError, shown
from scalekit.utils.log import log

Schedule = Callable[[int], float]
"""The factor on the learning rate for the step with this index, from 0."""

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
        optimizer: one of `names.OPTIMIZERS`, or a function from parameter groups to an optimizer.
        learning_rate: at the schedule's factor 1.
        weight_decay: decoupled (arXiv 1711.05101, equation 12) under ``adamw``, as a gradient otherwise.
        options: further arguments of a named optimizer.
        offloaded: whether the state lives in host memory; then DeepSpeed's own CPU AdamW steps there.
        low_precision_state: whether moments have the parameters' own type.
        scaled: whether losses are scaled, which fused optimizers and clipping do not share.

    Raises:
        ConfigError: no parameter is trained; the optimizer refuses its options; or the function gives no optimizer.
    """
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise ConfigError("the model has no parameter that is trained: all are frozen")
    if callable(optimizer):
        return _own(optimizer, groups)
    cls = _class(optimizer, offloaded)
    _check_names(cls, options)
    settings = {"lr": learning_rate, **options}
    if offloaded and optimizer != "sgd":
        settings |= {"adamw_mode": optimizer == "adamw", "fp32_optimizer_states": not low_precision_state}
    elif optimizer != "sgd":
        settings = {"fused": not scaled, **settings}
    if offloaded and optimizer != "sgd":
        log("optimizer", "DeepSpeed's CPU Adam, which the first job on a machine compiles: that takes a minute or two")
    with _told(f"optimizer_options={shown(dict(options))} must be what {cls.__name__} takes"):
        return cls(groups, **settings)


def check_optimizer(
    optimizer: str | Callable[[list[dict[str, Any]]], Optimizer],
    learning_rate: float,
    weight_decay: float,
    options: Mapping[str, Any],
    offloaded: bool = False,
) -> None:
    """Tries an optimizer out on two numbers, so that what it refuses shows before anything is spent; see `build_optimizer`.

    Raises:
        ConfigError: it cannot be made, or takes no step.
    """
    model = nn.Linear(1, 1)
    if callable(optimizer):
        _own(optimizer, parameter_groups(model, weight_decay))
        return
    if offloaded:
        # Its options are others, but their values mean the same, and to build it takes a compiler.
        _check_names(_class(optimizer, offloaded), options)
        known = inspect.signature(_class(optimizer)).parameters
        options = {name: value for name, value in options.items() if name in known}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trial = build_optimizer(optimizer, model, learning_rate, weight_decay, options)
    with _told(f"optimizer_options={shown(dict(options))} must let {type(trial).__name__} take a step"):
        trial.step()


_OWNED = {"lr": "learning_rate", "weight_decay": "weight_decay", "params": "requires_grad of the model's parameters"}
"""torch's arguments that ScaleKit fills in, and by what."""


def _class(optimizer: str, offloaded: bool = False) -> type[Optimizer]:
    if offloaded and optimizer != "sgd":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        on_host: type[Optimizer] = DeepSpeedCPUAdam
        return on_host
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]


def _check_names(cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    """Whether an optimizer has these options, and whether those that are on or off are given as true or false."""
    parameters = inspect.signature(cls).parameters
    for name, value in options.items():
        if name in _OWNED:
            raise ConfigError(f"optimizer_options.{name}={shown(value)} has no effect: set {_OWNED[name]} instead")
        if name not in parameters:
            raise UnknownNameError("key in optimizer_options", name, parameters.keys() - _OWNED.keys())
        default = parameters[name].default
        is_flag = default is None or isinstance(default, bool)
        size = len(default) if isinstance(default, tuple) else None
        fits = isinstance(value, bool) == is_flag and (len(value) if isinstance(value, (list, tuple)) else None) == size
        if value is not None and not fits:
            numbers = "a number" if size is None else f"a list of {size} numbers"
            wanted = "true or false" if is_flag else f"{numbers}, such as {default}"
            raise ConfigError(f"optimizer_options.{name}={shown(value)} must be {wanted}")


def _own(optimizer: Callable[[list[dict[str, Any]]], Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    rule = f"optimizer={shown(optimizer)} must be a function from parameter groups to a torch optimizer"
    with _told(rule):
        made = optimizer(groups)
    if not isinstance(made, Optimizer):
        raise ConfigError(f"{rule}, and gave {shown(made)}")
    return made


@contextmanager
def _told(rule: str) -> Iterator[None]:
    """Turns what somebody else's code raises into an error that names the setting."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ConfigError(f"{rule}: {type(error).__name__}: {error}") from error


def build_schedule(schedule: str | Schedule, warmup_steps: int, total_steps: int) -> Schedule:
    """The learning rate's factor by step: a linear warm-up from 0 to 1, and then the schedule's own shape down to 0.

    They are the field's: of the same names, transformers' `get_scheduler` gives the same factors at every step.

    Args:
        schedule: one of `names.SCHEDULES`, or a function of the step's index, which is then used alone.
        warmup_steps: the factor reaches 1 after so many steps; the first of them has a factor of 0.
        total_steps: the step at which the factor would be 0.

    Raises:
        ConfigError: the warm-up takes the whole job; or the function gives no number.
    """
    if callable(schedule):
        with _told(f"lr_schedule={shown(schedule)} must be a function of the step's index to a factor"):
            if not math.isfinite(float(schedule(0))):
                raise ValueError("the first factor is not finite")
        return schedule
    if warmup_steps >= total_steps and warmup_steps > 0:
        raise ConfigError(f"warmup_steps={warmup_steps} leaves nothing of the job's {total_steps} steps")
    left = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
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
