"""A packed job with the validation set, scores and generated samples: data_job.py STRATEGY MODEL FOLDER"""

import json
import sys
from pathlib import Path

import torch
import torchmetrics

import scalekit

SENTENCES = [{"text": "abc def ghi jkl"[: 2 + (7 * i) % 13]} for i in range(60)]
HELD_OUT = SENTENCES[:7]
CAPACITY = 24
BATCH, STEPS = 4, 6


class Longest(torchmetrics.Metric):
    """A user's metric: the longest row that was seen, in tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("longest", torch.tensor(0), dist_reduce_fx="max")

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.longest = torch.maximum(self.longest, torch.tensor(outputs.shape[1] + 1))

    def compute(self) -> torch.Tensor:
        return self.longest


def train(strategy: str, model: str, folder: Path) -> None:
    settings = {
        "sequence_length": CAPACITY,
        "packing": True,
        "strategy": strategy,
        "precision": "32-true",
        "global_batch_size": BATCH,
        "micro_batch_size": 1,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "optimizer_options": {"eps": 1e-6},
        "lr_schedule": "constant",
        "gradient_clip": None,
        "validation": HELD_OUT,
        "evaluate_every": 3,
        "seed": 5,
    }
    run = scalekit.fit(
        model,
        SENTENCES,
        generate={"prompts": ["ab", [{"role": "user", "content": "c"}]], "max_new_tokens": 5},
        output_dir=str(folder / "run"),
        **settings,
    )
    own = scalekit.fit(
        model, SENTENCES, output_dir=str(folder / "own"), metrics={"longest": Longest()}, **settings | {"max_steps": 1}
    )
    if run.module.trainer.is_global_zero:
        found = {"history": run.history, "evaluations": run.evaluations, "own": own.evaluations}
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    strategy, model, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    train(strategy, model, Path(folder))
