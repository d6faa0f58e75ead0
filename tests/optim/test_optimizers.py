"""Schedules count optimizer steps; biases and norms do not decay."""

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from scalekit.config.names import SCHEDULES
from scalekit.errors import ConfigError
from scalekit.optim.optimizers import WSD_DECAY, build_schedule, parameter_groups


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_peak_and_end(name: str) -> None:
    factor = build_schedule(name, warmup_steps=10, total_steps=100)
    assert [factor(step) for step in (0, 5, 10)] == [0, 0.5, 1]
    assert factor(100) == (1 if name == "constant" else 0)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(("name", "theirs"), [
    ("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine"), ("wsd", "warmup_stable_decay"),
])  # fmt: skip
def test_named_schedules_are_transformers(name: str, theirs: str, warmup: int) -> None:
    total = 47
    decay = {"num_decay_steps": WSD_DECAY * (total - warmup), "decay_type": "linear"} if name == "wsd" else None
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=2.0)
    scheduler = get_scheduler(theirs, optimizer, warmup, total, scheduler_specific_kwargs=decay)
    factor = build_schedule(name, warmup, total)
    for step in range(total):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * factor(step), abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_shapes() -> None:
    assert build_schedule("linear", 0, 100)(50) == 0.5
    assert build_schedule("cosine", 0, 100)(50) == pytest.approx(0.5)
    wsd = build_schedule("wsd", 0, 100)
    assert wsd(89) == 1
    assert wsd(95) == pytest.approx(0.5)
    assert build_schedule(lambda step: 7.0, 5, 100)(3) == 7.0


def test_wrong_schedules() -> None:
    with pytest.raises(ConfigError, match="warmup_steps=10 leaves nothing"):
        build_schedule("linear", 10, 10)


def test_vectors_do_not_decay_and_frozen_ones_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[2].weight.requires_grad_(False)
    matrices, vectors = parameter_groups(model, 0.1)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert matrices["weight_decay"] == 0.1
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1, 1]
    assert vectors["weight_decay"] == 0.0
    assert torch.is_tensor(vectors["params"][0])
