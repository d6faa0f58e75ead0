"""The settings of a job. Each is written once: a field with its type, its rule, its default, its group, and what it means.

From these fields come the signature of `fit`, all checks, ``scalekit fit --help``, ``config.yaml``, the JSON schema and
``docs/settings.md``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from scalekit.config.blocks import (
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
from scalekit.config.checks import checked, marked
from scalekit.config.markers import (
    Above,
    AtLeast,
    AtMost,
    Auto,
    Below,
    Count,
    Group,
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
    function_of,
    is_a,
    takes,
)
from scalekit.config.names import (
    Checkpointing,
    LossOn,
    MemoryCheck,
    OnBadRow,
    OptimizerName,
    PrecisionName,
    ScheduleName,
    TaskName,
)
from scalekit.config.renamed import understood
from scalekit.config.rules import hints_of
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import ConfigError, DataError, ModelError, UnknownNameError, shown

_MOST_WORKERS = 1024
_LARGEST_SEED = 2**32 - 1  # numpy's
_USUALLY_KEPT = 2
_USUAL_BATCH = 8

_Steps = Annotated[Count, Unit("optimizer steps")]
_Limit = Annotated[
    Annotated[Any, Is("a limit", lambda value: _is_limit(value))] | None,
    Says("a number of global batches, a share of them below 1, or None for all"),
]
_ItemCount = Annotated[Any, Is("a function of a batch", function_of("batch"))]
_Transform = Annotated[Any, Is("a function of an image or of a wave", function_of("shown"))]

Model = Annotated[
    AnyModel | Annotated[Place, Says("the hub id of a model, the folder of one")], Group.MODEL, Raises(ModelError)
]
Task = Annotated[TaskName | None, Group.MODEL, LeftToModule]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """The settings on which memory and time of a step depend, so that `plan` has them too."""

    loss: Annotated[AnyLoss | None, Group.MODEL, LeftToModule] = None
    """A `torch.nn` loss, or a function of output and target; by default the model's own."""

    trust_remote_code: Annotated[bool, Group.MODEL, MayChange] = False
    """Whether code that comes with a hub model may run."""

    sequence_length: Annotated[Annotated[Count, Unit("tokens")] | None, Group.DATA] = None
    """The longest row; longer ones are truncated, and counted. `plan` takes 2048 by default, or the model's positions where
    they are fewer."""

    global_batch_size: Annotated[Annotated[Count, Unit("samples")] | Auto, Group.TRAINING] = "auto"
    """Samples of an optimizer step, over all ranks and accumulation. ``"auto"`` is the DataLoader's batch size if `data` has
    one, else 8; for `plan` at least one a rank."""

    optimizer: Annotated[
        OptimizerName | Annotated[Any, Is("a function from parameter groups to an optimizer", takes("groups"))],
        Group.TRAINING,
        LeftToModule,
    ] = "adamw"
    """``adamw``, ``adam``, ``sgd``, or a function from parameter groups to a torch optimizer."""

    optimizer_options: Annotated[
        Mapping[str, bool | float | Sequence[float] | None] | None,
        Group.TRAINING,
        Says("a mapping of the optimizer's arguments (or None)"),
        LeftToModule,
    ] = None
    """Further arguments of a named optimizer, such as ``{"betas": [0.9, 0.95], "eps": 1e-8}``."""

    strategy: Annotated[Place, Group.PARALLELISM, MayChange] = "auto"
    """A name in ``strategies/``, the path of a strategy file, or ``"auto"`` for the fastest that fits."""

    precision: Annotated[PrecisionName | Auto, Group.PARALLELISM, MayChange] = "auto"
    """Types of parameters and compute; ``"auto"`` is the fastest that the device computes well."""

    micro_batch_size: Annotated[Annotated[Count, Unit("samples")] | Auto, Group.PARALLELISM, MayChange] = "auto"
    """Samples that one rank runs at once; ``"auto"`` is the fastest that fits."""

    activation_checkpointing: Annotated[bool | Checkpointing | Auto, Group.PARALLELISM, MayChange] = "auto"
    """What the model's repeated blocks keep for the backward pass: all (``"none"``, or false), the results of attention and of
    every second matrix product (``"selective"``), or only their inputs (``"full"``, or true). The rest is computed again, which
    takes time and saves memory. ``"auto"`` is the fastest that fits."""

    @property
    def checkpointing(self) -> Checkpointing | Literal["auto"]:
        """`activation_checkpointing` by its name."""
        given = self.activation_checkpointing
        return ("full" if given else "none") if isinstance(given, bool) else given


