"""Rows with labels of every kind."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from tests.corpus.case import FILES, Case, padded
from tests.corpus.models import bert, gpt2, segformer, vit, wav2vec2_ctc
from tests.support.language_model import make_tokenizer, make_word_tokenizer

TOKENIZER, WORDS = make_tokenizer(), make_word_tokenizer()
TEXTS = ["a", "b c", "d", "e a b"]
RANDOM = np.random.default_rng(3)
PIXELS = RANDOM.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
WAVES = [RANDOM.normal(size=size).astype(np.float32) for size in (400, 300, 500, 450)]
MAPS = RANDOM.integers(0, 3, (4, 16, 16))
MAPS[1:, :9] = 255
WEIGHTS = torch.tensor([1.0, 2.0, 4.0])


def words(labels: torch.Tensor) -> dict[str, Any]:
    return {**WORDS(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False), "labels": labels}


def of_words(values: list[Any], labels: torch.Tensor, **config: Any) -> Case:
    return Case(
        lambda: bert("SequenceClassification", **config),
        lambda folder: [{"text": text, "label": value} for text, value in zip(TEXTS, values, strict=True)],
        lambda: words(labels),
        settings={"processor": WORDS},
    )


def quoted() -> dict[str, Any]:
    texts = ["a\tb", "yes", "no\nway", "none"]
    batch = padded([TOKENIZER(text)["input_ids"] for text in texts])
    return {**batch, "labels": torch.tensor([1, 0, 1, 1])}


def tagged() -> dict[str, Any]:
    """A word's first token has its class: bc is two."""
    ids = [
        WORDS.convert_tokens_to_ids(["[CLS]", "a", "b", "##c", "[SEP]"]),
        WORDS.convert_tokens_to_ids(["[CLS]", "d", "[SEP]"]),
    ]
    return padded(ids, [[-100, 1, 0, -100, -100], [-100, 2, -100]])


def answered() -> dict[str, Any]:
    batch = WORDS(["a", "b"], ["b c d e", "a b"], padding=True, return_tensors="pt", return_token_type_ids=False)
    return {**batch, "start_positions": torch.tensor([4, 3]), "end_positions": torch.tensor([5, 3])}


def pictures(folder: Path) -> str:
    """A folder of images by class."""
    for number, pixels in enumerate(PIXELS):
        place = folder / "images" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        if not (place / f"{number}.png").exists():
            Image.fromarray(pixels).save(place / f"{number}.png")
    return str(folder / "images")


def shown() -> dict[str, Any]:
    return {
        "pixel_values": torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255,
        "labels": torch.tensor([0, 1, 0, 1]),
    }


def sounds(folder: Path) -> Any:
    rows = []
    for number, samples in enumerate(WAVES):
        kept = io.BytesIO()
        with wave.open(kept, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((samples.clip(-3, 3) / 3 * 32767).astype("<i2").tobytes())
        rows.append({"audio": {"bytes": kept.getvalue(), "path": None}, "label": number % 2})
    return datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio())


class Loudness(torch.nn.Module):
    """A plain module that is given padded waves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.layer(input_values.abs().sum(dim=1, keepdim=True) / 100)


def heard() -> dict[str, Any]:
    quantized = [torch.from_numpy((w.clip(-3, 3) / 3 * 32767).astype("<i2").astype(np.float32) / 32768) for w in WAVES]
    return {"input_values": torch.nn.utils.rnn.pad_sequence(quantized, True), "labels": torch.tensor([0, 1, 0, 1])}


def spoken(labels: Any = None) -> dict[str, Any]:
    rows = torch.stack([torch.from_numpy(np.resize(each, 400)) for each in WAVES])
    return {"input_values": rows, "labels": torch.tensor([[3, 4, -100], [5, 6, 7], [8, -100, -100], [9, 3, -100]])}


def of_speech(reduction: str) -> Case:
    return Case(lambda: wav2vec2_ctc(reduction), lambda folder: _rows(spoken()), spoken)


def segmented() -> dict[str, Any]:
    pixels = torch.from_numpy(RANDOM_PIXELS)
    return {"pixel_values": pixels, "labels": torch.from_numpy(MAPS)}


RANDOM_PIXELS = np.random.default_rng(4).normal(size=(4, 3, 16, 16)).astype(np.float32)


def _rows(batch: dict[str, Any]) -> Any:
    """A batch's rows as a torch data set, which nothing is known of."""
    return [{name: value[i] for name, value in batch.items()} for i in range(len(next(iter(batch.values()))))]


