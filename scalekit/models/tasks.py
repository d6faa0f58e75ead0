"""What models are trained to do: a row of this table, and an encoder of its rows, is all that a task is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        model_class: transformers' class for it.
        encoder: the module in `data.encoders` that makes of its rows what the model takes.
        columns: by which its rows are known; of rows with several, the first are read. What is learned comes last.
        beside: columns that it reads too, where they are there.
        processor: transformers' class of what prepares its rows.
        is_told: whether the columns alone tell it, of rows for a Hugging Face model.
        is_plain: whether they do of rows for any model.
        is_language: whether the loss is over tokens of a vocabulary.
        is_shifted: whether its labels are tokens, each predicted one position before its own.
        has_label: whether a row has one label, which a prediction does without.
        writes: whether the model completes a text.
    """

    model_class: str
    encoder: str
    columns: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()
    processor: str = "AutoTokenizer"
    is_told: bool = False
    is_plain: bool = False
    is_language: bool = False
    is_shifted: bool = False
    has_label: bool = False
    writes: bool = False


TASKS = {
    "causal-lm": Task(
        "AutoModelForCausalLM",
        "causal",
        (("messages",), ("conversations",), ("prompt", "completion"), ("text",)),
        beside=("tools", "system"),
        is_language=True,
        is_shifted=True,
        writes=True,
    ),
    "masked-lm": Task("AutoModelForMaskedLM", "masked", (("text",),), is_language=True),
    "seq2seq-lm": Task("AutoModelForSeq2SeqLM", "seq2seq", (("prompt", "completion"),), is_language=True, writes=True),
    "image-classification": Task(
        "AutoModelForImageClassification",
        "images",
        (("image", "label"), ("image", "labels")),
        processor="AutoImageProcessor",
        is_told=True,
        is_plain=True,
        has_label=True,
    ),
    "audio-classification": Task(
        "AutoModelForAudioClassification",
        "audio",
        (("audio", "label"), ("audio", "labels")),
        processor="AutoFeatureExtractor",
        is_told=True,
        is_plain=True,
        has_label=True,
    ),
    "token-classification": Task(
        "AutoModelForTokenClassification",
        "token_classes",
        (("tokens", "tags"), ("tokens", "ner_tags")),
        is_told=True,
    ),
    "question-answering": Task(
        "AutoModelForQuestionAnswering", "question_answering", (("question", "context", "answers"),), is_told=True
    ),
    "sequence-classification": Task(
        "AutoModelForSequenceClassification",
        "classification",
        (("text", "label"), ("text", "labels")),
        beside=("text_pair",),
        is_told=True,
        has_label=True,
    ),
    "image-text-to-text": Task(
        "AutoModelForImageTextToText",
        "image_text",
        (("messages",), ("conversations",), ("prompt", "completion"), ("image", "text")),
        beside=("images", "image", "tools", "system"),
        processor="AutoProcessor",
        is_language=True,
        is_shifted=True,
    ),
}
"""By their names, which are those of `config.names.TaskName`. Rows that could be for several are for the first that is told."""
