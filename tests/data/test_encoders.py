"""Rows of each task to what a model takes: where the loss is, what is cut, what is refused."""

import io
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from scalekit.data.encoders.audio import Sounds
from scalekit.data.encoders.base import RandomlyTransformed
from scalekit.data.encoders.causal import Causal, tokenizer_identity
from scalekit.data.encoders.classification import LabelledTexts
from scalekit.data.encoders.images import Images
from scalekit.data.encoders.labelled import Head, labels_of
from scalekit.data.encoders.masked import Masked
from scalekit.data.encoders.padding import Pad
from scalekit.data.encoders.question_answering import Spans
from scalekit.data.encoders.seq2seq import Seq2Seq
from scalekit.data.encoders.token_classes import TokenClasses
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import ColumnError, ConfigError, NoLabelError, RowError
from scalekit.models.labels import Classes
from scalekit.objectives.counts import IGNORED
from tests.support.language_model import conversations, make_tokenizer, make_word_tokenizer

TOKENIZER = make_tokenizer()
WORDS = make_word_tokenizer()
THREE = Classes(("a", "b", "c"))


def causal(loss_on: str = "all", cut_at: int | None = None, positions: int | None = None) -> Causal:
    return Causal(TOKENIZER, loss_on, Limit(cut_at, positions))


def one(encoder: Any, row: dict) -> dict:
    (encoded,) = encoder.encode([row])
    return encoded


def learned(encoded: dict) -> str:
    """The text whose tokens carry loss."""
    return TOKENIZER.decode([label for label in encoded["labels"] if label != IGNORED])


def test_text_ends_and_is_learned_whole() -> None:
    encoded = one(causal(), {"text": "abc"})
    assert TOKENIZER.decode(encoded["input_ids"]) == "abc#"
    assert encoded["labels"] == encoded["input_ids"]


@pytest.mark.parametrize("loss_on", ["all", "completions"])
def test_many_at_once_are_each_as_it_is_alone(loss_on: str) -> None:
    rows = [{"text": "a" * (1 + i % 7)} for i in range(300)] if loss_on == "all" else []
    rows += conversations(600)
    encoder = causal(loss_on, cut_at=40)
    assert encoder.encode(rows) == [one(encoder, row) for row in rows]


def test_a_tokenizer_that_cuts_and_pads_by_itself_does_not() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    encoder = Causal(tokenizer, "all", Limit())
    assert one(encoder, {"text": "abcdef"}) == one(causal(), {"text": "abcdef"})


class Shouting(type(TOKENIZER)):
    """Its own way to read a text, which its backend does not know."""

    def _encode_plus(self, text: Any, *args: Any, **options: Any) -> Any:
        return super()._encode_plus([each.upper() for each in text], *args, **options)


def test_a_tokenizer_with_a_way_of_its_own_is_asked_itself() -> None:
    shouting = Shouting(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="#", pad_token="#")
    encoded = Causal(shouting, "all", Limit()).encode([{"text": "abc"}, {"text": "de"}])
    assert [shouting.decode(row["input_ids"]) for row in encoded] == ["ABC#", "DE#"]


def test_completions_alone() -> None:
    row = {"prompt": "what?", "completion": "yes"}
    assert learned(one(causal("completions"), row)) == "yes#"
    assert learned(one(causal(), row)) == "what?yes#"


def test_a_prompt_of_turns_and_its_completion() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    row = {"prompt": turns, "completion": [{"role": "assistant", "content": "dd"}]}
    assert learned(one(causal("completions"), row)) == "dd#"


def test_an_end_that_the_tokenizer_writes_is_learned_too() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A #", special_tokens=[("#", 0)])
    encoded = one(Causal(tokenizer, "completions", Limit()), {"prompt": "a", "completion": "b"})
    assert tokenizer.decode(encoded["input_ids"]) == "ab#"
    assert learned(encoded) == "b#"


def test_an_answer_takes_up_the_blank_before_it() -> None:
    tokenizer = make_word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(" ?[a-e]"), "isolated")
    tokenizer.backend_tokenizer.model = WordLevel({"[UNK]": 1, "a": 2, " b": 3, "c": 4, " c": 5}, unk_token="[UNK]")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    encoded = one(Causal(tokenizer, "completions", Limit()), {"prompt": "a ", "completion": "b c"})
    assert encoded["labels"][:3] == [IGNORED, 3, 5]


@pytest.mark.parametrize("row", [{"text": "abc"}, {"prompt": "a", "completion": ""}])
def test_no_row_is_learned_for_its_end_alone(row: dict) -> None:
    with pytest.raises(NoLabelError, match="its answer is empty"):
        causal("completions").encode([row])


