"""What a run leaves beside its checkpoints does not end the job, whatever becomes of it; what is wrong from the start does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import scalekit
from scalekit import errors
from scalekit.utils.files import atomic_write_text
from tests.support import language_model
from tests.support import parity_cases as parity

TEXTS = [{"text": f"{'abcde' * (1 + i % 3)}{i}"} for i in range(24)]
CONVERSATION = [{"role": "user", "content": "what"}]


def train(folder: Path, **settings: Any) -> scalekit.Run:
    usual = {
        "processor": language_model.make_tokenizer(),
        "validation": TEXTS[:3],
        "packing": False,
        "strategy": "single",
        "precision": "32-true",
        "global_batch_size": 4,
        "max_steps": 4,
        "evaluate_every": 2,
        "generate": {"prompts": ["ab", CONVERSATION], "max_new_tokens": 4},
    }
    model = settings.pop("model", parity.gpt2)
    return scalekit.fit(model, TEXTS, output_dir=str(folder / "run"), **{**usual, **settings})


def warnings_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    return [line for line in (captured.out + captured.err).splitlines() if line.startswith("WARNING")]


def with_template(template: str | None) -> Any:
    tokenizer = language_model.make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processor": with_template(None)}, "prompt 2 is a conversation, and the tokenizer has no chat template"),
        ({"processor": with_template("{{ '' }}")}, "prompt 2 .* has no tokens"),
        (
            {"generate": {"prompts": ["ab"], "max_new_tokens": 31}},
            "prompt 1 needs 33 positions, its 2 tokens and max_new_tokens=31, and the model has 32: give max_new_tokens=30",
        ),
        ({"generate": {"prompts": ["a" * 40], "max_new_tokens": 1}}, "the model has 32: give a shorter prompt"),
        (
            {"processor": with_template("{{ raise_exception('no') }}")},
            "prompt 2 .* cannot be encoded: .*role and content",
        ),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_before_the_run_has_a_folder(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        train(tmp_path, **settings)
    assert not (tmp_path / "run").exists()


def test_as_many_tokens_as_the_model_has_positions_are_generated(tmp_path: Path) -> None:
    train(tmp_path, generate={"prompts": ["ab"], "max_new_tokens": 30}, max_steps=1)
    assert (tmp_path / "run" / "samples.jsonl").is_file()


def t5_without_end() -> nn.Module:
    """Its positions are relative."""
    return parity.t5()


@pytest.mark.parametrize("build", [parity.bert, parity.mlp])
def test_a_model_without_a_head_for_it_is_refused(build: Any) -> None:
    from scalekit.callbacks.generation import check_samples
    from scalekit.models.resolve import resolve_model

    with pytest.raises(errors.ConfigError, match="generates no text"):
        check_samples({"prompts": ["a"], "max_new_tokens": 1}, resolve_model(build), language_model.make_tokenizer())


def test_relative_positions_have_no_end() -> None:
    from scalekit.callbacks.generation import check_samples
    from scalekit.models.resolve import resolve_model

    check_samples(
        {"prompts": ["a" * 3000], "max_new_tokens": 3000},
        resolve_model(t5_without_end),
        language_model.make_tokenizer(),
    )


def test_an_encoder_and_a_decoder_have_positions_each() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    from scalekit.callbacks.generation import check_samples
    from scalekit.models.resolve import resolve_model

    def bart() -> nn.Module:
        sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
        config = BartConfig(vocab_size=64, max_position_embeddings=32, encoder_layers=1, decoder_layers=1, **sizes)
        return BartForConditionalGeneration(config)

    tokenizer, model = language_model.make_tokenizer(), resolve_model(bart)
    check_samples({"prompts": ["a" * 32], "max_new_tokens": 31}, model, tokenizer)
    with pytest.raises(errors.ConfigError, match=r"prompt 1 needs 33 positions.*max_new_tokens=31"):
        check_samples({"prompts": ["a"], "max_new_tokens": 32}, model, tokenizer)
    with pytest.raises(errors.ConfigError, match="a shorter prompt"):
        check_samples({"prompts": ["a" * 33], "max_new_tokens": 1}, model, tokenizer)


def failing_once() -> nn.Module:
    """It runs out of memory when it first generates."""
    model, times = parity.gpt2(), []

    def fails(module: nn.Module, inputs: Any) -> None:
        if not module.training and type(inputs[0]) is torch.Tensor and inputs[0].shape[1] == 1 and not times:
            times.append(1)
            raise torch.OutOfMemoryError("there is no memory left")

    model.get_submodule("transformer.h.1.mlp").register_forward_pre_hook(fails)
    return model


def test_samples_are_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, model=failing_once)
    assert warnings_of(capsys) == [
        "WARNING    generate failed: OutOfMemoryError: there is no memory left. The training continues. Samples are tried "
        "again with the next evaluation"
    ]
    records = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 2, 4, 4]


FULL = Path("/dev/full")
"""Where nothing can be written: there is no space left on it."""


@pytest.mark.skipif(not FULL.exists(), reason="Linux has it")
def test_a_full_disk_is_told_of_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.jsonl").symlink_to(FULL)
    run = train(tmp_path)
    assert [record["step"] for record in run.history] == [1, 2, 3, 4]
    (warning,) = warnings_of(capsys)
    assert "No space left on device" in warning


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        atomic_write_text(tmp_path / "plan.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


class Fails(CSVLogger):
    """A logger of the user's whose server is gone."""

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("its server\nis gone")


def test_a_logger_that_fails_is_told_of_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, logger=Fails(str(tmp_path / "logs")))
    assert [record["step"] for record in run.history] == [1, 2, 3, 4]
    assert warnings_of(capsys) == [
        "WARNING    the logger Fails failed: ConnectionError: its server is gone. The training continues. It is told again "
        "with the next numbers"
    ]


@pytest.mark.parametrize("logger", ["wandb.", ["wandb", "tensorboard"]])
def test_a_logger_that_there_is_not_is_refused_before_data_is_read(logger: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"^logger.*must be .*'wandb'"):
        train(tmp_path, logger=logger)
    assert not (tmp_path / "run").exists()
