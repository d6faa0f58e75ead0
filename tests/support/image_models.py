"""Tiny models that see, with processors of several kinds."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import Gemma3Processor, Idefics3Processor, LlavaProcessor, Qwen2VLProcessor

from tests.support.language_model import make_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}PLACE{% else %}{{ p['text'] }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
"""It writes contents in parts, as those of most models that see do, and of text alone nothing."""


def seeing_tokenizer(place: str, *special: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = TEMPLATE.replace("PLACE", place)
    return tokenizer


def llava() -> LlavaProcessor:
    """One token a patch, in the place of one."""
    tokenizer = seeing_tokenizer("<image>", "<image>")
    eyes = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        eyes,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def qwen() -> Qwen2VLProcessor:
    """As many tokens as the image is large; the images of all rows one after another."""
    tokenizer = seeing_tokenizer(
        "<|vision_start|><|image_pad|><|vision_end|>",
        *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    )
    eyes = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    films = transformers.Qwen2VLVideoProcessor()
    return Qwen2VLProcessor(eyes, tokenizer, films, chat_template=tokenizer.chat_template)


def idefics() -> Idefics3Processor:
    """Rows and columns of tiles, with line ends between them."""
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer = seeing_tokenizer(
        "<image>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles
    )
    eyes = transformers.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return Idefics3Processor(eyes, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def gemma() -> Gemma3Processor:
    """Tokens of two kinds: the one that begins an image stands for it in the text."""
    tokenizer = seeing_tokenizer("<boi>", "<boi>", "<eoi>", "<soft>")
    tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = "<boi>", "<eoi>", "<soft>"
    tokenizer.boi_token_id, tokenizer.image_token_id = tokenizer.convert_tokens_to_ids(["<boi>", "<soft>"])
    eyes = transformers.Gemma3ImageProcessor(size={"height": 16, "width": 16})
    return Gemma3Processor(eyes, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template)


def qwen_config(tokenizer: Any) -> transformers.Qwen2VLConfig:
    find = tokenizer.convert_tokens_to_ids
    return transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": 80,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 0,
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=find("<|image_pad|>"),
        video_token_id=find("<|video_pad|>"),
        vision_start_token_id=find("<|vision_start|>"),
        vision_end_token_id=find("<|vision_end|>"),
    )