def test_what_arrow_adds_to_calls_and_tools_is_not_written() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}{{ tools | tojson }}"
    call = {"function": {"name": "f", "arguments": {"a": "1", "b": None}}}
    row = {"messages": [{"role": "assistant", "tool_calls": [call]}], "tools": [{"name": "f", "x": None}]}
    ids = one(Causal(tokenizer, "all", Limit()), row)["input_ids"]
    assert len(ids) == len('[{"function": {"name": "f", "arguments": {"a": "1"}}}][{"name": "f"}]')


def test_an_identity_is_that_of_the_work_and_not_of_the_last_call() -> None:
    tokenizer = make_tokenizer()
    before = tokenizer_identity(tokenizer)
    tokenizer("abc", truncation=True, max_length=2, padding="max_length")
    assert tokenizer_identity(tokenizer) == before
    tokenizer.truncation_side = "left"
    assert tokenizer_identity(tokenizer) != before


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (transformers.CamembertConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (transformers.XLNetConfig(), None),
        (transformers.BertConfig(), 512),
    ],
)
def test_positions_that_a_model_has(config: Any, positions: int | None) -> None:
    assert Limit.of(None, config).positions == positions


def test_answers_alone_over_several_turns() -> None:
    turns = [("system", "be"), ("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    encoded = one(causal("completions"), row)
    assert TOKENIZER.decode(encoded["input_ids"]) == "<s>be#<u>a#<a>bb#<u>c#<a>#"
    assert learned(encoded) == "bb##"
    assert learned(one(causal(), row)) == "<s>be#<u>a#<a>bb#<u>c#<a>#"


def test_rows_of_several_kinds_in_one_batch_keep_their_places() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "text": None},
        {"messages": None, "text": "bc"},
    ]
    assert [TOKENIZER.decode(row["input_ids"]) for row in causal().encode(rows)] == ["<u>a#", "bc#"]


def test_cutting_is_counted() -> None:
    assert one(causal(cut_at=3), {"text": "abcdef"}) == {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "lost": 4}
    assert one(causal(cut_at=3), {"text": "ab"})["lost"] == 0


def test_truncation_inside_an_answer_keeps_its_beginning() -> None:
    row = {"prompt": "ab", "completion": "cdef"}
    assert learned(one(causal("completions", cut_at=4), row)) == "cd"
    with pytest.raises(NoLabelError, match="cut off"):
        one(causal("completions", cut_at=2), row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": " "}, "'text' is empty"),
        ({"text": None}, "'text' is missing"),
        ({"text": 3}, r"'text' is '3' \(int\), and should be text"),
        ({"messages": []}, "'messages' should be a list of turns"),
        ({"prompt": "a", "completion": None}, "should both be text"),
        ({"text": "abcdefgh"}, "it has 9 tokens, and the model 8 positions: sequence_length=8"),
    ],
)
def test_rows_that_cannot_be_used(row: dict, said: str) -> None:
    with pytest.raises(RowError, match=said):
        causal(positions=8).encode([row])


def test_a_length_past_the_models_positions() -> None:
    with pytest.raises(ConfigError, match="sequence_length=9 is past the model's 8 positions"):
        Limit(9, 8)


def test_sequence_to_sequence() -> None:
    encoded = one(Seq2Seq(TOKENIZER, Limit(3)), {"prompt": "abcd", "completion": "ef"})
    assert TOKENIZER.decode(encoded["input_ids"]) == "abc"
    assert TOKENIZER.decode(encoded["labels"]) == "ef"
    assert encoded["lost"] == 1
    ended = one(Seq2Seq(WORDS, Limit(4)), {"prompt": "a b c d", "completion": "e"})
    assert WORDS.convert_ids_to_tokens(ended["input_ids"]) == ["[CLS]", "a", "b", "[SEP]"]


def test_a_class_for_a_row_keeps_the_ends_that_the_tokenizer_puts() -> None:
    encoder = LabelledTexts(WORDS, THREE, Limit(4))
    encoded = one(encoder, {"text": "a b c d e", "label": "b"})
    assert WORDS.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", "a", "b", "[SEP]"]
    assert (encoded["labels"], encoded["lost"]) == (1, 3)
    pair = one(LabelledTexts(WORDS, THREE, Limit()), {"text": "a", "text_pair": "b", "label": 2})
    assert WORDS.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    with pytest.raises(RowError, match="the label 3 is out of range: there are 3 classes"):
        one(encoder, {"text": "a", "label": 3})


