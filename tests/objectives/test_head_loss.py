"""A loss of hidden states, in parts, is the model's own, and so are its gradients; what is not is found out, and said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import scalekit
from scalekit.errors import ScaleKitError
from scalekit.objectives import head_loss
from scalekit.objectives.counts import IGNORED
from scalekit.objectives.head_loss import Head
from scalekit.objectives.model_loss import ModelLoss
from tests.support import parity_cases as parity

WORDS = 500
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2, "d_ff": 16, "dropout_rate": 0.0}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, Callable[[], Any]] = {
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "Gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**GROUPED, final_logit_softcapping=0.3)),
    "Gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**GROUPED, final_logit_softcapping=0.3)
    ),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED)),
    "GPT2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, **NO_DROPOUT)
    ),
    "Bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **OFF)),
    "T5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
    "Bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=WORDS, d_model=16, **BART, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=0.0
        )
    ),
    "Mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**GROUPED, num_local_experts=4)),
    "Granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "Cohere": lambda: transformers.CohereForCausalLM(
        transformers.CohereConfig(**SIZES, num_key_value_heads=1, logit_scale=0.2, eos_token_id=2)
    ),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches here are small, and are to have several parts."""
    monkeypatch.setattr(head_loss, "LEAST_LABELS", 2)


def batch_of(name: str) -> dict[str, torch.Tensor]:
    """Rows of unequal lengths, with a prompt that is not counted."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (3, 24), generator=random)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :5], labels[1, 15:], mask[1, 15:] = IGNORED, IGNORED, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_models_own(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, batch = MODELS[name]().train(), batch_of(name)
    objective = ModelLoss.of(model)
    rtol, autocast = (1e-5, False) if dtype == torch.float32 else (3e-2, True)
    with torch.autocast("cpu", dtype if autocast else torch.bfloat16, enabled=autocast):
        own = objective.outcome(model, batch)
    own.loss.backward()
    expected = gradients(model)
    objective.in_parts = True
    with torch.autocast("cpu", dtype if autocast else torch.bfloat16, enabled=autocast):
        found = objective.mean_loss(model, batch)
    (3 * found).backward()  # as a global batch weighs it
    assert found.item() == pytest.approx(own.loss.item(), rel=rtol / 10)
    again = gradients(model)
    assert again.keys() == expected.keys()
    scale = max(each.abs().max().item() for each in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(
            again[key] / 3, value, rtol=rtol, atol=rtol * scale, msg=lambda m, key=key: f"{key}: {m}"
        )
    with torch.no_grad():
        seen = objective.outcome(model, batch)
    assert own.outputs is not None
    assert seen.targets is not None
    is_counted = seen.targets != IGNORED
    assert torch.equal(seen.targets, own.targets)
    if dtype == torch.float32:
        assert torch.equal(seen.outputs[is_counted], own.outputs.argmax(dim=-1)[is_counted])


def test_a_frozen_head_and_a_bias() -> None:
    torch.manual_seed(0)
    model = MODELS["Bert"]()
    model.get_output_embeddings().weight.requires_grad_(False)
    objective = ModelLoss.of(model)
    objective.outcome(model, batch_of("Bert")).loss.backward()
    expected = gradients(model)
    objective.in_parts = True
    objective.mean_loss(model, batch_of("Bert")).backward()
    again = gradients(model)
    assert again.keys() == expected.keys()
    assert "cls.predictions.bias" in again or "cls.predictions.decoder.bias" in again
    for key, value in expected.items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6)


def test_a_head_without_a_label_has_gradients_of_zero() -> None:
    """Which ranks wait for."""
    model, batch = MODELS["Llama"](), batch_of("Llama")
    loss = ModelLoss.of(model, in_parts=True).mean_loss(
        model, {**batch, "labels": torch.full_like(batch["labels"], -100)}
    )
    loss.backward()
    assert loss.item() == 0
    assert model.lm_head.weight.grad.abs().max() == 0


def test_logits_are_never_whole() -> None:
    """The largest tensor of a step is a part of its logits, or the head."""
    model, batch = MODELS["Llama"](), batch_of("Llama")
    head = Head.of(model)
    assert head is not None
    assert head.parts == 15
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.numel())
            return found

    with Sizes():
        ModelLoss.of(model, in_parts=True).mean_loss(model, batch).backward()
    assert largest == model.lm_head.weight.numel() < batch["labels"].numel() * WORDS


def test_small_vocabularies_are_whole() -> None:
    assert Head.of(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**GROUPED, "vocab_size": 63}))) is None
    assert Head.of(nn.Linear(2, 2)) is None


# -- in a job ---------------------------------------------------------------------------------------------------------


class Own(transformers.LlamaForCausalLM):
    """Does of its own what its configuration does not say."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        logits = output["logits"] = self.changed(output.logits)
        if labels is not None:
            output["loss"] = self.loss_function(logits, labels, vocab_size=logits.shape[-1])
            more = self.more(logits)
            output["loss"] = output["loss"] if more is None else output["loss"] + more
        return output

    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def more(self, logits: torch.Tensor) -> Any:
        return None


class DoublesForCausalLM(Own):
    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        return 2 * logits


class BiasForCausalLM(Own):
    """Zero at first, so that no number shows it."""

    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.bias


class BiasInPlaceForCausalLM(Own):
    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        logits[...] = logits + self.bias
        return logits


class TermForCausalLM(Own):
    """Zero at first, too."""

    def more(self, logits: torch.Tensor) -> Any:
        return self.bias.sum()


class CapForCausalLM(Own):
    """So high that no number of a fresh model shows it."""

    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        return 1000 * torch.tanh(logits / 1000)


