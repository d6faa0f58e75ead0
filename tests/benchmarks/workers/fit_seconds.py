"""One of time_accuracy's jobs by `fit`: python fit_seconds.py JOB RESULT.json"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import scalekit
from tests.benchmarks.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[3]
SETTLED = 3


class Clock(pl.Callback):
    """The time and this process's CPU time at the end of each optimizer step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._step = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())


def median_seconds(ends: list[float]) -> float:
    """Of the settled steps, but for the last, which saves."""
    return statistics.median(b - a for a, b in zip(ends[SETTLED:-2], ends[SETTLED + 1 : -1], strict=True))


def line() -> dict[str, Any]:
    """y = 2x."""
    rows = [(torch.tensor([x / 64]), torch.tensor([x / 32])) for x in range(64)]
    return {"model": nn.Linear(1, 1), "data": DataLoader(rows), "loss": nn.MSELoss(), "max_steps": 200}


def mlp() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    rows = [(torch.ones(784), torch.ones(10))] * 256
    data = {"model": model, "data": DataLoader(rows), "loss": nn.MSELoss()}
    return {**data, "global_batch_size": 64, "max_steps": 100}


def architecture(name: str, batch: int) -> Callable[[], dict[str, Any]]:
    def job() -> dict[str, Any]:
        known = ARCHITECTURES[name]
        rows = known.rows(256, known.lengths[0])
        return {"model": known.build(), "data": DataLoader(rows), "global_batch_size": batch, "max_steps": 16}

    return job


def lora() -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    settings = architecture("llama", 8)()
    adapted = get_peft_model(settings["model"], LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    return {**settings, "model": adapted}


def causal_135m() -> dict[str, Any]:
    """As examples/finetune.yaml has it."""
    return {
        "model": str(ROOT / "build/finetune/model"),
        "data": str(ROOT / "build/finetune/dialogues.jsonl"),
        "loss_on": "completions",
        "sequence_length": 80,
        "micro_batch_size": 4,
        "strategy": "zero2" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "single",
        "max_steps": 9,
    }


JOBS: dict[str, Callable[[], dict[str, Any]]] = {
    "line": line,
    "mlp": mlp,
    "resnet": architecture("resnet", 16),
    "vit": architecture("vit", 16),
    "causal": architecture("llama", 16),
    "t5": architecture("t5", 16),
    "lora": lora,
    "causal-135m": causal_135m,
}


def main() -> None:
    name, result = sys.argv[1], Path(sys.argv[2])
    clock = Clock()
    usual = {"strategy": "ddp" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "single", "global_batch_size": 8}
    settings = {**usual, "precision": "32-true", **JOBS[name]()}
    run = scalekit.fit(**settings, callbacks=[clock], output_dir=str(result.parent / "run"))
    if int(os.environ.get("RANK", 0)) == 0:
        found = {"measured": median_seconds(clock.wall), "cpu": median_seconds(clock.cpu)}
        result.write_text(json.dumps({"predicted": run.plan.predicted["step_seconds"], **found}))


if __name__ == "__main__":
    main()
