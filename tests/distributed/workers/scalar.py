"""A model with a parameter that is a single number, under fsdp2: scalar.py FOLDER"""

import sys

import torch
from torch import nn

import scalekit


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(2, 2), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer(x).mean()


if __name__ == "__main__":
    rows = [{"x": [1.0, 2.0]}] * 4
    scalekit.fit(Scaled, rows, strategy="fsdp2", max_steps=1, global_batch_size=4, output_dir=f"{sys.argv[1]}/run")
