"""A user's LightningModule as a checkpoint has it: its hyper-parameters and its weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.core.saving import _load_state

from scalekit.checkpoint import load
from scalekit.checkpoint.format import WEIGHTS
from scalekit.checkpoint.model_state import ModelFormat
from scalekit.checkpoint.safetensors_io import TensorFiles
from scalekit.distributed.shards import TensorShard
from scalekit.errors import CheckpointError, ConfigError

M = TypeVar("M", bound=LightningModule)

_KEY = LightningModule.CHECKPOINT_HYPER_PARAMS_KEY


def load_module(kind: type[M], checkpoint: str | Path, **arguments: Any) -> M:
    """Makes a LightningModule with the hyper-parameters and weights of a checkpoint, as `load_from_checkpoint` of Lightning.

    Args:
        kind: the module's class.
        checkpoint: a checkpoint's folder, such as `Run.checkpoint`.
        arguments: of the class, in the place of the hyper-parameters that it has saved, and beside them.

    Raises:
        CheckpointError: it is no checkpoint, or another model's.
        ConfigError: an argument of the class is neither given nor in the checkpoint as it was.
    """
    folder = Path(checkpoint)
    found = load.state(folder)
    by_text = {
        re.split(r"[.\[]", place)[1] for place in found["scalekit"].get("by_text", ()) if place.startswith(f"{_KEY}.")
    }
    missing = sorted(by_text - arguments.keys())
    if missing:
        given = ", ".join(f"{name}=..." for name in missing)
        raise ConfigError(
            f"{folder} has {', '.join(missing)} by its text alone ({found[_KEY][missing[0]]}): "
            f"give load_module({kind.__name__}, checkpoint, {given})"
        )
    places = TensorFiles.found(folder, WEIGHTS).places
    if not places:
        raise CheckpointError(f"{folder} holds no whole model, and so no LightningModule")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that the weights come after it
            module: Any = _load_state(kind, {**found, "state_dict": {}}, strict=False, **arguments)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} cannot be made of {folder}: {error}") from error
    tensors_by_file = ModelFormat(module).tensors_by_file()
    for name, each in tensors_by_file.get(WEIGHTS, {}).items():
        if name in places and each.is_floating_point():
            each.data = each.data.to(places[name].dtype)  # a job's precision is that of what it saves
    parts = {
        stem: [TensorShard(name, tuple(each.shape), each.detach()) for name, each in family.items()]
        for stem, family in tensors_by_file.items()
    }
    load.fill(parts, folder)
    made: M = module
    return made
