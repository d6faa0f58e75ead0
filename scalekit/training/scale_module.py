"""The one LightningModule: any model, with its loss, its optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekit.checkpoint.model_state import ModelHolder
from scalekit.errors import ModelError
from scalekit.models.activation_checkpointing import recompute_blocks
from scalekit.objectives.counts import Counted
from scalekit.objectives.function_loss import FunctionLoss, LossFunction
from scalekit.objectives.model_loss import ModelLoss
from scalekit.objectives.objective import Objective
from scalekit.optim.optimizers import Schedule, attach_schedule, build_optimizer, build_schedule
from scalekit.strategies.base import BaseStrategy, T


@dataclass(frozen=True)
class OptimizerSettings:
    """How a `ScaleModule` is optimized; see `scalekit.fit` for each."""

    optimizer: str | Callable[[list[dict[str, Any]]], Optimizer] = "adamw"
    learning_rate: float = 1e-3
    schedule: str | Schedule = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@final
class ScaleModule(LightningModule, ModelHolder):
    """Wraps a model so that Lightning can train it under any strategy.

    Args:
        model: an `nn.Module`, or a function that builds one. A function is run by one process alone; under a sharded
            strategy no other ever holds the whole model.
        loss: a `torch.nn` loss or a function of the model's output and the batch's target, or an `Objective`; by default the
            model's own.
        settings: optimizer and schedule.
        total_steps: optimizer steps of the whole job, which schedules need.
        item_count: the items of a batch, where its loss is a mean over something that cannot be found out.
        processor: a tokenizer or processor, saved beside the model.
        recompute: what of the model's blocks is computed again in the backward pass: ``"none"``, ``"selective"`` or ``"full"``.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        loss: LossFunction | Objective | None = None,
        settings: OptimizerSettings | None = None,
        total_steps: int = 1,
        item_count: Callable[[Any], float] | None = None,
        processor: Any = None,
        recompute: str = "none",
    ) -> None:
        super().__init__()
        self._builder: Callable[[], nn.Module] | None = None if isinstance(model, nn.Module) else model
        self.model: nn.Module | None = model if isinstance(model, nn.Module) else None
        self.settings = settings or OptimizerSettings()
        self.total_steps = total_steps
        self.processor = processor
        self._loss, self._count = loss, None if item_count is None else Counted(item_count)
        self._loss_function = loss.function if isinstance(loss, Objective) else None  # a part of this, with its tensors
        self._recompute = recompute
        self._objective: Objective | None = None

    @property
    def objective(self) -> Objective:
        """Where the loss comes from.

        Raises:
            NoLossError: a Hugging Face model that takes no labels, without `loss`.
        """
        if self._objective is None:
            if isinstance(self._loss, Objective):
                self._objective = self._loss
            elif self._loss is not None:
                self._objective = FunctionLoss(self._loss, self._count)
            else:
                self._objective = ModelLoss.of(self._built, self._count)
        return self._objective

    def describe_loss(self) -> str:
        """In words, what the loss is a mean over; a model that is not built yet counts its own labels."""
        if self.model is None and self._loss is None:
            return "the model's labels"
        return self.objective.describe()

    @property
    def _built(self) -> nn.Module:
        if self.model is None:
            raise ModelError("the model is not built yet: Lightning builds it when training starts")
        return self.model

    def configure_model(self) -> None:
        if self.model is None and self._builder is not None:
            strategy = self.trainer.strategy
            self.model = strategy.build(self._builder) if isinstance(strategy, BaseStrategy) else self._builder()
        if self._recompute != "none":
            recompute_blocks(self._built, self._recompute)
            self._recompute = "none"
        self._built.train()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._built(*args, **kwargs)

    def call(self, function: Callable[[], T]) -> T:
        """Runs something of the model's within this module, where a strategy hangs its hooks on it."""
        return function()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.objective.mean_loss(self._built, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        outcome = self.objective.outcome(self._built, batch)
        return {"loss": outcome.loss, "outputs": outcome.outputs, "targets": outcome.targets}

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        return self.objective.prediction(self._built, batch)

    def configure_optimizers(self) -> Any:
        strategy, settings = self.trainer.strategy, self.settings
        engine = strategy if isinstance(strategy, BaseStrategy) else None
        optimizer = build_optimizer(
            settings.optimizer,
            self._built,
            settings.learning_rate,
            settings.weight_decay,
            settings.options,
            offloaded=engine is not None and "optimizer" in engine.spec.offload,
            low_precision_state=engine is not None and engine.precision == "bf16-true",
            scaled=engine is not None and engine.precision == "16-mixed",
        )
        schedule = build_schedule(settings.schedule, settings.warmup_steps, self.total_steps)
        return attach_schedule(optimizer, schedule)
