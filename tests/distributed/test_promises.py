"""Under every strategy: nothing dropped, nothing changed by a resume, a folder that opens, types as promised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scalekit.checkpoint import load
from scalekit.data.sampling.permutation import shuffled
from tests.distributed.workers import adapter
from tests.support import oracle_case as oracle
from tests.support import parity_cases as parity
from tests.support.processes import torchrun

STRATEGIES = [
    *("ddp", "fsdp2", "zero3"),
    *(
        pytest.param(each, marks=pytest.mark.long)
        for each in ("zero1", "zero2", "zero2-offload", "zero3-offload", "zero3-hpz", "hsdp")
    ),
]
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


@pytest.fixture(scope="module", params=STRATEGIES)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torchrun("promises", request.param, folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_nothing_is_dropped(results: dict) -> None:
    """10 micro-batches an epoch and rank, accumulation 4: global batches of 8, 8 and 4 rows, three times over."""
    expected = np.zeros(20)
    for epoch in range(3):
        order = shuffled(np.arange(20), 20, parity.SEED, epoch)
        for start in range(0, 20, 8):
            batch = order[start : start + 8]
            expected[batch] -= 1.0 / len(batch)
    found = results["dropped"]
    np.testing.assert_allclose(found["weights"], expected, rtol=1e-6)
    assert found["steps"] == found["schedule"] == len(found["samples"]) == 9
    assert found["samples"] == [8, 16, 20, 28, 36, 40, 48, 56, 60]


@pytest.mark.parametrize("stopped", ["middle", "end"])
def test_a_resumed_run_is_the_same_run_bit_for_bit(folder: Path, stopped: str) -> None:
    """Twice: after steps 7 and 13, in the middle of an epoch, and after 5 and 15, where one ends."""
    oracle.same(folder / stopped, folder / "whole", tolerance=0)


def test_it_is_what_one_process_does(folder: Path, uninterrupted: Path) -> None:
    oracle.same(folder / "whole", uninterrupted, tolerance=1e-5)


def test_one_rank_alone_builds_the_model(results: dict) -> None:
    assert results["dropped"]["built_empty"] == [False, True]


def test_frozen_parameters_stay_and_buffers_are_rank_0s(results: dict) -> None:
    found = results["frozen"]
    assert found["after"]["frozen.weight"] == found["before"]
    assert found["buffers"] == [[[1.0] * 3] * 2] * 2
    assert found["losses"][0] != found["losses"][1]


def test_every_rank_evaluates_the_model_that_is_saved(results: dict) -> None:
    found = results["changing"]
    assert all(held == found["held"][0] for held in found["held"])
    assert found["evaluated"] == pytest.approx(found["expected"], rel=1e-6)


def test_a_rank_without_rows_held_out_is_waited_for_by_nobody(results: dict) -> None:
    assert results["few"]["usual"]["accuracy"] * 3 == pytest.approx(round(results["few"]["usual"]["accuracy"] * 3))
    assert results["few"]["usual"]["items"] == 3
    assert 0 <= results["few"]["given"]["area"] <= 1
    assert 0 <= results["few"]["given"]["f1"] <= 1


MEETINGS = {
    **dict.fromkeys(("ddp", "zero1"), ()),
    "hsdp": ("c10d::allreduce_",),
    "fsdp2": ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"),
    **dict.fromkeys(("zero2", "zero2-offload"), ("c10d::allreduce_",)),
    **dict.fromkeys(("zero3", "zero3-offload", "zero3-hpz"), ("c10d::_reduce_scatter_base_",)),
}
"""By strategy, in a micro-batch that is not its step's last; of so small a layer ZeRO-3 keeps the parameters gathered, and of
hsdp's nodes each has one rank here."""


def test_ranks_meet_before_a_step_is_done_for_their_shards_alone(results: dict) -> None:
    assert tuple(results["meetings"]) == MEETINGS[results["strategy"]]


def test_a_strategy_works_in_a_trainer_of_ones_own(results: dict) -> None:
    assert results["own_trainer"]["steps"] == results["own_trainer"]["expected"]


def test_a_module_that_optimizes_by_hand(results: dict) -> None:
    assert results["by_hand"] is None or results["by_hand"]["steps"] == [1, 2, 3]


def test_the_folder_opens_with_plain_transformers(folder: Path) -> None:
    from transformers import GPT2LMHeadModel

    whole = folder / "whole" / "checkpoints" / f"step-{oracle.STEPS:08d}" / "model"
    model, info = GPT2LMHeadModel.from_pretrained(whole, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter's job on one process."""
    folder = tmp_path_factory.mktemp("adapter")
    adapter.train("single", folder, 4)
    return folder


def test_an_adapter_is_saved_alone_and_whole(folder: Path, alone: Path) -> None:
    """Nothing of its base, nothing that is trained left out, the same as on one process, and gone on with."""
    from peft import PeftModel
    from safetensors.torch import load_file

    last = Path("checkpoints", "step-00000004")
    for file in ("model/adapter_model.safetensors", "optimizer/weights.safetensors", "optimizer/exp_avg.safetensors"):
        found, resumed, expected = (load_file(each / last / file) for each in _three(folder, alone))
        assert found.keys() == expected.keys() == resumed.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )
            assert torch.equal(resumed[name], found[name]), name
    adapters = load_file(folder / "adapter" / last / "model" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in adapters} == {"lora_A", "lora_B", "ln_f"}
    assert all(value.abs().max() > 0 for value in adapters.values())
    assert len(load_file(folder / "adapter" / last / "optimizer" / "weights.safetensors")) == 2
    PeftModel.from_pretrained(parity.gpt2(), folder / "adapter" / last / "model")
    bases = [load.state(each / last)["scalekit"]["base"] for each in _three(folder, alone)]
    assert len(bases[0]) > 10
    assert bases[0] == bases[1] == bases[2], "the base's fingerprints depend on how it is sharded"


def _three(folder: Path, alone: Path) -> tuple[Path, Path, Path]:
    return folder / "adapter", folder / "adapter-resumed", alone


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_are_as_promised(results: dict, precision: str) -> None:
    promised, found = results["types"][precision]["promised"], results["types"][precision]["found"]
    promised["master"] = promised["master"] or promised["parameters"]
    assert found == {name: [value] for name, value in promised.items()}
