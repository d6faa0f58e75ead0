"""Tokens that a job adds: to the tokenizer, and a row for each to the model's embedding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from scalekit.errors import ConfigError
from scalekit.models.resolve import Model


def with_tokens(processor: Any, texts: Sequence[str]) -> Any:
    """A copy of a tokenizer, or of a processor with one, that never splits these texts.

    Raises:
        ConfigError: it is no tokenizer.
    """
    from transformers import AddedToken

    found = copy.deepcopy(processor)
    tokenizer = tokenizer_of(found)
    if not hasattr(tokenizer, "add_tokens"):
        raise ConfigError("new_tokens needs a tokenizer to add them to: give `processor=`")
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts if text not in known])
    return found


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer within a processor of several kinds of input, or the processor itself."""
    return getattr(processor, "tokenizer", processor)


def with_embedding(model: Model, rows: int) -> Model:
    """A model with an embedding of so many rows at least.

    A new row is the mean of all others, so that a new token is as likely as an average one (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models").
    """
    source = model.source
    if isinstance(source, nn.Module):
        _resize(source, rows)
        return model

    def resized() -> nn.Module:
        built = source()
        _resize(built, rows)
        return built

    return replace(model, source=resized)


def _resize(model: Any, rows: int) -> None:
    if not hasattr(model, "resize_token_embeddings"):
        raise ConfigError(f"new_tokens is for models of transformers, and {type(model).__name__} is none")
    embedding = model.get_input_embeddings().weight
    if not embedding.requires_grad:
        raise ConfigError(
            "new_tokens: the model's embedding is frozen, so that they would never be learned: add them to the model and the "
            "tokenizer before it is frozen or gets an adapter, and train the embedding"
        )
    before = embedding.shape[0]
    if rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    made = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    with torch.no_grad():
        for weight in {id(part.weight): part.weight for part in made}.values():
            weight[before:] = weight[:before].mean(dim=0)
