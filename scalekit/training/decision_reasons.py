"""Why a job is run as it is, in words."""

from __future__ import annotations

from scalekit.config.names import CHECKPOINTINGS
from scalekit.config.settings import Job
from scalekit.planning.candidate import CHECKPOINTED, Candidate
from scalekit.planning.search import Forecast

_CLOSE = 1.25
"""How much slower another strategy may be to be worth a word."""


_FITS = {
    "none": "all activations fit",
    "selective": "without activation checkpointing it does not fit, and with the selective one it does",
    "full": "without full activation checkpointing it does not fit",
}


def reasons(job: Job, forecast: Forecast, best: Candidate) -> list[str]:
    """Why the best candidate was chosen; nothing where the job leaves nothing open."""
    open_ = [n for n in ("strategy", "micro_batch_size", "activation_checkpointing") if getattr(job, n) == "auto"]
    if not open_:
        return []
    if best.problem is not None:
        return [
            f"{best.name} with micro-batches of {best.setting.micro_batch_size} needs the least, and nothing keeps the margin"
        ]
    text = _why(open_, best)
    if "strategy" in open_:
        simpler = [c for c in forecast.candidates if _is_simpler(c, best)]
        close = [c for c in simpler if c.problem is None and c.time.seconds <= _CLOSE * best.time.seconds]
        if close:
            text += f"; {close[0].name} would take {close[0].time.seconds / best.time.seconds:.2f} times as long"
        if any(c.problem is not None for c in simpler):
            text += f"; too large: {', '.join(c.name for c in simpler if c.problem is not None)}"
    if forecast.task.profile.problem is not None:
        text += f". Only states are known, the model cannot be traced ({forecast.task.profile.problem})"
    return [text]


def _why(open_: list[str], best: Candidate) -> str:
    """Why it is the best one, by what was open."""
    size = best.setting.micro_batch_size
    if open_ == ["activation_checkpointing"]:
        return _FITS[best.setting.recompute]
    if "strategy" not in open_:
        checkpointing = CHECKPOINTED[best.setting.recompute]
        return f"micro-batches of {size} are the fastest that fit" + (f" with {checkpointing}" if checkpointing else "")
    return (
        f"{best.name}"
        + (f" with micro-batches of {size}" if "micro_batch_size" in open_ else "")
        + " is the fastest that fits"
    )


def _is_simpler(other: Candidate, best: Candidate) -> bool:
    """Whether somebody would rather take another candidate, were it as fast: for one that takes more upon itself nobody would.

    Such are those that shard or offload what the best one does not, and those that recompute where that does not.
    """
    one, chosen = other.setting, best.setting
    return (
        one.strategy.name != chosen.strategy.name
        and set(one.strategy.shards) <= set(chosen.strategy.shards)
        and set(one.strategy.offload) <= set(chosen.strategy.offload)
        and CHECKPOINTINGS.index(one.recompute) <= CHECKPOINTINGS.index(chosen.recompute)
    )
