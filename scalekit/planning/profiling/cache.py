"""Traces of Hugging Face models on disk, so that the same question is answered at once the next time.

A trace is kept under a hash of all it depends on: configuration, shapes of a batch, versions, and the way it was traced. A
module of the user's own is not kept: its code may change without a sign.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from scalekit.planning.profiling.tracing import Parameter, Trace
from scalekit.utils.paths import cache_folder

# Traces that another tracer made are not read.
_TRACER = sha256(
    b"".join(
        (Path(__file__).parent / f"{name}.py").read_bytes()
        for name in (
            *("tracing", "operations", "autocast", "block_stacks", "layer_repetition", "interpolation", "profile"),
            *(f"../../objectives/{each}" for each in ("objective", "model_loss", "head_loss")),
            "../../models/activation_checkpointing",
        )
    )
).hexdigest()
_LISTS = ("parameters", "modules", "owned", "blocks", "buffer_bytes")


def path(key: str, *way: object) -> Path:
    """The file of one trace of a model."""
    return cache_folder() / "traces" / f"{sha256(repr((key, _TRACER, *way)).encode()).hexdigest()}.npz"


def read(file: Path) -> Trace | None:
    """A trace that was kept; None where there is none, or a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as held:
            lists = json.loads(str(held["lists"]))
            arrays = {name: held[name] for name in held.files if name != "lists"}
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    lists["parameters"] = [Parameter(**{**each, "shape": tuple(each["shape"])}) for each in lists["parameters"]]
    lists["owned"] = [tuple(each) for each in lists["owned"]]
    return Trace(**arrays, **lists)


def write(file: Path, trace: Trace) -> None:
    """Keeps a trace, at once for readers; a cache that cannot be written is done without."""
    everything: dict[str, Any] = {each.name: getattr(trace, each.name) for each in fields(trace)}
    lists = {name: everything.pop(name) for name in _LISTS}
    lists["parameters"] = [asdict(parameter) for parameter in lists["parameters"]]
    beside = file.with_suffix(f".{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(beside, lists=np.array(json.dumps(lists)), **everything)
        beside.replace(file)
    except OSError:
        beside.unlink(missing_ok=True)
