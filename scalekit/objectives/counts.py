"""Item counts: what a mean loss is a mean over, found in a batch before the model sees it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from scalekit.errors import ConfigError, shown

IGNORED = -100
"""The label that no loss counts: PyTorch's default `ignore_index`."""

_IGNORED_BY_HABIT = (IGNORED, 255, -1, 0)
"""Labels that losses leave out: PyTorch's default, that of segmentation maps, of class lists, and of masks."""

_CONFIGURED = ("semantic_loss_ignore_index", "ignore_index", "pad_token_id")
_LABELS = "labels"


class ItemCount(ABC):
    """How many items a batch has. The loss of several batches is their mean, weighted by these."""

    is_sum = False
    """Whether losses are added up as they are, since each is a sum over its batch and no mean."""

    @abstractmethod
    def of(self, batch: Any, samples: int) -> float:
        """The items of a collated batch of so many rows."""

    @abstractmethod
    def __str__(self) -> str:
        """What is counted, in words."""


@final
@dataclass(frozen=True)
class Samples(ItemCount):
    """Rows."""

    def of(self, batch: Any, samples: int) -> float:
        return samples

    def __str__(self) -> str:
        return "samples"


@final
@dataclass(frozen=True)
class Whole(ItemCount):
    """Of a loss that is a sum: each batch counts once, and nothing is divided."""

    is_sum = True

    def of(self, batch: Any, samples: int) -> float:
        return 1

    def __str__(self) -> str:
        return "nothing, it is a sum"


@final
@dataclass(frozen=True)
class Entries(ItemCount):
    """Numbers of one tensor of a batch; samples where it is missing or holds no whole numbers.

    Attributes:
        key: the tensor's name in a mapping, or its place in a tuple.
        ignored: the number that is not counted; None counts all.
        shifted: whether the first column is not counted, since the number at position i is predicted at position i - 1.
    """

    key: str | int
    ignored: int | None = IGNORED
    shifted: bool = False

    def of(self, batch: Any, samples: int) -> float:
        tensor = dict(tensors_of(batch)).get(self.key)
        if tensor is None or tensor.is_floating_point():
            return samples
        counted = tensor[..., 1:] if self.shifted and tensor.ndim > 1 else tensor
        return counted.numel() if self.ignored is None else int((counted != self.ignored).sum())

    def __str__(self) -> str:
        name = self.key if self.key == _LABELS else f"entries of {self.key!r}"
        tokens = "label tokens, shifted by one" if self.key == _LABELS else f"{name}, shifted by one"
        text = tokens if self.shifted else str(name)
        return text if self.ignored in (None, IGNORED) else f"{text}, without {self.ignored}"


@final
@dataclass(frozen=True)
class Counted(ItemCount):
    """By a function of the user's.

    Attributes:
        function: of a batch; it gives a number.
    """

    function: Callable[[Any], float]

    def of(self, batch: Any, samples: int) -> float:
        rule = f"item_count={shown(self.function)} must be a function of a batch that gives a number"
        try:
            items = float(self.function(batch))
        except Exception as error:
            raise ConfigError(f"{rule}: {type(error).__name__}: {error}") from error
        if not math.isfinite(items):
            raise ConfigError(f"{rule}, and gave {items}")
        return items

    def __str__(self) -> str:
        return "items, as counted by the function given"


def candidates(batch: Any, config: Any, likely: ItemCount) -> list[ItemCount]:
    """What a loss could be a mean over, what is likely first.

    Args:
        batch: one that the loss is taken of.
        config: the model's configuration, which may say what it ignores; or None.
        likely: what is taken where several hold.
    """
    configured = [value for name in _CONFIGURED if isinstance(value := getattr(config, name, None), int)]
    ignored = [*dict.fromkeys([*configured, *_IGNORED_BY_HABIT]), None]
    found: list[ItemCount] = [likely, Samples()]
    for key, tensor in tensors_of(batch):
        if tensor.is_floating_point() or not tensor.ndim:
            continue
        for shifted in (False, True) if tensor.ndim > 1 else (False,):
            found += [Entries(key, value, shifted) for value in ignored]
    return list(dict.fromkeys([*found, Whole()]))


def tensors_of(batch: Any) -> Iterator[tuple[str | int, Tensor]]:
    """The tensors of a batch by their names or places, labels first."""
    entries = (
        batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, (tuple, list)) else ()
    )
    found = [(key, value) for key, value in entries if isinstance(value, Tensor)]
    yield from sorted(found, key=lambda entry: entry[0] != _LABELS)
