"""Small public functions; the package's own modules have other names, so that neither hides the other."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from scalekit.config.checks import checked
from scalekit.config.documentation import configured_by
from scalekit.config.markers import AtLeast, Below, Group, Is, Place, Says, function_of
from scalekit.config.rules import hints_of
from scalekit.config.settings import Model, StepSettings, Task
from scalekit.hardware import Hardware
from scalekit.planning.candidate import MARGIN
from scalekit.planning.request import plan_request
from scalekit.planning.search import Forecast, choose

if TYPE_CHECKING:
    from scalekit.strategies.base import BaseStrategy

_LEAST_BATCH = 8
_Hardware = (
    Annotated[Any, Is("a Hardware", lambda value: isinstance(value, Hardware))]
    | Annotated[Place, Says("the name of hardware, such as '8xH100-80GB' or 'local', the path of a YAML file")]
)


def _said_to_nobody(what: str) -> None:
    """Takes no notice."""


@dataclass(frozen=True)
class PlanSettings(StepSettings):
    """What `plan` is asked.

    Raises:
        ConfigError: a value that its field does not allow.
    """

    model: Model
    """As for `fit`; of a Hugging Face model its configuration is enough (a folder, or a `config.json`)."""

    hardware: Annotated[_Hardware, Group.PARALLELISM] = "local"
    """``"8xH100-80GB"``, ``"64x8xH100-80GB"`` (nodes x devices), ``"local"``, the path of a YAML file, or a `Hardware`; see
    `scalekit.hardware`."""

    _: KW_ONLY

    task: Task = None
    """Which head a hub model gets; the one that it was saved with by default."""

    example: Annotated[Any, Group.MODEL] = None
    """A batch like those that the model will see, for models that are not Hugging Face's."""

    margin: Annotated[float, AtLeast(0), Below(1), Group.PARALLELISM] = MARGIN
    """The share of a device's memory that is left free."""

    progress: Annotated[Any, Is("a function of a text", function_of("what")), Group.TRACKING] = _said_to_nobody
    """A function that is called with what is looked at."""

    def __post_init__(self) -> None:
        hints = hints_of(PlanSettings)
        for each in fields(self):
            object.__setattr__(self, each.name, checked(each.name, getattr(self, each.name), hints[each.name]))


@configured_by(PlanSettings)
def plan(settings: PlanSettings) -> Forecast:
    """Predicts what a step of a model costs, in memory and time, every way that it could be run; nothing is run.

    Raises:
        ScaleKitError: unknown names, a batch that cannot be split, a model that cannot be built.
    """
    from scalekit.models.resolve import resolve_model
    from scalekit.planning.profiling.model_inputs import profiled_model, rows_of

    hardware = settings.hardware if isinstance(settings.hardware, Hardware) else Hardware.parse(settings.hardware)
    settings.progress("one step on fake tensors")
    model = resolve_model(settings.model, settings.task, settings.trust_remote_code)
    example = settings.example
    batch = settings.global_batch_size
    request = plan_request(
        profiled_model(model, example, rows_of(example), settings.loss, settings.sequence_length),
        hardware,
        global_batch_size=max(_LEAST_BATCH, hardware.world_size) if isinstance(batch, str) else batch,
        strategy=settings.strategy,
        precision=settings.precision,
        micro_batch_size=settings.micro_batch_size,
        activation_checkpointing=settings.checkpointing,
        optimizer=settings.optimizer,
        optimizer_options=settings.optimizer_options,
        margin=settings.margin,
    )
    return choose(request, settings.progress)


def strategy(name_or_path: str, precision: str = "auto") -> BaseStrategy:
    """A strategy ready for `lightning.Trainer(strategy=...)`; the Trainer's own `precision` stays unset.

    Args:
        name_or_path: a name in ``strategies/``, or the path of a strategy file.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed`` or ``"auto"``.

    Raises:
        ScaleKitError: no such strategy or precision, or a package is missing.
    """
    from scalekit.config.precision import resolve_precision
    from scalekit.config.strategy import StrategyConfig
    from scalekit.distributed.world import World, device_type
    from scalekit.strategies.factory import build_strategy

    device = device_type()
    spec = StrategyConfig.load(name_or_path)
    return build_strategy(spec, resolve_precision(precision, device), device, World.from_environment())
