"""Packed documents, scores and samples are the same under every strategy, and as a plain loop has them without packing."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from scalekit.data.packing.bins import best_fit
from scalekit.data.sampling.permutation import shuffled
from tests.distributed.workers.data_job import BATCH, CAPACITY, HELD_OUT, SENTENCES, STEPS
from tests.support import language_model
from tests.support.processes import torchrun

MOST = [("zero2", 2), ("ddp", 4)]
CASES = [
    ("single", 1),
    ("ddp", 2),
    ("fsdp2", 2),
    ("zero3", 2),
    *(pytest.param(each, marks=pytest.mark.long) for each in MOST),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_model.save_model(tmp_path_factory.mktemp("packed") / "model")


def tokens_of(text: str) -> torch.Tensor:
    return torch.tensor([*language_model.make_tokenizer()(text)["input_ids"], 0])[None]


def summed_loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


@pytest.fixture(scope="module")
def reference(model: str) -> dict[str, Any]:
    """Each document alone, on one process, with nothing of ScaleKit but which documents share a row."""
    trained = AutoModelForCausalLM.from_pretrained(model)
    parameters = list(trained.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-6, weight_decay=0.0)
    documents = [tokens_of(row["text"]) for row in SENTENCES]
    bins = best_fit(np.array([ids.shape[1] for ids in documents]), CAPACITY)
    losses: list[float] = []
    evaluations = [evaluated(trained)]
    epoch = 0
    while len(losses) < STEPS:
        order = shuffled(np.arange(len(bins)), len(bins), 5, epoch)
        for start in range(0, len(bins), BATCH):
            rows = order[start : start + BATCH]
            chosen = [documents[d] for r in rows for d in bins.documents[bins.bounds[r] : bins.bounds[r + 1]]]
            loss = sum(summed_loss(trained, ids) for ids in chosen) / sum(ids.shape[1] - 1 for ids in chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % 3 == 0:
                evaluations.append(evaluated(trained))
            if len(losses) == STEPS:
                break
        epoch += 1
    return {"losses": losses, "evaluations": evaluations}


@torch.no_grad()
def evaluated(model: torch.nn.Module) -> dict[str, float]:
    rows = [tokens_of(row["text"]) for row in HELD_OUT]
    items = sum(ids.shape[1] - 1 for ids in rows)
    loss = sum(summed_loss(model, ids).item() for ids in rows) / items
    right = sum(int((model(ids).logits[0, :-1].argmax(-1) == ids[0, 1:]).sum()) for ids in rows)
    return {"loss": loss, "items": items, "perplexity": math.exp(loss), "token_accuracy": right / items}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def found(request: pytest.FixtureRequest, model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    strategy, ranks = request.param
    folder = tmp_path_factory.mktemp(strategy)
    torchrun("data_job", strategy, model, folder, nproc=ranks)
    samples = [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "run" / "data.json").read_text())
    return json.loads((folder / "found.json").read_text()) | {"samples": samples, "data": summary, "folder": folder}


def test_packed_rows_train_like_their_documents_alone(found: dict[str, Any], reference: dict[str, Any]) -> None:
    assert [record["loss"] for record in found["history"]] == pytest.approx(reference["losses"], rel=1e-5)


def test_rows_held_out_are_scored_once_each(found: dict[str, Any], reference: dict[str, Any]) -> None:
    assert [record["step"] for record in found["evaluations"]] == [0, 3, 6]
    for record, expected in zip(found["evaluations"], reference["evaluations"], strict=True):
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_metric_of_the_users(found: dict[str, Any]) -> None:
    assert [record["longest"] for record in found["own"]] == [max(len(row["text"]) + 1 for row in HELD_OUT)] * 2
    assert "perplexity" not in found["own"][0]


def test_samples_are_those_of_the_checkpoint(found: dict[str, Any]) -> None:
    assert [(record["step"], record["prompt"]) for record in found["samples"]] == [
        (step, prompt) for step in (0, 3, 6) for prompt in ("ab", "user: c")
    ]
    saved = found["folder"] / "run" / "checkpoints" / f"step-{STEPS:08d}" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), language_model.make_tokenizer()
    prompt = tokenizer("ab", return_tensors="pt")["input_ids"]
    made = model.generate(prompt, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert found["samples"][-2]["completion"] == tokenizer.decode(made[0, 2:], skip_special_tokens=True)


def test_what_was_packed_is_written_down(found: dict[str, Any]) -> None:
    summary = found["data"]
    assert (summary["task"], summary["packed_documents"]) == ("causal-lm", len(SENTENCES))
    assert summary["rows"] * CAPACITY >= summary["tokens"] == sum(len(row["text"]) + 1 for row in SENTENCES)


def test_a_model_that_leaks_is_refused(tmp_path: Path) -> None:
    import scalekit
    from scalekit.errors import LeakError
    from tests.support.parity_cases import llama

    def leaking() -> torch.nn.Module:  # drops the position ids on their way
        inner = llama(tied=True)
        forward = inner.model.forward
        inner.model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
        return inner

    rows = datasets.Dataset.from_list(SENTENCES)
    with pytest.raises(LeakError):
        scalekit.fit(
            leaking(),
            rows,
            processor=language_model.make_tokenizer(),
            sequence_length=CAPACITY,
            packing=True,
            max_steps=1,
            strategy="single",
            output_dir=str(tmp_path / "run"),
        )
