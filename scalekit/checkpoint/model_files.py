"""What a checkpoint's `model/` holds: the tensors that the model's own format saves, by their names there, and the files
beside them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekit.checkpoint.layout import ADAPTER, REST, WEIGHTS
from scalekit.errors import CheckpointError

Families = dict[str, dict[str, Tensor]]


def families(module: nn.Module) -> Families:
    """A module's tensors as checkpoints hold them, by the stem of their files' names; each once, by its first name.

    Raises:
        CheckpointError: the module has state that is no tensor.
    """
    target = saved_module(module)
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in target.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name} of {type(target).__name__} is a {type(tensor).__name__}, not a tensor")
        if id(tensor) not in seen:
            state[name] = tensor
        seen.add(id(tensor))
    if _is_adapted(target):
        from peft import get_peft_model_state_dict

        _check_adapters(target)
        kept: dict[str, Tensor] = get_peft_model_state_dict(target, state_dict=dict(state))
        found = {ADAPTER: kept}
    else:
        ignored = getattr(target, "_keys_to_ignore_on_save", None) or ()
        found = {WEIGHTS: {name: tensor for name, tensor in state.items() if name not in ignored}}
    ids = {id(tensor) for family in found.values() for tensor in family.values()}
    changing = {name: tensor for name, tensor in state.items() if tensor.requires_grad or _is_buffer(tensor)}
    rest = {name: tensor for name, tensor in changing.items() if id(tensor) not in ids}
    return {**found, REST: rest} if rest else found


def names(module: nn.Module) -> dict[int, str]:
    """What checkpoints call each tensor, by its identity."""
    return {id(tensor): name for family in families(module).values() for name, tensor in family.items()}


def files_beside(module: nn.Module, processor: Any) -> dict[str, bytes]:
    """What else the model's and the processor's own `save_pretrained` write, such as config.json, by path in the checkpoint."""
    target: Any = saved_module(module)
    with tempfile.TemporaryDirectory() as place:
        if hasattr(target, "save_pretrained"):
            # An adapter's own looks for what it would save, by name; a model's does not.
            state = dict.fromkeys(target.state_dict(), torch.empty(0)) if _is_adapted(target) else {}
            _quietly(target.save_pretrained, place, state_dict=state)
        if processor is not None:
            processor.save_pretrained(place)
        files = (path for path in Path(place).rglob("*") if path.is_file() and path.suffix != ".safetensors")
        return {f"model/{path.relative_to(place)}": path.read_bytes() for path in files}


def saved_module(module: nn.Module) -> nn.Module:
    """What `model/` holds of a LightningModule: the model that ScaleKit's wraps, or the whole of a user's own."""
    from scalekit.module import ScaleModule

    return module.model if isinstance(module, ScaleModule) and module.model is not None else module


def _is_adapted(target: nn.Module) -> bool:
    if "peft" not in sys.modules:
        return False
    from peft import PeftModel

    return isinstance(target, PeftModel)


def _check_adapters(target: Any) -> None:
    if list(target.peft_config) != ["default"]:
        raise CheckpointError(
            f"the model has the adapters {', '.join(target.peft_config)}: a checkpoint holds one, by the name that "
            "get_peft_model gives it, 'default'"
        )


def _is_buffer(tensor: Tensor) -> bool:
    return not isinstance(tensor, nn.Parameter)


def _quietly(save: Any, place: str, state_dict: Mapping[str, Tensor]) -> None:
    """Without a progress bar of the weights, of which there are none."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        save(place, state_dict=state_dict)
    finally:
        if shown:
            logging.enable_progress_bar()
