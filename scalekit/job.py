"""A job: everything that `fit` is told, checked before anything starts. A YAML file's keys are the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from scalekit.blocks import (
    AnyCallback,
    AnyLogger,
    AnyLoss,
    AnyMetric,
    AnyModel,
    AnyProcessor,
    Best,
    Generate,
    MetricBlock,
    Source,
)
from scalekit.errors import ConfigError, DataError, ModelError, UnknownNameError, shown
from scalekit.names import LossOn, MemoryCheck, OnBadRow, OptimizerName, PrecisionName, ScheduleName, TaskName
from scalekit.settings import (
    Above,
    AtLeast,
    AtMost,
    Auto,
    Below,
    Count,
    Is,
    LeftToModule,
    MayChange,
    Open,
    Place,
    Raises,
    Says,
    Text,
    Unit,
    Whole,
    can_be_folder,
    checked,
    function_of,
    hints_of,
    is_a,
    marked,
    takes,
)
from scalekit.strategies import Strategy
from scalekit.yaml_text import parse_yaml

_MOST_WORKERS = 1024
_LARGEST_SEED = 2**32 - 1  # numpy's

_USUAL_BATCH = 8
_Steps = Annotated[Count, Unit("optimizer steps")]
_Limit = Annotated[
    Annotated[Any, Is("a limit", lambda value: _is_limit(value))] | None,
    Says("a number of global batches, a share of them below 1, or None for all"),
]
_ItemCount = Annotated[Any, Is("a function of a batch", function_of("batch"))]
_Transform = Annotated[Any, Is("a function of an image or of a wave", function_of("shown"))]


@dataclass(frozen=True)
class Job:
    """The settings of a training job; `scalekit.fit` says what each is.

    Raises:
        ConfigError: a value that its field does not allow, or one that would have no effect beside the others.
    """

    model: Annotated[AnyModel | Annotated[Place, Says("the hub id of a model, the folder of one")], Raises(ModelError)]
    data: Annotated[Source | None, Raises(DataError)] = None
    task: Annotated[TaskName | None, LeftToModule] = None
    loss: Annotated[AnyLoss | None, LeftToModule] = None
    item_count: _ItemCount | None = None
    loss_couples: Annotated[Literal["batch"] | None, LeftToModule] = None
    validation: Annotated[
        Annotated[float, Above(0), Below(1)] | Source | None,
        Says(
            "a share of the data between 0 and 1, the name of a split, other rows in any form that `data` may have, or None"
        ),
    ] = None
    processor: AnyProcessor | Annotated[Place, Says("the name of one")] | None = None
    new_tokens: Annotated[
        Sequence[Annotated[Text, Says("a token")]] | None, Says("a list of tokens (or None)"), LeftToModule
    ] = None
    sequence_length: Annotated[Count, Unit("tokens")] | None = None
    loss_on: LossOn = "all"
    packing: bool | Auto = "auto"
    transform: _Transform | None = None
    validation_transform: _Transform | None = None
    sampling_rate: Annotated[Count, Unit("Hz")] | None = None
    shuffle_rows: Annotated[Count, Unit("rows")] = 1000
    on_bad_row: OnBadRow = "refuse"
    metrics: Annotated[
        Mapping[str, AnyMetric | Annotated[MetricBlock, Open, Says("a mapping with its class and its arguments")]]
        | None,
        Says("a mapping of names to metrics (None for the usual ones)"),
        LeftToModule,
        MayChange,
    ] = None
    generate: Annotated[Generate | None, LeftToModule, MayChange] = None
    strategy: Annotated[Place, MayChange] = "auto"
    precision: Annotated[PrecisionName | Auto, MayChange] = "auto"
    global_batch_size: Annotated[Count, Unit("samples")] | Auto = "auto"
    micro_batch_size: Annotated[Annotated[Count, Unit("samples")] | Auto, MayChange] = "auto"
    activation_checkpointing: Annotated[bool | Auto, MayChange] = "auto"
    memory_check: Annotated[MemoryCheck, MayChange] = "refuse"
    max_steps: Annotated[_Steps | None, MayChange] = None
    max_epochs: Annotated[Annotated[float, Above(0), Unit("epochs")] | None, MayChange] = None
    limit_train_batches: _Limit = None
    limit_val_batches: Annotated[_Limit, MayChange] = None
    overfit_batches: _Limit = None
    fast_dev_run: Annotated[bool | Annotated[Count, Unit("optimizer steps")], MayChange] = False
    optimizer: Annotated[
        OptimizerName | Annotated[Any, Is("a function from parameter groups to an optimizer", takes("groups"))],
        LeftToModule,
    ] = "adamw"
    optimizer_options: Annotated[
        Mapping[str, bool | float | Sequence[float] | None] | None,
        Says("a mapping of the optimizer's arguments (or None)"),
        LeftToModule,
    ] = None
    learning_rate: Annotated[float, AtLeast(0), LeftToModule] = 5e-5
    schedule: Annotated[
        ScheduleName | Annotated[Any, Is("a function of the step's index to a factor", function_of("step"))],
        LeftToModule,
    ] = "cosine"
    warmup_steps: Annotated[Whole, Unit("optimizer steps"), LeftToModule] = 0
    weight_decay: Annotated[float, AtLeast(0), LeftToModule] = 0.0
    gradient_clip: Annotated[float, Above(0)] | Auto | None = "auto"
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    average_decay: Annotated[float, Above(0), Below(1)] | None = None
    seed: Annotated[int, AtLeast(0), AtMost(_LARGEST_SEED)] = 0
    devices: Annotated[Count | Auto, MayChange] = "auto"
    num_nodes: Annotated[Count | Auto, MayChange] = "auto"
    workers: Annotated[
        Annotated[int, AtLeast(0), AtMost(_MOST_WORKERS, plain=True), Unit("processes")] | Auto, MayChange
    ] = "auto"
    logger: Annotated[
        AnyLogger | Literal["wandb"] | Sequence[AnyLogger | Literal["wandb"]] | None,
        Says("None, 'wandb', a Lightning logger, or a list of those"),
        MayChange,
    ] = None
    callbacks: Annotated[Sequence[AnyCallback], Says("a list of Lightning callbacks"), MayChange] = ()
    output_dir: Annotated[
        Annotated[Place, Is("a folder, or a path where one can be made", can_be_folder)] | None, MayChange
    ] = None
    checkpoint_every: Annotated[_Steps | None, MayChange] = None
    keep_last: Annotated[Annotated[Count, Unit("checkpoints")] | None, MayChange] = None
    keep_every: Annotated[_Steps | None, MayChange] = None
    keep_best: Annotated[
        Annotated[Text, Says("the name of a metric")]
        | Annotated[Best, Says("a mapping of `metric` and `mode`, which is 'min' or 'max'")]
        | None,
        MayChange,
    ] = None
    evaluate_every: Annotated[
        _Steps | Annotated[float, Above(0), Below(1), Unit("of an epoch")] | Literal["epoch"] | None, MayChange
    ] = "epoch"
    log_every_n_steps: Annotated[_Steps | Auto, MayChange] = "auto"
    resume: Annotated[
        Literal["auto", "never"] | Annotated[Place, Is("the folder of a checkpoint", os.path.isdir)], MayChange
    ] = "auto"
    watchdog_seconds: Annotated[Annotated[float, Above(0), Unit("seconds")] | Auto | None, MayChange] = "auto"
    trust_remote_code: Annotated[bool, MayChange] = False
    verbose: Annotated[bool, MayChange] = False

    def __post_init__(self) -> None:
        for name, value in check_settings({each.name: getattr(self, each.name) for each in fields(self)}).items():
            object.__setattr__(self, name, value)
        if self.data is None:
            object.__setattr__(self, "data", _own_loaders(self.model))
        if self.strategy != "auto":
            Strategy.load(self.strategy)
        self._check_together()
        if self.validation is None and _has_no_validation(self.data):
            self.check_validation(has_rows=False)

    def _check_together(self) -> None:
        """What each setting allows, but not beside the others."""
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ConfigError("give max_steps or max_epochs: one of them, so that it is plain when the job ends")
        if self.packing is True and self.sequence_length is None:
            raise ConfigError("packing=True cannot be: sequence_length, the length of a packed row, is not given")
        if is_a(self.model, "lightning.pytorch.LightningModule"):
            given = [name for name in marked(Job, LeftToModule) if self._is_given(name)]
            if given:
                raise ConfigError(
                    f"a LightningModule decides by itself on {', '.join(given)}: set that in the module instead"
                )
        if self.loss_couples and (self.loss is None or self.item_count is not None or self.metrics):
            raise ConfigError(
                "loss_couples='batch' is for a `loss=` of your own, without `item_count=` or `metrics=`: it is given all "
                "samples of a batch, and its outputs stand beside no targets"
            )
        if self.gradient_clip_algorithm == "value" and not isinstance(self.gradient_clip, float):
            raise ConfigError(
                "gradient_clip_algorithm='value' has no effect without a number: give `gradient_clip`, the largest entry of a "
                "gradient"
            )
        limited = [name for name in ("limit_train_batches", "limit_val_batches") if getattr(self, name) is not None]
        if limited and self.overfit_batches is not None:
            raise ConfigError(
                f"overfit_batches limits training and validation alike: leave {' and '.join(limited)} out"
            )
        if callable(self.optimizer) and self.optimizer_options:
            raise ConfigError("optimizer_options are for an optimizer that is named: set them in your function instead")
        if callable(self.schedule) and self.warmup_steps:
            raise ConfigError("warmup_steps is for a schedule that is named: let your function rise by itself instead")
        if self.keep_last is None and self.keep_every is not None:
            raise ConfigError(
                f"keep_every={self.keep_every} has no effect where all checkpoints stay: give keep_last too"
            )
        if self.keep_best is not None and (self.keep_last is None or self.evaluate_every is None):
            raise ConfigError(
                f"keep_best={shown(self.keep_best)} keeps one more than the last, by rows held out: give `keep_last`, "
                "`validation` and `evaluate_every` too"
            )

    @property
    def batch(self) -> int:
        """The global batch's samples, of a job whose data is known: see `with_batch`."""
        return _USUAL_BATCH if isinstance(self.global_batch_size, str) else self.global_batch_size

    def with_batch(self, size: int | None) -> Job:
        """This job with a global batch of its data's own size, where nobody has given one."""
        if self.global_batch_size != "auto":
            return self
        return replace(self, global_batch_size=size or _USUAL_BATCH)

    def _is_given(self, name: str) -> bool:
        return getattr(self, name) is not _DEFAULTS[name] and getattr(self, name) != _DEFAULTS[name]

    def check_validation(self, has_rows: bool) -> None:
        """Whether what is asked of the rows held out can be had.

        Args:
            has_rows: whether there are any.

        Raises:
            ConfigError: there are none.
        """
        names = ["evaluate_every", "metrics", "generate", "validation_transform"]
        names += [] if self.fast_dev_run else ["limit_val_batches"]
        given = [name for name in names if self._is_given(name) and getattr(self, name) is not None]
        if given and not has_rows:
            raise ConfigError(f"{', '.join(given)}: there are no rows held out to evaluate. Give `validation` too")

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
        if "model" not in block:
            raise ConfigError("the job names no model")
        return cls(**block)

    def resolved(self) -> dict[str, Any]:
        """The settings as `config.yaml` holds them; objects by what they are, since a file cannot hold them."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """The settings in which a run's saved ones are another job's, so that this job must not continue it."""
        free = marked(Job, MayChange)
        return [name for name, value in self.resolved().items() if name not in free and saved.get(name) != value]


_DEFAULTS = {each.name: each.default for each in fields(Job)}


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a job as their fields say, each converted where nothing is lost.

    Args:
        settings: some of `Job`'s, by name.

    Raises:
        ConfigError: a value that its field does not allow; it names the setting, the value and the rule.
    """
    hints = hints_of(Job)
    return {name: checked(name, value, hints[name]) for name, value in settings.items()}


