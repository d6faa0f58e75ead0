"""Conversations with pictures: what the assistant says is learned, exactly, whatever a processor writes for a picture."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import scalekit
from scalekit.data.encoders.expansion import places
from scalekit.data.encoders.image_chats import gathered
from scalekit.data.encoders.image_text import ImageTexts
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import ConfigError, DataError, NoLabelError, RowError
from scalekit.objectives.counts import IGNORED
from tests.support.image_models import gemma, idefics, llava, qwen, qwen_config

PROCESSORS = [llava, qwen, idefics, gemma]
IMAGE, DIM = {"type": "image"}, np.random.default_rng(0)


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(DIM.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turns(*contents: Any) -> list[dict[str, Any]]:
    """Of the user and the assistant by turns."""
    return [{"role": ("user", "assistant")[number % 2], "content": each} for number, each in enumerate(contents)]


ROWS = {
    "in parts": ({"messages": turns([IMAGE, said("a?")], [said("yes")]), "images": [picture(40, 60)]}, "yes#"),
    "in text": ({"messages": turns("what?", "no"), "image": picture(30, 20, "L")}, "no#"),
    "marked": ({"messages": turns("<image>\nwhat? <image>", "a"), "images": [picture(20, 20, "P")] * 2}, "a#"),
    "later": (
        {"messages": turns("a", "b", [said("see "), IMAGE], "c", [IMAGE], "d\n"), "images": [picture(50, 20, "CMYK")] * 2},
        "b#c#d\n#",
    ),
    "asked": ({"prompt": "why?", "completion": "so", "image": picture(20, 20, "RGBA")}, "so#"),
    "without a picture": ({"messages": turns("a", "b"), "images": []}, "b#"),
}  # fmt: skip


def encoder(make: Any, loss_on: str = "completions", **settings: Any) -> ImageTexts:
    return ImageTexts(make(), None, None, Limit(**settings), loss_on)


def learned(kept: ImageTexts, batch: Any) -> list[str]:
    decode = kept.processor.tokenizer.decode
    return ["".join(decode([token]) for token in labels.tolist() if token != IGNORED) for labels in batch["labels"]]


@pytest.mark.parametrize("make", PROCESSORS)
def test_what_the_assistant_says_is_learned_and_nothing_else(make: Any) -> None:
    kept = encoder(make)
    rows = [row for row, _ in ROWS.values()]
    assert kept.encode(rows) == [{}] * len(rows)
    alone = [learned(kept, kept.collate([kept.draw(row)])) for row in rows]
    wanted = [text.replace("\n", "?") for _, text in ROWS.values()]  # the tokenizer knows no line's end
    assert alone == [[text] for text in wanted]
    assert learned(kept, kept.collate([kept.draw(row) for row in rows[:-1]])) == wanted[:-1]


@pytest.mark.parametrize("make", PROCESSORS)
def test_no_token_of_a_picture_is_learned_where_all_text_is(make: Any) -> None:
    kept = encoder(make, "all")
    (text,) = learned(kept, kept.collate([kept.draw(ROWS["in parts"][0])]))
    assert text.replace("<|vision_start|>", "").replace("<|vision_end|>", "") == "<u>a?#<a>yes#"


def test_a_line_end_between_pictures_that_write_line_ends_is_placed_or_refused() -> None:
    made = [1, 7, 9, 7, 2, 7, 7, 9, 7, 3]  # 9 is a picture's, within line ends 7
    assert places([1, 0, 2, 0, 3], made, 0, {9}) == ([0, -1, 4, -1, 9], [0, -1, 4, -1, 9])
    first, last = places([1, 0, 7, 0, 3], made, 0, {9}) or ([], [])
    assert first[2] < last[2]
    assert places([1, 0, 4], made, 0, {9}) is None
    assert places([1, 2], [1, 2], -1, {9}) == ([0, 1], [0, 1])
    assert places([1, 0, 0, 3], [1, 2, 2, 3], 0, {9}) is None
    row = {"messages": turns([IMAGE, said("\n"), IMAGE], "b"), "images": [picture(60, 60)] * 2}
    assert encoder(idefics).encode([row]) == [{}]  # what is asked is not learned, wherever it stands
    with pytest.raises(DataError, match="cannot be told from what the processor writes there"):
        encoder(idefics, "all").encode([row])


def png() -> bytes:
    kept = io.BytesIO()
    picture(8, 8).save(kept, "png")
    return kept.getvalue()


TEXT = base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": picture(8, 8)},
        {"type": "image", "base64": TEXT},
        {"type": "image", "image": {"bytes": png(), "path": None}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}},
        {"type": "image", "path": "one.png"},
        {"type": "image", "url": "file://one.png"},
    ],
)
def test_a_part_may_hold_its_picture(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.png").write_bytes(png())
    kept = encoder(llava)
    assert kept.encode([{"messages": turns([part, said("a")], "b")}]) == [{}]
    turned, found = gathered(turns([part, said("a")], "b"), [], "<image>")
    assert (turned[0]["content"][0], len(found)) == (IMAGE, 1)


def test_parts_may_number_the_pictures_beside() -> None:
    content = [{**IMAGE, "index": 1}, said("a"), {**IMAGE, "index": 0}]
    _, found = gathered(turns(content, "b"), ["first", "second"], "<image>")
    assert found == ["second", "first"]
    with pytest.raises(RowError, match=r"its parts name the pictures \[1, 1\]"):
        gathered(turns([{**IMAGE, "index": 1}, {**IMAGE, "index": 1}], "b"), ["first", "second"], "<image>")


def test_an_answer_may_speak_of_a_mark() -> None:
    turned, _ = gathered(turns("What tag shows it?", "Use <image> here"), ["first"], "<image>")
    assert [part["type"] for part in turned[0]["content"]] == ["image", "text"]
    assert turned[1]["content"] == [said("Use <image> here")]


def test_all_rows_have_a_picture_where_ranks_run_together() -> None:
    kept = replace(encoder(llava), needs_pictures=True)
    assert kept.encode([ROWS["in text"][0]]) == [{}]
    with pytest.raises(RowError, match=r"it has no picture, .* train beside others under strategy='ddp' alone"):
        kept.encode([ROWS["without a picture"][0]])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": turns([IMAGE, said("a")], "b"), "images": []}, "it has 0 pictures beside .* and 1 place for them"),
        ({"messages": turns([IMAGE], "b"), "images": [picture(8, 8)] * 2}, "2 pictures beside .* and 1 place for them"),
        ({"messages": turns([{"type": "video"}], "b")}, r"'messages\[0\].content' holds a part of type 'video'"),
        ({"messages": [*turns("a", "b"), {"role": "tool", "content": [IMAGE]}], "image": picture(8, 8)}, "a tool's result"),
        ({"messages": turns([{"type": "image", "url": "https://a.b/c.png"}], "b")}, "is at 'https://a.b/c.png'"),
        ({"messages": turns([{"type": "image", "path": "none.png"}], "b")}, "its image cannot be read"),
        ({"messages": turns("a", [said("b"), IMAGE]), "image": picture(8, 8)}, "what the assistant says, holds a picture"),
        ({"text": "a", "image": picture(8, 8)}, "'text' has no completion"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises((RowError, DataError, NoLabelError), match=why):
        encoder(llava).encode([row])


def test_a_template_of_plain_texts_is_written_in_texts() -> None:
    kept = encoder(llava)
    plain = (
        "{% for m in messages %}<{{ m['role'][0] }}>{% if m['content'] is string %}{{ m['content'] }}{% else %}<image>"
    )
    plain += "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{% endif %}#"
    kept.processor.chat_template = plain + "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    assert kept.encode([ROWS["in text"][0]]) == [{}]
    kept = encoder(llava)
    kept.processor.chat_template = "{% for m in messages %}<{{ m['role'][0] }}>#{% endfor %}"
    with pytest.raises(DataError, match="the chat template leaves no telling what the assistant generates"):
        kept.encode([ROWS["in text"][0]])


def test_all_of_a_conversation_is_learned_whose_answers_a_template_does_not_show() -> None:
    kept = encoder(llava, "all")
    parts = "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    kept.processor.chat_template = "{% for m in messages %}<{{ m['role'][0] }}>" + parts + "#{% endfor %}"
    kept.processor.chat_template += "{% if add_generation_prompt %}<x>{% endif %}"
    assert learned(kept, kept.collate([kept.draw(ROWS["in parts"][0])])) == ["<u>a?#<a>yes#"]
    with pytest.raises(DataError, match="leaves no telling what the assistant generates"):
        replace(kept, loss_on="completions").encode([ROWS["in parts"][0]])


def chats(number: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": turns([IMAGE, said("what" * (1 + i % 3))], "red" * (1 + i % 4)),
            "images": [picture(40 + 9 * i, 60)],
        }
        for i in range(number)
    ]


def test_a_model_learns_the_same_in_any_micro_batches_and_as_alone(tmp_path: Path) -> None:
    processor = qwen()
    config = qwen_config(processor.tokenizer)
    rows, found = chats(4), []
    for size in (4, 2, 1):
        torch.manual_seed(0)
        model = transformers.Qwen2VLForConditionalGeneration(config)
        run = scalekit.fit(
            model,
            rows,
            processor=processor,
            loss_on="completions",
            strategy="single",
            precision="32-true",
            global_batch_size=4,
            micro_batch_size=size,
            max_steps=2,
            learning_rate=1e-3,
            output_dir=str(tmp_path / str(size)),
        )
        found.append([record["loss"] for record in run.history])
    torch.manual_seed(0)
    kept = ImageTexts(processor, config, None, Limit(), "completions")
    with torch.no_grad():
        loss = transformers.Qwen2VLForConditionalGeneration(config)(
            **kept.collate([kept.draw(row) for row in rows])
        ).loss
    assert found[0][0] == pytest.approx(float(loss), rel=1e-5)
    for each in found[1:]:
        assert each == pytest.approx(found[0], rel=1e-5)
    logged = (tmp_path / "4" / "log.txt").read_text()
    assert "image-text-to-text, by the columns messages, images" in logged


def test_rows_of_a_file_are_read_with_their_pictures(tmp_path: Path) -> None:
    picture(30, 30).save(tmp_path / "one.png")
    row = {"messages": turns([IMAGE, said("a")], "b"), "images": [str(tmp_path / "one.png")]}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 2))
    processor = qwen()
    made = lambda: transformers.Qwen2VLForConditionalGeneration(qwen_config(processor.tokenizer))  # noqa: E731
    settings: dict[str, Any] = {
        "processor": processor,
        "max_steps": 1,
        "global_batch_size": 2,
        "loss_on": "completions",
    }
    run = scalekit.fit(made, str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "run"), **settings)
    assert run.history[0]["loss"] > 0
    with pytest.raises(ConfigError, match="documents are packed for causal language models alone"):
        scalekit.fit(made, chats(2), packing=True, sequence_length=64, **settings)


def test_broken_pictures_in_a_list_are_rows_that_cannot_be_used() -> None:
    images = datasets.Features(
        {
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "images": datasets.List(datasets.Image()),
        }
    )
    row = {"messages": turns("a", "b"), "images": [{"bytes": b"none", "path": None}]}
    processor = qwen()
    with pytest.raises(RowError, match="row 0: its image cannot be read"):
        scalekit.fit(
            lambda: transformers.Qwen2VLForConditionalGeneration(qwen_config(processor.tokenizer)),
            datasets.Dataset.from_list([row], features=images),
            processor=processor,
            max_steps=1,
        )
