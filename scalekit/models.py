"""What the user calls a model, made into something that one process can build and the others can build empty."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from scalekit.errors import DependencyError, ModelError

TASKS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
}


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


def resolve(model: Any, task: str | None = None, trust_remote_code: bool = False) -> Model:
    """Finds out what `model` is.

    Raises:
        ModelError: it is no model.
    """
    if isinstance(model, nn.Module):
        return Model(model, type(model).__name__, getattr(model, "config", None))
    if isinstance(model, str):
        return _from_name(model, task, trust_remote_code)
    if callable(model):
        return Model(model, getattr(model, "__name__", type(model).__name__))
    raise ModelError(
        f"{type(model).__name__} is no model. Give an nn.Module, a function that builds one, a LightningModule, or a hub id "
        "or folder of a Hugging Face model"
    )


def _from_name(name: str, task: str | None, trust_remote_code: bool) -> Model:
    if importlib.util.find_spec("transformers") is None:
        raise DependencyError("transformers", "transformers", f"the model {name!r}")
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        if _is_offline(error):
            raise ModelError(
                f"{name!r} has to come from the hub, which cannot be reached from here. Give the folder of the model, or, for "
                "a plan, the path of its config.json"
            ) from error
        raise ModelError(
            f"{name!r} is neither the folder of a Hugging Face model nor one that the hub gives: {error}"
        ) from error
    cls = _model_class(transformers, name, config, task)

    def build() -> nn.Module:
        options = {"trust_remote_code": trust_remote_code} if cls.__name__.startswith("Auto") else {}
        if torch.empty(0).is_meta:
            built = cls.from_config(config, **options) if options else cls(config)
        else:
            built = cls.from_pretrained(name, config=config, dtype=torch.float32, **options)
        return built  # type: ignore[no-any-return]

    return Model(build, name.rstrip("/").split("/")[-1], config)


def _is_offline(error: BaseException | None) -> bool:
    """Whether the hub could not be asked; its client says so somewhere in the chain of causes."""
    if error is None:
        return False
    kinds = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError")
    return type(error).__name__ in kinds or _is_offline(error.__cause__ or error.__context__)


def _model_class(transformers: Any, name: str, config: Any, task: str | None) -> Any:
    """The class for the task, or the one that the model was saved as."""
    if task is not None:
        return getattr(transformers, TASKS[task])
    saved_as = next(iter(config.architectures or ()), None)
    cls = getattr(transformers, saved_as or "", None)
    if cls is None:
        raise ModelError(f"{name!r} does not say which class it is: give `task`, one of {', '.join(TASKS)}")
    return cls