def test_a_pair_tells_its_halves_apart_and_a_single_text_has_none() -> None:
    tokenizer = make_word_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    encoder = LabelledTexts(tokenizer, THREE, Limit())
    rows = encoder.encode([{"text": "a b", "text_pair": "c", "label": 0}, {"text": "a", "text_pair": "b", "label": 1}])
    assert encoder.collate(rows)["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert "token_type_ids" not in encoder.collate(encoder.encode([{"text": "a", "label": 0}]))


def dataset(names: list[str], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"label": labels}, features=features)


def test_a_model_that_tells_the_same_classes_apart_keeps_its_numbers() -> None:
    labels = labels_of([dataset(["cat", "dog"], [0, 1])], "label", Head(("dog", "cat"), is_built=True))
    assert labels.names == ("dog", "cat")
    assert [labels.encode(0), labels.encode(1), labels.encode("cat")] == [1, 0, 1]


def test_classes_numbered_in_different_ways_are_refused() -> None:
    with pytest.raises(ColumnError, match=r"2 classes \(cat, dog\) and 1 classes \(dog\)"):
        labels_of([dataset(["cat", "dog"], [0, 1]), dataset(["dog"], [0])], "label", Head())
    with pytest.raises(
        ColumnError, match=r"the model tells 2 classes \(a, b\) apart, and the data has 2 classes \(cat, dog\)"
    ):
        labels_of([dataset(["cat", "dog"], [0])], "label", Head(("a", "b"), is_built=True))
    unnamed = labels_of([dataset(["cat", "dog"], [0])], "label", Head(("LABEL_0", "LABEL_1"), is_built=True))
    assert unnamed.names == ("cat", "dog")


def test_a_class_for_each_words_first_token() -> None:
    encoded = one(TokenClasses(WORDS, THREE, Limit()), {"tokens": ["a", "bc"], "tags": ["c", "a"]})
    assert WORDS.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", "a", "b", "##c", "[SEP]"]
    assert encoded["labels"] == [IGNORED, 2, 0, IGNORED, IGNORED]
    with pytest.raises(RowError, match="it has 2 words in 'tokens' and 1 classes in 'tags'"):
        one(TokenClasses(WORDS, THREE, Limit()), {"tokens": ["a", "b"], "tags": ["c"]})


def test_answers_by_spans() -> None:
    row = {"question": "a", "context": "b c d e", "answers": {"text": ["c d"], "answer_start": [2]}}
    encoded = one(Spans(WORDS, Limit()), row)
    assert WORDS.convert_ids_to_tokens(encoded["input_ids"])[encoded["start_positions"]] == "c"
    assert WORDS.convert_ids_to_tokens(encoded["input_ids"])[encoded["end_positions"]] == "d"
    with pytest.raises(NoLabelError, match="cut off"):
        one(Spans(WORDS, Limit(6)), row)
    with pytest.raises(RowError, match="does not stand in its context"):
        one(Spans(WORDS, Limit()), {**row, "answers": {"text": ["c d"], "answer_start": [3]}})
    unanswered = one(Spans(WORDS, Limit()), {**row, "answers": {"text": [], "answer_start": []}})
    assert (unanswered["start_positions"], unanswered["end_positions"]) == (0, 0)


def test_a_blank_at_an_answers_end_is_no_token() -> None:
    row = {"question": "a", "context": "b c d e", "answers": {"text": ["c d "], "answer_start": [2]}}
    encoded = one(Spans(WORDS, Limit()), row)
    assert WORDS.convert_ids_to_tokens(encoded["input_ids"])[encoded["end_positions"]] == "d"
    with pytest.raises(RowError, match="as SQuAD's do"):
        one(Spans(WORDS, Limit()), {**row, "answers": [{"text": "c", "answer_start": 2}]})


