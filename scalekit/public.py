"""Small public functions; the package's own modules have other names, so that neither hides the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from scalekit.hardware import Hardware
from scalekit.job import Job
from scalekit.planning.choose import MARGIN, Forecast, choose
from scalekit.planning.tasks import task as planned
from scalekit.settings import (
    AtLeast,
    Below,
    Count,
    Is,
    Place,
    Says,
    Unit,
    checked,
    function_of,
    hints_of,
)

if TYPE_CHECKING:
    from scalekit.engines.engine import Engine


def plan(
    model: Any,
    hardware: str | Hardware = "local",
    *,
    task: str | None = None,
    example: Any = None,
    loss: Any = None,
    sequence_length: int | None = None,
    strategy: str = "auto",
    precision: str = "auto",
    global_batch_size: int | None = None,
    micro_batch_size: int | str = "auto",
    activation_checkpointing: bool | str = "auto",
    optimizer: Any = "adamw",
    optimizer_options: Any = None,
    margin: float = MARGIN,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Forecast:
    """Predicts what a step of a model costs, in memory and time, every way that it could be run; nothing is run.

    Args:
        model: as for `fit`; of a Hugging Face model its configuration is enough (a folder, or a `config.json`).
        hardware: ``"8xH100-80GB"``, ``"64x8xH100-80GB"`` (nodes x devices), ``"local"``, the path of a YAML file, or a
            `Hardware`; see `scalekit.hardware`.
        task: which head a hub model gets; the one it was saved with by default.
        example: a batch like those that the model will see, for models that are not Hugging Face's.
        loss: as for `fit`.
        sequence_length: tokens a sample; 2048 by default, or the model's positions where they are fewer.
        strategy, precision, micro_batch_size, activation_checkpointing, optimizer, optimizer_options: as for `fit`; what is
            ``"auto"`` is chosen.
        global_batch_size: samples an optimizer step, over all ranks; one a rank, and 8 at least, by default.
        margin: the share of a device's memory that is left free.
        trust_remote_code: whether code that comes with a hub model may run.
        progress: is told what is looked at.

    Raises:
        ScaleKitError: unknown names, a batch that cannot be split, a model that cannot be built.
    """
    given = _checked(locals())
    from scalekit import models
    from scalekit.planning.subjects import rows_of, subject

    place = hardware if isinstance(hardware, Hardware) else Hardware.parse(given["hardware"])
    progress("one step on fake tensors")
    resolved = models.resolve(given["model"], given["task"], given["trust_remote_code"])
    asked = planned(
        subject(resolved, example, rows_of(example), loss, given["sequence_length"]),
        place,
        global_batch_size=given["global_batch_size"] or max(8, place.world_size),
        strategy=given["strategy"],
        precision=given["precision"],
        micro_batch_size=given["micro_batch_size"],
        activation_checkpointing=given["activation_checkpointing"],
        optimizer=given["optimizer"],
        optimizer_options=given["optimizer_options"],
        margin=given["margin"],
    )
    return choose(asked, progress)


_OF_PLAN_ALONE: dict[str, Any] = {
    "hardware": Annotated[Any, Is("a Hardware", lambda value: isinstance(value, Hardware))]
    | Annotated[Place, Says("the name of hardware, such as '8xH100-80GB' or 'local', the path of a YAML file")],
    "global_batch_size": Annotated[Count, Unit("samples")] | None,
    "margin": Annotated[float, AtLeast(0), Below(1)],
    "progress": Annotated[Any, Is("a function of a text", function_of("what"))],
}


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a plan; those that a job has too have the job's rules."""
    hints = hints_of(Job) | _OF_PLAN_ALONE
    return {name: checked(name, value, hints[name]) for name, value in settings.items() if name in hints}


def strategy(name_or_path: str, precision: str = "auto") -> Engine:
    """A strategy ready for `lightning.Trainer(strategy=...)`; the Trainer's own `precision` stays unset.

    Args:
        name_or_path: a name in ``strategies/``, or the path of a strategy file.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed`` or ``"auto"``.

    Raises:
        ScaleKitError: no such strategy or precision, or a package is missing.
    """
    from scalekit import dtypes, engines
    from scalekit.strategies import Strategy
    from scalekit.world import World, device_type

    device = device_type()
    spec = Strategy.load(name_or_path)
    return engines.engine(spec, dtypes.resolve(precision, device), device, World.from_environment())
