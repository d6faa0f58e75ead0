"""A checkpoint that is damaged, or could run code, is refused and said which file it is."""

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from scalekit.checkpoint.async_saver import Saver
from scalekit.checkpoint.format import MANIFEST
from scalekit.checkpoint.load import check
from scalekit.distributed.shards import TensorShard
from scalekit.errors import CheckpointError

FILE = "model/model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    saver = Saver(0, 1)
    saver.save(
        tmp_path / "step-00000001",
        {"model/model": [TensorShard("w", (99,), torch.arange(99.0))]},
        {"state.json": b"{}"},
    )
    saver.outcomes(wait=True)
    saver.close()
    return tmp_path / "step-00000001"


def checked(folder: Path, ranks: int = 3) -> None:
    """As so many ranks do it together, each its share; all of them have to come to the same."""
    all_here, shares = Barrier(ranks), [None] * ranks

    def one(rank: int) -> None:
        def gather(value: Any) -> list[Any]:
            shares[rank] = value
            all_here.wait(10)
            return shares

        check(folder, rank, gather, ranks)

    with ThreadPoolExecutor(ranks) as threads:
        came_to = [future.exception() for future in [threads.submit(one, rank) for rank in range(ranks)]]
    assert len(set(map(str, came_to))) == 1
    if came_to[0] is not None:
        raise came_to[0]


def test_a_sound_one_passes(checkpoint: Path) -> None:
    checked(checkpoint)
    checked(checkpoint, ranks=1)


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def listing(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        change(document["files"])
        (folder / MANIFEST).write_text(json.dumps(document))

    return changed


def link(folder: Path) -> None:
    (folder / "model" / "extra.json").symlink_to("/etc/hostname")


def link_to_a_folder(folder: Path) -> None:
    (folder / "elsewhere").symlink_to("/etc", target_is_directory=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edit(FILE, lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]), rf"{FILE} is damaged"),
        (edit(FILE, lambda b: bytes([b[0] ^ 128]) + b[1:]), rf"{FILE} is damaged"),
        (edit(FILE, lambda b: b[:-1]), rf"{FILE} is damaged"),
        (edit(FILE, lambda b: b + b"\0"), rf"{FILE} is damaged"),
        (lambda folder: (folder / FILE).unlink(), rf"{FILE} is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), f"has no {MANIFEST}"),
        (edit(MANIFEST, lambda b: b[:30]), f"{MANIFEST} is damaged"),
        (edit(MANIFEST, lambda b: b"[]"), f"{MANIFEST} is damaged"),
        (listing(lambda files: files.update({"../x": files[FILE]})), "does not lie within"),
        (listing(lambda files: files.update({"/etc/passwd": files[FILE]})), "does not lie within"),
        (listing(lambda files: files.update({"model/../../x": files[FILE]})), "does not lie within"),
        (link, "symbolic link"),
        (link_to_a_folder, "symbolic link"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(pickle.dumps({})) and None, "may be a pickle"),
        (lambda folder: torch.save({}, folder / "model" / "pytorch_model.bin"), "may be a pickle"),
        (lambda folder: torch.save({}, folder / "model" / "weights.safetensors"), "is not in the"),
    ],
)
def test_anything_else_is_refused(damage: Callable[[Path], None], said: str, checkpoint: Path) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=said):
        checked(checkpoint)
