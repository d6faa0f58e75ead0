"""Trains two towers by a contrastive loss under some strategies: coupled.py FOLDER STRATEGY ..."""

import json
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import scalekit

GLOBAL_BATCH, STEPS, SEED = 8, 6, 5
SIZES = (21, 20)
"""An epoch ends with a batch of 5 rows, which two ranks cannot share evenly, or of 4, of which one has none."""


def rows(number: int = SIZES[0]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"left": torch.randn(6, generator=generator).tolist(), "right": torch.randn(4, generator=generator).tolist()}
        for _ in range(number)
    ]


class Towers(nn.Module):
    """As CLIP has them, with a learned temperature (Radford et al. 2021, figure 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(n, 16), nn.Tanh(), nn.Linear(16, 8)) for n in (6, 4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        ends = [nn.functional.normalize(tower(x), dim=-1) for tower, x in ((self.left, left), (self.right, right))]
        return {"left": ends[0], "right": ends[1], "scale": self.scale[0]}


def contrast(output: dict[str, torch.Tensor], target: None) -> torch.Tensor:
    logits = output["scale"].exp() * output["left"] @ output["right"].T
    own = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2


def train(folder: Path, strategy: str, number: int) -> scalekit.Run:
    return scalekit.fit(
        Towers,
        rows(number),
        loss=contrast,
        loss_couples="batch",
        validation=rows()[:11],
        strategy=strategy,
        precision="32-true",
        optimizer_options={"eps": 1e-6},
        global_batch_size=GLOBAL_BATCH,
        max_steps=STEPS,
        learning_rate=1e-2,
        lr_schedule="constant",
        gradient_clip=0.3,
        seed=SEED,
        output_dir=str(folder / f"{strategy}-{number}"),
    )


if __name__ == "__main__":
    folder, *strategies = sys.argv[1:]
    for strategy, number in product(strategies, SIZES):
        run = train(Path(folder), strategy, number)
        validated = run.validate()["loss"]
        if os.environ["RANK"] == "0":
            found = {"history": run.history, "evaluations": run.evaluations, "validated": validated}
            (Path(folder) / f"{strategy}-{number}.json").write_text(json.dumps(found))
