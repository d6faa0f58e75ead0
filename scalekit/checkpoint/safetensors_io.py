"""safetensors files that many processes write and read at once, each a part of its tensors.

The format is a length, a JSON header and the tensors' bytes one after another in row-major order, so a contiguous part of
a flattened tensor is a contiguous range of bytes: it can be written in place by whoever has it, and read by whoever needs it,
whatever the number of processes was or is (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from scalekit.distributed.shards import TensorShard
from scalekit.errors import CheckpointError

FILE_BYTES = 5 * 10**9
"""How large a file may grow before the next is begun; the hub's own limit is a multiple of it."""

_BUFFER_BYTES = 64 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor lies.

    Attributes:
        file: its path in the checkpoint.
        offset: of the tensor's first byte in the file.
        dtype: of its elements.
        shape: of the tensor.
    """

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorFiles:
    """The files of a family of tensors.

    Attributes:
        places: where each tensor lies, by name.
        headers: what each file begins with.
        sizes_bytes: of each file.
    """

    places: Mapping[str, TensorLocation]
    headers: Mapping[str, bytes]
    sizes_bytes: Mapping[str, int]

    @classmethod
    def planned(cls, stem: str, parts: Iterable[TensorShard], file_bytes: int = FILE_BYTES) -> TensorFiles:
        """The files for tensors of which these are parts: the same on every rank, from what each of them has.

        Args:
            stem: ``model/model`` becomes ``model/model.safetensors``, or several numbered files.
            parts: in any order; of each tensor at least one.
            file_bytes: how large a file may grow before the next is begun.
        """
        tensors = {part.name: part for part in parts}
        # Wide elements come first, so that every tensor lies at a multiple of its elements' size.
        ordered = sorted(tensors.values(), key=lambda part: (-part.data.element_size(), part.name))
        groups: list[list[TensorShard]] = [[]]
        size = 0
        for part in ordered:
            size += part.whole_bytes
            if groups[-1] and size > file_bytes:
                groups.append([])
                size = part.whole_bytes
            groups[-1].append(part)
        places: dict[str, TensorLocation] = {}
        headers: dict[str, bytes] = {}
        sizes: dict[str, int] = {}
        for number, group in enumerate(groups, 1):
            several = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
            file = f"{stem}{several}.safetensors"
            headers[file], offsets, sizes[file] = _header(group)
            for part in group:
                places[part.name] = TensorLocation(file, offsets[part.name], part.data.dtype, part.shape)
        return cls(places, headers, sizes)

    @classmethod
    def found(cls, folder: Path, stem: str) -> TensorFiles:
        """The files that stand in a checkpoint; none is a family without tensors.

        Raises:
            CheckpointError: a file is no safetensors file.
        """
        places: dict[str, TensorLocation] = {}
        name = Path(stem).name
        files = sorted((folder / stem).parent.glob(f"{name}*.safetensors"))
        for path in files:
            if path.name != f"{name}.safetensors" and not path.name.startswith(f"{name}-"):
                continue
            places |= _read_header(path, str(path.relative_to(folder)))
        return cls(places, {}, {})

    @property
    def index(self) -> bytes | None:
        """Which tensor is in which file, as Hugging Face wants to know it where there are several."""
        if len(self.headers) < 2:
            return None
        total = sum(size - len(self.headers[file]) for file, size in self.sizes_bytes.items())
        names = {name: Path(place.file).name for name, place in sorted(self.places.items())}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2).encode()

    def range(self, part: TensorShard) -> tuple[str, int]:
        """The file that holds a part, and the offset of its first byte."""
        place = self.places[part.name]
        return place.file, place.offset + part.start * part.data.element_size()


class Reader:
    """Reads parts of tensors from a checkpoint's folder into memory; a context manager.

    Args:
        folder: of the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def fill(self, place: TensorLocation, start: int, target: Tensor) -> None:
        """Reads as many elements as `target` has, from element `start` of the flattened tensor on.

        Raises:
            CheckpointError: the file ends before them.
        """
        if target.is_contiguous() and target.device.type == "cpu" and target.dtype == place.dtype:
            self._read(place, start, target.view(-1))
            return
        flat = target.view(-1) if target.is_contiguous() else torch.empty(target.numel(), dtype=target.dtype)
        step = max(_BUFFER_BYTES // place.dtype.itemsize, 1)
        for first in range(0, flat.numel(), step):
            part = flat[first : first + step]
            read = torch.empty(part.numel(), dtype=place.dtype)
            self._read(place, start + first, read)
            part.copy_(read)
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))

    def _read(self, place: TensorLocation, start: int, flat: Tensor) -> None:
        if not flat.numel():
            return
        memory = memoryview(flat.view(torch.uint8).numpy().data)
        offset, done = place.offset + start * place.dtype.itemsize, 0
        while done < len(memory):
            count = os.preadv(self._descriptor(place.file), [memory[done : done + (1 << 30)]], offset + done)
            if not count:
                raise CheckpointError(f"{self._folder / place.file} ends early")
            done += count

    def _descriptor(self, file: str) -> int:
        if file not in self._open:
            self._open[file] = os.open(self._folder / file, os.O_RDONLY)
        return self._open[file]


def _header(parts: list[TensorShard]) -> tuple[bytes, dict[str, int], int]:
    """A file's first bytes, where each tensor begins after them, and the file's size."""
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        if part.data.dtype not in _NAMES:
            raise CheckpointError(f"{part.name} is of the type {part.data.dtype}, which safetensors does not hold")
        begin, end = end, end + part.whole_bytes
        document[part.name] = {
            "dtype": _NAMES[part.data.dtype],
            "shape": list(part.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    offsets = {part.name: first + document[part.name]["data_offsets"][0] for part in parts}  # type: ignore[index]
    return len(text).to_bytes(8, "little") + text, offsets, first + end


def _read_header(path: Path, file: str) -> dict[str, TensorLocation]:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= path.stat().st_size:
                raise ValueError(f"a header of {length} bytes")
            document = json.loads(stream.read(length))
        document.pop("__metadata__", None)
        places = {
            name: TensorLocation(
                file, 8 + length + entry["data_offsets"][0], _DTYPES[entry["dtype"]], tuple(entry["shape"])
            )
            for name, entry in document.items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error!r}") from error
    for name, place in places.items():
        begin, end = document[name]["data_offsets"]
        if end - begin != prod(place.shape) * place.dtype.itemsize or 8 + length + end > path.stat().st_size:
            raise CheckpointError(f"{path} is damaged: {name} does not lie within it")
    return places
