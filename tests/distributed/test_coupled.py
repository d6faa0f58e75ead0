"""A contrastive loss over the global batch: the numbers of one process with all its samples, under every strategy."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import scalekit
from scalekit.data.sampling.permutation import shuffled
from scalekit.errors import BatchSizeError, ConfigError, InputsError
from scalekit.planning.request import candidates
from tests.distributed.workers import coupled
from tests.support.processes import ProcessesError, torchrun

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


@cache
def reference(number: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a plain loop over whole batches."""
    torch.manual_seed(coupled.SEED)
    model, rows = coupled.Towers(), coupled.rows(number)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-6)
    losses, norms, epoch = [], [], 0
    while len(losses) < coupled.STEPS:
        order = shuffled(np.arange(number), number, coupled.SEED, epoch)
        for start in range(0, number, coupled.GLOBAL_BATCH):
            batch = [rows[i] for i in order[start : start + coupled.GLOBAL_BATCH]]
            loss = coupled.contrast(
                model(*(torch.tensor([row[name] for row in batch]) for name in ("left", "right"))), None
            )
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.3)))
            optimizer.step()
            losses.append(loss.item())
        epoch += 1
    return losses[: coupled.STEPS], norms[: coupled.STEPS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coupled")
    torchrun("coupled", folder, *STRATEGIES)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, scalekit.Run]:
    folder = tmp_path_factory.mktemp("alone")
    return {number: coupled.train(folder, "single", number) for number in coupled.SIZES}


def check(history: list[dict[str, Any]], number: int) -> None:
    losses, norms = reference(number)
    assert [record["loss"] for record in history] == pytest.approx(losses, rel=1e-5)
    assert [record["grad_norm"] for record in history] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("number", coupled.SIZES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_do_what_one_process_does(
    folder: Path, alone: dict[int, scalekit.Run], strategy: str, number: int
) -> None:
    found = json.loads((folder / f"{strategy}-{number}.json").read_text())
    check(found["history"], number)
    assert max(reference(number)[1]) > 0.3
    for one, two in zip(found["evaluations"], alone[number].evaluations, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert found["validated"] == pytest.approx(found["evaluations"][-1]["loss"], rel=1e-6)


def test_one_process_is_a_plain_loop(alone: dict[int, scalekit.Run]) -> None:
    for number, run in alone.items():
        check(run.history, number)
        assert "loss over samples, which it couples over the whole batch" in (run.folder / "log.txt").read_text()


class Hidden(coupled.Towers):
    """Its output is an object of its own."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        return SimpleNamespace(**super().forward(left, right))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"micro_batch_size": 4}, BatchSizeError, "global_batch_size / ranks = 8"),
        ({"loss": None}, ConfigError, "is for a `loss=` of your own"),
        ({"item_count": len}, ConfigError, "without `item_count=`"),
        ({"metrics": {"f1": {"class": "F1Score", "task": "binary"}}, "validation": 0.5}, ConfigError, "or `metrics=`"),
        ({"loss": lambda output, target: output, "model": Hidden}, InputsError, "give tensors, in mappings"),
        ({"loss": lambda output, target: output["left"]}, ConfigError, "must give one number"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], error: type, said: str, tmp_path: Path) -> None:
    usual = {
        "model": coupled.Towers,
        "data": coupled.rows(),
        "loss": coupled.contrast,
        "loss_couples": "batch",
        "max_steps": 1,
        "global_batch_size": 8,
    }
    with pytest.raises(error, match=said):
        scalekit.fit(output_dir=str(tmp_path / "run"), **{**usual, **settings})


def test_a_single_number_is_no_parameter_for_fsdp2(tmp_path: Path) -> None:
    assert all(each.engine != "fsdp2" for each in candidates("auto", "32-true", has_scalars=True))
    with pytest.raises(ProcessesError, match=r"single numbers, such as .model.scale"):
        torchrun("scalar", tmp_path)
