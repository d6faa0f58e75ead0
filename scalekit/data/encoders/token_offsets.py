"""Texts to tokens, as fast as the tokenizer's own code does it."""

from __future__ import annotations

from typing import Any

Offsets = list[tuple[int, int]]


def tokenize(tokenizer: Any, texts: list[str], special: bool, offsets: bool) -> list[tuple[list[int], Offsets | None]]:
    """Each text's tokens, and where wanted the characters (start, end) of each token.

    transformers copies every list of every encoding, wanted or not, which takes as long as encoding. The backend is asked
    itself, where it says of the first text what the tokenizer says; that call also undoes what padding or truncation a
    tokenizer was saved with.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: not empty.
        special: whether the tokenizer adds its special tokens.
        offsets: whether they are wanted.
    """
    first = _called(tokenizer, texts[:1], special, offsets)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "encode_batch_fast"):
        encode = backend.encode_batch if offsets else backend.encode_batch_fast
        found = [(each.ids, each.offsets if offsets else None) for each in encode(texts, add_special_tokens=special)]
        if found[0] == first[0]:
            return found
    return first + (_called(tokenizer, texts[1:], special, offsets) if texts[1:] else [])


def _called(tokenizer: Any, texts: list[str], special: bool, offsets: bool) -> list[tuple[list[int], Offsets | None]]:
    made = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, return_offsets_mapping=offsets, verbose=False
    )
    where = made["offset_mapping"] if offsets else [None] * len(texts)
    return list(zip(made["input_ids"], where, strict=True))
