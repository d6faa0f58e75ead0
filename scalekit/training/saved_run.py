"""What the model of an earlier run makes of other rows: `scalekit evaluate` and `scalekit predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from scalekit.callbacks.generation import check_prompt, replied
from scalekit.checkpoint.load import chosen
from scalekit.checkpoint.model_state import holds_adapter
from scalekit.config.precision import resolve_precision
from scalekit.config.renamed import understood
from scalekit.config.settings import Job
from scalekit.config.strategy import StrategyConfig
from scalekit.data.encoders.causal import Chat
from scalekit.data.encoders.tasks import CLASSIFIED
from scalekit.data.pipeline import DataPipeline, processor_for
from scalekit.data.sources.read import Source, read_once, with_column
from scalekit.distributed.world import World, all_gather_object, connect, device_type
from scalekit.errors import CheckpointError, ConfigError, RowError, shown
from scalekit.models.labels import Classes, SeveralClasses
from scalekit.models.resolve import resolve_model
from scalekit.models.vocabulary import tokenizer_of
from scalekit.objectives.metrics import Scores
from scalekit.objectives.reduction_check import ReductionCheck
from scalekit.strategies.factory import build_strategy
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.precision import plugin
from scalekit.training.evaluator import Evaluator, made_ready
from scalekit.training.scale_module import ScaleModule
from scalekit.utils.files import atomic_write_text
from scalekit.utils.log import job_log

_FEW = 16
_WRITTEN = ("causal-lm", "seq2seq-lm")
_KEPT = ("sequence_length", "loss_on", "sampling_rate", "on_bad_row", "trust_remote_code")
"""Settings by which rows reach the model as in the run's job."""

_STRATEGIES = ("single", "ddp", "fsdp2")


def evaluate(
    run: str | Path, data: Any, *, strategy: str | None = None, micro_batch_size: int = 8, metrics: Any = None
) -> dict[str, Any]:
    """Loss and scores of a run's model over rows, each counted once; every process of the job calls it.

    Args:
        run: a run's folder, of which the newest checkpoint is taken, or a checkpoint's. Its model is a Hugging Face model.
        data: as of `fit`, with labels.
        strategy: ``"single"``, ``"ddp"`` or ``"fsdp2"``; by default ``"ddp"`` on several processes.
        micro_batch_size: rows that a process runs at once.
        metrics: as of `fit`.

    Raises:
        ScaleKitError: no such run, or rows that cannot be used.
    """
    opened = _open(run, data, strategy, has_loss=True)
    return _evaluator(opened, micro_batch_size, metrics, is_labelled=True).score("test", None)


def predict(
    run: str | Path,
    data: Any,
    *,
    strategy: str | None = None,
    micro_batch_size: int = 8,
    max_new_tokens: int = 64,
) -> list[dict[str, Any]]:
    """What a run's model says of rows, one mapping each, in their order; every process of the job calls it.

    A model that classifies rows says their class, with the probability; one that learns numbers, those. One that writes text
    completes the prompt, the text, or the conversation without its last answer, by the likeliest tokens.

    Args:
        run, data, strategy, micro_batch_size: as of `evaluate`; rows need no labels and no answers.
        max_new_tokens: of a text that is written.

    Raises:
        ScaleKitError: no such run, rows that cannot be used, or a model for another task.
    """
    opened = _open(run, data, strategy)
    if opened.task in _WRITTEN:
        return _completed(opened, max_new_tokens)
    if opened.task not in CLASSIFIED:
        raise ConfigError(
            f"predict is for models that classify rows, give their numbers or write text, and the task here is {opened.task}: "
            "load the model with from_pretrained"
        )
    labelled = with_column(opened.source, ("label", "labels"), _any_label(opened.model.config))
    evaluator = _evaluator(replace(opened, source=labelled), micro_batch_size)
    return [_told(evaluator.pipeline.labels, logits) for logits in evaluator.predict(None)]