class FewerClassesForCausalLM(Own):
    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[..., : parity.VOCABULARY]


class PenaltyForCausalLM(Own):
    """In training alone."""

    def more(self, logits: torch.Tensor) -> Any:
        return 1e-4 * logits.float().logsumexp(-1).square().mean() if self.training else 0.0


class Renamed(transformers.LlamaForCausalLM):
    """Has a name that tells nothing of a shift."""


class NeedsLabels(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        assert labels is not None, "no labels"
        return super().forward(*args, labels=labels, **kwargs)


class TwiceForCausalLM(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        output = super().forward(*args, labels=labels, **kwargs)
        self.lm_head(output.logits.new_zeros(1, 1, self.config.hidden_size))
        return output


def run(model: nn.Module, folder: Path, **settings: Any) -> tuple[scalekit.Run, str]:
    rows = parity.causal_rows()
    found = scalekit.fit(
        model,
        rows[:32],
        validation=rows[32:],
        global_batch_size=8,
        max_steps=3,
        strategy="single",
        output_dir=str(folder),
        **{"precision": "32-true", **settings},
    )
    return found, (folder / "log.txt").read_text()


def llama(cls: Any = transformers.LlamaForCausalLM) -> Any:
    torch.manual_seed(0)
    return cls(transformers.LlamaConfig(**GROUPED, pad_token_id=0))


def test_a_job_evaluates_in_parts_too(tmp_path: Path) -> None:
    parts, log = run(llama(), tmp_path / "parts")
    assert "the logits of a micro-batch are there in up to 15 parts" in log
    whole, log = run(
        llama(), tmp_path / "whole", item_count=lambda batch: int((batch["labels"][:, 1:] != IGNORED).sum())
    )
    assert "15 parts" not in log
    assert parts.evaluations[-1].keys() == whole.evaluations[-1].keys() >= {"loss", "token_accuracy"}
    for one, other in zip(parts.evaluations, whole.evaluations, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for one, other in zip(parts.history, whole.history, strict=True):
        assert (one["loss"], one["grad_norm"]) == pytest.approx((other["loss"], other["grad_norm"]), rel=1e-5)


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (DoublesForCausalLM, "it does more with its logits than its configuration says: mul"),
        (BiasForCausalLM, "it does more with its logits than its configuration says: add"),
        (BiasInPlaceForCausalLM, "it does more with its logits than its configuration says: __setitem__"),
        (TermForCausalLM, "its loss is more than the cross-entropy of its logits: add"),
        (CapForCausalLM, "it does more with its logits than its configuration says: div, mul, tanh"),
        (FewerClassesForCausalLM, "it gives no logits of each label, for all classes of its head"),
        (PenaltyForCausalLM, "its loss is more than the cross-entropy of its logits"),
        (NeedsLabels, "it fails without labels: AssertionError: no labels"),
        (TwiceForCausalLM, "it fails without labels: HeadError"),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_what_is_no_cross_entropy_of_the_head_is_found_out_and_said(
    cls: Any, why: str, precision: str, tmp_path: Path
) -> None:
    found, log = run(llama(cls), tmp_path, precision=precision)
    assert "of whole logits, as the model has it, and the plan has reckoned with parts: " in log
    assert why in log
    assert len(found.history) == 3


def test_the_routers_loss_is_kept(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4, output_router_logits=True, pad_token_id=0)
    torch.manual_seed(0)
    _, log = run(transformers.MixtralForCausalLM(config), tmp_path, precision="bf16-true")
    assert "its loss is more than the cross-entropy of its logits" in log


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("name", ["Gemma2", "Bert", "T5", "GPT2", "Granite"])
def test_what_transformers_has_is_run_in_parts(name: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, log = run(MODELS[name](), tmp_path, precision=precision)
    assert "parts, one at a time" in log


def test_a_shift_is_found_that_no_name_tells(tmp_path: Path) -> None:
    """The first label of each row is masked, so that both counts are the same."""
    parts, log = run(llama(Renamed), tmp_path / "parts")
    assert "15 parts" in log
    named, _ = run(llama(), tmp_path / "named")
    assert [each["loss"] for each in parts.history] == [each["loss"] for each in named.history]


def test_evaluations_make_no_gradients() -> None:
    objective, model = ModelLoss(in_parts=True), MODELS["Llama"]()
    batch = batch_of("Llama")
    with torch.no_grad(), FlopCounterMode(display=False) as alone:
        objective.outcome(model, batch)
    with FlopCounterMode(display=False) as trained:
        objective.mean_loss(model, batch).backward()
    assert trained.get_total_flops() > 2 * alone.get_total_flops()
    with torch.inference_mode():
        assert objective.outcome(model, batch).outputs is not None


def test_hidden_states_of_other_places_are_no_labels() -> None:
    model, batch = MODELS["Llama"](), batch_of("Llama")
    with pytest.raises(ScaleKitError, match=r"hidden states of \(3, 23\) stand beside labels of \(3, 20\)"):
        ModelLoss.of(model, in_parts=True).mean_loss(model, {**batch, "labels": batch["labels"][:, :21]})


def test_metrics_are_given_logits(tmp_path: Path) -> None:
    class Width(torchmetrics.Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("width", torch.tensor(0), dist_reduce_fx="max")

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.width = torch.tensor(outputs.shape[-1])

        def compute(self) -> torch.Tensor:
            return self.width

    found, _ = run(llama(), tmp_path / "scored", metrics={"width": Width()})
    assert found.evaluations[-1]["width"] == WORDS
    assert json.loads((tmp_path / "scored" / "evaluations.jsonl").read_text().splitlines()[0])["width"] == WORDS
