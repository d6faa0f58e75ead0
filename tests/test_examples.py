"""The examples run as they are, and do what they say."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from scalekit.job import Job, read_yaml
from tests.distributed.processes import run

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_regression_ends_in_the_weights_of_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLES / "regression.py"))
    hand, model = example["by_hand"](), example["by_scalekit"]().model
    torch.testing.assert_close(model.weight, hand.weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.bias, hand.bias, rtol=1e-6, atol=1e-6)


def test_regression_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run(
        [sys.executable, "-m", "scalekit", "launch", "--nproc", "2", "--", str(EXAMPLES / "regression.py")], 180
    )
    lines = [line.split("y =")[1] for line in output.splitlines() if line.startswith("by ")]
    assert len(lines) == 4
    assert len(set(lines)) == 1


def test_the_finetuning_job_is_a_job() -> None:
    job = Job.from_mapping(read_yaml(EXAMPLES / "finetune.yaml"))
    assert (job.strategy, job.precision, job.logger) == ("zero2", "bf16-mixed", "wandb")
    assert yaml.safe_load(yaml.safe_dump(job.resolved())) == job.resolved()
