"""What the model of an earlier run makes of other rows: `scalekit evaluate` and `scalekit predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from scalekit import dtypes, engines, models
from scalekit.checkpoint.layout import MANIFEST
from scalekit.checkpoint.load import latest
from scalekit.checkpoint.model_files import holds_adapter
from scalekit.data import sources
from scalekit.data.encoders.labels import Classes, SeveralClasses
from scalekit.data.rows import held_out
from scalekit.data.way import Way
from scalekit.errors import CheckpointError, ConfigError, shown
from scalekit.evaluator import Evaluator
from scalekit.files import write_at_once
from scalekit.job import Job
from scalekit.log import job_log
from scalekit.module import ScaleModule
from scalekit.objectives.measured import ReductionCheck
from scalekit.scores import Scores
from scalekit.strategies import Strategy
from scalekit.world import World, connect, device_type

_FEW = 16
_CLASSIFIED = ("sequence-classification", "image-classification", "audio-classification")
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
    return _opened(run, data, strategy, micro_batch_size, metrics).score("test", None)


def predict(
    run: str | Path, data: Any, *, strategy: str | None = None, micro_batch_size: int = 8
) -> list[dict[str, Any]]:
    """What a run's model says of rows, one mapping each, in their order: its class with the probability, or its numbers.

    Args:
        run, data, strategy, micro_batch_size: as of `evaluate`; rows need no labels.

    Raises:
        ScaleKitError: no such run, rows that cannot be used, or a model that neither classifies rows nor gives numbers.
    """
    evaluator = _opened(run, data, strategy, micro_batch_size, is_labelled=False)
    labels = evaluator.way.labels
    if labels is None or evaluator.way.task not in _CLASSIFIED:
        raise ConfigError(
            f"predict says of which class rows are, or gives their numbers, and the task here is {evaluator.way.task}: load "
            "the model with from_pretrained, such as for text that is generated"
        )
    return [_told(labels, logits) for logits in evaluator.predict(None)]


def write_predictions(run: str | Path, data: Any, output: str | Path, **options: Any) -> None:
    """`predict`, as lines of JSON in a file; every process calls it, and the first one writes."""
    found = predict(run, data, **options)
    if World.from_environment().rank == 0:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_at_once(Path(output), "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found))


def _opened(
    run: str | Path,
    data: Any,
    strategy: str | None,
    micro_batch_size: int,
    metrics: Any = None,
    is_labelled: bool = True,
) -> Evaluator:
    world = World.from_environment()
    with job_log(world):
        return _open(run, data, strategy, micro_batch_size, metrics, is_labelled, world, device_type())


def _open(
    run: str | Path,
    data: Any,
    strategy: str | None,
    micro_batch_size: int,
    metrics: Any,
    is_labelled: bool,
    world: World,
    device: str,
) -> Evaluator:
    spec = Strategy.load(strategy or ("ddp" if world.size > 1 else "single"))
    if spec.name not in _STRATEGIES:
        raise ConfigError(f"strategy={shown(strategy)}: rows are run without training under {', '.join(_STRATEGIES)}")
    checkpoint = _checkpoint(Path(run))
    folder, saved = str(checkpoint / "model"), _saved(checkpoint.parent.parent)
    task = saved["data"].get("task") or saved["config"].get("task")
    if is_labelled and saved["config"].get("loss") is not None:
        raise ConfigError(
            f"the loss of {run} is {saved['config']['loss']}, which no file holds: call run.test in Python"
        )
    trusts = bool(saved["config"].get("trust_remote_code"))
    connect(world)
    resolved = models.resolve(folder, task, trusts)
    model = resolved.source() if callable(resolved.source) else resolved.source
    source = sources.read_once(data, "test", saved["config"].get("on_bad_row", "refuse"))
    if not is_labelled and task in _CLASSIFIED:
        source = sources.with_column(source, ("label", "labels"), _any_label(resolved.config))
    job = Job(
        model=model,
        data=data,
        task=task,
        processor=folder if _has_processor(checkpoint / "model") else None,
        metrics=metrics,
        strategy=spec.name,
        max_steps=1,
        **{name: saved["config"][name] for name in _KEPT if name in saved["config"]},
    )
    way = Way(job, source, model)
    precision = saved["plan"].get("precision", "32-true")
    engine = engines.engine(spec, dtypes.resolve(precision, device), device, world)
    module = ScaleModule(model, processor=way.processor)
    engine.item_count = lambda: module.objective.count
    engine.scores = Scores(job.metrics, way.task, None if way.labels is None else way.labels.problem)
    rows = held_out(way, source.parts)
    few = [rows[place] for place in range(min(_FEW, len(rows)))]
    check = ReductionCheck(few, way.collate, splits=True, world=world)
    return Evaluator(job, way, rows, module, engine, micro_batch_size, [check] if is_labelled else [])


def _checkpoint(run: Path) -> Path:
    """The checkpoint that is meant, of a model that can be opened by itself.

    Raises:
        CheckpointError: there is none.
        ConfigError: its model is no whole Hugging Face model.
    """
    found = run if (run / MANIFEST).is_file() else latest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run} is neither a run's folder with a checkpoint nor a checkpoint")
    if holds_adapter(found):
        raise ConfigError(
            f"{found} holds an adapter: scalekit export {found} FOLDER --merge, and evaluate FOLDER in Python"
        )
    if not (found / "model" / "config.json").is_file():
        raise ConfigError(
            f"{found} holds no Hugging Face model, so that a command cannot build it: in Python, run.test and run.predict "
            "follow `fit`, and scalekit.load_module opens a LightningModule"
        )
    return found


def _saved(run: Path) -> dict[str, dict[str, Any]]:
    """What a run's folder says of its job; nothing where it does not."""
    found: dict[str, dict[str, Any]] = {}
    for name, read in (("config.yaml", yaml.safe_load), ("data.json", json.loads), ("plan.json", json.loads)):
        path = run / name
        found[Path(name).stem] = (read(path.read_text()) or {}) if path.is_file() else {}
    return found


def _has_processor(folder: Path) -> bool:
    return any((folder / f"{name}_config.json").is_file() for name in ("tokenizer", "preprocessor", "processor"))


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
