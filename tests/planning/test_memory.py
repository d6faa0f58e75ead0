"""The memory model against arithmetic, against the papers, and against steps that were really run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from scalekit.config.precision import Dtypes, dtypes_for
from scalekit.config.strategy import StrategyConfig
from scalekit.planning.memory.estimate import predict
from scalekit.planning.memory.layouts import layout
from scalekit.planning.profiling.profile import ProfiledModel, profile, resize
from scalekit.planning.profiling.step_config import StepConfig
from tests.benchmarks import plan_accuracy

# Half-precision parameters and gradients with master weights and moments in float32, as in the ZeRO paper.
PAPER = Dtypes(torch.float16, torch.float32, torch.float16, torch.float16, torch.float32)


def stack(width: int = 64, layers: int = 8) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)))


def profile_of(model, types=None, like_a_gpu: bool = False):
    batch = {"x": torch.zeros(2, 64)}
    subject = ProfiledModel("model", model, lambda m, b: m(b["x"]).square().mean(), resize(batch, 2))
    return profile(subject, types or dtypes_for("32-true"), like_a_gpu)


def setting(strategy: str, world_size: int = 1, types=None, **others) -> StepConfig:
    chosen = {"micro_batch_size": 2, "accumulation": 1, "recompute": "none", "kind": "cpu", **others}
    return StepConfig(
        StrategyConfig.load(strategy), types or dtypes_for("32-true"), world_size, min(world_size, 8), **chosen
    )


@pytest.mark.parametrize("ranks", [1, 2, 8, 64, 1024])
@pytest.mark.parametrize(
    ("strategy", "whole", "shared"), [("zero1", 4, 12), ("zero2", 2, 14), ("zero3", 0, 16)], ids=lambda v: str(v)
)
def test_model_states_are_the_zero_papers(strategy, whole, shared, ranks):
    """4 + 12/N, 2 + 14/N and 16/N bytes a parameter (arXiv 1910.02054, section 5 and table 1)."""
    model = profile_of(stack(width=64), PAPER)
    engine = layout(model, setting(strategy, ranks, PAPER))
    held = engine.held()
    states = {name: held.get(name, 0.0) for name in ("parameters", "master_weights", "gradients", "optimizer_state")}
    if strategy == "zero1":
        states["gradients"] = engine.gradient_total()
    elif strategy == "zero2":
        states["gradients"] = engine.update()["gradients"]
    assert sum(states.values()) / model.elements == pytest.approx(whole + shared / ranks)


def test_a_plain_step_is_parameters_gradients_moments_and_activations():
    """Of one linear layer by hand: the update holds four times the parameters."""
    model = profile_of(nn.Linear(64, 64, bias=False))
    memory = predict(model, setting("single"))
    size = 64 * 64 * 4
    assert memory.items["parameters"] == size
    assert memory.items["optimizer_state"] == 2 * size
    assert memory.items["gradients"] + memory.items["head_and_temporaries"] >= size
    assert memory.peak_bytes < 4 * size + 16 * 1024


def test_an_8b_model_does_not_fit_one_80_gb_card_and_does_under_lora():
    """Published: a full fine-tune of an 8B model takes about 16 bytes a parameter; LoRA runs on one card."""
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from scalekit.objectives.model_loss import ModelLoss

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )

    def adapted() -> nn.Module:
        return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules="all-linear"))

    batch = {name: torch.ones(2, 1024, dtype=torch.long) for name in ("input_ids", "labels")}
    card = 79.1 * 2**30
    peaks = {}
    for name, build in {"full": lambda: LlamaForCausalLM(config), "lora": adapted}.items():
        subject = ProfiledModel(name, build, ModelLoss().mean_loss, resize(batch, 2), 1024)
        types = dtypes_for("bf16-true")
        model = profile(subject, types, like_a_gpu=True)
        assert model.problem is None
        mixed = dtypes_for("bf16-mixed") if name == "full" else types
        model = model if name == "lora" else profile(subject, mixed, like_a_gpu=True)
        chosen = setting("single", 1, mixed, micro_batch_size=1, recompute="full", kind="cuda")
        peaks[name] = predict(model, chosen).peak_bytes
    assert peaks["full"] > 16 * 8.03e9 > card
    assert peaks["lora"] < 0.5 * card


def test_sharing_out_more_never_needs_more():
    model = profile_of(stack())
    for strategy in ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"):
        peaks = [predict(model, setting(strategy, ranks)).peak_bytes for ranks in (2, 4, 8, 16)]
        assert peaks == sorted(peaks, reverse=True), strategy


def test_a_model_that_cannot_be_traced_has_its_states():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x):
            return self.inner(x) if x.sum().item() > 0 else x

    model = profile_of(Reads())
    assert model.problem is not None
    memory = predict(model, setting("single"))
    assert memory.items["parameters"] == 65 * 64 * 4
    assert memory.items["activations"] == 0


QUICK = [("llama", "fsdp2", "full"), ("bert", "zero2", "none"), ("llama", "ddp", "selective")]
MORE = [
    *(("llama", strategy, how) for strategy, how in (("ddp", "none"), ("zero3", "full"), ("zero3", "selective"))),
    *(("t5", "zero3", how) for how in ("none", "selective")),
]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(MORE, marks=pytest.mark.long)], ids=["quick", "more"])
def test_predicted_peaks_are_those_of_real_steps(cases):
    """Two processes, both kinds of engines, with and without recomputation; `plan_accuracy.py` has eight architectures."""
    group = [
        {
            "architecture": name,
            "strategy": strategy,
            "recompute": recompute,
            "world_size": 2,
            "micro_batch_size": 3,
            "length": 64,
            "precision": "32-true",
            "accumulation": 1,
        }
        for name, strategy, recompute in cases
    ]
    errors = {(c["architecture"], c["strategy"]): plan_accuracy.error(c) for c in plan_accuracy.measure(group, 500)}
    assert max(abs(e) for e in errors.values()) < 0.03, errors


def test_hsdp_needs_what_fsdp2_needs_on_one_node():
    model = profile_of(stack())
    nodes = replace(setting("hsdp", 8), node_size=4)
    assert predict(model, nodes).items == predict(model, setting("fsdp2", 4)).items
