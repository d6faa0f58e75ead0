"""What a checkpoint's `model/` holds: the tensors that the model's own format saves, by their names there, and the files
beside them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from scalekit.checkpoint.format import ADAPTER, REST, WEIGHTS
from scalekit.errors import CheckpointError
from scalekit.utils.log import environment

TensorsByFile = dict[str, dict[str, Tensor]]


@final
class ModelFormat:
    """How a LightningModule's model is saved by its own library.

    Args:
        module: built. Its tensors may be replaced later, under the same names.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def _target(self) -> nn.Module:
        return saved_module(self._module)

    @cached_property
    def _adapter_names(self) -> dict[str, str]:
        """What PEFT calls what it saves of a model, by the model's own names. Asked once: PEFT may look on the hub for it."""
        from peft import get_peft_model_state_dict

        _check_adapters(self._target)
        state = {name: torch.empty(0) for name in self._target.state_dict()}
        kept = get_peft_model_state_dict(self._target, state_dict=dict(state))
        own = {id(tensor): name for name, tensor in state.items()}
        return {own[id(tensor)]: name for name, tensor in kept.items()}

    def tensors_by_file(self) -> TensorsByFile:
        """The model's tensors as checkpoints hold them, by the stem of their files' names; each once, by its first name.

        Raises:
            CheckpointError: the model has state that is no tensor.
        """
        state = _state(self._target)
        if _is_adapted(self._target):
            names = self._adapter_names
            found = {ADAPTER: {names[name]: tensor for name, tensor in state.items() if name in names}}
        else:
            ignored = getattr(self._target, "_keys_to_ignore_on_save", None) or ()
            found = {WEIGHTS: {name: tensor for name, tensor in state.items() if name not in ignored}}
        ids = {id(tensor) for family in found.values() for tensor in family.values()}
        changing = {name: tensor for name, tensor in state.items() if tensor.requires_grad or _is_buffer(tensor)}
        rest = {name: tensor for name, tensor in changing.items() if id(tensor) not in ids}
        return {**found, REST: rest} if rest else found

    def base(self) -> dict[str, Tensor]:
        """The frozen weights that an adapter is put on, which no checkpoint holds; none of other models."""
        if not _is_adapted(self._target):
            return {}
        held = {id(tensor) for family in self.tensors_by_file().values() for tensor in family.values()}
        state = _state(self._target).items()
        return {name: each for name, each in state if id(each) not in held and isinstance(each, nn.Parameter)}

    def names(self) -> dict[int, str]:
        """What checkpoints call each tensor, by its identity."""
        return {id(tensor): name for family in self.tensors_by_file().values() for name, tensor in family.items()}

    def config_files(self, processor: Any) -> dict[str, bytes]:
        """What else the model's and a processor's own `save_pretrained` write, by path in the checkpoint: config.json, ..."""
        target: Any = self._target
        with tempfile.TemporaryDirectory() as place:
            if hasattr(target, "save_pretrained"):
                # An adapter's own looks for what it would save, by name; a model's does not.
                state = dict.fromkeys(target.state_dict(), torch.empty(0)) if _is_adapted(target) else {}
                _quietly(target.save_pretrained, place, state_dict=state)
            if processor is not None:
                processor.save_pretrained(place)
            files = (path for path in Path(place).rglob("*") if path.is_file() and path.suffix != ".safetensors")
            return {f"model/{path.relative_to(place)}": path.read_bytes() for path in files}


def holds_adapter(checkpoint: Path) -> bool:
    """Whether a checkpoint is an adapter's, of which the base comes from elsewhere."""
    return (checkpoint / f"{ADAPTER}.safetensors").is_file()


def is_whole(model: nn.Module) -> bool:
    """Whether a checkpoint holds all of a model's parameters."""
    held = ModelFormat(model).names()
    return all(id(parameter) in held for parameter in model.parameters())


def _state(target: nn.Module) -> dict[str, Tensor]:
    """A model's state, each tensor once, by its first name."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in target.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name} of {type(target).__name__} is a {type(tensor).__name__}, not a tensor")
        if id(tensor) not in seen:
            state[name] = tensor
        seen.add(id(tensor))
    return state


class ModelHolder:
    """A module that holds somebody's model, which alone is saved of it.

    Attributes:
        model: None before it is built.
    """

    model: nn.Module | None


def saved_module(module: nn.Module) -> nn.Module:
    """What `model/` holds of a LightningModule: the model that it holds, or the whole of a user's own."""
    return module.model if isinstance(module, ModelHolder) and module.model is not None else module


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
    # Where accelerate and DeepSpeed are installed, the one imports the other here, which warns where it finds no device.
    needs_no_device = nullcontext() if torch.cuda.is_available() else environment("DS_ACCELERATOR", "cpu")
    try:
        with needs_no_device:
            save(place, state_dict=state_dict)
    finally:
        if shown:
            logging.enable_progress_bar()
