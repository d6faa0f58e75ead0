"""When a job saves, and when it stops because it was asked to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.callbacks.evaluation import is_due
from scalekit.callbacks.metrics import Metrics
from scalekit.checkpoint.format import checkpoint_name, published, step_of
from scalekit.checkpoint.retention import Rotation
from scalekit.checkpoint.writer_process import WriteResult
from scalekit.distributed.preemption import StopRequest
from scalekit.errors import CheckpointError, ConfigError, PreemptedError
from scalekit.utils.log import say, warn
from scalekit.utils.log_handlers import line

AUTO_SECONDS = 600.0
"""From step to step, as the ranks have measured it together: all save after the same one."""


class Checkpoints(Callback):
    """Saves every so many optimizer steps, and at the end; after the evaluation, where a step has one.

    A checkpoint that cannot be written is lost, and the training continues, where an older one stands.

    Args:
        folder: where checkpoints stand, in that of the run.
        total_steps: of the whole job.
        every: optimizer steps between two; ``"auto"`` saves after `AUTO_SECONDS` of steps, and where the rotation would keep a
            checkpoint for good or could find a better one; None at the end alone.
        resumed_step: the step that the job resumes from.
        rotation: which are kept.
        metrics: where evaluations are found.
        evaluates_at: whether a step is followed by an evaluation.
        request: tells whether somebody wants the job to stop, which then saves first.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        every: int | Literal["auto"] | None,
        resumed_step: int,
        rotation: Rotation,
        metrics: Metrics,
        evaluates_at: Callable[[int], bool],
        request: StopRequest,
    ) -> None:
        self._folder, self._total, self._every = folder, total_steps, every
        self._rotation, self._metrics, self._evaluates_at = rotation, metrics, evaluates_at
        self._request = request
        self._is_stopping = self._is_rehearsed = self._saves_on_exception = False
        self._unsaved_seconds = 0.0
        self._seen_step = self._saved_step = self._newest = resumed_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        strategy.close_epoch = partial(self._close_step, trainer)
        self._request.begin(self._folder.parent)
        is_alone, callbacks = trainer.world_size == 1, trainer.callbacks  # type: ignore[attr-defined]
        self._saves_on_exception = is_alone and any(map(_saves_on_exception, callbacks))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        strategy: Any = trainer.strategy
        if strategy.global_batch.leaves():
            self._leave_step(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        strategy: Any = trainer.strategy
        for outcome in strategy.checkpoint_io.outcomes():
            self._hear(outcome, trainer)
        step = strategy.step
        if step == self._seen_step:
            return
        if not self._is_rehearsed:
            strategy.dry_run_checkpoint()
            self._is_rehearsed = True
        self._seen_step, self._is_stopping = step, strategy.global_batch.is_stopping
        if self._saves_on_exception:
            strategy.remember()
        self._unsaved_seconds += strategy.global_batch.seconds
        if not self._evaluates_at(step) and not _ends_epoch(trainer):
            self._close_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best, found = self._rotation.best, self._metrics.evaluations[-1:]
        names = [name for name in (found[0] if found else {}) if name != "step"]
        if best is not None and best not in names:
            raise ConfigError(
                f"keep_best={best!r} is not found on the validation set, which gives {', '.join(names) or 'nothing'}"
            )
        if not trainer.sanity_checking and not _ends_epoch(trainer):
            self._close_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        if strategy.step != self._saved_step:  # after all other callbacks, which may have put an average in
            self._save(trainer)
        strategy.finish_saving()

    def _close_step(self, trainer: Trainer) -> None:
        """Saves where it is due; and stops. At the job's end `on_train_end` saves, since other callbacks may change weights."""
        strategy: Any = trainer.strategy
        step = strategy.step
        if step != self._total and (self._is_stopping or self._is_due(step)):
            self._save(trainer)
        if self._is_stopping and step != self._total:
            strategy.finish_saving()
            self._stop(trainer, f"after step {step}, which is saved: started again, the job resumes there")
        elif step != self._saved_step and strategy.global_batch.may_be_left:
            strategy.remember()

    def _is_due(self, step: int) -> bool:
        if self._every == "auto":
            rotation = self._rotation
            is_kept = rotation.every is not None and step % rotation.every == 0
            is_scored = rotation.best is not None and self._evaluates_at(step)
            return self._unsaved_seconds >= AUTO_SECONDS or is_kept or is_scored
        return is_due(step, self._every, self._total)

    def _leave_step(self, trainer: Trainer) -> None:
        """Stops in the middle of a step, with a checkpoint of the last whole one, where there can be one."""
        strategy: Any = trainer.strategy
        for outcome in strategy.checkpoint_io.outcomes(wait=True):
            self._hear(outcome, trainer)
        step, newest = strategy.step, self._newest
        if step != self._saved_step and strategy.whole_step.recall():
            self._save(trainer)
            newest = step
        strategy.finish_saving()
        self._stop(trainer, f"in step {step + 1}: started again, the job resumes after step {newest}")

    def _stop(self, trainer: Trainer, where: str) -> NoReturn:
        self._request.answered()
        message = line("stopped", f"by {self._request.reason or 'what another rank was asked by'} {where}")
        say(message)
        raise PreemptedError(message)

    def _save(self, trainer: Trainer) -> None:
        strategy: Any = trainer.strategy
        strategy.sync_buffers()
        for outcome in strategy.checkpoint_io.outcomes(wait=True):
            self._hear(outcome, trainer)
        step = self._saved_step = strategy.step
        self._unsaved_seconds = 0.0
        unwanted = self._unwanted(step) if trainer.is_global_zero else []
        trainer.save_checkpoint(self._folder / checkpoint_name(step), storage_options={"unwanted": unwanted})
        self._metrics.restart_clock()

    def _unwanted(self, step: int) -> list[str]:
        """The checkpoints that go once a step's stands."""
        older = [each for each in map(step_of, published(self._folder)) if each is not None and each < step]
        return [checkpoint_name(each) for each in self._rotation.unwanted([*older, step], self._metrics.evaluations)]

    def _hear(self, outcome: WriteResult, trainer: Trainer) -> None:
        """Rank 0's writer says what has become of a checkpoint; the others' of their own parts."""
        if not trainer.is_global_zero:
            return
        step = step_of(Path(outcome.folder)) or 0
        if outcome.done == "published":
            self._newest = max(self._newest, step)
        elif outcome.done == "failed" and self._newest == 0:
            raise CheckpointError(f"{outcome.folder} could not be saved, and no older checkpoint stands: {outcome.why}")
        elif outcome.done == "failed":
            warn(
                f"the checkpoint of step {step} could not be saved: {outcome.why}. The training continues; were it to "
                f"end now, all after step {self._newest} would be lost"
            )


def _saves_on_exception(callback: Callback) -> bool:
    """Whether a callback of the user's may save when an exception ends the job."""
    has_own = getattr(callback.on_exception, "__func__", None) is not Callback.on_exception
    return has_own and "scalekit." not in type(callback).__module__ and getattr(callback, "save_on_exception", True)


def _ends_epoch(trainer: Trainer) -> bool:
    """Whether the step under way is the last one of an epoch, whose checkpoint waits for what comes at an epoch's end."""
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())
