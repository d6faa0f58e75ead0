"""The states of a stream's loader on all ranks, joined to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalekit.errors import StreamError


def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins all ranks' states at the same step to one, from which any number of ranks resumes.

    Raises:
        StreamError: they are not of the same step of the same job.
    """
    merged: dict[str, Any] = {**states[0], "lanes": {}}
    for state in states:
        differing = [name for name in merged if name != "lanes" and state[name] != merged[name]]
        for lane, place in state["lanes"].items():
            if merged["lanes"].setdefault(lane, place) != place:
                differing.append(f"lane {lane}")
        if differing:
            raise StreamError(f"the ranks' states differ in {', '.join(differing)}: they are not of the same step")
    return merged