@dataclass(frozen=True)
class Job(StepSettings):
    """The settings of a training job.

    Raises:
        ConfigError: a value that its field does not allow, or one that would have no effect beside the others.
    """

    model: Model
    """An `nn.Module`; a function that builds one; a Hugging Face model, its hub id or folder; or a LightningModule, which
    keeps its own steps, optimizers and callbacks."""

    data: Annotated[Source | None, Group.DATA, Raises(DataError)] = None
    """A Hugging Face data set, a stream, or a dictionary of them; a hub id, a file or a folder; a mapping of ``path``,
    ``name``, ``split``, ``revision``, ``streaming``; a `Mixture`; a list of rows; a torch `Dataset` or `DataLoader`; or a
    LightningDataModule. None is for a LightningModule that has its own loaders. From a DataLoader its rows, its collator, its
    workers, whether it shuffles and its batch size are taken. The columns of the rows decide their task."""

    task: Task = None
    """Which head a hub model gets; the one that it was saved with by default."""

    _: KW_ONLY

    item_count: Annotated[_ItemCount | None, Group.MODEL] = None
    """The number of items that a batch's loss is a mean over. By default it is measured on the first rows, among samples,
    labels, and whatever else can be counted in a batch."""

    loss_couples: Annotated[Literal["batch"] | None, Group.MODEL, LeftToModule] = None
    """``"batch"`` for a `loss` that couples the samples of a batch, as contrastive losses do: it gets the model's outputs
    for all samples of the global batch, over all ranks. Each rank runs its share at once."""

    processor: Annotated[AnyProcessor | Annotated[Place, Says("the name of one")] | None, Group.MODEL] = None
    """A tokenizer, image processor or feature extractor, or the name of one; the model's own by default."""

    new_tokens: Annotated[
        Sequence[Annotated[Text, Says("a token")]] | None,
        Group.MODEL,
        Says("a list of tokens (or None)"),
        LeftToModule,
    ] = None
    """Texts that become tokens, such as ``["<think>", "</think>"]``. The tokenizer gets them, and the model's embedding a
    row for each token that it lacks: the mean of all others."""

    validation: Annotated[
        Annotated[float, Above(0), Below(1)] | Source | None,
        Group.DATA,
        Says(
            "a share of the data between 0 and 1, the name of a split, other rows in any form that `data` may have, or None"
        ),
    ] = None
    """The validation set: rows, the name of their split, or a share of `data`. It is evaluated before the first step, as
    `evaluate_every` says, and after the last step."""

    loss_on: Annotated[LossOn, Group.DATA] = "all"
    """``"all"`` tokens, or only ``"completions"``: what follows a prompt, and what the assistant says."""

    packing: Annotated[bool | Auto, Group.DATA] = "auto"
    """Whether documents share rows of `sequence_length` tokens, without attention between them. ``"auto"`` is where that
    saves padding and the model can do it. A sample is then such a row."""

    transform: Annotated[_Transform | None, Group.DATA] = None
    """A function of each training row's image, or wave of shape [samples]. Its random draws depend only on (seed, epoch,
    row)."""

    validation_transform: Annotated[_Transform | None, Group.DATA] = None
    """The same for the rows of the validation set."""

    sampling_rate: Annotated[Annotated[Count, Unit("Hz")] | None, Group.DATA] = None
    """The rate to which sounds are resampled; the feature extractor's own by default."""

    shuffle_buffer_size: Annotated[Count, Unit("rows"), Group.DATA] = 1000
    """Of a stream: how many rows are shuffled at a time, in each of the readers of its shards."""

    on_bad_row: Annotated[OnBadRow, Group.DATA] = "error"
    """``"error"`` ends a job before it starts if a row of its data cannot be used; ``"skip"`` leaves such rows out, and
    lists them in the run's folder."""

    num_workers: Annotated[
        Annotated[int, AtLeast(0), AtMost(_MOST_WORKERS, plain=True), Unit("processes")] | Auto, Group.DATA, MayChange
    ] = "auto"
    """Processes that read rows, for each rank."""

    max_steps: Annotated[_Steps | None, Group.TRAINING, MayChange] = None
    """The length of the job in optimizer steps; give this or `max_epochs`."""

    max_epochs: Annotated[Annotated[float, Above(0), Unit("epochs")] | None, Group.TRAINING, MayChange] = None
    """The length of the job in passes over the data, which need not be whole."""

    limit_train_batches: Annotated[_Limit, Group.TRAINING] = None
    """Global batches of an epoch that are run, or a share of them below 1; all by default."""

    overfit_batches: Annotated[_Limit, Group.TRAINING] = None
    """Limits training and validation to so many batches, of rows that are not shuffled: the same few again and again."""

    fast_dev_run: Annotated[bool | Annotated[Count, Unit("optimizer steps")], Group.TRAINING, MayChange] = False
    """A trial of so many steps, 1 where it is True, and an evaluation of as many batches before and after them. Nothing is
    logged or saved, and callbacks that save or stop are left out."""

    learning_rate: Annotated[float, AtLeast(0), Group.TRAINING, LeftToModule] = 5e-5
    """The learning rate where the schedule's factor is 1."""

    lr_schedule: Annotated[
        ScheduleName | Annotated[Any, Is("a function of the step's index to a factor", function_of("step"))],
        Group.TRAINING,
        LeftToModule,
    ] = "cosine"
    """``constant``, ``linear``, ``cosine``, ``wsd``, or a function of the step's index to a factor."""

    warmup_steps: Annotated[Whole, Unit("optimizer steps"), Group.TRAINING, LeftToModule] = 0
    """Steps over which the learning rate rises."""

    weight_decay: Annotated[float, AtLeast(0), Group.TRAINING, LeftToModule] = 0.0
    """Weight decay of matrices; biases and norms never decay."""

    gradient_clip: Annotated[Annotated[float, Above(0)] | Auto | None, Group.TRAINING] = "auto"
    """The largest global gradient norm; None clips nothing; ``"auto"`` is 1.0, and None for a LightningModule."""

    gradient_clip_algorithm: Annotated[Literal["norm", "value"], Group.TRAINING] = "norm"
    """``"norm"``, or ``"value"``, which limits each entry of a gradient to `gradient_clip`."""

    ema_decay: Annotated[Annotated[float, Above(0), Below(1)] | None, Group.TRAINING] = None
    """The decay of an exponential moving average of the weights, such as 0.999. Checkpoints hold it as ``average/``; none
    is kept by default."""

    seed: Annotated[int, AtLeast(0), AtMost(_LARGEST_SEED), Group.TRAINING] = 0
    """The seed of initial weights, order and dropout."""

    memory_check: Annotated[MemoryCheck, Group.PARALLELISM, MayChange] = "error"
    """``"error"`` ends a job before it starts if it is predicted not to fit, and runs a trial of two steps, in processes of
    their own, where the margin is thin; ``"probe"`` always runs the trial; ``"warn"`` lets any job run."""

    devices: Annotated[Count | Auto, Group.PARALLELISM, MayChange] = "auto"
    """Processes on each node; as many as torchrun has started by default."""

    num_nodes: Annotated[Count | Auto, Group.PARALLELISM, MayChange] = "auto"
    """Nodes; as many as torchrun has started by default."""

    evaluate_every: Annotated[
        _Steps | Annotated[float, Above(0), Below(1), Unit("of an epoch")] | Literal["epoch"] | None,
        Group.EVALUATION,
        MayChange,
    ] = "epoch"
    """``"epoch"``; a share of an epoch, such as 0.25; optimizer steps between two evaluations; or None for the first and
    the last alone. A stream has no epochs."""

    limit_val_batches: Annotated[_Limit, Group.EVALUATION, MayChange] = None
    """Batches of an evaluation, or a share of them below 1; all by default."""

    metrics: Annotated[
        Mapping[str, AnyMetric | Annotated[MetricBlock, Open, Says("a mapping with its class and its arguments")]]
        | None,
        Group.EVALUATION,
        Says("a mapping of names to metrics (None for the usual ones)"),
        LeftToModule,
        MayChange,
    ] = None
    """Metrics of the validation set beside the loss, by names of yours: torchmetrics' metrics, which take the model's
    outputs and the labels, or ``{"class": "F1Score", "task": "multiclass", ...}``. By default accuracy for classes, and
    perplexity and token accuracy for language models."""

    generate: Annotated[Generate | None, Group.EVALUATION, LeftToModule, MayChange] = None
    """Samples that the model generates with each evaluation: ``prompts`` (texts, or conversations) and ``max_new_tokens``,
    64 by default."""

    output_dir: Annotated[
        Annotated[Place, Is("a folder, or a path where one can be made", can_be_folder)] | None,
        Group.SAVING,
        MayChange,
    ] = None
    """The run's folder; a new one under ``runs/`` by default."""

    resume: Annotated[
        Literal["auto", "never"] | Annotated[Place, Is("the folder of a checkpoint", os.path.isdir)],
        Group.SAVING,
        MayChange,
    ] = "auto"
    """``"auto"`` resumes the run that `output_dir` holds; ``"never"`` refuses to; the folder of a checkpoint is resumed
    from."""

    checkpoint_every: Annotated[_Steps | Auto | None, Group.SAVING, MayChange] = "auto"
    """Optimizer steps between two checkpoints; ``"auto"`` saves every 10 minutes, and where `keep_every` and `keep_best` ask
    for one; None saves at the end alone, where one is always saved."""

    keep_last: Annotated[Annotated[Count, Unit("checkpoints")] | None, Group.SAVING, MayChange] = None
    """How many of the newest checkpoints are kept. By default all, and 2 where ``checkpoint_every="auto"`` decides when."""

    keep_every: Annotated[_Steps | None, Group.SAVING, MayChange] = None
    """Checkpoints whose step is a multiple of this are kept too."""

    keep_best: Annotated[
        Annotated[Text, Says("the name of a metric")]
        | Annotated[Best, Says("a mapping of `metric` and `mode`, which is 'min' or 'max'")]
        | None,
        Group.SAVING,
        MayChange,
    ] = None
    """Also keeps the checkpoint with the best value of this metric of the validation set, such as ``"loss"``. For a metric
    that a LightningModule logs, give ``{"metric": "val_accuracy", "mode": "max"}``."""

    logger: Annotated[
        AnyLogger | Literal["wandb"] | Sequence[AnyLogger | Literal["wandb"]] | None,
        Group.TRACKING,
        Says("None, 'wandb', a Lightning logger, or a list of those"),
        MayChange,
    ] = None
    """None, ``"wandb"``, a Lightning logger, or several."""

    callbacks: Annotated[Sequence[AnyCallback], Group.TRACKING, Says("a list of Lightning callbacks"), MayChange] = ()
    """Lightning callbacks."""

    log_every_n_steps: Annotated[_Steps | Auto, Group.TRACKING, MayChange] = "auto"
    """How often, in optimizer steps, what a LightningModule logs by the step goes to the loggers. ``"auto"`` is Lightning's
    50, and 1 in epochs that are shorter."""

    watchdog_seconds: Annotated[
        Annotated[float, Above(0), Unit("seconds")] | Auto | None, Group.TRACKING, MayChange
    ] = "auto"
    """How long a rank may take over a micro-batch before the log says where every rank is. ``"auto"`` is 20 steps, and at
    least a minute; None is for ever."""

    verbose: Annotated[bool, Group.TRACKING, MayChange] = False
    """Whether the screen shows what other libraries say too; the run's ``log.txt`` always has it."""

    def __post_init__(self) -> None:
        for name, value in check_settings({each.name: getattr(self, each.name) for each in fields(self)}).items():
            object.__setattr__(self, name, value)
        if self.data is None:
            object.__setattr__(self, "data", _own_loaders(self.model))
        if self.strategy != "auto":
            StrategyConfig.load(self.strategy)
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
        if callable(self.lr_schedule) and self.warmup_steps:
            raise ConfigError("warmup_steps is for a schedule that is named: let your function rise by itself instead")
        if self.kept is None and self.keep_every is not None:
            raise ConfigError(
                f"keep_every={self.keep_every} has no effect where all checkpoints stay: give keep_last too"
            )
        if self.keep_best is not None and (self.kept is None or self.evaluate_every is None):
            raise ConfigError(
                f"keep_best={shown(self.keep_best)} keeps one more than the last, by the validation set: give `keep_last`, "
                "`validation` and `evaluate_every` too"
            )

    @property
    def kept(self) -> int | None:
        """How many of the newest checkpoints are kept; None for all."""
        return _USUALLY_KEPT if self.keep_last is None and self.checkpoint_every == "auto" else self.keep_last

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
        """Whether what is asked of the validation set can be had.

        Args:
            has_rows: whether there are any.

        Raises:
            ConfigError: there are none.
        """
        names = ["evaluate_every", "metrics", "generate", "validation_transform"]
        names += [] if self.fast_dev_run else ["limit_val_batches"]
        given = [name for name in names if self._is_given(name) and getattr(self, name) is not None]
        if given and not has_rows:
            raise ConfigError(f"{', '.join(given)}: there is no validation set to evaluate. Give `validation` too")

    @classmethod
    def from_mapping(cls, block: Mapping[str, Any]) -> Job:
        """A job from a mapping with the same names.

        Raises:
            UnknownNameError: a key that is no setting.
            ConfigError: model or data is missing, or a value is wrong.
        """
        known = [each.name for each in fields(cls)]
        block = understood(block)
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
        free, saved = marked(Job, MayChange), understood(saved, warn=False)
        return [name for name, value in self.resolved().items() if name not in free and saved.get(name) != value]


_DEFAULTS = {each.name: each.default for each in fields(Job)}

TRIAL: Mapping[str, Any] = {
    **dict.fromkeys(("checkpoint_every", "keep_last", "keep_every", "keep_best", "logger")),
    "resume": "never",
}
"""Settings of a job that is only tried out: nothing is kept or tracked, and no earlier run is resumed."""


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
    """Whether data certainly brings no validation set: rows in Python, or a single file."""
    if isinstance(data, (list, tuple)) or is_a(data, "torch.utils.data.Dataset", "torch.utils.data.DataLoader"):
        return True
    path = data.get("path") if isinstance(data, dict) else data
    return isinstance(path, str) and os.path.isfile(path)


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
