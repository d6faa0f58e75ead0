"""A tiny language model with a tokenizer and a chat template, made from nothing."""

from pathlib import Path
from typing import Any

import torch

from tests.support import parity_cases as parity

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def make_tokenizer():
    """Single characters; ids 1 to 63."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = "abcdefghijklmnopqrstuvwxyz <>.?!0123456789ABCDEFGHIJKLMNOP"
    vocabulary = {"#": 0} | {character: i + 1 for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="#", pad_token="#")
    fast.chat_template = TEMPLATE
    return fast


def save_model(folder: Path) -> str:
    """A folder that `from_pretrained` opens."""
    torch.manual_seed(1)
    parity.llama(tied=True).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def conversations(number: int) -> list[dict]:
    """Questions and answers of unequal lengths, over several turns."""
    rows = []
    for i in range(number):
        turns = [
            {"role": "user", "content": "what " * (1 + i % 3)},
            {"role": "assistant", "content": "yes " * (1 + i % 4)},
        ]
        rows.append({"messages": turns * (1 + i % 2)})
    return rows


def make_word_tokenizer() -> Any:
    """A tokenizer of BERT's form over single letters: ``bc`` is ``b`` and ``##c``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde", *(f"##{letter}" for letter in "abcde")]
    inner = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
