"""Trains a model that leaves parameters out, always or for some rows, under some strategies: unused.py FOLDER STRATEGY ..."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import scalekit
from scalekit.errors import ConfigError

BRANCHING = ("single", "ddp")
"""Strategies under which ranks may run different parts of a model."""


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(4, generator=generator).tolist(), "y": [float(i % 3)]} for i in range(16)]


class Net(nn.Module):
    """A layer for each row, one for rows of a kind alone, and one for none."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 3)
        self.branches = branches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, picked = self.always(x), x[:, :1] > 0
        if not self.branches:
            return y + self.sometimes(x)
        # As a mixture of experts does; a batch is a row, so that ranks differ.
        return torch.where(picked, y + self.sometimes(x), y) if bool(picked.any()) else y


def train(folder: Path, strategy: str, branches: bool, weight_decay: float = 0.5) -> dict[str, Any]:
    run = scalekit.fit(
        lambda: Net(branches),
        rows(),
        loss=nn.MSELoss(),
        strategy=strategy,
        precision="32-true",
        global_batch_size=4,
        micro_batch_size=1,
        max_steps=6,
        learning_rate=1e-2,
        weight_decay=weight_decay,
        gradient_clip=0.5,
        optimizer_options={"eps": 1e-6},
        lr_schedule="constant",
        output_dir=str(folder / f"{strategy}-{branches}"),
    )
    weights = load_file(run.checkpoint / "model" / "model.safetensors")
    return {
        "losses": [record["loss"] for record in run.history],
        "norms": [record["grad_norm"] for record in run.history],
        "weights": {name: tensor.flatten().tolist() for name, tensor in weights.items()},
    }


if __name__ == "__main__":
    folder, *strategies = sys.argv[1:]
    found: dict[str, Any] = {}
    for strategy in strategies:
        is_zero = strategy.startswith("zero")
        for branches in (False, True) if strategy in BRANCHING else (False,):
            found[f"{strategy}-{branches}"] = train(Path(folder), strategy, branches, 0.0 if is_zero else 0.5)
        if is_zero:
            try:
                train(Path(folder) / "decayed", strategy, False)
            except ConfigError as error:
                found[f"{strategy}-decayed"] = str(error)
    if os.environ.get("RANK", "0") == "0":
        (Path(folder) / "found.json").write_text(json.dumps(found))
