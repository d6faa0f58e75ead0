"""Decides for a job what it leaves on "auto", by prediction, before anything is spent; and refuses what will not fit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalekit.config.markers import is_a
from scalekit.config.names import Checkpointing
from scalekit.config.precision import resolve_precision
from scalekit.config.settings import Job
from scalekit.config.strategy import StrategyConfig
from scalekit.distributed.world import World
from scalekit.errors import ConfigError, DoesNotFitError, InputsError, ModelError, NoLossError, ScaleKitError
from scalekit.hardware import Hardware, detect
from scalekit.loops import lightning_support
from scalekit.models.resolve import Model
from scalekit.objectives.coupled_loss import CoupledLoss
from scalekit.planning.candidate import Candidate, PlanRequest
from scalekit.planning.plan import readable
from scalekit.planning.profiling.model_inputs import profiled_model
from scalekit.planning.request import plan_request as planned
from scalekit.planning.search import Forecast, choose
from scalekit.training.decision_reasons import reasons

_FALLBACK_MICRO_BATCH = 8


@dataclass(frozen=True)
class FailedTrial:
    """What a probe has shown to be too large.

    Attributes:
        peak_bytes: that were predicted for it.
        why: in words.
    """

    peak_bytes: int
    why: str


@dataclass(frozen=True)
class Decision:
    """How a job is run.

    Attributes:
        strategy: that is used.
        precision: by its name.
        micro_batch_size: samples that one rank runs at once.
        activation_checkpointing: what of blocks is computed again in the backward pass.
        predicted: what `Plan.predicted` holds; empty where nothing could be predicted.
        reasons: in words.
        peak_bytes: predicted for a rank, of states alone where the model cannot be traced; 0 where nothing was predicted.
        wants_probe: whether it is to be tried out before it is relied on.
        parameters: elements of all, and of those that are trained; None where nothing could be predicted.
        uses_all: whether every trained parameter is known to have a gradient in each step.
    """

    strategy: StrategyConfig
    precision: str
    micro_batch_size: int
    activation_checkpointing: Checkpointing
    predicted: dict[str, Any]
    reasons: list[str]
    peak_bytes: int
    wants_probe: bool
    parameters: tuple[int, int] | None = None
    uses_all: bool = False


def decide(
    job: Job,
    model: Model,
    example: Callable[[], tuple[Any, Any]],
    device: str,
    world: World,
    plan_before: Mapping[str, Any],
    failed: FailedTrial | None = None,
    *,
    fill: Callable[[int], float] = lambda _: 1.0,
) -> Decision:
    """Predicts a job and decides what is open.

    Args:
        job: its settings.
        model: the job's, or its LightningModule as one.
        example: gives the row that costs most, and what makes a batch of such rows.
        device: ``"cuda"`` or ``"cpu"``.
        world: the job's processes.
        plan_before: of the run that is resumed, which keeps what was decided for it; empty for a new run.
        failed: what a probe has shown to be too large.
        fill: of a number of rows, the mean length of the longest of them, as a share of the longest row of all.

    Raises:
        DoesNotFitError: it will not fit, and the job does not say to run it regardless.
        BatchSizeError: the global batch cannot be split.
    """
    before = _before(job, world, device, plan_before)
    job = replace(job, **before)
    precision = resolve_precision(job.precision, device)
    try:
        row, collate = example()
        task = _task(job, model, collate([row, row]), precision, detect(world.local_size, world.num_nodes))
        task = replace(task, fill=fill)
        if failed is not None:
            task = replace(task, too_large_bytes=failed.peak_bytes)
        forecast = _chosen(job, task)
    except Exception as error:  # whatever a user's own model, rows or collator do: it is a prediction that fails here
        return _without_prediction(job, precision, world, error, failed)
    best = forecast.chosen or forecast.candidates[0]
    _check_selective(job, forecast.task.profile.problem or "")
    is_thin = best.problem is not None
    return Decision(
        best.setting.strategy,
        precision,
        best.setting.micro_batch_size,
        best.setting.recompute,
        _predicted(best, task),
        [*reasons(job, forecast, best), *_warnings(job, forecast, best, failed)],
        peak_bytes=best.memory.peak_bytes,
        # A resumed job has run so before.
        wants_probe="strategy" not in before
        and (job.memory_check == "probe" or (job.memory_check == "error" and is_thin)),
        parameters=(task.profile.elements, task.profile.trained_elements),
        uses_all=task.profile.uses_all,
    )


def _check_selective(job: Job, problem: str) -> None:
    """Whether what is kept of blocks stays as it was.

    Raises:
        ConfigError: the model changes a matrix product's result in place.
    """
    if job.checkpointing == "selective" and "has been mutated" in problem:
        raise ConfigError(
            "activation_checkpointing='selective' keeps the results of matrix products, and the model changes one in place (as "
            "ReLU(inplace=True) does): take 'full' or 'none'"
        )


def _chosen(job: Job, task: PlanRequest) -> Forecast:
    """What is best. A module's own step is left whole batches where they fit, since what it makes of parts is not known."""
    if job.micro_batch_size == "auto" and is_a(job.model, "lightning.pytorch.LightningModule"):
        ranks = task.hardware.world_size
        whole = choose(replace(task, micro_batch_size=job.batch // ranks))
        if whole.chosen is not None:
            return whole
    return choose(task)


def _before(job: Job, world: World, device: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What was decided for a run that is resumed, which keeps it: times measured again could turn the choice."""
    names = ["strategy", "micro_batch_size", "activation_checkpointing"]
    if plan.get("world_size") != world.size:
        # On other ranks at least what dropout draws by: micro-batches of the same size.
        shares = job.batch % (plan.get("micro_batch_size", 1) * world.size) == 0
        names = ["micro_batch_size"] if shares else []
    if plan.get("device") == device:
        names.append("precision")
    return {name: plan[name] if getattr(job, name) == "auto" else getattr(job, name) for name in names if name in plan}


def _task(job: Job, model: Model, example: Any, precision: str, hardware: Hardware) -> PlanRequest:
    loss = job.loss
    if loss is not None and job.loss_couples is not None:
        loss = CoupledLoss(loss)
    task = planned(
        profiled_model(model, example, samples=2, loss=loss, in_parts=job.item_count is None),
        hardware,
        global_batch_size=job.batch,
        strategy=job.strategy,
        precision=precision,
        micro_batch_size=job.micro_batch_size,
        activation_checkpointing=job.checkpointing,
        optimizer=job.optimizer,
        optimizer_options=job.optimizer_options,
    )
    return replace(task, strategies=_possible(job, _installed(task.strategies)))


def _installed(strategies: Sequence[StrategyConfig]) -> list[StrategyConfig]:
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    return [s for s in strategies if s.engine != "deepspeed" or has_deepspeed or len(strategies) == 1]


def _possible(job: Job, strategies: Sequence[StrategyConfig]) -> list[StrategyConfig]:
    """Those that can run what the job brings.

    Raises:
        ConfigError: none can.
    """
    whys = [lightning_support.refusal(job, each) for each in strategies]
    possible = [each for each, why in zip(strategies, whys, strict=True) if why is None]
    if not possible:
        raise ConfigError(str(whys[0]))
    return possible


def _without_prediction(
    job: Job, precision: str, world: World, error: Exception, failed: FailedTrial | None
) -> Decision:
    """The simple rules that remain where a model cannot be looked at."""
    is_certain = isinstance(error, ScaleKitError) and not isinstance(error, ModelError)
    if is_certain or isinstance(error, (InputsError, NoLossError)):
        raise error
    if failed is not None:
        raise DoesNotFitError(
            f"the job will not fit: {failed.why}; what needs less is unknown, since {type(error).__name__} keeps the model "
            "from being looked at: name a smaller micro_batch_size or another strategy"
        )
    name = job.strategy if job.strategy != "auto" else "single" if world.size == 1 else "ddp"
    size: int | str = job.micro_batch_size
    if isinstance(size, str):
        share = max(job.batch // world.size, 1)
        size = max(n for n in range(1, _FALLBACK_MICRO_BATCH + 1) if share % n == 0)
    reason = f"nothing is predicted: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    recompute: Checkpointing = "none" if job.checkpointing == "auto" else job.checkpointing
    wants_probe = job.memory_check == "probe"
    return Decision(StrategyConfig.load(name), precision, size, recompute, {}, [reason], 0, wants_probe)


def _warnings(job: Job, forecast: Forecast, best: Candidate, failed: FailedTrial | None) -> list[str]:
    """What is said where the margin is not kept.

    Raises:
        DoesNotFitError: the device is too small.
    """
    task = forecast.task
    if best.problem is None:
        return []
    peak, has = best.memory.peak_bytes, task.hardware.device.memory_bytes
    lacks_host_memory = peak <= task.limit_bytes
    text = f"{best.name} needs {readable(peak)} a rank, {best.memory.when}; a device has {readable(has)}"
    if lacks_host_memory:
        text = f"{best.name} {best.problem}"
    if failed is not None:
        raise _too_large(f"{failed.why}, and nothing that is predicted to need less is left", forecast.advice[1:])
    if job.memory_check != "warn" and (peak > has or lacks_host_memory):
        raise _too_large(text, [*forecast.advice, "memory_check='warn' runs it regardless"])
    return [f"the margin is thin: {text}"]


def _too_large(text: str, advice: Sequence[str]) -> DoesNotFitError:
    return DoesNotFitError("\n  - ".join([f"the job will not fit: {text}", *advice]))


def _predicted(best: Candidate, task: PlanRequest) -> dict[str, Any]:
    if task.profile.problem is not None:
        return {}
    kept = (
        "peak_bytes",
        "items",
        "when",
        "host_bytes",
        "step_seconds",
        "forward_seconds",
        "parts",
        "mfu",
        "bottleneck",
    )
    everything = best.as_dict()
    return {name: everything[name] for name in kept}
