"""Each wrong input gives one clear error of ScaleKit's own tree, before any training."""

import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import scalekit
from scalekit import errors
from scalekit.config.settings import Job
from tests.support import parity_cases as parity
from tests.support.legs import EndedError, Ends
from tests.support.processes import run

NUMBERS = parity.number_rows()


def fit(model: Any = parity.mlp, data: Any = NUMBERS, **settings: Any) -> scalekit.Run:
    usual = {"loss": nn.MSELoss(), "global_batch_size": 4, "max_steps": 2}
    return scalekit.fit(model, data, **{**usual, **settings})


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def text_model(tmp_path: Path) -> str:
    """A tiny model's folder with a tokenizer of single characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(code): code - 31 for code in range(32, 90)} | {"<end>": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    folder = str(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    parity.llama(tied=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"strategy": "zero4"}, errors.UnknownNameError, "unknown strategy 'zero4'. Did you mean 'zero"),
        ({"precision": "bf16-mixd"}, errors.UnknownNameError, "Did you mean 'bf16-mixed'"),
        ({"lr_schedule": "cosin"}, errors.UnknownNameError, "Did you mean 'cosine'"),
        ({"optimizer": "adanw"}, errors.UnknownNameError, "Did you mean 'adamw'"),
        ({"task": "causal"}, errors.UnknownNameError, "Did you mean 'causal-lm'"),
        ({"loss_on": "completion"}, errors.UnknownNameError, "Did you mean 'completions'"),
        (
            {"metrics": {"f1": "F1Score"}},
            errors.ConfigError,
            "metrics.f1='F1Score' must be a torchmetrics Metric or a mapping with its class",
        ),
        (
            {"metrics": {"f1": {"class": "F1Scor"}}, "validation": NUMBERS},
            errors.ConfigError,
            "has no 'F1Scor'. Near it are F1Score",
        ),
        (
            {"metrics": {"f1": {"class": "F1Score"}}, "validation": NUMBERS},
            errors.ConfigError,
            "'f1' cannot be made a F1Score: ",
        ),
        (
            {"model": nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), "precision": "bf16-true"},
            errors.ConfigError,
            "leaves batch norms too few bits",
        ),
        ({"data": []}, errors.EmptyDataError, "the data has no rows"),
        ({"data": "nothing/here.jsonl"}, errors.DataError, "there is no file or folder nothing/here.jsonl"),
        ({"model": 7}, errors.ModelError, "model=7 must be an nn.Module, a LightningModule, a function"),
        ({"global_batch_size": 6, "micro_batch_size": 4}, errors.BatchSizeError, "the nearest that can: 4, 8"),
        ({"devices": 3}, errors.WorldSizeError, "scalekit launch --nproc 3"),
        ({"max_steps": None}, errors.ConfigError, "max_steps or max_epochs"),
        ({"learning_rate": "fast"}, errors.ConfigError, "learning_rate='fast' must be a number of at least 0"),
        (
            {"logger": "tensorboard"},
            errors.ConfigError,
            "logger='tensorboard' must be None, 'wandb', a Lightning logger",
        ),
        ({"resume": "yes"}, errors.ConfigError, "resume='yes' must be 'auto', 'never' or the folder of a checkpoint"),
        ({"loss": None}, errors.ModelError, "forward takes input, but the data's columns are x, y"),
        ({"loss": None, "data": [{"x": [0.0] * 6}]}, errors.NoLossError, "returned no scalar loss"),
        ({"loss": None, "model": "nowhere/model"}, errors.ModelError, "from the hub, which cannot be reached"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_settings(settings: dict, error: type, said: str) -> None:
    with pytest.raises(error) as caught:
        fit(**settings)
    assert said in str(caught.value)
    assert not list(Path("runs").glob("*/metrics.jsonl")) or not any(
        path.read_text() for path in Path("runs").glob("*/metrics.jsonl")
    )


def test_16_mixed_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(errors.ConfigError, match="needs a GPU"):
        fit(precision="16-mixed")


def test_a_key_that_is_no_setting() -> None:
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'global_batch_size'"):
        Job.from_mapping({"model": "m", "data": "d", "global_batchsize": 8})


def test_numbers_as_yaml_reads_them() -> None:
    assert Job("m", "d", max_steps=1, learning_rate="1e-4").learning_rate == 1e-4


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(errors.DependencyError, match=r"pip install 'scalekit\[deepspeed\]'"):
        fit(strategy="zero1")


def test_no_column_for_a_language_model(text_model: str) -> None:
    rows = datasets.Dataset.from_list([{"question": "A", "answer": "B"}])
    with pytest.raises(errors.ColumnError, match="It has: question, answer"):
        fit(text_model, rows, loss=None)


def test_a_row_without_label_tokens(text_model: str) -> None:
    rows = [{"prompt": "ABC", "completion": "DE"}, {"prompt": "ABCDEFGH", "completion": "I"}]
    with pytest.raises(errors.NoLabelError, match="row 1: it has nothing to learn: its answer was cut off"):
        fit(text_model, rows, loss=None, loss_on="completions", sequence_length=8)


def test_labels_that_are_all_masked(text_model: str) -> None:
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, -100, -100]}]
    with pytest.raises(errors.NoLabelError, match="row 0: it has nothing that the loss counts"):
        fit(text_model, rows, loss=None, global_batch_size=1)


def test_a_model_without_a_head() -> None:
    from transformers import BertConfig, BertModel

    def headless() -> nn.Module:
        return BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))

    with pytest.raises(errors.NoLossError, match="takes no labels"):
        fit(headless, [{"input_ids": [1, 2], "labels": 0}], loss=None, global_batch_size=1)


def test_nan_stops_says_where_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    rows = [dict(row) for row in NUMBERS[:8]]
    rows[5]["y"] = [math.nan, 0.0]
    loader = torch.utils.data.DataLoader(rows, collate_fn=parity.collate, shuffle=False)
    with pytest.raises(errors.NonFiniteError, match=r"step 3 is nan; it comes from the rows \[4, 5\]"):
        fit(data=loader, global_batch_size=2, micro_batch_size=2, max_steps=4, checkpoint_every=2, output_dir="run")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000002"]
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2


def test_another_jobs_folder_is_not_continued() -> None:
    fit(output_dir="run")
    with pytest.raises(errors.CheckpointError, match="differs in seed"):
        fit(output_dir="run", seed=9)
    with pytest.raises(errors.ConfigError, match="choose another output_dir"):
        fit(output_dir="run", resume="never")


def test_another_schedule_is_not_continued() -> None:
    fit(output_dir="run", checkpoint_every=1, max_steps=3)
    with pytest.raises(
        errors.CheckpointError, match="a job of 3 steps, on which its schedule depends, and this one has 4"
    ):
        fit(output_dir="run", max_steps=4)
    with pytest.raises(errors.CheckpointError, match="differs in learning_rate"):
        fit(output_dir="run", learning_rate=1.0, max_steps=3)
    with pytest.raises(errors.ConfigError, match="holds later checkpoints"):
        fit(output_dir="run", resume="run/checkpoints/step-00000001", max_steps=3)
    again = fit(output_dir="other", resume="run/checkpoints/step-00000001", max_steps=3)
    assert [record["step"] for record in again.history] == [2, 3]


def test_a_job_that_began_with_anothers_checkpoint_goes_on_by_the_same_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit(output_dir="run", checkpoint_every=1, max_steps=4)
    branch = {"output_dir": "branch", "resume": "run/checkpoints/step-00000001", "max_steps": 4, "checkpoint_every": 1}
    with suppress(EndedError):
        fit(**branch, callbacks=[Ends(3)])
    again = fit(**branch)
    assert "branch, resumed at step 3" in capsys.readouterr().out
    assert [record["step"] for record in again.history] == [2, 3, 4]
    for checkpoint in Path("branch/checkpoints").iterdir():
        (checkpoint / "model" / "model.safetensors").unlink()
    whole = fit(**branch)
    assert "The job resumes from run/checkpoints/step-00000001" in capsys.readouterr().out
    assert [record["loss"] for record in whole.history] == [record["loss"] for record in again.history]


def test_settings_that_a_lightning_module_would_not_use() -> None:
    with pytest.raises(errors.ConfigError, match="decides by itself on loss, learning_rate"):
        fit(pl.LightningModule(), learning_rate=1.0)
    with pytest.raises(errors.ConfigError, match="item_count=3 must be a function of a batch"):
        fit(item_count=3)


class Written(pl.LightningModule):
    """A module whose hooks a test writes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        (
            {"training_epoch_end": lambda self, outputs: None},
            "training_epoch_end is of Lightning 1.*on_train_epoch_end",
        ),
        ({"validation_epoch_end": lambda self, outputs: None}, "on_validation_epoch_end"),
        ({"test_epoch_end": lambda self, outputs: None}, "on_test_epoch_end"),
        ({"training_step": lambda self, batch, batch_idx, optimizer_idx: None}, "optimizer_idx"),
        ({"training_step": lambda self, dataloader_iter: None}, "dataloader_iter"),
        ({"training_step": pl.LightningModule.training_step}, "no training_step"),
        ({"configure_optimizers": pl.LightningModule.configure_optimizers}, "no configure_optimizers"),
    ],
)
def test_a_module_that_lightning_would_not_run(hooks: dict[str, Any], said: str, tmp_path: Path) -> None:
    module = type("Old", (Written,), hooks)()
    with pytest.raises(errors.ConfigError, match=said):
        scalekit.fit(module, "no such data", max_steps=1, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model", "data", "validation", "callbacks", "logger"])
def test_what_is_made_of_the_other_lightning_package(name: str) -> None:
    """Its modules would be trained as plain ones, without their own steps."""
    twin = type("Own", (), {"__module__": "pytorch_lightning.core"})
    given = {"model": Written(), "data": [], "max_steps": 1, name: [twin()] if name == "callbacks" else twin()}
    with pytest.raises(errors.ConfigError, match=f"{name}: Own is of .*import lightning.pytorch as pl"):
        scalekit.fit(**given)


def test_a_module_without_data_and_loaders() -> None:
    with pytest.raises(errors.DataError, match="names no data, and Written has no train_dataloader"):
        scalekit.fit(Written(), max_steps=1)


def test_a_damaged_checkpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    whole = fit(output_dir="run", checkpoint_every=1)
    path = Path("run/checkpoints/step-00000002/model/model.safetensors")
    for _ in range(2):  # a bad disk damages what comes again, too
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(errors.CheckpointError, match=r"model\.safetensors is damaged"):
            fit(output_dir="other", resume="run/checkpoints/step-00000002")
        again = fit(output_dir="run", checkpoint_every=1)
        assert "model.safetensors is damaged" in capsys.readouterr().out
        assert [record["loss"] for record in again.history] == [record["loss"] for record in whole.history]
    assert sorted(each.name for each in Path("run/checkpoints").iterdir()) == [
        "damaged-step-00000002",
        "damaged-step-00000002-2",
        "step-00000001",
        "step-00000002",
    ]


def test_a_folder_in_use_is_nobody_elses(tmp_path: Path) -> None:
    from scalekit.distributed.run_lock import claim, join

    taken = claim(tmp_path / "run"), join(tmp_path / "run")
    with pytest.raises(errors.RunInUseError, match="in use by another job, that of process"):
        fit(output_dir=str(tmp_path / "run"))
    os.close(taken[0])  # its first process is gone, another lives
    with pytest.raises(errors.RunInUseError):
        fit(output_dir=str(tmp_path / "run"))
    os.close(taken[1])
    fit(output_dir=str(tmp_path / "run"))


def test_a_folder_that_is_another_one_on_each_node(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import os, scalekit, torch\n"
        f"here = os.path.join({str(tmp_path)!r}, os.environ['RANK'])\n"
        "os.makedirs(here)\n"
        "os.chdir(here)\n"
        "rows = [{'x': [1.0], 'y': [1.0]}] * 4\n"
        "scalekit.fit(torch.nn.Linear(1, 1), rows, loss=torch.nn.MSELoss(), max_steps=1, output_dir='run')\n"
    )
    command = [sys.executable, "-m", "scalekit", "launch", "--nproc", "2", "--", str(script)]
    output = run(command, 120, expect_failure=True)
    assert "ConfigError: run is not the same folder for all: rank 1 on" in output


def test_remote_code_is_off(tmp_path: Path, text_model: str) -> None:
    import json

    config = Path(text_model) / "config.json"
    block = json.loads(config.read_text())
    block |= {"model_type": "my_own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    config.write_text(json.dumps(block))
    (Path(text_model) / "code.py").write_text("raise SystemExit('remote code has run')")
    with pytest.raises(errors.ModelError, match="trust_remote_code"):
        fit(text_model, [{"text": "ABC"}], loss=None)


def test_launched_ranks_that_differ_from_the_job() -> None:
    command = [
        *(sys.executable, "-m", "scalekit", "launch", "--nproc", "2", "--"),
        "fit",
        "--model",
        "m",
        "--data",
        "d",
    ]
    output = run([*command, "--max_steps", "1", "--devices", "4"], 120, expect_failure=True)
    assert output.count("WorldSizeError") == 1
    assert "launcher started 2 processes on each of 1 nodes" in output


def test_command_line_errors_are_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scalekit", "fit", "--modl", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("UnknownNameError: unknown key in the job 'modl'. Did you mean 'model'?")
    assert len(done.stderr.splitlines()) == 1
