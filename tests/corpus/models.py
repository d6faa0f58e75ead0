"""Tiny models of transformers, without dropout."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from tests.corpus.case import VOCABULARY

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def llama(tied: bool = True, **others: Any) -> nn.Module:
    more = {"vocab_size": VOCABULARY, "tie_word_embeddings": tied, "pad_token_id": 0, **others}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **more))


def gpt2(head: str = "LMHeadModel", **others: Any) -> nn.Module:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_positions": 64}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, **off, **others)
    return getattr(transformers, f"GPT2{head}")(config)


def bert(head: str, **others: Any) -> nn.Module:
    config = transformers.BertConfig(vocab_size=VOCABULARY, **SIZES, **NO_DROPOUT, **others)
    return getattr(transformers, f"BertFor{head}")(config)


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


def mixtral() -> nn.Module:
    sizes = {**SIZES, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(vocab_size=VOCABULARY, **sizes))


def mamba() -> nn.Module:
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    return transformers.MambaForCausalLM(config)


def vit(**others: Any) -> nn.Module:
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES, **NO_DROPOUT, **others)
    return transformers.ViTForImageClassification(config)


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=3,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    model.decode_head.batch_norm = nn.Identity()  # it couples the samples of a batch
    return model


def wav2vec2_ctc(reduction: str) -> nn.Module:
    config = transformers.Wav2Vec2Config(
        vocab_size=12,
        **SIZES,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        ctc_loss_reduction=reduction,
        hidden_dropout=0.0,
        final_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        pad_token_id=0,
    )
    return transformers.Wav2Vec2ForCTC(config)
