"""A forecast as people read it: a table with reasons, and a picture of the memory against the device's limit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from scalekit.errors import DependencyError
from scalekit.planning.candidate import Candidate
from scalekit.planning.memory.estimate import ITEMS
from scalekit.planning.plan import readable
from scalekit.planning.search import Forecast

GIB = 2**30


def table(forecast: Forecast) -> str:
    """The candidates, the reasons and the chosen one's memory, item by item."""
    task = forecast.task
    profile, device = task.profile, task.hardware.device
    tokens = f" x {profile.subject.tokens} tokens" if profile.subject.tokens > 1 else ""
    lines = [
        f"{profile.subject.name}: {profile.elements / 1e9:.3g}B parameters on {task.hardware.name}, "
        f"global batch {task.global_batch_size}{tokens}",
        f"limit {readable(task.limit_bytes)} a rank: {readable(device.memory_bytes)} less {task.margin:.0%} of margin",
    ]
    if profile.problem is not None:
        lines += ["", f"Only states are predicted, no activations: the model cannot be traced ({profile.problem})"]
    lines += ["", f"{'':30} {'batch':>9} {'peak':>10} {'step':>9} {'tokens/s':>10} {'MFU':>5}"]
    lines += [_row(candidate) for candidate in forecast.candidates]
    lines += [f"{name:30} {why}" for name, why in forecast.left_out.items()]
    return "\n".join([*lines, "", *_conclusion(forecast)])


def _row(candidate: Candidate) -> str:
    setting, time = candidate.setting, candidate.time
    batch = f"{setting.micro_batch_size} x {setting.accumulation}"
    mfu = "" if time.mfu is None else f"{time.mfu:.0%}"
    verdict = f"{time.seconds:8.3g}s {time.tokens_per_second:10,.0f} {mfu:>5}  bound by {time.bottleneck}"
    return f"{candidate.name:30} {batch:>9} {readable(candidate.memory.peak_bytes):>10}  " + (
        candidate.problem or verdict
    )


def _conclusion(forecast: Forecast) -> list[str]:
    chosen = forecast.chosen
    if chosen is None:
        return ["Nothing fits.", *(f"  - {line}" for line in forecast.advice)]
    memory, setting = chosen.memory, chosen.setting
    lines = [
        f"Chosen: {chosen.name}, micro-batch {setting.micro_batch_size}: the fastest that fits",
        f"Its peak of {readable(memory.peak_bytes)} is {memory.when}:",
    ]
    lines += [
        f"  {name.replace('_', ' '):24} {readable(memory.items[name]):>12}" for name in ITEMS if memory.items[name]
    ]
    if memory.host_bytes:
        lines.append(f"  in the host's memory     {readable(memory.host_bytes):>12} for this rank")
    return lines


def _label(candidate: Candidate) -> str:
    """A candidate's name, its micro-batch x accumulation, and the time of its step where it fits."""
    setting = candidate.setting
    speed = "too large" if candidate.problem else f"{candidate.time.seconds:.3g} s a step"
    return f"{candidate.name}, {setting.micro_batch_size} x {setting.accumulation}: {speed}"


def plot(forecast: Forecast, path: str | Path) -> None:
    """Draws a bar for each candidate, item by item, against the device's limit.

    Raises:
        DependencyError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("matplotlib", "plot", "a picture of the plan")
    from matplotlib.figure import Figure

    task, candidates = forecast.task, list(reversed(forecast.candidates))
    figure = Figure(figsize=(11, 1.8 + 0.36 * len(candidates)), layout="constrained")
    axes = figure.add_subplot()
    names = [_label(candidate) for candidate in candidates]
    left = [0.0] * len(candidates)
    for number, item in enumerate(ITEMS):
        widths = [c.memory.items[item] / GIB for c in candidates]
        if any(widths):
            axes.barh(names, widths, left=left, label=item.replace("_", " "), color=f"C{number}")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    device = task.hardware.device.memory_bytes / GIB
    axes.axvline(device, color="black", linewidth=1, label="the device's memory")
    axes.axvline(
        task.limit_bytes / GIB, color="black", linestyle="--", linewidth=1, label=f"less {task.margin:.0%} of margin"
    )
    axes.set_xlim(0, max([*left, device]) * 1.05)
    axes.set_xlabel("GiB a rank")
    axes.set_title(
        f"{task.profile.subject.name} on {task.hardware.name}, global batch {task.global_batch_size}", loc="left"
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=130)
