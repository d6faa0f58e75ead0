"""What is on drives is saved and gone on with like what is in memory."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.processes import ROOT, torchrun

LAST = Path("checkpoints", "step-00000004")
PRECISIONS = ("32-true", "bf16-mixed")
FILES = ("model/model", "average/model", "optimizer/exp_avg", "optimizer/exp_avg_sq")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In one set of processes: in memory, on a drive, on a drive with a stop, from memory to a drive, and back."""
    builder = pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        pytest.skip("libaio's headers are not here")
    folder = tmp_path_factory.mktemp("nvme")
    strategy = yaml.safe_load((ROOT / "strategies" / "zero3-nvme.yaml").read_text())
    strategy["offload"]["nvme_path"] = str(folder)
    drive = folder / "drive.yaml"
    drive.write_text(yaml.safe_dump(strategy))
    legs = [
        (f"{name}-{precision}", each, precision, until)
        for precision in PRECISIONS
        for name, each, until in (
            *(("memory", "zero3-offload", 4), ("drive", drive, 4)),
            *(("drive-resumed", drive, 2), ("drive-resumed", drive, 4)),
            *(("to-drive", "zero3-offload", 2), ("to-drive", drive, 4)),
            *(("from-drive", drive, 2), ("from-drive", "zero3-offload", 4)),
        )
    ]
    torchrun("nvme", *(":".join(map(str, (folder / name, *rest))) for name, *rest in legs))
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["drive", "drive-resumed", "to-drive", "from-drive"])
def test_it_comes_to_the_same_bit_for_bit(trained: Path, name: str, precision: str) -> None:
    for file in FILES:
        found, expected = (
            load_file(trained / f"{each}-{precision}" / LAST / f"{file}.safetensors") for each in (name, "memory")
        )
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value), f"{file}: {key}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_something_was_on_the_drive(trained: Path, precision: str) -> None:
    found = json.loads((trained / f"drive-{precision}" / "on-drive.json").read_text())
    assert found["kinds"] == ["float32params", "optimizer"]
    assert "model.2.weight" in found["away"]


def test_nothing_is_left_there(trained: Path) -> None:
    assert not [*trained.rglob("*.swp")]
