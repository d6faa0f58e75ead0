"""Whether a model keeps packed documents apart: what its kind tells beforehand, and a trial of the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from scalekit.data.packing.packing import Pack
from scalekit.errors import LeakError
from scalekit.models.adapters import innermost

Forward = Callable[[dict[str, Any]], Tensor]

LIMIT = 1e-5
"""The leak ratio that is none. What stands beside a document changes not a bit of it, for the shapes stay as they are."""

ALONE_LIMITS = {True: 1e-4, False: 0.05}
"""The same where shapes differ, and with them the rounding: in 32 bits, and in fewer."""

NOISE_LIMIT = 0.25
"""The rounding beyond which a leak could not be told from it."""

_BEFORE, _AFTER = 7, 9  # tokens


def can_pack(model: Any) -> str | None:
    """Why a Hugging Face model cannot be given packed documents; None where it may, which `check_isolation` then tries.

    Args:
        model: of any size, on any device, the meta device too.
    """
    model = innermost(model)
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        return f"{name} is no Hugging Face model"
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder and a decoder"
    if getattr(model, "loss_type", None) != "ForCausalLM" and not name.endswith("LMHeadModel"):
        return f"{name} is no causal language model"
    if getattr(model, "_is_stateful", False):
        return f"{name} carries a state from token to token, across the documents' bounds"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no position_ids, by which documents are told apart"
    return None


def check_isolation(
    forward: Forward,
    vocabulary: int,
    device: torch.device | str,
    exact: bool,
    flat: bool = False,
) -> None:
    """Tries on the model itself whether a document's logits depend on what it is packed with.

    They are compared packed behind one document, packed behind another, and alone. What changes is measured against what
    the same exchange does where the two are one document: 0 is no leak, 1 is no bounds at all, at any scale of the logits.
    How much of it may be rounding is measured too, on the document packed in front, where nothing can leak into it.
    Every rank calls this alike, with its part of the model in eval mode.

    Args:
        forward: gives the logits, shape [rows, length, vocabulary], of a batch as `Pack` makes it.
        vocabulary: tokens that the model knows.
        device: where the batch is put.
        exact: whether the model computes in 32 bits throughout.
        flat: whether its rows are put one after another, as in `Pack`.

    Raises:
        LeakError: they depend on it, or cannot be told to be independent.
    """
    one, other, document = _draw(vocabulary)
    before_one, behind_one, joined_to_one = _beside(one, document, forward, device, flat)
    before_other, behind_other, joined_to_other = _beside(other, document, forward, device, flat)
    (alone,) = _logits(forward, [_row(document)], device, flat)

    whole = joined_to_one - joined_to_other
    noise = _ratio(before_one - before_other, whole)
    _judge("change with the document before it", _ratio(behind_one - behind_other, whole), noise, LIMIT)
    whole = joined_to_one - alone
    noise = _ratio(before_one - alone, whole)
    _judge("are not those of the document alone", _ratio(behind_one - alone, whole), noise, ALONE_LIMITS[exact])


def _draw(vocabulary: int) -> tuple[list[int], list[int], list[int]]:
    """Two documents that differ in every token, and the one that is put behind them."""
    generator = torch.Generator().manual_seed(0)
    one, step = torch.randint(vocabulary, (_BEFORE,), generator=generator), max(vocabulary // 2, 1)
    document = torch.randint(vocabulary, (_AFTER,), generator=generator)
    return one.tolist(), ((one + step) % vocabulary).tolist(), document.tolist()


def _row(*documents: list[int]) -> dict[str, list[int]]:
    tokens = list(chain(*documents))
    return {"input_ids": tokens, "labels": tokens, "document_lengths": [len(document) for document in documents]}


def _beside(
    other: list[int], document: list[int], forward: Forward, device: torch.device | str, flat: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A document's logits before another, behind it, and as its continuation; the first, where nothing comes before."""
    rows = [_row(document, other), _row(other, document), _row(other + document)]
    before, behind, joined = _logits(forward, rows, device, flat)
    return before[:_AFTER], behind[-_AFTER:], joined[-_AFTER:]


def _logits(
    forward: Forward,
    rows: list[dict[str, list[int]]],
    device: torch.device | str,
    flat: bool,
) -> Tensor:
    """Of equally long rows, shape [rows, length, vocabulary]."""
    batch = Pack(pad_id=0, flat=flat)(rows)
    with torch.no_grad():
        logits = forward(
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        )
    return logits.float().reshape(len(rows), len(rows[0]["input_ids"]), -1)


def _ratio(change: Tensor, whole: Tensor) -> float:
    return float(change.norm() / whole.norm())


def _judge(what: str, leak: float, noise: float, limit: float) -> None:
    if not noise <= NOISE_LIMIT:  # NaN too
        raise LeakError(
            f"whether packed documents stay apart in this model cannot be told: its logits change by {noise:.2g} of what they "
            "can where nothing before them does, so it is not causal, not in eval mode, or not finite. Set packing=False"
        )
    limit = max(limit, 4 * noise)
    if not leak <= limit:
        raise LeakError(
            f"packed documents do not stay apart in this model: a document's logits {what} (leak ratio {leak:.2g}, at most "
            f"{limit:.2g}; 1 is no bounds at all). Set packing=False, or choose another attn_implementation"
        )
