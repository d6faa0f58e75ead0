"""What a job came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn

from scalekit.callbacks.metrics import Metrics
from scalekit.planning.plan import Plan
from scalekit.training.evaluator import Evaluator
from scalekit.training.scale_module import ScaleModule
from scalekit.utils.log import duration


@dataclass(frozen=True)
class Run:
    """What a job came to.

    Attributes:
        folder: of the run: config.yaml, plan.json, metrics.jsonl, checkpoints/.
        plan: how it ran.
        history: one mapping an optimizer step, as in metrics.jsonl.
        evaluations: one mapping an evaluation: step, loss, items.
        checkpoint: the newest; its ``model/`` is what `from_pretrained` opens. None of a `fast_dev_run`.
        module: the LightningModule as trained; under a sharded strategy its parameters are this rank's parts.
    """

    folder: Path
    plan: Plan
    history: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    checkpoint: Path | None
    module: pl.LightningModule
    _evaluator: Evaluator

    @property
    def model(self) -> nn.Module:
        """The trained model, without what ScaleKit put around it."""
        inner = self.module.model if isinstance(self.module, ScaleModule) else self.module
        return inner if inner is not None else self.module

    def validate(self, data: Any = None) -> dict[str, Any]:
        """Loss, scores and what the module logs, over rows that are not trained on; every rank calls it, and each has all.

        Args:
            data: as of `fit`, with labels; of a LightningDataModule the `val_dataloader`. By default the
                job's validation set.

        Raises:
            ScaleKitError: rows that cannot be used, or a module without `validation_step`.
        """
        return self._evaluator.score("validate", data)

    def test(self, data: Any) -> dict[str, Any]:
        """The same, by the module's `test_step`; of a LightningDataModule the `test_dataloader`."""
        return self._evaluator.score("test", data)

    def predict(self, data: Any) -> list[Any]:
        """What the module's `predict_step` gives for each row, in the order of `data`; every rank calls it, and each has all.

        Of a model that is no LightningModule it is what the model gives, and of a Hugging Face model the logits. Tensors are on
        the CPU.

        Args:
            data: as of `fit`; of a LightningDataModule the `predict_dataloader`.

        Raises:
            ScaleKitError: rows that cannot be used, or a prediction that has no entry for each row.
        """
        return self._evaluator.predict(data)


def result_line(metrics: Metrics, checkpoint: Path | None, seconds: float) -> str:
    """What came of a job, in a line."""
    parts = []
    first, last = (metrics.evaluations or [{}])[0], (metrics.evaluations or [{}])[-1]
    told = next((name for name in sorted(last, key=lambda name: name != "loss") if name not in ("step", "items")), None)
    if told is not None:
        values = [f"{each[told]:.4g}" for each in (first, last) if told in each]
        parts.append(f"validation {told.replace('_', ' ')} {' -> '.join(dict.fromkeys(values))}")
    parts.append(f"took {duration(seconds)}")
    if checkpoint is not None:
        parts.append(f"the model is {checkpoint / 'model'}")
    return ", ".join(parts)
