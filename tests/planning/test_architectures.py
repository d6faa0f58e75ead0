"""Architectures of transformers are traced as a GPU would run them, with and without activation checkpointing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import scalekit
from scalekit.config.precision import dtypes_for
from scalekit.errors import ModelError
from scalekit.models.resolve import Model
from scalekit.planning.profiling.model_inputs import profiled_model
from scalekit.planning.profiling.profile import profile
from scalekit.planning.profiling.tracing import Event

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "intermediate_size": 128,
}
FEW = {"d_model": 64, "vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HALVES = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 256}),
    "OPTForCausalLM": ("OPTConfig", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128, "vocab_size": 512,
        "word_embed_proj_dim": 64, "max_position_embeddings": 256,
    }),
    "MptForCausalLM": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512, "max_seq_len": 256}),
    "PhiForCausalLM": ("PhiConfig", SMALL),
    "FalconForCausalLM": ("FalconConfig", {k: SMALL[k] for k in list(SMALL)[:4]}),
    "BertForMaskedLM": ("BertConfig", SMALL),
    "ViTForImageClassification": ("ViTConfig", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32,
        "patch_size": 8,
    }),
    "WhisperForConditionalGeneration": ("WhisperConfig", {
        **FEW, **HALVES, "max_source_positions": 50, "max_target_positions": 64, "num_mel_bins": 8,
        "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
    }),
    "ASTForAudioClassification": ("ASTConfig", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_length": 64,
        "num_mel_bins": 32,
    }),
}  # fmt: skip
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", SMALL),
    "MistralForCausalLM": ("MistralConfig", GROUPED),
    "MixtralForCausalLM": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "Qwen2ForCausalLM": ("Qwen2Config", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "GemmaForCausalLM": ("GemmaConfig", {**GROUPED, "head_dim": 16}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GROUPED, "head_dim": 16}),
    "Phi3ForCausalLM": ("Phi3Config", {**SMALL, "pad_token_id": 0}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL),
    "BloomForCausalLM": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512}),
    "GPTJForCausalLM": ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "rotary_dim": 16}),
    "OlmoForCausalLM": ("OlmoConfig", SMALL),
    "StableLmForCausalLM": ("StableLmConfig", GROUPED),
    "CohereForCausalLM": ("CohereConfig", GROUPED),
    "DeepseekV3ForCausalLM": ("DeepseekV3Config", {
        **SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    }),
    "RobertaForMaskedLM": ("RobertaConfig", SMALL),
    "DistilBertForMaskedLM": ("DistilBertConfig", {
        "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 512,
    }),
    "ElectraForMaskedLM": ("ElectraConfig", {**SMALL, "embedding_size": 64}),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", SMALL),
    "ModernBertForMaskedLM": ("ModernBertConfig", {**SMALL, "pad_token_id": 0}),
    "AlbertForMaskedLM": ("AlbertConfig", {**SMALL, "embedding_size": 32}),
    "BertForTokenClassification": ("BertConfig", SMALL),
    "BertForQuestionAnswering": ("BertConfig", SMALL),
    "T5ForConditionalGeneration": ("T5Config", {
        "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512,
    }),
    "BartForConditionalGeneration": ("BartConfig", {**FEW, **HALVES, "max_position_embeddings": 256}),
    "SwinForImageClassification": ("SwinConfig", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    }),
    "ConvNextForImageClassification": ("ConvNextConfig", {
        "hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "image_size": 32,
    }),
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }),
}  # fmt: skip
WAYS = [
    ("bf16-mixed", "full", True),
    ("bf16-mixed", "none", True),
    ("bf16-true", "full", True),
    ("16-mixed", "full", True),
]
WAYS += [("32-true", "full", False), ("32-true", "none", False)]
WAYS += [("bf16-mixed", "selective", True), ("32-true", "selective", False)]


def model(name: str) -> Model:
    kind, settings = {**QUICK, **MORE}[name]
    made = getattr(transformers, name)
    return Model(lambda: made(getattr(transformers, kind)(**settings)), name, getattr(transformers, kind)(**settings))


def traced(name: str, precision: str, recompute: str, like_a_gpu: bool) -> None:
    dtypes = dtypes_for(precision)
    made = profile(profiled_model(model(name), tokens=32), dtypes, like_a_gpu)
    assert made.problem is None
    found = made.at(1, recompute if made.can_recompute else "none", dtypes.parameters)
    assert found.flops.sum() > 0
    assert sum(parameter.trained for parameter in found.parameters) == sum(p.trained for p in made.parameters)


@pytest.mark.parametrize("name", QUICK)
def test_it_is_planned_for_gpus(name: str) -> None:
    traced(name, "bf16-mixed", recompute="full", like_a_gpu=True)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("name", [*QUICK, *MORE])
def test_it_is_planned_in_every_way(name: str, way: tuple[str, str, bool]) -> None:
    traced(name, *way)


def test_sounds_are_as_long_as_the_model_hears() -> None:
    batch = profiled_model(model("WhisperForConditionalGeneration")).example(3)
    assert batch["input_features"].shape == (3, 8, 100)
    assert batch["labels"].shape == (3, 64)
    assert batch["labels"].dtype == torch.long
    assert profiled_model(model("ASTForAudioClassification")).example(2)["input_values"].shape == (2, 64, 32)
    assert profiled_model(model("Wav2Vec2ForSequenceClassification")).example(2)["input_values"].shape == (2, 16_000)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "mxfp4", "fp8", "compressed-tensors"])
def test_a_quantized_model_is_refused_by_name_before_data_is_read(tmp_path: Path, method: str) -> None:
    config = transformers.LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"])
    config.quantization_config = {"quant_method": method, "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"quant_method='{method}'"):
        scalekit.plan(str(tmp_path), "H100-80GB", sequence_length=8)
    with pytest.raises(ModelError, match=f"quant_method='{method}'"):
        scalekit.fit(str(tmp_path), "rows-that-are-not-there.jsonl", max_steps=1)


def test_a_trace_that_takes_too_long_leaves_states_alone() -> None:
    asked = profiled_model(model("GPTNeoXForCausalLM"), tokens=7)
    made = profile(asked, dtypes_for("32-true"), like_a_gpu=True, limit_seconds=0.001)
    assert made.problem == "a step on fake tensors takes more than 0.001 s"
    assert made.elements > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_attention_with_dropout_is_fused_on_gpus(precision: str, recompute: str) -> None:
    """As without: CPUs have no kernel for it and keep a score for each pair of positions, which no GPU does."""
    tokens, sizes = 96, {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 96}
    scores = 4 * tokens**2  # elements, of a row

    def largest(dropout: float) -> int:
        settings = transformers.GPT2Config(**sizes, attn_pdrop=dropout)
        made = Model(lambda: transformers.GPT2LMHeadModel(settings), "gpt2", settings)
        found = profile(profiled_model(made, tokens=tokens), dtypes_for(precision), like_a_gpu=True)
        trace = found.at(1, recompute, dtypes_for(precision).parameters)
        return int(trace.storage_bytes[trace.subjects[trace.kinds == Event.ALLOCATE]].max())

    assert largest(0.1) == largest(0.0) < 2 * scores
