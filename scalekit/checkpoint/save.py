"""Saving: each rank writes its part beside the others', and one publishes the whole when all are done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from scalekit.checkpoint.layout import write_manifest, write_tree


def save(
    module: Any,
    checkpoint: dict[str, Any],
    folder: Path,
    part: int | None,
    is_publisher: bool,
    barrier: Callable[[], None],
) -> None:
    """Publishes a checkpoint; every rank calls it.

    Args:
        module: the LightningModule; a `ScaleModule` writes its model as users open it.
        checkpoint: what Lightning collected, with the whole model's state on the publisher.
        folder: where it shall stand; what stands there is replaced.
        part: the number of this rank's part of the optimizer's state; None where another rank writes the same.
        is_publisher: whether this rank writes what is common, and publishes.
        barrier: waits for all ranks.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    if is_publisher:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "optimizer").mkdir(parents=True)
    barrier()
    weights = checkpoint.pop("state_dict")
    optimizers = checkpoint.pop("optimizer_states", [])
    if part is not None:
        write_tree(optimizers, staging / "optimizer" / f"rank-{part:05d}")
    if is_publisher:
        save_model = getattr(module, "save_model", None)
        if save_model is None:
            save_weights(module, weights, staging / "model")
        else:
            save_model(staging / "model", weights)
        write_tree(checkpoint, staging / "state")
    barrier()
    if is_publisher:
        write_manifest(staging)
        _sync(staging)
        _publish(staging, folder)
    barrier()


def save_weights(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Writes a model's weights: by its own `save_pretrained` where it has one, otherwise as `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_pretrained = getattr(model, "save_pretrained", None)
    if save_pretrained is not None:
        save_pretrained(folder, state_dict=state, is_main_process=True)
    else:
        save_file(_without_ties(state), folder / "model.safetensors")


def _without_ties(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors stores no two names for one memory: a tied tensor keeps its first name."""
    first: dict[tuple[int, int], str] = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.nbytes) if tensor.nbytes else (0, len(first)), name)
    return {name: state[name].contiguous() for name in first.values()}


def _publish(staging: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    staging.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Asks the system to have all files on the disk before the folder gets its name."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
