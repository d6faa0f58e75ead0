"""What the user calls a model, made into something that one process can build and the others can build empty."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from scalekit.errors import DependencyError, ModelError, shown
from scalekit.models.initialization import build_module, needs_values
from scalekit.models.labels import Labels
from scalekit.models.tasks import TASKS


@dataclass(frozen=True)
class Model:
    """A model before it is built.

    Attributes:
        source: a module, or a function that builds one.
        name: for run folders and messages.
        config: the Hugging Face config, or None.
    """

    source: nn.Module | Callable[[], nn.Module]
    name: str
    config: Any = None


def refuse_quantized(config: Any, name: str) -> None:
    """Refuses weights that are stored in fewer bits than they are trained in: neither planned nor trained is what they are.

    Args:
        config: a Hugging Face config, or None.
        name: of the model.

    Raises:
        ModelError: it has a `quantization_config`.
    """
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", ()))]
    found = next((q for part in parts if (q := getattr(part, "quantization_config", None))), None)
    if found is None:
        return
    settings = found if isinstance(found, dict) else vars(found)
    method = settings.get("quant_method") or next((key for key in settings if key.startswith("load_in_")), "unnamed")
    raise ModelError(
        f"{name!r} is quantized (quant_method={str(getattr(method, 'value', method))!r}), and is not trained. "
        "Name the checkpoint that it was made from, or load it with dequantize=True, save it, and give that folder"
    )


def resolve_model(
    model: Any,
    task: str | None = None,
    trust_remote_code: bool = False,
    labels: Labels | None = None,
) -> Model:
    """Finds out what `model` is.

    Args:
        model: as for `fit`.
        task: which head a hub model gets; the one it was saved with by default.
        trust_remote_code: whether code that comes with a hub model may run.
        labels: what a hub model's head gives; what it was saved with by default.

    Raises:
        ModelError: it is no model, or is quantized.
    """
    if isinstance(model, nn.Module):
        _refuse_quantized_parts(model)
        return Model(model, type(model).__name__, getattr(model, "config", None))
    if isinstance(model, str):
        return _from_name(model, task, trust_remote_code, labels)
    if callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        return Model(model, "model" if name.startswith("<") else name)  # a lambda has none
    raise ModelError(
        f"{type(model).__name__} is no model. Give an nn.Module, a function that builds one, a LightningModule, or a hub id "
        "or folder of a Hugging Face model"
    )


def known_of(model: Any, trust_remote_code: bool = False) -> Any:
    """What can be known of a model before its task is: a hub model's configuration, the module, or one without weights.

    None where a function that builds one cannot do so without weights.

    Raises:
        ModelError: it is no model, or is quantized.
    """
    if isinstance(model, str):
        return _config(model, trust_remote_code)
    source = resolve_model(model).source
    if isinstance(source, nn.Module):
        return source
    try:
        built = build_module(source, here=False)
    except ModelError:
        return None
    if not isinstance(built, nn.Module):
        raise ModelError(f"model={shown(model)} must be a function that builds an nn.Module, and built {shown(built)}")
    return built


def _config(name: str, trust_remote_code: bool, **changed: Any) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise DependencyError("transformers", "transformers", f"the model {name!r}")
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **changed)
    except Exception as error:
        if _is_offline(error):
            raise ModelError(
                f"{name!r} has to come from the hub, which cannot be reached from here. Give the folder of the model, or, for "
                "a plan, the path of its config.json"
            ) from error
        raise ModelError(
            f"{name!r} is neither the folder of a Hugging Face model nor one that the hub gives: {error}"
        ) from error
    refuse_quantized(config, name)
    return config


def _refuse_quantized_parts(model: nn.Module) -> None:
    """Refuses a module that is a quantized Hugging Face model, or has one inside, as an adapter or LightningModule does."""
    for part in model.modules():
        if getattr(part, "is_quantized", False) and hasattr(part, "config"):
            refuse_quantized(part.config, type(part).__name__)


def _from_name(name: str, task: str | None, trust_remote_code: bool, labels: Labels | None) -> Model:
    config = _config(name, trust_remote_code, **_head(labels))
    import torch
    import transformers

    cls = _model_class(transformers, name, config, task)

    def pretrained() -> nn.Module:
        own = copy.deepcopy(config)  # a model changes its own, as where it is given more tokens
        options = {"trust_remote_code": trust_remote_code} if cls.__name__.startswith("Auto") else {}
        if needs_values():
            # A head for other classes than those it was saved with starts again.
            options |= {"ignore_mismatched_sizes": True} if labels is not None else {}
            return cls.from_pretrained(name, config=own, dtype=torch.float32, **options)  # type: ignore[no-any-return]
        make = cls.from_config if options else cls._from_config
        built: nn.Module = make(own, dtype=torch.float32, **options)
        _take_generation_config(built, name)
        return built

    return Model(pretrained, name.rstrip("/").split("/")[-1], config)


def _take_generation_config(model: Any, name: str) -> None:
    """How a model generates text, where it was saved with it; `from_pretrained` does it by itself."""
    from transformers import GenerationConfig

    if model.can_generate():
        with suppress(OSError):  # there is none
            model.generation_config = GenerationConfig.from_pretrained(name)


def _head(labels: Labels | None) -> dict[str, Any]:
    """A configuration's entries for a head that gives such labels."""
    if labels is None:
        return {}
    numbers = {name: number for number, name in enumerate(labels.names)}
    return {"id2label": dict(enumerate(labels.names)), "label2id": numbers, "problem_type": labels.problem}


def _is_offline(error: BaseException | None) -> bool:
    """Whether the hub could not be asked; its client says so somewhere in the chain of causes."""
    if error is None:
        return False
    kinds = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError")
    return type(error).__name__ in kinds or _is_offline(error.__cause__ or error.__context__)


def _model_class(transformers: Any, name: str, config: Any, task: str | None) -> Any:
    """The class for the task, or the one that the model was saved as."""
    if task is not None:
        return getattr(transformers, TASKS[task].model_class)
    saved_as = next(iter(config.architectures or ()), None)
    cls = getattr(transformers, saved_as or "", None)
    if cls is None:
        raise ModelError(f"{name!r} does not say which class it is: give `task`, one of {', '.join(TASKS)}")
    return cls
