"""What the model of an earlier run makes of other rows: `scalekit evaluate` and `scalekit predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from scalekit.callbacks.generation import check_prompt, replied
from scalekit.config.settings import Job
from scalekit.data.encoders.causal import Chat
from scalekit.data.pipeline import DataPipeline
from scalekit.data.processors import processor_for
from scalekit.data.sources.read import with_column
from scalekit.distributed.world import World, all_gather_object, device_type
from scalekit.errors import ConfigError, RowError
from scalekit.models.labels import Classes, SeveralClasses
from scalekit.models.tasks import TASKS
from scalekit.models.vocabulary import tokenizer_of
from scalekit.objectives.metrics import Scores
from scalekit.objectives.reduction_check import ReductionCheck
from scalekit.strategies.factory import build_strategy
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.precision import plugin
from scalekit.training.evaluator import Evaluator, made_ready
from scalekit.training.opened_run import OpenedRun, open_run_of
from scalekit.training.scale_module import ScaleModule
from scalekit.utils.files import atomic_write_text
from scalekit.utils.log import job_log

_FEW = 16


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
    opened = open_run_of(run, data, strategy, has_loss=True)
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
    opened = open_run_of(run, data, strategy)
    task = TASKS.get(opened.task or "")
    if task is not None and task.writes:
        return _completed(opened, max_new_tokens)
    if task is None or not task.has_label:
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


def _evaluator(opened: OpenedRun, micro_batch_size: int, metrics: Any = None, is_labelled: bool = False) -> Evaluator:
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
    check = ReductionCheck(few, pipeline.collate, splits=True, world=opened.world, keeps_logits=bool(metrics))
    return Evaluator(job, pipeline, rows, module, strategy, micro_batch_size, [check] if is_labelled else [])


def _completed(opened: OpenedRun, max_new_tokens: int) -> list[dict[str, Any]]:
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
