"""A job: everything that `fit` is told, checked before anything starts. A YAML file's keys are the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from scalekit.errors import ConfigError, UnknownNameError

MEMORY_CHECKS = ("refuse", "probe", "warn")
ON_BAD_ROW = ("refuse", "skip")


@dataclass(frozen=True)
class Job:
    """The settings of a training job; `scalekit.fit` says what each is."""

    model: Any
    data: Any
    task: str | None = None
    loss: Any = None
    count: Callable[[Any], float] | None = None
    validation: Any = None
    processor: Any = None
    sequence_length: int | None = None
    loss_on: str = "all"
    packing: bool | str = "auto"
    transform: Any = None
    validation_transform: Any = None
    sampling_rate: int | None = None
    shuffle_rows: int = 1000
    on_bad_row: str = "refuse"
    metrics: Any = None
    generate: Mapping[str, Any] | None = None
    strategy: str = "auto"
    precision: str = "auto"
    global_batch_size: int = 8
    micro_batch_size: int | str = "auto"
    activation_checkpointing: bool | str = "auto"
    memory_check: str = "refuse"
    max_steps: int | None = None
    max_epochs: float | None = None
    optimizer: Any = "adamw"
    optimizer_options: Mapping[str, Any] | None = None
    learning_rate: float = 5e-5
    schedule: Any = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_clip: float | str | None = "auto"
    average_decay: float | None = None
    seed: int = 0
    devices: int | str = "auto"
    num_nodes: int | str = "auto"
    workers: int | str = "auto"
    logger: Any = None
    callbacks: Sequence[Any] = ()
    output_dir: str | None = None
    checkpoint_every: int | None = None
    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: str | None = None
    evaluate_every: int | None = None
    resume: str = "auto"
    watchdog_seconds: float | str | None = "auto"
    trust_remote_code: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        for name in _INTEGERS + _NUMBERS:
            kind = int if name in _INTEGERS else float
            object.__setattr__(self, name, _number(name, getattr(self, name), kind))
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "max_steps",
            "checkpoint_every",
            "keep_last",
            "keep_every",
            "evaluate_every",
            "shuffle_rows",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        for name in ("activation_checkpointing", "packing"):
            if getattr(self, name) not in (True, False, "auto"):
                raise ConfigError(f"{name}={getattr(self, name)!r} is neither true nor false nor 'auto'")
        for name, known in (("memory_check", MEMORY_CHECKS), ("on_bad_row", ON_BAD_ROW)):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ConfigError(f"average_decay={self.average_decay} must lie between 0 and 1, such as 0.999")
        if self.count is not None and self.loss is None:
            raise ConfigError("count is for a loss function of yours, and there is none: give `loss` too")
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ConfigError("give max_steps or max_epochs: one of them, so that it is plain when the job ends")
        if self.resume not in ("auto", "never") and not Path(self.resume).is_dir():
            raise ConfigError(f"resume={self.resume!r} is neither 'auto' nor 'never' nor the folder of a checkpoint")

    @classmethod
    def from_mapping(cls, block: Mapping[str, Any]) -> Job:
        """A job from a mapping with the same names.

        Raises:
            UnknownNameError: a key that is no setting.
            ConfigError: model or data is missing, or a value is wrong.
        """
        known = [each.name for each in fields(cls)]
        for name in block:
            if name not in known:
                raise UnknownNameError("key in the job", name, known)
        for name in ("model", "data"):
            if name not in block:
                raise ConfigError(f"the job names no {name}")
        return cls(**block)

    def resolved(self) -> dict[str, Any]:
        """The settings as `config.yaml` holds them; objects by what they are, since a file cannot hold them."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """The settings in which a run's saved ones are another job's, so that this job must not continue it."""
        return [name for name, value in self.resolved().items() if name not in _FREE and saved.get(name) != value]


_INTEGERS = (
    "sequence_length",
    "sampling_rate",
    "shuffle_rows",
    "global_batch_size",
    "micro_batch_size",
    "max_steps",
    "warmup_steps",
    "seed",
    "devices",
    "num_nodes",
    "workers",
    "checkpoint_every",
    "keep_last",
    "keep_every",
    "evaluate_every",
)
_NUMBERS = ("max_epochs", "learning_rate", "weight_decay", "gradient_clip", "average_decay", "watchdog_seconds")
# What may change when a run goes on: where and how it runs (the plan is compared by itself), and what it tells.
_FREE = {
    "strategy",
    "precision",
    "micro_batch_size",
    "activation_checkpointing",
    "memory_check",
    "max_steps",
    "max_epochs",
}
_FREE |= {"devices", "num_nodes", "workers"}
_FREE |= {
    "logger",
    "callbacks",
    "output_dir",
    "checkpoint_every",
    "evaluate_every",
    "resume",
    "trust_remote_code",
    "verbose",
}
_FREE |= {"watchdog_seconds", "metrics", "generate", "keep_last", "keep_every", "keep_best"}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A job file's mapping.

    Raises:
        ConfigError: no such file, or no mapping in it.
    """
    try:
        block = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the job {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(block, dict):
        raise ConfigError(f"{path} holds no job: it must be a mapping of settings")
    return block


def _number(name: str, value: Any, kind: type) -> Any:
    """A setting as a number; YAML reads 1e-4 as text, which is taken for the number it says."""
    if value is None or value == "auto":
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={value!r} is not a number") from None
    if isinstance(value, bool) or (kind is int and number != int(number)):
        raise ConfigError(f"{name}={value!r} is not a whole number")
    return kind(number)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        return f"<{len(value)} rows>"
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"<{name}>"
