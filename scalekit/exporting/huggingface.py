"""A Hugging Face folder.

A checkpoint's ``model/`` is one already, under the names that weights have in memory. For most models the hub has the same, and
files are copied. Of some, transformers renames, fuses or splits weights when it loads them, as Mixtral's experts; what the hub
has is then made again, a file at a time, so that no more than one is in memory. Where one file needs another's weights for its
own, all are made at once, into one file.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekit.checkpoint.adapter_base import check_base, fingerprints
from scalekit.checkpoint.format import ADAPTER, REST, WEIGHTS
from scalekit.checkpoint.load import fill, first_few
from scalekit.checkpoint.model_state import ModelFormat
from scalekit.checkpoint.safetensors_io import FILE_BYTES, TensorFiles, TensorLocation
from scalekit.distributed.shards import TensorShard
from scalekit.errors import ConfigError, DependencyError, ModelError
from scalekit.models.initialization import build_module
from scalekit.models.resolve import known_of, resolve_model

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_ADAPTER_FILES = ("adapter_config.json", "README.md")
_OPENERS = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}


def write(checkpoint: Path, folder: Path, merge: bool) -> None:
    """Fills a folder with what `from_pretrained` opens; a plain module's with its weights.

    Args:
        checkpoint: of which the model is taken.
        folder: an empty one.
        merge: whether an adapter is put into its base model, which is in memory as a whole then.

    Raises:
        ConfigError: there is no adapter to merge, or it is not all that was trained and cannot stand alone.
        ModelError: an adapter's base model cannot be found, or is another.
    """
    source = checkpoint / "model"
    is_adapter = (source / "adapter_config.json").is_file()
    if merge and not is_adapter:
        raise ConfigError(f"{checkpoint} holds a whole model, and no adapter to merge into one: leave --merge out")
    if merge:
        _merge(checkpoint, folder)
        return
    if is_adapter:
        _refuse_rest(checkpoint)
    model = None if is_adapter else _empty(source)
    if model is None or not _is_converted(model, TensorFiles.found(checkpoint, WEIGHTS).places):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        _convert(model, checkpoint, folder)


def _empty(source: Path) -> nn.Module | None:
    """The model without memory for its weights; None where its class is not transformers' own, of which none are converted."""
    config = source / "config.json"
    if not config.is_file() or any(source.glob("*.py")):
        return None
    import transformers

    (name, *_) = json.loads(config.read_text()).get("architectures") or [""]
    return build_module(resolve_model(str(source)).source, here=False) if hasattr(transformers, name) else None


def _original(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return found


def _is_converted(model: nn.Module, places: Mapping[str, TensorLocation]) -> bool:
    here = _without_memory(places)
    there = _original(model, here)
    return here.keys() != there.keys() or any(there[name] is not tensor for name, tensor in here.items())


def _convert(model: nn.Module, checkpoint: Path, folder: Path) -> None:
    shutil.copytree(checkpoint / "model", folder, ignore=shutil.ignore_patterns(*_WEIGHT_FILES), dirs_exist_ok=True)
    groups = _grouped(model, TensorFiles.found(checkpoint, WEIGHTS).places)
    index: dict[str, str] = {}
    total = 0
    for name, files in groups.items():
        sizes = _convert_files(model, [checkpoint / file for file in files], folder / name)
        index |= dict.fromkeys(sizes, name)
        total += sum(sizes.values())
    if len(groups) > 1:
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2))


def _convert_files(model: nn.Module, files: list[Path], target: Path) -> dict[str, int]:
    """The bytes of each tensor that was written."""
    from safetensors.torch import load_file, save_file

    # safetensors maps files into memory: what is not converted takes none of its own.
    kept = {name: tensor for file in files for name, tensor in load_file(file).items()}
    made = {name: tensor.contiguous() for name, tensor in _original(model, kept).items()}
    save_file(made, target, metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in made.items()}


def _grouped(model: nn.Module, places: Mapping[str, TensorLocation]) -> dict[str, list[str]]:
    """The checkpoint's files that each file of the export is made of: one each where that comes to the same."""
    files = sorted({place.file for place in places.values()})
    try:
        alone: dict[str, Any] = {}
        for file in files:
            inside = {name: place for name, place in places.items() if place.file == file}
            alone |= _kinds(_original(model, _without_memory(inside)))
    except Exception:  # whatever a conversion raises that lacks a part of what it puts together
        alone = {}
    if alone == _kinds(_original(model, _without_memory(places))):
        return {Path(file).name: [file] for file in files}
    return {"model.safetensors": files}


def _without_memory(places: Mapping[str, TensorLocation]) -> dict[str, Tensor]:
    return {name: torch.empty(place.shape, dtype=place.dtype, device="meta") for name, place in places.items()}


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _refuse_rest(checkpoint: Path) -> None:
    names = list(TensorFiles.found(checkpoint, REST).places)
    if names:
        raise ConfigError(
            f"{checkpoint} holds an adapter, and weights trained beside it that PEFT's format has no place for "
            f"({first_few(names)}): export the whole model, with --merge"
        )


def _merge(checkpoint: Path, folder: Path) -> None:
    model = _adapted(checkpoint)
    places, tensors = TensorFiles.found(checkpoint, REST).places, model.state_dict()
    trained = [
        TensorShard(name, tuple(tensor.shape), torch.empty_like(tensor, dtype=places[name].dtype))
        for name, tensor in tensors.items()
        if name in places
    ]
    _check_base(model, checkpoint, set(places))
    fill({REST: trained}, checkpoint)
    for part in trained:
        tensors[part.name].copy_(part.data)
    model.merge_and_unload().save_pretrained(folder, max_shard_size=FILE_BYTES)
    ignored = shutil.ignore_patterns(*_WEIGHT_FILES, *_ADAPTER_FILES)
    shutil.copytree(checkpoint / "model", folder, ignore=ignored, dirs_exist_ok=True)


def _check_base(model: nn.Module, checkpoint: Path, beside: set[str]) -> None:
    """Whether the base is the one that the adapter was trained on, but for weights that were trained beside it.

    Raises:
        CheckpointError: it is another, under the same name.
    """
    base = {name: tensor for name, tensor in ModelFormat(model).base().items() if name not in beside}
    parts = [TensorShard(name, tuple(tensor.shape), tensor) for name, tensor in base.items()]
    check_base(checkpoint, fingerprints(parts))


def _adapted(checkpoint: Path) -> Any:
    """The adapter on its base model, in the adapter's precision, which is that of the master weights."""
    if importlib.util.find_spec("peft") is None:
        raise DependencyError("peft", "peft", "merging an adapter")
    import peft

    source = checkpoint / "model"
    config = peft.PeftConfig.from_pretrained(str(source))
    if config.is_prompt_learning:
        kind = config.peft_type.value.lower()
        raise ConfigError(f"{checkpoint} holds a {kind} adapter, which has no weights to merge: leave --merge out")
    base = config.base_model_name_or_path
    if not base:
        raise ModelError(f"{checkpoint} holds an adapter that names no base model to merge it into")
    try:
        known_of(base)
    except ModelError as error:
        raise ModelError(f"{checkpoint} holds an adapter, and its base model cannot be found: {error}") from error
    places = TensorFiles.found(checkpoint, ADAPTER).places
    dtype = max((place.dtype for place in places.values()), key=lambda dtype: dtype.itemsize)
    try:
        return getattr(peft, _OPENERS.get(config.task_type, "AutoPeftModel")).from_pretrained(source, dtype=dtype)
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ModelError(f"{checkpoint} holds an adapter that cannot be put on {base!r}: {why}") from error
