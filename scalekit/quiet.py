"""What a job says, and what is kept from it: one voice, and nothing that the user cannot act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from scalekit.world import World


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning tells of devices and tips at every start; the plan has said what matters."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # None is the user's to act on: torch's and Lightning's own use of each other's older names, a `validation_step`
            # without rows held out, and loaders that Lightning cannot know to begin at their position.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|lightning)\.")
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
            warnings.filterwarnings("ignore", message=r"You defined a `validation_step` but have no")
            warnings.filterwarnings(
                "ignore", message=r"You're resuming from a checkpoint that ended before the epoch ended"
            )
            yield
    finally:
        lightning.setLevel(level)


def let_rank_zero_speak(world: World) -> None:
    """Silences the other ranks' progress bars and remarks; their errors are still heard."""
    if world.rank == 0:
        return
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.getLogger("scalekit").setLevel(logging.ERROR)


def say(world: World, message: str) -> None:
    """Prints a line of the job's log, on rank 0."""
    if world.rank == 0:
        print(message, flush=True)
