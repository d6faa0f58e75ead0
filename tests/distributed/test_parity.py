"""Promise 1: the same numbers under every strategy, on any ranks, with any accumulation, as a plain loop's."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import parity_cases as parity
from tests.support.matrix import Part, parts
from tests.support.processes import torchrun

ALONE = ("llama-tied", "mlp", "lightning")
"""Which are trained without accumulation too: it is the same code for each."""

CELLS = [
    *(f"{name}:1:32-true" for name in ALONE),
    *(f"{name}:4:32-true" for name in parity.CASES),
]
MIXED = ["llama-tied:4:bf16-mixed", "mlp:1:bf16-mixed"]

reference = cache(lambda name: parity.reference(parity.CASES[name]))


OF_TRANSFORMERS = [f"{name}:4:32-true" for name in ("llama-tied", "llama-untied", "gpt2", "bert", "t5")]

EVERYWHERE = ["mlp:1:32-true", "llama-tied:4:32-true", "lightning:4:32-true", *MIXED]
CORE = {
    ("ddp", 2): [*EVERYWHERE, "bert:4:32-true", "t5:4:32-true"],
    ("fsdp2", 2): [*EVERYWHERE, "gpt2:4:32-true", "llama-untied:4:32-true", "t5:4:32-true"],
    ("zero2", 2): [*EVERYWHERE, "gpt2:4:32-true", "bert:4:32-true"],
    ("zero3", 2): [*EVERYWHERE, "llama-untied:4:32-true", "bert:4:32-true", "attention:4:32-true"],
    ("hsdp", 4): ["llama-tied:4:32-true", "lightning:4:32-true", "llama-tied:4:bf16-mixed"],
    **{(each, 2): [] for each in ("hsdp", "zero1", "zero2-offload", "zero3-offload")},
    **{(each, 4): [] for each in ("ddp", "fsdp2", "zero3")},
}
"""Each model under two strategies at least, each strategy with tied weights, accumulation, and bfloat16."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Part], Path]:
    """Cells of one strategy on so many ranks, trained by one set of processes."""

    def train(part: Part) -> Path:
        strategy, ranks = part.column
        folder = tmp_path_factory.mktemp(f"{strategy}-{ranks}")
        torchrun("parity", strategy, folder, *part.cells, nproc=ranks)
        return folder

    return cache(train)


def saved(folder: Path, name: str, is_lightning: bool) -> dict[str, torch.Tensor]:
    """A checkpoint's weights; of a user's own LightningModule the whole is saved, not a model within it."""
    state = load_file(folder / name / "model" / "model.safetensors")
    return {key.removeprefix("model.") if is_lightning else key: value for key, value in state.items()}


@pytest.mark.parametrize(("part", "cell"), parts([*CELLS, *MIXED], CORE, lambda cell: cell in CELLS))
def test_equals_a_plain_loop(trained: Callable[[Part], Path], part: Part, cell: str) -> None:
    folder = trained(part) / cell.replace(":", "-")
    history = json.loads((folder / "history.json").read_text())
    expected, is_lightning = reference(cell.split(":")[0]), parity.CASES[cell.split(":")[0]].is_lightning
    assert [h["step"] for h in history] == list(range(1, parity.STEPS + 1))
    initial, last = (saved(folder, name, is_lightning) for name in ("initial", "final"))
    for key, value in expected.initial.items():
        assert torch.equal(initial[key], value), key
    torch.testing.assert_close([h["loss"] for h in history], expected.losses, rtol=1e-5, atol=0)
    torch.testing.assert_close([h["grad_norm"] for h in history], expected.norms, rtol=1e-5, atol=0)
    for key, value in expected.final.items():
        torch.testing.assert_close(last[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("part", "cell"), parts([*CELLS, *MIXED], CORE, lambda cell: cell in OF_TRANSFORMERS))
def test_the_folder_gives_the_logits_of_the_trained_module(
    trained: Callable[[Part], Path], part: Part, cell: str
) -> None:
    case, folder = parity.CASES[cell.split(":")[0]], trained(part) / cell.replace(":", "-")
    model, info = type(case.build()).from_pretrained(folder / "final" / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits = model.eval()(**parity.collate(case.rows()[:8])).logits
    torch.testing.assert_close(logits, load_file(folder / "logits.safetensors")["logits"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("part", "cell"), parts([*CELLS, *MIXED], CORE, lambda cell: cell in MIXED))
def test_mixed_precision_is_near(trained: Callable[[Part], Path], part: Part, cell: str) -> None:
    history = json.loads((trained(part) / cell.replace(":", "-") / "history.json").read_text())
    expected = reference(cell.split(":")[0])
    torch.testing.assert_close([h["loss"] for h in history], expected.losses, rtol=2e-2, atol=0)
    torch.testing.assert_close([h["grad_norm"] for h in history], expected.norms, rtol=2e-2, atol=0)


def test_clipping_and_masks_are_at_work() -> None:
    """The matrix above proves something only while its reference clips and has unequal label counts."""
    for name in parity.CASES:
        assert max(reference(name).norms) > parity.CLIP, name
    counts = {sum(label != -100 for label in row["labels"][1:]) for row in parity.causal_rows()}
    assert len(counts) > 5
