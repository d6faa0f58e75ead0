"""How ranks agree in the middle of a long step that the job stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

LONG_STEP_SECONDS = 2.0
"""A shorter step is waited for: the ranks agree with its loss."""

_EVERY_SECONDS = 0.25


@final
class StopVotes:
    """Has all ranks leave a long step before the same micro-batch, where one of them has been asked to stop.

    A rank that left alone would be waited for in the others' next collective. So they meet within a long step too, before every
    micro-batch or every so many: how many follows from how long the step before took, which is the same number on every rank.
    Nobody waits at a meeting: the votes of one are counted at the next.

    Args:
        ranks: how many there are.
        device: where votes are counted.
    """

    def __init__(self, ranks: int, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self._every: int | None = None
        self._cast: tuple[Any, Tensor] | None = None

    @property
    def are_due(self) -> bool:
        """Whether the step that comes next is taken for a long one."""
        return self._every is not None

    def plan(self, milliseconds: int, micro_batches: int) -> None:
        """Decides how often ranks meet in the next step. Whole numbers add up to the same in any order, on every rank.

        Args:
            milliseconds: that the last step took, added up over the ranks.
            micro_batches: that it had, added up over the ranks.
        """
        seconds = milliseconds / 1000 / self._ranks
        each = milliseconds / 1000 / micro_batches if micro_batches else 0.0
        self._every = max(1, int(_EVERY_SECONDS / each)) if seconds >= LONG_STEP_SECONDS else None

    def leave(self, done: int, is_asked: Callable[[], bool]) -> bool:
        """Whether all ranks leave now; each asks before each micro-batch.

        Args:
            done: the micro-batches of the step that this rank has run.
            is_asked: whether this rank has been asked to stop.
        """
        if done == 0:
            self._count()  # what nobody counted in the step before, its loss has told
        if done == 0 or self._every is None or done % self._every:
            return False
        if self._ranks == 1:
            return is_asked()
        votes = self._count()
        if votes == 0:
            vote = torch.full((), float(is_asked()), device=self._device)
            self._cast = torch.distributed.all_reduce(vote, async_op=True), vote
        return votes > 0

    def _count(self) -> float:
        """The votes of the last meeting."""
        if self._cast is None:
            return 0.0
        (work, votes), self._cast = self._cast, None
        work.wait()
        return float(votes.item())
