"""Text to tokens and labels: where the loss is, what is cut, what is padded."""

import torch

from scalekit.data.text import Encoder, Pad
from scalekit.loss import IGNORED
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()


def learned(encoded: dict) -> str:
    """The text whose tokens carry loss."""
    return TOKENIZER.decode([label for label in encoded["labels"] if label != IGNORED])


def test_text_ends_and_is_learned_whole() -> None:
    encoded = Encoder(TOKENIZER).encode({"text": "abc"})
    assert TOKENIZER.decode(encoded["input_ids"]) == "abc#"
    assert encoded["labels"] == encoded["input_ids"]


def test_completions_alone() -> None:
    row = {"prompt": "what?", "completion": "yes"}
    assert learned(Encoder(TOKENIZER, "completions").encode(row)) == "yes#"
    assert learned(Encoder(TOKENIZER).encode(row)) == "what?yes#"


def test_answers_alone_over_several_turns() -> None:
    turns = [("system", "be"), ("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    encoded = Encoder(TOKENIZER, "completions").encode(row)
    assert TOKENIZER.decode(encoded["input_ids"]) == "<s>be#<u>a#<a>bb#<u>c#<a>#"
    assert learned(encoded) == "bb##"
    assert learned(Encoder(TOKENIZER).encode(row)) == "<s>be#<u>a#<a>bb#<u>c#<a>#"


def test_cutting_is_noted() -> None:
    encoder = Encoder(TOKENIZER, sequence_length=3)
    assert encoder.encode({"text": "abcdef"}) == {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "cut": [1]}
    assert encoder.encode({"text": "ab"})["cut"] == [0]


def test_padding_to_the_longest() -> None:
    batch = Pad(pad_id=7)([{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_without_labels_learn_what_they_hold() -> None:
    batch = Pad(pad_id=7)([{"input_ids": [1, 7]}, {"input_ids": [4]}])
    assert batch["labels"].tolist() == [[1, 7], [4, IGNORED]]
    assert torch.equal(Pad(0)([{"input_ids": [1], "labels": 2}])["labels"], torch.tensor([2]))
