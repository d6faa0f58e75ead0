"""Loading: the newest sound checkpoint, and of it the bytes that a rank needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any

from scalekit.checkpoint import state_json
from scalekit.checkpoint.format import MANIFEST, Listed, checksum, published, read_manifest
from scalekit.checkpoint.safetensors_io import Reader, TensorFiles
from scalekit.config.precision import type_name
from scalekit.distributed.shards import TensorShard
from scalekit.errors import CheckpointError

_SHOWN = 3
_PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".p", ".pickle", ".pkl", ".pt", ".pth")


def latest(checkpoints: Path) -> Path | None:
    """The newest published checkpoint in a folder, or None."""
    return next(reversed(published(checkpoints)), None)


def chosen(folder: Path) -> Path:
    """The checkpoint that a folder is, or the newest of a run's.

    Raises:
        CheckpointError: it is neither.
    """
    found = folder if (folder / MANIFEST).is_file() else latest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(f"{folder} is neither a checkpoint nor a run's folder with one")
    return found


def check(folder: Path, rank: int, gather: Callable[[Any], list[Any]], ranks: int) -> None:
    """Reads a checkpoint through, divided among the ranks, and compares it with its manifest; every rank calls it.

    Args:
        folder: of the checkpoint.
        rank: this rank.
        gather: gives every rank's value.
        ranks: all of them.

    Raises:
        CheckpointError: on every rank: it is no checkpoint, something in it is damaged, missing, or could run code.
    """
    files: dict[str, Listed] = {}
    try:
        files = read_manifest(folder)
        found: dict[str, int] | CheckpointError = _checked(folder, files, rank, ranks)
    except CheckpointError as error:
        found = error
    except OSError as error:
        found = CheckpointError(f"{error.filename or folder} cannot be read: {error.strerror}")
    parts = gather(found)
    for part in parts:
        if isinstance(part, CheckpointError):
            raise part
    for name, listed in files.items():
        if reduce(xor, (part.get(name, 0) for part in parts)) != listed.crc32:
            raise CheckpointError(f"{folder / name} is damaged: it differs from the checkpoint's manifest")


def state(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds beside tensors of the model's and the optimizer's.

    Raises:
        CheckpointError: it cannot be read.
    """
    found: dict[str, Any] = state_json.read(folder, "state")
    return found


def fill(tensors_by_file: Mapping[str, Sequence[TensorShard]], folder: Path) -> None:
    """Reads a rank's parts of a model's tensors, in place.

    Args:
        families: by the stem of their files' names.
        folder: of the checkpoint.

    Raises:
        CheckpointError: the checkpoint is another model's, or another precision's.
    """
    with Reader(folder) as reader:
        for stem, parts in tensors_by_file.items():
            files = TensorFiles.found(folder, stem)
            _compare(parts, files, folder)
            for part in parts:
                if part.data.numel():
                    reader.fill(files.places[part.name], part.start, part.data)


def _checked(folder: Path, files: Mapping[str, Listed], rank: int, ranks: int) -> dict[str, int]:
    listed_paths = {folder / name for name in (MANIFEST, *files)}
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link, which a checkpoint has none of")
        if path.suffix in _PICKLES:
            raise CheckpointError(f"{path} may be a pickle, which runs code when it is loaded: a checkpoint has none")
        if path.is_file() and path not in listed_paths:
            raise CheckpointError(f"{path} is not in the checkpoint's manifest: somebody has added it")
    for name, listed in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, which the checkpoint's manifest lists")
        if path.stat().st_size != listed.size_bytes:
            raise CheckpointError(
                f"{path} is damaged: it has {path.stat().st_size} bytes, and {listed.size_bytes} by the checkpoint's manifest"
            )
    return checksum(folder, files, rank, ranks)


def _compare(parts: Sequence[TensorShard], files: TensorFiles, folder: Path) -> None:
    wanted = {part.name: part for part in parts}
    problems = [
        *_listed("it lacks", (name for name in wanted if name not in files.places)),
        *_listed("it has besides", (name for name in files.places if name not in wanted)),
    ]
    shared = [(part, files.places[name]) for name, part in wanted.items() if name in files.places]
    other = (f"{p.name} {list(place.shape)} (here {list(p.shape)})" for p, place in shared if place.shape != p.shape)
    problems += _listed("shapes differ:", other)
    if problems:
        raise CheckpointError(f"{folder} is of another model: {'; '.join(problems)}")
    for part, place in shared:
        if part.data.dtype != place.dtype:
            raise CheckpointError(
                f"{folder} keeps {part.name} in {type_name(place.dtype)}, "
                f"and this job's precision in {type_name(part.data.dtype)}: "
                f"resume in that precision, or start from its weights: model={str(folder / 'model')!r}"
            )


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    return [f"{what} {first_few(found)}"] if found else []


def first_few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
