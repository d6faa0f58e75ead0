"""A run or a checkpoint of before, found and opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from scalekit.checkpoint.load import chosen
from scalekit.checkpoint.model_state import holds_adapter
from scalekit.config.precision import resolve_precision
from scalekit.config.renamed import understood
from scalekit.config.strategy import StrategyConfig
from scalekit.data.sources.read import Source, read_once
from scalekit.distributed.world import World, connect, device_type
from scalekit.errors import CheckpointError, ConfigError, shown
from scalekit.models.resolve import resolve_model
from scalekit.utils.log import job_log

_KEPT = ("sequence_length", "loss_on", "sampling_rate", "on_bad_row", "trust_remote_code")
"""Settings by which rows reach the model as in the run's job."""

_STRATEGIES = ("single", "ddp", "fsdp2")


@dataclass(frozen=True)
class OpenedRun:
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


def open_run_of(run: str | Path, data: Any, strategy: str | None, has_loss: bool = False) -> OpenedRun:
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
    return OpenedRun(checkpoint / "model", settings, task, model, source, spec, precision, world)


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
