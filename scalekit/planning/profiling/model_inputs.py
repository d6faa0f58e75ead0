"""What the user calls a model, made into something that can be profiled: a builder, a loss, and a micro-batch of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scalekit.errors import ConfigError, ModelError
from scalekit.models.initialization import build_module
from scalekit.models.resolve import Model
from scalekit.objectives.function_loss import FunctionLoss, LossFunction
from scalekit.objectives.model_loss import ModelLoss
from scalekit.objectives.objective import Objective
from scalekit.planning.profiling.profile import Example, ProfiledModel, Step, resize
from scalekit.utils.torch_internals import tree_iter

USUAL_TOKENS = 2048

_ONE_LABEL = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
_SECOND_OF_SOUND = 16_000  # samples, at the rate that speech models are trained at


def profiled_model(
    model: Model,
    example: Any = None,
    samples: int = 0,
    loss: LossFunction | Objective | None = None,
    tokens: int | None = None,
    in_parts: bool = True,
) -> ProfiledModel:
    """A model as `fit` would train it.

    Args:
        model: as `models.resolve` gives it.
        example: a batch like those that it will see; made from the configuration of a Hugging Face model where there is none.
        samples: rows of `example`.
        loss: as for `fit`; the model's own by default.
        tokens: the length of the sequences, where `example` is made up; `USUAL_TOKENS` at most by default.
        in_parts: whether a language model's own loss is computed without whole logits, where that can be.

    Raises:
        ConfigError: more tokens than the model has positions.
        ModelError: no example, and none can be made up.
    """
    built = model.source if isinstance(model.source, nn.Module) else build_module(model.source, here=False)
    if example is not None:
        make, length = resize(example, samples), _tokens(example)
    else:
        length = _length(model, built, tokens)
        make = _made_up(model, built, length)
    key = _key(built, loss, make(2))
    whole = ProfiledModel(
        model.name, model.source, _step(built, loss, False), make, length, key and f"{key}, whole logits"
    )
    if not in_parts or loss is not None or hasattr(built, "training_step"):
        return whole
    return ProfiledModel(model.name, model.source, _step(built, loss, True), make, length, key, whole)


def _step(built: nn.Module, loss: LossFunction | Objective | None, in_parts: bool) -> Step:
    """What `fit` would run: a LightningModule's own step, or the model with its loss."""
    if hasattr(built, "training_step"):
        return _own_step
    if isinstance(loss, Objective):
        return loss.mean_loss
    objective: Objective = FunctionLoss(loss) if loss is not None else ModelLoss.of(built, in_parts=in_parts)
    return objective.mean_loss


def _own_step(module: Any, batch: Any) -> Tensor:
    output = module.training_step(batch, 0)
    loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
    return loss


def rows_of(example: Any) -> int:
    """The rows of a batch: the first dimension of its first tensor; 0 where there is none."""
    return next((len(t) for t in tree_iter(example) if isinstance(t, Tensor) and t.ndim), 0)


def _key(built: nn.Module, loss: Any, batch: Any) -> str | None:
    """Everything that the step of one of transformers' own models depends on; None for other models."""
    config = getattr(built, "config", None)
    if config is None or loss is not None or not all(_is_known(part) for part in built.modules()):
        return None
    import transformers

    shapes = [(tuple(t.shape), str(t.dtype)) for t in tree_iter(batch) if isinstance(t, Tensor)]
    attention = getattr(config, "_attn_implementation", None)
    versions = torch.__version__, transformers.__version__
    # Parts may have been taken out or frozen since the configuration was read.
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in built.named_parameters()]
    structure = type(built).__name__, repr(built), config.to_json_string(use_diff=False), attention
    return repr((*structure, parameters, shapes, versions))


def _is_known(part: nn.Module) -> bool:
    """Whether a module is as a library made it."""
    return type(part).__module__.startswith(("transformers.", "torch.")) and "forward" not in vars(part)


def _tokens(example: Any) -> int:
    """The length of a batch's sequences; 1 where its rows are no sequences of tokens."""
    ids = example.get("input_ids") if hasattr(example, "get") else None
    return int(ids.shape[1]) if isinstance(ids, Tensor) and ids.ndim == 2 else 1


def _length(model: Model, built: nn.Module, tokens: int | None) -> int:
    main = getattr(built, "main_input_name", None)
    if main == "input_features" and hasattr(model.config, "max_target_positions"):
        return min(tokens or USUAL_TOKENS, int(model.config.max_target_positions))  # of what is written, not heard
    if main != "input_ids":
        return 1
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(text, "max_position_embeddings", None)
    if tokens is not None and positions is not None and tokens > positions:
        raise ConfigError(f"sequence_length={tokens} is past the {positions} positions of {model.name}")
    return tokens or min(USUAL_TOKENS, positions or USUAL_TOKENS)


def _made_up(model: Model, built: nn.Module, length: int) -> Example:
    """Micro-batches as a Hugging Face model takes them, by its configuration."""
    main, kind, config = getattr(built, "main_input_name", None), type(built).__name__, model.config
    shape = None if config is None or main is None else _shape(main, config, length)
    if shape is None or main is None:
        raise ModelError(
            f"{model.name} does not say what a batch looks like: give `example`, a batch like those it will see"
        )

    def example(size: int) -> dict[str, Tensor]:
        if main == "input_ids":
            batch = {name: torch.ones(size, *shape, dtype=torch.long) for name in (main, "attention_mask")}
        else:
            batch = {main: torch.zeros(size, *shape)}
        return {**batch, **_labels(kind, size, length)}

    return example


def _shape(main: str, config: Any, length: int) -> tuple[int, ...] | None:
    """Of one sample of a model's main input; None where its configuration does not tell."""
    bins = getattr(config, "num_mel_bins", None)
    if main == "input_ids":
        return (length,)
    if main == "pixel_values":
        side = getattr(config, "image_size", 224)
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return (getattr(config, "num_channels", 3), height, width)
    if main == "input_features" and bins and hasattr(config, "max_source_positions"):
        return (bins, 2 * config.max_source_positions)  # its first convolutions halve them
    if main == "input_values":
        return (config.max_length, bins) if bins and hasattr(config, "max_length") else (_SECOND_OF_SOUND,)
    return None


def _labels(kind: str, size: int, length: int) -> dict[str, Tensor]:
    one = torch.zeros(size, dtype=torch.long)
    if kind.endswith("ForQuestionAnswering"):
        return {"start_positions": one, "end_positions": one.clone()}
    if kind.endswith(_ONE_LABEL):
        return {"labels": one}
    return {"labels": torch.ones(size, length, dtype=torch.long)}
