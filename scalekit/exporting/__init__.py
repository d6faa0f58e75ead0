"""Exports: a checkpoint's model in a form that others take; a format a file."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from scalekit.errors import CheckpointError, ConfigError, UnknownNameError
from scalekit.utils.log import log

FORMATS = {"huggingface": "scalekit.exporting.huggingface"}
"""Where each has its ``write(checkpoint, folder, merge)``, which fills an empty folder."""


def export(checkpoint: str | Path, output: str | Path, format: str = "huggingface", merge: bool = False) -> Path:
    """Writes a checkpoint's model for others, on one process. The folder stands whole at the end, or not at all.

    Args:
        checkpoint: a checkpoint's folder, or a run's, of which the newest is taken.
        output: the folder to write.
        format: ``huggingface`` is what plain `from_pretrained` opens, under the names that the hub has.
        merge: whether an adapter is put into its base model, and the whole written.

    Raises:
        ConfigError: `output` cannot be that folder, or the format and `merge` do not go with what the checkpoint holds.
        CheckpointError: there is no checkpoint, it is damaged, or the folder cannot be written.
        ModelError: an adapter's base model cannot be found, or is another.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    from safetensors import SafetensorError

    from scalekit.checkpoint.load import check, chosen

    source = chosen(Path(checkpoint))
    target = _free(Path(output), source)

    log("checking", str(source))
    check(source, 0, lambda found: [found], 1)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        importlib.import_module(FORMATS[format]).write(source, partial, merge)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{source} could not be exported to {output}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    log("exported", f"{output}: {len(sizes)} files, {sum(sizes):,} bytes")
    return Path(output)


def _free(output: Path, checkpoint: Path) -> Path:
    """Where the output really is; it may be written to."""
    target = output.resolve()
    if target.is_relative_to(checkpoint.resolve()):
        raise ConfigError(f"{output} lies within the checkpoint, which holds what its manifest lists and no more")
    if target.is_file():
        raise ConfigError(f"{output} is a file: give the name of a folder")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{output} is not empty: give another folder, or remove it first")
    return target
