"""Loading: the weights when the model is placed, the rest when Lightning restores its loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from scalekit.checkpoint.layout import MANIFEST, published, read_tree, verify
from scalekit.errors import CheckpointError


def latest(checkpoints: Path) -> Path | None:
    """The newest published checkpoint in a folder, or None."""
    return next(reversed(published(checkpoints)), None)


def check(folder: Path) -> None:
    """Reads a checkpoint through and compares it with its manifest.

    Raises:
        CheckpointError: it is no checkpoint, or damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}")
    verify(folder)


def load(folder: Path, part: int, parts: int) -> dict[str, Any]:
    """What Lightning restores: loops, schedules, callbacks, and this rank's part of the optimizer's state.

    Args:
        folder: of the checkpoint.
        part: the number of this rank's part.
        parts: how many parts the job has now.

    Raises:
        CheckpointError: the checkpoint has another number of parts.
    """
    found = len(list((folder / "optimizer").glob("rank-*.json")))
    if found != parts:
        raise CheckpointError(
            f"{folder} was saved in {found} parts, and this job would read {parts}: resume on as many ranks under the same "
            "strategy, or start from its weights: model="
            f"{str(folder / 'model')!r}"
        )
    state: dict[str, Any] = read_tree(folder / "state")
    state["state_dict"] = {}
    state["optimizer_states"] = read_tree(folder / "optimizer" / f"rank-{part:05d}")
    return state


def load_weights(module: Any, checkpoint: Path | None) -> None:
    """Fills a LightningModule that has real weights from a checkpoint; does nothing for one on the meta device."""
    if checkpoint is None or any(parameter.is_meta for parameter in module.parameters()):
        return
    target: nn.Module = module.model if hasattr(module, "save_model") else module
    source = checkpoint / "model"
    if hasattr(target, "save_pretrained"):
        saved = type(target).from_pretrained(source, dtype="auto").state_dict()  # type: ignore[attr-defined]
    else:
        saved = load_file(source / "model.safetensors")
    missing, unexpected = target.load_state_dict(saved, strict=False)
    tied = _tied_names(target)
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint} is of another model: it lacks {missing[:3]} and has {unexpected[:3]} besides"
        )


def _tied_names(model: nn.Module) -> set[str]:
    """The further names of tensors that have several."""
    once = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
