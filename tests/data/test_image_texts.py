"""Images with their texts: the text is learned, the image is not, and neither is cut."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import scalekit
from scalekit.config.settings import Job
from scalekit.data.encoders.image_text import ImageTexts
from scalekit.data.encoders.tasks import look
from scalekit.data.encoders.truncation import Limit
from scalekit.data.inspection import inspection
from scalekit.errors import ConfigError, RowError
from scalekit.objectives.counts import IGNORED
from scalekit.training.prepared_job import prepare
from tests.support.language_model import make_tokenizer

COLOURS = ("red", "green", "blue")
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 80,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def rows(number: int) -> datasets.Dataset:
    """Images of one colour each, of several sizes, and its name."""
    made = []
    for i in range(number):
        pixels = np.zeros((20 + i % 5, 24, 3), np.uint8)
        pixels[..., i % 3] = 200
        made.append({"image": Image.fromarray(pixels), "text": COLOURS[i % 3]})
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    return datasets.Dataset.from_list(made, features=datasets.Features(features))


def eyes() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def llava() -> tuple[Any, Any]:
    """A processor that puts tokens for the image into the text, and its model's configuration."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = transformers.LlavaProcessor(
        eyes(),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return processor, config


def git() -> tuple[Any, Any]:
    """A processor that leaves the text alone, and its model's configuration."""
    config = transformers.GitConfig(vision_config=VISION, pad_token_id=0, bos_token_id=1, eos_token_id=0, **TEXT)
    return transformers.GitProcessor(eyes(), make_tokenizer()), config


def encoder(made: tuple[Any, Any], cut_at: int | None = None) -> ImageTexts:
    return ImageTexts(*made, transform=None, limit=Limit(cut_at))


@pytest.mark.parametrize("made", [llava(), git()], ids=["llava", "git"])
def test_the_text_and_its_end_are_learned_and_nothing_else(made: tuple[Any, Any]) -> None:
    kept = encoder(made)
    raw = list(rows(3))
    assert kept.encode(raw) == [{}] * 3
    batch = kept.collate([kept.draw(row) for row in raw])
    tokenizer = made[0].tokenizer
    learned = [tokenizer.decode([i for i in labels.tolist() if i != IGNORED]) for labels in batch["labels"]]
    assert learned == ["red#", "green#", "blue#"]
    assert batch["pixel_values"].shape == (3, 3, 16, 16)


def test_where_the_image_stands_may_be_said() -> None:
    kept = encoder(llava())
    (row,) = rows(1)
    said = kept.collate([kept.draw({**row, "text": "a<image>b"})])["input_ids"][0].tolist()
    plain = kept.collate([kept.draw({**row, "text": "ab"})])["input_ids"][0].tolist()
    assert sorted(said) == sorted(plain)
    assert said != plain


def test_nothing_is_cut() -> None:
    (row,) = rows(1)
    assert encoder(llava(), cut_at=8).encode([row]) == [{}]
    with pytest.raises(RowError, match="it has 8 tokens with its image's, more than sequence_length=7"):
        encoder(llava(), cut_at=7).encode([row])


def test_a_processor_of_texts_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="a processor of images and text together"):
        encoder((make_tokenizer(), None))


def test_the_columns_tell_the_task() -> None:
    assert look(dict.fromkeys(["image", "text"]), llava()[1]) == "image-text-to-text"
    assert look(dict.fromkeys(["image", "text"]), None) is None


@pytest.mark.parametrize(
    ("made", "cls"),
    [
        pytest.param(llava(), transformers.LlavaForConditionalGeneration, id="llava"),
        pytest.param(git(), transformers.GitForCausalLM, id="git", marks=pytest.mark.long),
    ],
)
def test_a_model_learns_to_name_what_it_sees(made: tuple[Any, Any], cls: type, tmp_path: Path) -> None:
    processor, config = made
    run = scalekit.fit(
        lambda: cls(config),
        rows(24),
        validation=rows(6),
        processor=processor,
        strategy="single",
        precision="32-true",
        global_batch_size=6,
        max_steps=60,
        learning_rate=1e-2,
        seed=1,
        output_dir=str(tmp_path / "run"),
    )
    before, after = (record["loss"] for record in (run.evaluations[0], run.evaluations[-1]))
    assert after < 0.2 * before
    assert run.checkpoint is not None
    opened = cls.from_pretrained(run.checkpoint / "model").eval()
    kept = ImageTexts(processor, config, None, Limit())
    with torch.no_grad():
        loss = opened(**kept.collate([kept.draw(row) for row in rows(6)])).loss.item()
    assert loss == pytest.approx(after, rel=1e-5)


def test_it_can_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    processor, config = llava()
    job = Job(
        lambda: transformers.LlavaForConditionalGeneration(config),
        rows(3),
        processor=processor,
        global_batch_size=1,
        max_steps=1,
    )
    shown = "\n".join(inspection(prepare(job), 1, colours=False))
    assert "row 0: 8 tokens, 4 with loss" in shown
    assert "<image>[red#]" in shown
    assert "pixel_values (3, 16, 16)" in shown