CASES: dict[str, Case] = {
    "tsv with tabs and lines in quotes": Case(
        lambda: bert("SequenceClassification", num_labels=2),
        lambda folder: str(FILES / "quoted.tsv"),
        quoted,
        settings={"processor": TOKENIZER},
        saved=lambda model, place: (model.save_pretrained(place), TOKENIZER.save_pretrained(place)),
    ),
    "classes by name": of_words(
        ["x", "y", "x", "z"], torch.tensor([0, 1, 0, 2]), num_labels=3, id2label=dict(enumerate("xyz"))
    ),
    "classes by number": of_words([2, 0, 1, 0], torch.tensor([2, 0, 1, 0]), num_labels=3),
    "numbers": of_words([0.5, -1.0, 3.0, 2.0], torch.tensor([0.5, -1.0, 3.0, 2.0]), num_labels=1),
    "classes of weights": Case(
        lambda: bert("SequenceClassification", num_labels=3),
        lambda folder: [{"text": text, "label": value} for text, value in zip(TEXTS, [2, 0, 1, 0], strict=True)],
        lambda: words(torch.tensor([2, 0, 1, 0])),
        loss=lambda model, batch: torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"], WEIGHTS),
        settings={"processor": WORDS, "loss": torch.nn.CrossEntropyLoss(WEIGHTS)},
    ),
    "numbers by another loss": Case(
        lambda: bert("SequenceClassification", num_labels=1),
        lambda folder: [
            {"text": text, "label": value} for text, value in zip(TEXTS, [0.5, -1.0, 3.0, 2.0], strict=True)
        ],
        lambda: words(torch.tensor([0.5, -1.0, 3.0, 2.0])),
        loss=lambda model, batch: torch.nn.functional.l1_loss(model(**batch).logits[:, 0], batch["labels"]),
        settings={"processor": WORDS, "loss": torch.nn.L1Loss()},
    ),
    "several classes a row": of_words(
        [[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]],
        torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]]),
        num_labels=3,
    ),
    "classes by a decoder without a pad token": Case(
        lambda: gpt2("ForSequenceClassification", num_labels=2, pad_token_id=0),
        lambda folder: [{"text": text, "label": number % 2} for number, text in enumerate(["ab", "c", "def", "a"])],
        lambda: {
            **padded([TOKENIZER(text)["input_ids"] for text in ["ab", "c", "def", "a"]]),
            "labels": torch.tensor([0, 1, 0, 1]),
        },
        settings={"processor": TOKENIZER},
    ),
    "classes of words": Case(
        lambda: bert("TokenClassification", num_labels=3),
        lambda folder: [
            {"tokens": ["a", "bc"], "ner_tags": [1, 0], "id": 1},
            {"tokens": ["d"], "ner_tags": [2], "id": 2},
        ],
        tagged,
        settings={"processor": WORDS},
    ),
    "answers in a text": Case(
        lambda: bert("QuestionAnswering"),
        lambda folder: [
            {"question": "a", "context": "b c d e", "answers": {"text": ["c d"], "answer_start": [2]}},
            {"question": "b", "context": "a b", "answers": {"text": ["a"], "answer_start": [0]}},
        ],
        answered,
        settings={"processor": WORDS},
    ),
    "folder of images": Case(vit, pictures, shown),
    "sounds": Case(
        Loudness,
        sounds,
        heard,
        loss=lambda model, batch: torch.nn.functional.cross_entropy(model(batch["input_values"]), batch["labels"]),
        settings={"loss": torch.nn.CrossEntropyLoss()},
    ),
    "ctc, a sum": of_speech("sum"),
    "ctc, a mean over samples": of_speech("mean"),
    "segmentation without 255": Case(segformer, lambda folder: _rows(segmented()), segmented),
}
