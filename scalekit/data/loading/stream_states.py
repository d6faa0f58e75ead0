"""The states of a stream's loader on all ranks, joined to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalekit.errors import StreamError

_RENAMED = {"lanes": "readers", "most_lanes": "most_readers"}


def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins all ranks' states at the same step to one, from which any number of ranks resumes.

    Raises:
        StreamError: they are not of the same step of the same job.
    """
    merged: dict[str, Any] = {**states[0], "readers": {}}
    for state in states:
        differing = [name for name in merged if name != "readers" and state[name] != merged[name]]
        for reader, place in state["readers"].items():
            if merged["readers"].setdefault(reader, place) != place:
                differing.append(f"reader {reader}")
        if differing:
            raise StreamError(f"the ranks' states differ in {', '.join(differing)}: they are not of the same step")
    return merged


def understood(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state by the names of now: those of checkpoints that were saved when readers were called lanes are others."""
    order = {_RENAMED.get(name, name): value for name, value in state["order"].items()}
    return {**{_RENAMED.get(name, name): value for name, value in state.items()}, "order": order}