def write_predictions(run: str | Path, data: Any, output: str | Path, **options: Any) -> None:
    """`predict`, as lines of JSON in a file; every process calls it, and the first one writes."""
    found = predict(run, data, **options)
    if World.from_environment().rank == 0:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(Path(output), "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found))


@dataclass(frozen=True)
class _Opened:
    """A run's model, and the rows that it is asked about.

    Attributes:
        folder: of the model.
        settings: those of the run's job that say how rows reach the model.
        task: one of `names.TaskName`, or None.
        model: of this process.
        source: the rows as they come.
        spec: the strategy.
        precision: the run's.
        world: the job's processes.
    """

    folder: Path
    settings: dict[str, Any]
    task: str | None
    model: Any
    source: Source
    spec: StrategyConfig
    precision: str
    world: World

    @property
    def processor(self) -> str | None:
        """Where the one that was saved beside the model is; None where there is none."""
        known = ("tokenizer", "preprocessor", "processor")
        return str(self.folder) if any((self.folder / f"{name}_config.json").is_file() for name in known) else None


def _open(run: str | Path, data: Any, strategy: str | None, has_loss: bool = False) -> _Opened:
    """Opens a run's model on every process.

    Args:
        run, data, strategy: as of `evaluate`.
        has_loss: whether the run's loss is needed, which only the model's own can be.
    """
    world, device = World.from_environment(), device_type()
    spec = StrategyConfig.load(strategy or ("ddp" if world.size > 1 else "single"))
    if spec.name not in _STRATEGIES:
        raise ConfigError(f"strategy={shown(strategy)}: rows are run without training under {', '.join(_STRATEGIES)}")
    checkpoint = _checkpoint(Path(run).resolve())
    saved = _saved(checkpoint.parent.parent)
    saved["config"] = understood(saved["config"], warn=False)
    for name in ("validation_transform", *(("loss", "item_count") if has_loss else ())):
        if saved["config"].get(name) is not None:
            raise ConfigError(
                f"{run}: its {name} is {saved['config'][name]}, which no file holds: call run.test or run.predict in Python"
            )
    task = saved["data"].get("task") or saved["config"].get("task")
    with job_log(world.rank):
        source = read_once(data, "test", saved["config"].get("on_bad_row", "error") if has_loss else "error")
        connect(world)
        trusts = bool(saved["config"].get("trust_remote_code"))
        resolved = resolve_model(str(checkpoint / "model"), task, trusts).source
        model = resolved if isinstance(resolved, nn.Module) else resolved()
    precision = resolve_precision(saved["plan"].get("precision", "32-true"), device)
    settings = {name: saved["config"][name] for name in _KEPT if name in saved["config"]}
    if not has_loss:
        settings["on_bad_row"] = "error"  # each row is answered
    return _Opened(checkpoint / "model", settings, task, model, source, spec, precision, world)


def _evaluator(opened: _Opened, micro_batch_size: int, metrics: Any = None, is_labelled: bool = False) -> Evaluator:
    job = Job.from_mapping(
        {
            **opened.settings,
            "model": opened.model,
            "data": opened.source.parts[0].rows,
            "task": opened.task,
            "processor": opened.processor,
            "metrics": metrics,
            "strategy": opened.spec.name,
            "max_steps": 1,
        }
    )
    with job_log(opened.world.rank):
        pipeline = DataPipeline(job, opened.source, opened.model)
        rows = made_ready(pipeline, opened.source)
    module = ScaleModule(opened.model, processor=pipeline.processor)
    context = JobContext(
        item_count=lambda: module.objective.count,
        scores=Scores(job.metrics, pipeline.task, None if pipeline.labels is None else pipeline.labels.problem),
    )
    strategy = build_strategy(opened.spec, opened.precision, device_type(), opened.world, context)
    few = [rows[place] for place in range(min(_FEW, len(rows)))]
    check = ReductionCheck(few, pipeline.collate, splits=True, world=opened.world)
    return Evaluator(job, pipeline, rows, module, strategy, micro_batch_size, [check] if is_labelled else [])


def _completed(opened: _Opened, max_new_tokens: int) -> list[dict[str, Any]]:
    """What the model writes behind each row; processes take rows in turn."""
    if opened.spec.name == "fsdp2":
        raise ConfigError("strategy='fsdp2': text is written by processes that each have the whole model: take ddp")
    world = opened.world
    device = torch.device("cuda", world.local_rank) if device_type() == "cuda" else torch.device("cpu")
    precision = plugin(opened.precision, device.type)
    tokenizer = tokenizer_of(processor_for(opened.task or "causal-lm", opened.processor, str(opened.folder)))
    model = precision.convert_module(opened.model).to(device).eval()
    rows: ConcatDataset[Any] = ConcatDataset([part.rows for part in opened.source.parts])
    asked = [_prompt(rows[place], place + 1) for place in range(len(rows))]
    for number, (prompt, _) in enumerate(asked, start=1):
        check_prompt(number, prompt, tokenizer, max_new_tokens, model.config)
    mine: dict[int, str] = {}
    with torch.no_grad(), precision.forward_context():
        for place in tqdm(range(world.rank, len(rows), world.size), disable=None if world.rank == 0 else True):
            prompt, tools = asked[place]
            mine[place] = replied(model, tokenizer, prompt, max_new_tokens, device, tools=tools)
    found = {place: text for part in all_gather_object(mine, world) for place, text in part.items()}
    return [{"completion": found[place]} for place in range(len(rows))]


def _prompt(row: dict[str, Any], number: int) -> tuple[Any, Any]:
    """What a row asks: a text, or the turns before its last answer; and the tools that may be called.

    Raises:
        RowError: it asks nothing.
    """
    chat = Chat.of({**row, "completion": row.get("completion") or []})
    if chat is None:
        found = row.get("prompt") or row.get("text")
        if not isinstance(found, str):
            raise RowError(f"row {number} has neither a conversation nor a prompt nor a text, but {', '.join(row)}")
        return found, None
    turns = list(chat.turns)
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()
    if not turns:
        raise RowError(f"row {number} is a conversation in which nobody but the assistant says anything")
    return turns, chat.tools


def _checkpoint(run: Path) -> Path:
    """The checkpoint that is meant, of a model that can be opened by itself.

    Raises:
        CheckpointError: there is none.
        ConfigError: its model is no whole Hugging Face model.
    """
    found = chosen(run)
    if holds_adapter(found):
        raise ConfigError(
            f"{found} holds an adapter, which evaluate and predict do not open: scalekit export {found} FOLDER --merge "
            "writes the whole model, which transformers opens"
        )
    if not (found / "model" / "config.json").is_file():
        raise ConfigError(
            f"{found} holds no Hugging Face model, so that a command cannot build it: in Python, run.test and run.predict "
            "follow `fit`, and scalekit.load_module opens a LightningModule"
        )
    return found


def _saved(run: Path) -> dict[str, dict[str, Any]]:
    """What a run's folder says of its job.

    Raises:
        CheckpointError: it does not, as where a checkpoint was moved out of it.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, read in (("config.yaml", yaml.safe_load), ("data.json", json.loads), ("plan.json", json.loads)):
        try:
            found[Path(name).stem] = read((run / name).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CheckpointError(
                f"{run / name} cannot be read, which says how rows reach the model: {error}. A checkpoint stays in its run's "
                "folder"
            ) from error
    return found


def _any_label(config: Any) -> Any:
    """A label such as the model's, for rows without one."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return 0.0 if config.num_labels == 1 else [0.0] * config.num_labels
    return [0.0] * config.num_labels if problem == "multi_label_classification" else config.id2label[0]


def _told(labels: Any, logits: Tensor) -> dict[str, Any]:
    """What a row's logits say.

    Args:
        labels: of the model.
        logits: shape [outputs].
    """
    numbers = logits.float()
    if isinstance(labels, Classes):
        shares = torch.softmax(numbers, dim=-1)
        return {"label": labels.names[int(shares.argmax())], "probability": float(shares.max())}
    if isinstance(labels, SeveralClasses):
        shares = torch.sigmoid(numbers)
        found: Mapping[str, float] = dict(zip(labels.names, shares.tolist(), strict=True))
        return {"labels": [name for name, share in found.items() if share > 0.5], "probabilities": found}
    return {"value": float(numbers)} if numbers.numel() == 1 else {"value": numbers.tolist()}
