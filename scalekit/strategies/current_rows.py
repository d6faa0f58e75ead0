"""Which rows a strategy runs now, and which come next, as far as the loader knows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from scalekit.objectives.normalization import MicroBatch


@final
class CurrentRows:
    """What is known of the batch that is run, and of the pass over data that it belongs to.

    A loader of ScaleKit's hands over what it knows of batches in their order, not with them: a LightningModule's own hooks see
    a batch before its strategy does. Of another loader's batches nothing is known.

    Args:
        loader: gives that of the loop under way.

    Attributes:
        micro: what is known of the batch; None before the first one, or where nothing is.
        index: the place of the last batch of training in its global batch, over all ranks.
        own: rows of it that this rank runs and that count.
        of_batch: rows of its global batch, over all ranks.
        of_pass: rows that this rank has run, of the training or evaluation under way; None before the first.
    """

    def __init__(self, loader: Callable[[], Any]) -> None:
        self._loader = loader
        self.micro: MicroBatch | None = None
        self.index = self.own = self.of_batch = 0
        self.of_pass: int | None = None

    @property
    def are_known(self) -> bool:
        """Whether it is known which rows a batch has: the loader is ScaleKit's."""
        return hasattr(self._loader(), "next_known")

    @property
    def next_count(self) -> bool:
        """Whether the batch that is run next has rows that count, and none that stand in."""
        return not self.are_known or self._loader().next_known().items > 0

    @property
    def next_places(self) -> tuple[int, ...]:
        """The places of the rows that are run next; none where they are not known."""
        return self._loader().next_known().rows if self.are_known else ()

    def begin(self, trains: bool = False) -> MicroBatch | None:
        """Begins the batch that is run next; called once a batch.

        Args:
            trains: whether it is one of training.
        """
        self.micro = self._loader().consume() if self.are_known else None
        self.own = self.of_batch = 0
        if self.micro is not None:
            self.index = self.micro.index if trains else self.index
            self.own = len(self.micro.rows) if self.micro.items else 0
            self.of_batch = self.micro.samples
            self.of_pass = (self.of_pass or 0) + self.own
        return self.micro
