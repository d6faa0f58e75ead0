"""A LightningModule of a user's own: its metrics and its schedule are under every strategy what they are on one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

import scalekit
from scalekit.errors import ConfigError
from tests.distributed.workers import own_module
from tests.support import processes

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
RATES = [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]
"""After each second optimizer step, of which an epoch has four."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return processes.found("own_module", tmp_path_factory.mktemp("own"), *STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_the_same_under_every_strategy(found: dict[str, Any], strategy: str, tmp_path: Path) -> None:
    one, two = own_module.train(tmp_path, "single", 1), found[strategy]
    assert (one["started"], one["rows"]) == (two["started"], two["rows"]) == (0.0, 32.0)
    for name in ("rates", "losses"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert two["mean"] == pytest.approx(one["mean"], rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_a_frequency_is_one_of_optimizer_steps(micro_batch_size: int, tmp_path: Path) -> None:
    assert own_module.train(tmp_path, "single", micro_batch_size)["rates"] == pytest.approx(RATES)


class Clips(own_module.Counting):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="value")


def test_clipping_that_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"Clips.configure_gradient_clipping has no effect under zero2"):
        scalekit.fit(Clips(), own_module.rows(), strategy="zero2", max_steps=1, output_dir=str(tmp_path / "run"))
