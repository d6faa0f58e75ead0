"""What is on drives is saved and gone on with like what is in memory."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.processes import ROOT, torchrun

LAST = Path("checkpoints", "step-00000004")
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
        ("memory", "zero3-offload", 4),
        ("drive", drive, 4),
        *(("drive-resumed", drive, until) for until in (2, 4)),
        *(("to-drive", each, until) for each, until in (("zero3-offload", 2), (drive, 4))),
        *(("from-drive", each, until) for each, until in ((drive, 2), ("zero3-offload", 4))),
    ]
    torchrun("nvme", *(f"{folder / name}:{each}:{until}" for name, each, until in legs))
    return folder


@pytest.mark.parametrize("name", ["drive", "drive-resumed", "to-drive", "from-drive"])
def test_it_comes_to_the_same_bit_for_bit(trained: Path, name: str) -> None:
    for file in FILES:
        found, expected = (load_file(trained / each / LAST / f"{file}.safetensors") for each in (name, "memory"))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), f"{file}: {key}"


def test_something_was_on_the_drive(trained: Path) -> None:
    swapped = {path.parent.parent.name for path in (trained / "zero_stage_3").rglob("*.swp")}
    assert swapped == {"optimizer", "float32params"}
