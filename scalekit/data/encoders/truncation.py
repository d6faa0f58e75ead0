"""The longest row that a job takes, and the longest that its model can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalekit.errors import ConfigError, RowError

_COUNT_FROM_PAD = frozenset(
    (
        "camembert",
        "mpnet",
        "longformer",
        "ibert",
        "data2vec-text",
        "xmod",
        "luke",
        "mluke",
        "markuplm",
        "layoutlmv3",
        "lilt",
        "esm",
    )
)
"""Kinds of models whose positions count from the pad token's id on, as RoBERTa's do, and not from 0."""


@dataclass(frozen=True)
class Limit:
    """How long rows may be, in tokens.

    Args:
        cut_at: rows are cut to as many; None leaves them whole.
        positions: that the model has; a row beyond them is refused. None where there is no end of them.
    """

    cut_at: int | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        if self.cut_at is not None and self.positions is not None and self.cut_at > self.positions:
            raise ConfigError(f"sequence_length={self.cut_at} is past the model's {self.positions} positions")

    @classmethod
    def of(cls, sequence_length: int | None, config: Any) -> Limit:
        """The job's limit and its model's."""
        inner = config.get_text_config() if hasattr(config, "get_text_config") else config
        positions = getattr(inner, "max_position_embeddings", None)
        kind = str(getattr(inner, "model_type", ""))
        if positions is not None and ("roberta" in kind or kind in _COUNT_FROM_PAD):
            positions -= (getattr(inner, "pad_token_id", None) or 0) + 1
        return cls(sequence_length, positions if positions is not None and positions > 0 else None)

    def cut(self, ids: list[int]) -> tuple[list[int], int]:
        """The tokens that are kept, and how many are lost.

        Raises:
            RowError: more than the model's positions, where nothing says to cut.
        """
        if self.cut_at is None:
            self.check(len(ids))
            return ids, 0
        return ids[: self.cut_at], max(len(ids) - self.cut_at, 0)

    def check(self, length: int) -> None:
        """See `cut`."""
        if self.positions is not None and length > self.positions:
            raise RowError(
                f"it has {length} tokens, and the model {self.positions} positions: sequence_length={self.positions} "
                "would cut such rows"
            )
