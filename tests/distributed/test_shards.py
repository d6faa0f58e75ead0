"""Every element of every tensor has one owner; ranks that write their parts in place make files that anybody opens."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from scalekit.checkpoint.safetensors_io import Reader, TensorFiles
from scalekit.distributed.shards import TensorShard, owned
from scalekit.errors import CheckpointError

SHAPES = {"a": (3, 5), "b.weight": (7,), "c": (), "none": (0, 4), "half": (4, 3), "mask": (2, 2)}
DTYPES = {"half": torch.bfloat16, "mask": torch.bool}


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape).to(DTYPES.get(name, torch.float32)) for name, shape in SHAPES.items()}


def write(folder: Path, parts: list[TensorShard], ranks: int, **options: int) -> TensorFiles:
    """What the ranks' writers do, one after another."""
    planned = TensorFiles.planned("model/model", parts, **options)
    (folder / "model").mkdir(parents=True)
    for file, size in planned.sizes_bytes.items():
        (folder / file).write_bytes(planned.headers[file] + bytes(size - len(planned.headers[file])))
    for rank in range(ranks):
        for part in owned(parts, rank, ranks):
            file, offset = planned.range(part)
            with (folder / file).open("r+b") as stream:
                stream.seek(offset)
                stream.write(part.data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return planned


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), ranks=st.integers(1, 9))
def test_every_element_has_one_owner(sizes: list[int], ranks: int) -> None:
    parts = [
        TensorShard(str(i), (size,), torch.arange(size).to(torch.float64 if i % 2 else torch.float16))
        for i, size in enumerate(sizes)
    ]
    found = [part for rank in range(ranks) for part in owned(parts, rank, ranks)]
    for whole in parts:
        mine = sorted((part for part in found if part.name == whole.name), key=lambda part: part.start)
        assert [part.start for part in mine] == [sum(p.data.numel() for p in mine[:i]) for i in range(len(mine))]
        assert torch.equal(torch.cat([torch.empty(0, dtype=whole.data.dtype), *(p.data for p in mine)]), whole.data)
    loads = [sum(part.data.nbytes for part in owned(parts, rank, ranks)) for rank in range(ranks)]
    assert max(loads) - min(loads) <= 16


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_what_ranks_write_in_place_opens_everywhere(ranks: int, tmp_path: Path) -> None:
    expected = tensors()
    write(tmp_path, [TensorShard(name, tuple(t.shape), t) for name, t in expected.items()], ranks)
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_several_files_have_an_index(tmp_path: Path) -> None:
    expected = tensors()
    planned = write(tmp_path, [TensorShard(name, tuple(t.shape), t) for name, t in expected.items()], 2, file_bytes=60)
    assert planned.index is not None
    index = json.loads(planned.index)["weight_map"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(set(index.values()))
    for name, tensor in expected.items():
        assert torch.equal(load_file(tmp_path / "model" / index[name])[name], tensor)


@pytest.mark.parametrize("start", [0, 4, 13])
def test_a_part_is_read_by_its_place(start: int, tmp_path: Path) -> None:
    expected = tensors()
    write(tmp_path, [TensorShard(name, tuple(t.shape), t) for name, t in expected.items()], 2, file_bytes=60)
    files = TensorFiles.found(tmp_path, "model/model")
    target = torch.zeros(2)
    with Reader(tmp_path) as reader:
        reader.fill(files.places["a"], start, target)
    assert torch.equal(target, expected["a"].flatten()[start : start + 2])


def test_columns_are_read_into_memory_of_any_order(tmp_path: Path) -> None:
    expected = tensors()
    write(tmp_path, [TensorShard(name, tuple(t.shape), t) for name, t in expected.items()], 1)
    target = torch.zeros(5, 3).t()
    with Reader(tmp_path) as reader:
        reader.fill(TensorFiles.found(tmp_path, "model/model").places["a"], 0, target)
    assert torch.equal(target, expected["a"])


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_safetensors_file_is_said_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        TensorFiles.found(tmp_path, "model/model")


def test_a_tensor_beyond_the_file_is_said_so(tmp_path: Path) -> None:
    write(tmp_path, [TensorShard("a", (3,), torch.ones(3))], 1)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        TensorFiles.found(tmp_path, "model/model")