def test_text_of_which_nothing_can_be_hidden_is_refused() -> None:
    with pytest.raises(NoLabelError, match="nothing to hide"):
        Masked(WORDS, Limit(2)).encode([{"text": "a b"}])


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone() -> None:
    encoder = Masked(WORDS, Limit())
    rows = encoder.encode([{"text": "a b c d e a b c d e"}] * 3)
    drawn = RandomlyTransformed(rows, encoder, seed=1)
    before = torch.random.get_rng_state()
    first = [drawn[i] for i in range(3)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all((row["labels"] != IGNORED).any() for row in first)
    assert all(row["labels"][0] == IGNORED for row in first)  # the ends are never hidden
    again = RandomlyTransformed(rows, encoder, seed=1)[2]
    assert torch.equal(first[2]["input_ids"], again["input_ids"])
    hidden = {
        tuple(RandomlyTransformed(rows, encoder, s, e)[i]["labels"].tolist())
        for s in (1, 2)
        for e in (0, 1)
        for i in range(3)
    }
    assert len(hidden) > 6


def test_images_and_their_augmentation() -> None:
    from PIL import Image
    from torchvision.transforms import v2

    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    plain = Images(None, None, THREE)
    drawn = plain.draw({"image": image, "label": "c"})
    assert drawn["pixel_values"].shape == (3, 8, 8)
    assert drawn["pixel_values"].max() == 63 / 255
    assert drawn["labels"] == 2
    rows = RandomlyTransformed([{"image": image, "label": 0}] * 4, Images(None, v2.RandomCrop(4), THREE), seed=3)
    crops = [rows[i]["pixel_values"] for i in (0, 1, 2, 3, 0)]
    assert torch.equal(crops[0], crops[4])
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 1
    assert not torch.equal(rows.at_epoch(1)[0]["pixel_values"], crops[0]) or not torch.equal(
        rows.at_epoch(2)[0]["pixel_values"], crops[0]
    )


def test_an_image_cut_short_is_refused() -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
    cut = {"bytes": file.getvalue()[:2000], "path": None}
    with pytest.raises(RowError, match="its image cannot be read"):
        Images(None, None, THREE).encode([{"image": cut, "label": 0}])
    with pytest.raises(RowError, match="'image' is missing"):
        Images(None, None, THREE).encode([{"image": None, "label": 0}])


def test_an_image_is_seen_as_it_was_taken() -> None:
    """Upright by its EXIF orientation, and its 16 bits scaled, not cut off."""
    from PIL import Image

    file, turned = io.BytesIO(), Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(file, "JPEG", exif=exif)
    encoder = Images(None, None, THREE)
    assert encoder.draw({"image": {"bytes": file.getvalue()}, "label": 0})["pixel_values"].shape == (3, 4, 2)
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    pixels = encoder.draw({"image": deep, "label": 0})["pixel_values"]
    assert (pixels[0, 0] * 255).round().tolist() == [0, 128, 255]


def wav(samples: np.ndarray, rate: int = 8000) -> dict:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return {"bytes": file.getvalue(), "path": None}


def test_sounds_are_resampled_transformed_and_padded() -> None:
    tone = np.sin(np.arange(800) / 5).astype(np.float32)
    encoder = Sounds(None, None, 16_000, THREE)
    rows = [{"audio": wav(tone), "label": 0}, {"audio": wav(tone[:400]), "label": 2}]
    encoder.encode(rows)
    batch = encoder.collate([encoder.draw(row) for row in rows])
    assert batch["input_values"].shape == (2, 1600)
    assert batch["input_values"][1, 800:].abs().max() == 0
    assert batch["labels"].tolist() == [0, 2]
    late = Sounds(None, lambda wave: wave.reshape(-1, 8), None, THREE)
    assert late.collate([late.draw(row) for row in rows])["input_values"].shape == (2, 100, 8)
    stereo = {"audio": {"array": np.stack([tone, 0 * tone]), "sampling_rate": 8000}, "label": 0}
    assert torch.allclose(late.draw(stereo)["input_values"].flatten(), torch.from_numpy(tone) / 2)
    frames = Sounds(None, lambda wave: wave.reshape(8, -1), None, THREE)
    assert frames.collate([frames.draw(row) for row in rows])["input_values"].shape == (2, 8, 100)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (lambda: wav(np.zeros(100)), "its audio is silent"),
        (lambda: wav(np.zeros(0)), "its audio has no samples"),
        (lambda: {"bytes": wav(np.ones(100))["bytes"][:30], "path": None}, "its audio cannot be read"),
        (lambda: None, "'audio' is missing"),
    ],
)
def test_sounds_that_cannot_be_used(audio: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        Sounds(None, None, None, THREE).encode([{"audio": audio(), "label": 0}])


def test_padding_to_the_longest() -> None:
    batch = Pad(pad_id=7)([{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_without_labels_learn_what_they_hold() -> None:
    batch = Pad(pad_id=7)([{"input_ids": [1, 7]}, {"input_ids": [4]}])
    assert batch["labels"].tolist() == [[1, 7], [4, IGNORED]]
    assert torch.equal(Pad(0)([{"input_ids": [1], "labels": 2}])["labels"], torch.tensor([2]))
