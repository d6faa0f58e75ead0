"""`scalekit plan` and `scalekit.plan`: what they answer, and what they refuse."""

import json

import pytest
import torch
from torch import nn

import scalekit
from scalekit.cli import main
from scalekit.errors import ConfigError, DoesNotFitError, ModelError, UnknownNameError


@pytest.fixture
def config(tmp_path):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4}
    made = LlamaConfig(**sizes, vocab_size=500, max_position_embeddings=256, architectures=["LlamaForCausalLM"])
    made.save_pretrained(tmp_path)
    return tmp_path


def test_a_table_a_picture_and_json(config, tmp_path, capsys):
    picture = tmp_path / "plan.png"
    settings = ["--global_batch_size", "64", "--sequence_length", "128"]
    assert main(["plan", str(config), "--hardware", "8xA100-80GB", "--plot", str(picture), *settings]) == 0
    text = capsys.readouterr().out
    for expected in ("8xA100-80GB", "Chosen:", "is for one process", "optimizer state"):
        assert expected in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (
        main(["plan", str(config / "config.json"), "--hardware", "64x8xH100-80GB", "--strategy", "zero3", "--json"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["world_size"] == 512
    assert answer["chosen"]["peak_bytes"] == sum(answer["chosen"]["items"].values()) <= answer["limit_bytes"]


def test_a_job_file_is_planned_with_its_own_settings(config, tmp_path, capsys):
    job = tmp_path / "job.yaml"
    job.write_text(
        f"model: {config}\ndata: rows.jsonl\nmax_steps: 10\nstrategy: zero3\nglobal_batch_size: 16\nmicro_batch_size: 2\n"
    )
    assert main(["plan", str(job), "--hardware", "2xL4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {c["strategy"] for c in answer["candidates"]} == {"zero3"}
    assert {c["micro_batch_size"] for c in answer["candidates"]} == {2}


def test_unknown_hardware_names_the_nearest(config):
    with pytest.raises(UnknownNameError, match="H100-80GB"):
        scalekit.plan(str(config), "8xH100-80G")


def test_a_sequence_past_the_models_positions(config):
    with pytest.raises(ConfigError, match="past the 256 positions"):
        scalekit.plan(str(config), "H100-80GB", sequence_length=300)


def test_an_unknown_setting(config, capsys):
    assert main(["plan", str(config), "--hardware", "H100-80GB", "--sequence_lenght", "64"]) == 2
    assert "sequence_length" in capsys.readouterr().err


def test_a_hub_id_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"config\.json"):
        scalekit.plan("somebody/some-model", "H100-80GB")


def test_any_module_with_an_example():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(6)))
    example = (torch.zeros(4, 32), torch.zeros(4, 32))
    weights = [p.clone() for p in layers.parameters()]
    forecast = scalekit.plan(layers, "2xA10", example=example, loss=nn.MSELoss(), global_batch_size=16)
    assert forecast.chosen is not None
    assert forecast.task.profile.problem is None
    assert all(torch.equal(a, b) for a, b in zip(weights, layers.parameters(), strict=True))
    assert all(p.grad is None and not p.is_meta for p in layers.parameters())


def test_a_module_without_an_example_is_asked_for_one():
    with pytest.raises(ModelError, match="example"):
        scalekit.plan(nn.Linear(4, 4), "A10", loss=nn.MSELoss())


def test_fit_refuses_what_will_not_fit(tmp_path, monkeypatch):
    from dataclasses import replace

    from scalekit.hardware import detect
    from scalekit.training import autotune

    small = detect()
    small = replace(small, device=replace(small.device, memory_bytes=10_000))
    monkeypatch.setattr(autotune, "detect", lambda *_: small)
    rows = [{"x": [0.0] * 64, "y": [0.0] * 64} for _ in range(8)]
    settings = {"loss": nn.MSELoss(), "max_steps": 1, "global_batch_size": 4, "output_dir": str(tmp_path)}
    with pytest.raises(DoesNotFitError, match="will not fit"):
        scalekit.fit(lambda: nn.Linear(64, 64), rows, **settings)
    run = scalekit.fit(lambda: nn.Linear(64, 64), rows, **settings, memory_check="warn")
    assert any("margin" in reason for reason in run.plan.reasons)


def test_a_run_compares_what_it_cost_with_what_was_predicted(tmp_path):
    rows = [{"x": [0.0] * 64, "y": [0.0] * 64} for _ in range(16)]
    run = scalekit.fit(
        lambda: nn.Linear(64, 64), rows, loss=nn.MSELoss(), max_steps=4, global_batch_size=4, output_dir=str(tmp_path)
    )
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["predicted"]["peak_bytes"] == run.plan.predicted["peak_bytes"] > 4 * 4 * 64 * 64
    assert written["measured"]["step_seconds"] > 0
