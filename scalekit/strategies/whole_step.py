"""What the last whole step has left, so that a job that is stopped in the middle of the next one can still save it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from scalekit.distributed.collectives import Collectives
from scalekit.errors import CheckpointError
from scalekit.utils.log import warn

Place = tuple[str, str]
"""Of a tensor in a checkpoint: its file's stem, and its name."""


@dataclass(frozen=True)
class _Kept:
    """files: of the checkpoint, beside tensors. buffers: copies of those that it holds. versions: see `_versions`."""

    files: dict[str, bytes]
    buffers: dict[Place, Tensor]
    versions: dict[Place, int]


@final
class WholeStep:
    """Weights and their optimizer's state change with whole steps alone; buffers and counts with each micro-batch.

    Args:
        tensors: gives what checkpoints hold of the model.
        own: gives this rank's part of a tensor, by its name.
        collectives: of the job's ranks.
    """

    def __init__(
        self,
        tensors: Callable[[], Iterable[tuple[Place, Tensor]]],
        own: Callable[[str, Tensor], Tensor],
        collectives: Collectives,
    ) -> None:
        self._tensors, self._own, self._collectives = tensors, own, collectives
        self._kept: _Kept | None = None
        self.files: dict[str, bytes] | None = None  # of the checkpoint that comes next, once it has been recalled
        self.is_under_way = False  # whether the next step is

    def may_be_saved(self, is_failing: bool) -> bool:
        """Whether a checkpoint that somebody asks for now could be resumed; every rank calls it, unless the job is failing.

        Args:
            is_failing: an exception has ended the job. On several ranks the others may not have met one.

        Raises:
            CheckpointError: a step is under way, of which a checkpoint has no gradients.
        """
        if is_failing and self.files is None:
            is_found = self._collectives.size == 1 and self.recall()
            if not is_found:
                warn("nothing is saved on the exception: what the last whole step has left is not known any more")
            return is_found
        if self.is_under_way and self.files is None:
            raise CheckpointError(
                "a checkpoint was asked for in the middle of a step, where it has no gradients and could not be resumed: save "
                "once trainer.global_step has changed, or take checkpoint_every"
            )
        return True

    def remember(self, files: dict[str, bytes]) -> None:
        """Keeps what `recall` needs; every rank calls it after a step, where it might save.

        Args:
            files: of a checkpoint of now, beside tensors.
        """
        buffers = {
            place: each.detach().clone() for place, each in self._tensors() if not isinstance(each, nn.Parameter)
        }
        self._kept = _Kept(files, buffers, self._versions())

    def recall(self) -> bool:
        """Has the next checkpoint be that of the last whole step, in the middle of one; every rank calls it.

        Returns:
            False, on every rank, where something else has changed weights since, so that it cannot be saved any more.
        """
        kept = self._kept
        if any(self._collectives.gather(kept is None or kept.versions != self._versions())) or kept is None:
            return False
        for place, tensor in self._tensors():
            if place in kept.buffers:
                tensor.data = kept.buffers[place]
        self.files = kept.files
        return True

    def _versions(self) -> dict[Place, int]:
        """torch's counts of the changes of this rank's parts of parameters."""
        parts = {place: self._own(place[1], t) for place, t in self._tensors() if isinstance(t, nn.Parameter)}
        return {place: 0 if part.is_inference() else part._version for place, part in parts.items()}
