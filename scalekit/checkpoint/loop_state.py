"""Lightning's counts of epochs and micro-batches, as they would be on these ranks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

_COUNTS = ("ready", "started", "processed", "completed")


def resumed(trainer: Trainer, saved: dict[str, Any], micro_batches_done: int | None, step: int) -> dict[str, Any]:
    """The state of the loop that a job resumes with.

    Steps are the same for any number of ranks; micro-batches are not, so they are counted again. Of an evaluation nothing is
    left: a checkpoint is saved before one, or after.

    Args:
        trainer: that resumes.
        saved: the state of the loop that the checkpoint holds, saved after a step.
        micro_batches_done: that this rank would have run of the epoch by now, 0 at its beginning; None leaves Lightning's own
            count.
        step: global batches that are done.
    """
    fresh = trainer.fit_loop.state_dict()
    state = {**saved, **{name: value for name, value in fresh.items() if name.startswith("epoch_loop.val_loop")}}
    if micro_batches_done is None:
        return state
    batches, epochs = saved["epoch_loop.batch_progress"], saved["epoch_progress"]
    if micro_batches_done:
        # As Lightning has it after a step: the micro-batch is processed, and not completed.
        before = batches["total"]["processed"] - batches["current"]["processed"]
        current = {**dict.fromkeys(_COUNTS, micro_batches_done), "completed": micro_batches_done - 1}
        total = {name: before + count for name, count in current.items()}
    else:
        # The epoch is through: the next one begins.
        epochs = {scope: dict.fromkeys(_COUNTS, counts["started"]) for scope, counts in epochs.items()}
        current = dict.fromkeys(_COUNTS, 0)
        total = dict.fromkeys(_COUNTS, batches["total"]["processed"])
        state["epoch_loop.state_dict"] = {"_batches_that_stepped": step}
    state["epoch_progress"] = epochs
    state["epoch_loop.batch_progress"] = {"current": current, "total": total, "is_last_batch": False}
    return state
