"""What the layer adds to a step: `fit` against the bare PyTorch loop, and against raw Lightning, on one process.

The three train the same model on the same data, in turns; each round gives one ratio, and the median over the rounds with its
spread is printed. Run it on an idle machine: python tests/benchmarks/overhead.py [--rounds 7]
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import scalekit

BATCH = 8
WARM_UP = 5


class Tiny(nn.Module):
    """A single linear layer: where a layer around it shows most."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Transformer(nn.Module):
    """Four layers of width 256."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int


CASES = (Case("tiny", Tiny, (16,), 300), Case("small transformer", Transformer, (64, 256), 40))


class StepTimes(pl.Callback):
    """The time between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.perf_counter())


def seconds_a_step(ends: list[float]) -> float:
    """The mean over the steps after the warm-up."""
    return (ends[-1] - ends[WARM_UP]) / (len(ends) - 1 - WARM_UP)


def rows(case: Case) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(case.shape, generator=generator), torch.randn(case.shape, generator=generator))
        for _ in range(BATCH * case.steps)
    ]


def bare(case: Case, data: list[tuple[Tensor, Tensor]]) -> float:
    """The loop that people write: it clips, and looks at its loss."""
    torch.manual_seed(0)
    model = case.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ends = []
    for x, y in DataLoader(data, batch_size=BATCH):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    return seconds_a_step(ends)


class Raw(pl.LightningModule):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = case.build()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


def raw_lightning(case: Case, data: list[tuple[Tensor, Tensor]]) -> float:
    times = StepTimes()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[times],
    )
    trainer.fit(Raw(case), DataLoader(data, batch_size=BATCH))
    return seconds_a_step(times.ends)


def by_fit(case: Case, data: list[tuple[Tensor, Tensor]]) -> float:
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        scalekit.fit(
            case.build,
            DataLoader(data, batch_size=BATCH),
            loss=nn.MSELoss(),
            strategy="single",
            precision="32-true",
            global_batch_size=BATCH,
            max_epochs=1,
            learning_rate=1e-3,
            callbacks=[times],
            output_dir=folder,
        )
    return seconds_a_step(times.ends[:-1])  # the last one saves


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for case in CASES:
        data = rows(case)
        times = [(bare(case, data), raw_lightning(case, data), by_fit(case, data)) for _ in range(rounds)]
        plain = statistics.median(t[0] for t in times) * 1e3
        print(f"{case.name}: bare loop {plain:.2f} ms a step; {rounds} rounds, median (least to most)")
        print(f"  fit / bare loop       {spread([fit / loop for loop, _, fit in times])}")
        print(f"  fit / raw Lightning   {spread([fit / light for _, light, fit in times])}", flush=True)


if __name__ == "__main__":
    main()
