"""A checkpoint's files.

step-00000100/
  model/          what `from_pretrained` opens, in the precision of the master weights
  optimizer/      the optimizer's state, a family of tensors a file: exp_avg.safetensors holds one of the shape of each
                  parameter, by the names that `model/` has
  average/        the same as `model/`, of the weights' moving average, where the job keeps one
  state.json      step, position, schedules, loops, callbacks; tensors among them in state.safetensors
  MANIFEST.json   every file with its size and checksum; written last

Nothing in it depends on the strategy or the number of ranks that wrote it. What is not finished has a name with a dot before
it, and is swept away by the next job.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from isal import isal_zlib

from scalekit.errors import CheckpointError

MANIFEST = "MANIFEST.json"
WEIGHTS = "model/model"
ADAPTER = "model/adapter_model"
AVERAGE = "average"
REST = "optimizer/weights"
"""What changes and the model's own format leaves out, as PEFT's does with what is trained beside an adapter."""

_CHUNK_BYTES = 16 << 20


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int | None:
    """The reverse of `checkpoint_name`; None for a folder of another name."""
    prefix, _, number = checkpoint.name.partition("-")
    return int(number) if prefix == "step" and number.isdigit() else None


def published(checkpoints: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = (path.parent for path in checkpoints.glob(f"step-*/{MANIFEST}"))
    return sorted((path for path in found if step_of(path) is not None), key=lambda path: step_of(path) or 0)


def sweep(checkpoints: Path) -> None:
    """Removes what a job that was killed has left half-written, or half-deleted."""
    for path in checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Listed:
    """A file as the manifest has it.

    Attributes:
        size_bytes: of the file.
        crc32: of its bytes, as zlib has it.
    """

    size_bytes: int
    crc32: int


def manifest(files: Mapping[str, Listed]) -> str:
    """The text of a manifest."""
    entries = {name: {"bytes": each.size_bytes, "crc32": f"{each.crc32:08x}"} for name, each in sorted(files.items())}
    return json.dumps({"version": 1, "files": entries}, indent=1)


def read_manifest(folder: Path) -> dict[str, Listed]:
    """What a checkpoint's manifest lists.

    Raises:
        CheckpointError: there is none, it is damaged, or it names what does not lie within the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}")
    try:
        entries = json.loads(path.read_text())["files"]
        files = {name: Listed(int(entry["bytes"]), int(entry["crc32"], 16)) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name:
            raise CheckpointError(f"{path} names {name!r}, which does not lie within the checkpoint")
    return files


def checksum(folder: Path, files: Mapping[str, Listed], share: int = 0, shares: int = 1) -> dict[str, int]:
    """The part that one of several readers contributes to the files' CRC-32; the XOR of all parts is the files'.

    Args:
        folder: of the checkpoint.
        files: what to read, with their sizes.
        share: which of the readers this is, from 0.
        shares: how many readers there are.
    """
    total = sum(each.size_bytes for each in files.values())
    low, high = total * share // shares, total * (share + 1) // shares
    begin, found = 0, {}
    for name, listed in files.items():
        first, last = max(low - begin, 0), min(high - begin, listed.size_bytes)
        begin += listed.size_bytes
        if first < last:
            found[name] = _range_checksum(folder / name, first, last, listed.size_bytes)
    return found


def contribution(crc32: int, bytes_after: int) -> int:
    """What a range of bytes contributes to the CRC-32 of its file: CRCs are linear, so the file's is the XOR of all.

    Args:
        crc32: of the range alone.
        bytes_after: how many bytes of the file follow it.
    """
    return int(isal_zlib.crc32_combine(crc32, 0, bytes_after))


def _range_checksum(path: Path, first: int, last: int, size: int) -> int:
    crc = 0
    with path.open("rb") as file:
        file.seek(first)
        while first < last:
            chunk = file.read(min(_CHUNK_BYTES, last - first))
            if not chunk:
                raise CheckpointError(f"{path} ends early")
            crc, first = isal_zlib.crc32(chunk, crc), first + len(chunk)
    return contribution(crc, size - last)
