"""Eight kinds of models, small enough to train on a CPU, with micro-batches of any size to train them on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

VOCABULARY = 2000
IMAGE = 32


@dataclass(frozen=True)
class Architecture:
    """A model and its rows.

    Attributes:
        build: makes the model.
        row: makes one row of data, given the sequence length.
        lengths: the sequence lengths that it is measured at; an image has none.
    """

    build: Callable[[], nn.Module]
    row: Callable[[int], dict[str, Tensor]]
    lengths: tuple[int, ...] = (64, 160)

    def rows(self, number: int, length: int) -> "Rows":
        return Rows(self.row(length), number)

    def batch(self, size: int, length: int) -> dict[str, Tensor]:
        return {name: torch.stack([value] * size) for name, value in self.row(length).items()}


class Rows(Dataset):
    """The same row, many times."""

    def __init__(self, row: dict[str, Tensor], number: int) -> None:
        self._row, self._number = row, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._row


def tokens(length: int) -> dict[str, Tensor]:
    """With padding at the end: models leave a mask without any out, which real batches seldom let them."""
    ids = torch.ones(length, dtype=torch.long)
    padded = torch.cat([ids[1:], torch.zeros(1, dtype=torch.long)])
    return {"input_ids": ids, "labels": padded.where(padded > 0, -100), "attention_mask": padded}


def labelled_tokens(length: int) -> dict[str, Tensor]:
    return {**tokens(length), "labels": torch.tensor(1)}


def image(_: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.zeros(3, IMAGE, IMAGE), "labels": torch.tensor(1)}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder(), num_key_value_heads=4))


def qwen() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_decoder(), num_key_value_heads=2, head_dim=32, tie_word_embeddings=True))


def mixture() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {**_decoder(), "intermediate_size": 256, "num_key_value_heads": 4, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=6, n_head=8, n_positions=256))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 256, "d_kv": 32, "d_ff": 768, "num_layers": 4, "num_heads": 8}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, **sizes)
    )


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
    return ViTForImageClassification(ViTConfig(image_size=IMAGE, patch_size=4, num_labels=10, **sizes))


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=64, hidden_sizes=[128, 256, 512], depths=[3, 4, 3], num_labels=10)
    return ResNetForImageClassification(config)


def _decoder() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "pad_token_id": 0,
    }


ARCHITECTURES = {
    "llama": Architecture(llama, tokens),
    "qwen": Architecture(qwen, tokens),
    "mixture": Architecture(mixture, tokens),
    "gpt2": Architecture(gpt2, tokens),
    "bert": Architecture(bert, labelled_tokens),
    "t5": Architecture(t5, tokens),
    "vit": Architecture(vit, image, lengths=(0,)),
    "resnet": Architecture(resnet, image, lengths=(0,)),
}
