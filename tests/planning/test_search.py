"""What "auto" chooses, on cards and with models that are not there."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from scalekit.config.precision import dtypes_for
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import BatchSizeError
from scalekit.hardware import Hardware
from scalekit.objectives.model_loss import ModelLoss
from scalekit.planning.candidate import PlanRequest
from scalekit.planning.memory.estimate import predict
from scalekit.planning.profiling.profile import ProfiledModel, profile, resize
from scalekit.planning.request import candidates
from scalekit.planning.search import choose

CARDS_GB = (16, 24, 40, 80, 141)
# hidden size and layers: about 0.1, 1, 8 and 70 billion parameters
MODELS = {"0.1B": (768, 12), "1B": (2048, 20), "8B": (6144, 18), "70B": (16384, 22)}
GLOBAL_BATCH = 1024


@cache
def model(name: str):
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers = MODELS[name]
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden * 2 // 3, "num_hidden_layers": layers}
    config = LlamaConfig(**sizes, vocab_size=32000, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64)
    batch = {key: torch.ones(2, 1024, dtype=torch.long) for key in ("input_ids", "labels")}
    subject = ProfiledModel(name, lambda: LlamaForCausalLM(config), ModelLoss().mean_loss, resize(batch, 2), 1024)
    return profile(subject, dtypes_for("bf16-mixed"), like_a_gpu=True)


def card(memory_gb: int, ranks: int) -> Hardware:
    hardware = Hardware.parse(f"{max(ranks // 8, 1)}x{min(ranks, 8)}xH100-80GB")
    return replace(hardware, device=replace(hardware.device, memory_bytes=memory_gb * 10**9))


def asked(name: str, memory_gb: int, ranks: int, **others) -> PlanRequest:
    chosen = {"strategies": candidates("auto", "auto"), "micro_batch_size": None, **others}
    types = dtypes_for("bf16-mixed")
    return PlanRequest(model(name), types, card(memory_gb, ranks), GLOBAL_BATCH, **chosen)


@pytest.mark.parametrize("ranks", [1, 8, pytest.param(64, marks=pytest.mark.long), 1024])
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("0.1B", "1B")), "8B", "70B"]
)
def test_auto_is_safe_on_every_card(name, ranks):
    slowest = float("inf")
    for memory_gb in CARDS_GB:
        task = asked(name, memory_gb, ranks)
        forecast = choose(task)
        if forecast.chosen is None:
            assert slowest == float("inf"), "what fitted a smaller card fits a larger one"
            assert forecast.advice
            continue
        setting = forecast.chosen.setting
        assert forecast.chosen.memory.peak_bytes <= task.limit_bytes < memory_gb * 10**9
        assert setting.micro_batch_size * setting.accumulation * setting.world_size == GLOBAL_BATCH
        assert forecast.chosen.time.seconds <= slowest, "more memory never gives a slower plan"
        slowest = forecast.chosen.time.seconds
    largest = {"0.1B": 1, "1B": 1, "8B": 8, "70B": 64}
    if ranks >= largest[name]:
        assert slowest < float("inf")


@pytest.mark.parametrize("name", ["8B", pytest.param("70B", marks=pytest.mark.long)])
def test_more_ranks_never_need_more_memory_a_rank(name):
    for strategy in candidates("auto", "auto"):
        if strategy.engine == "single" or "nvme" in strategy.offload.values():
            continue
        peaks = []
        for ranks in (2, 8, 64, 1024):
            task = asked(name, 80, ranks, strategies=[strategy], micro_batch_size=1, recompute="full")
            peaks.append(predict(task.profile, choose(task).candidates[0].setting).peak_bytes)
        assert peaks == sorted(peaks, reverse=True), (strategy.name, peaks)


def test_the_ranking_is_by_time_and_says_why_not():
    forecast = choose(asked("8B", 80, 8))
    fitting = [c for c in forecast.candidates if c.problem is None]
    assert fitting == forecast.candidates[: len(fitting)]
    assert [c.time.seconds for c in fitting] == sorted(c.time.seconds for c in fitting)
    assert all("over the limit" in c.problem for c in forecast.candidates[len(fitting) :])
    assert "is for one process" in forecast.left_out["single"]


def test_what_to_change_where_nothing_fits():
    """The nearest: fewer tokens where activations are too much, LoRA where states are, more devices where both are."""

    def advice(name: str, ranks: int, strategy: str, **others) -> str:
        forecast = choose(asked(name, 80, ranks, strategies=[StrategyConfig.load(strategy)], **others))
        assert forecast.chosen is None
        return " ".join(forecast.advice)

    assert "more devices: 64" in advice("70B", 8, "fsdp2")
    assert "LoRA" in advice("8B", 1, "single")
    assert "fewer tokens: sequence_length=" in advice("8B", 1, "zero3-offload", recompute="none", micro_batch_size=8)


def test_a_batch_that_cannot_be_split_names_the_nearest():
    task = replace(asked("1B", 80, 8), global_batch_size=12)
    with pytest.raises(BatchSizeError, match="8, 16"):
        choose(task)