def _is_limit(value: Any) -> bool:
    """1.0 is neither: as a share it would be all, and as a number one."""
    if isinstance(value, bool):
        return False
    return value >= 1 if isinstance(value, int) else isinstance(value, float) and 0 < value < 1


def _own_loaders(model: Any) -> Any:
    """A LightningModule that makes its own loaders, as data.

    Raises:
        DataError: it makes none, or the model is another one.
    """
    if not is_a(model, "lightning.pytorch.LightningModule"):
        raise DataError(
            "the job names no data: data=None must be rows, unless the model is a LightningModule with a train_dataloader"
        )
    from lightning.pytorch.utilities.model_helpers import is_overridden

    if not is_overridden("train_dataloader", model):
        raise DataError(f"the job names no data, and {type(model).__name__} has no train_dataloader of its own")
    return model


def _has_no_validation(data: Any) -> bool:
    """Whether data certainly brings no rows that are held out: rows in Python, or a single file."""
    if isinstance(data, (list, tuple)) or is_a(data, "torch.utils.data.Dataset", "torch.utils.data.DataLoader"):
        return True
    path = data.get("path") if isinstance(data, dict) else data
    return isinstance(path, str) and os.path.isfile(path)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A job file's mapping.

    Raises:
        ConfigError: no such file, or no mapping in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the job {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot read the job {shown(str(path))}: {error}") from error
    block = parse_yaml(text, str(path))
    if not isinstance(block, dict):
        raise ConfigError(f"{path} holds no job: it must be a mapping of settings")
    return block


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
