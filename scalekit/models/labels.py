"""What a row's label is for a model: one class, several at once, or numbers."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

from scalekit.errors import RowError


@dataclass(frozen=True)
class Labels(ABC):
    """The labels of a data set.

    Args:
        names: of what the model's head gives, one for each of its outputs.

    Attributes:
        problem: transformers' `problem_type`.
        type: of an encoded label, as `Encoder.made` has them.
    """

    names: tuple[str, ...]
    problem: ClassVar[str]
    type: ClassVar[str]

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """A label as the loss takes it.

        Raises:
            RowError: it is none of these.
        """

    @abstractmethod
    def example(self) -> Any:
        """A label of theirs, as data has it."""

    @abstractmethod
    def identity(self) -> tuple[Any, ...]:
        """All that `encode` depends on, as plain values."""


@final
@dataclass(frozen=True)
class Classes(Labels):
    """One class a row, or a word.

    Args:
        names: in the order of their numbers; numbers as text where the data has no names.
        numbered: the names in the order of the data's own numbers, where those are others.
    """

    numbered: tuple[str, ...] = ()
    problem: ClassVar[str] = "single_label_classification"
    type: ClassVar[str] = "int64"

    def encode(self, value: Any) -> int:
        if isinstance(value, bool):
            value = str(value) if str(value) in self._numbers else int(value)
        if self.numbered and isinstance(value, int) and 0 <= value < len(self.numbered):
            return self._numbers[self.numbered[value]]
        if isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        if isinstance(value, int) and 0 <= value < len(self.names):
            return value
        raise RowError(f"the label {value!r} is out of range: there are {shown(self.names)}")

    def example(self) -> str:
        return self.names[0]

    def identity(self) -> tuple[Any, ...]:
        return self.names, self.numbered

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


@final
@dataclass(frozen=True)
class SeveralClasses(Labels):
    """Any number of classes a row, each with a loss of its own: for each class how far the row is of it, from 0 to 1.

    Args:
        one: the classes, where a row lists those that it is of; None where it has a number for each class.
    """

    one: Classes | None = None
    problem: ClassVar[str] = "multi_label_classification"
    type: ClassVar[str] = "float32[]"

    def encode(self, value: Any) -> list[float]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise RowError(f"the label {value!r} should be a list: of classes, or of 0 and 1 for each of them")
        if self.one is not None:
            numbers = {self.one.encode(each) for each in value}
            return [float(number in numbers) for number in range(len(self.names))]
        found = [math.nan if each is None else float(each) for each in value]
        if len(found) != len(self.names) or not all(0 <= each <= 1 for each in found):
            raise RowError(
                f"the label {list(value)!r} should be a number from 0 to 1 for each of {shown(self.names)}, and has "
                f"{len(found)}"
            )
        return found

    def example(self) -> list[Any]:
        return [self.names[0]] if self.one is not None else [0.0] * len(self.names)

    def identity(self) -> tuple[Any, ...]:
        return "several", self.names, None if self.one is None else self.one.identity()


@final
@dataclass(frozen=True)
class Numbers(Labels):
    """A number a row, or a list of them, that the model's outputs should come near to."""

    problem: ClassVar[str] = "regression"

    @property
    def type(self) -> str:  # type: ignore[override]
        """A list where there are several."""
        return "float32" if len(self.names) == 1 else "float32[]"

    def encode(self, value: Any) -> float | list[float]:
        parts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        try:
            found = [float(part) for part in parts]
        except (TypeError, ValueError):
            found = []
        if len(found) != len(self.names) or not all(math.isfinite(each) for each in found):
            wanted = "a finite number" if len(self.names) == 1 else f"{len(self.names)} finite numbers"
            raise RowError(f"the label {value!r} should be {wanted}")
        return found[0] if len(found) == 1 else found

    def example(self) -> float | list[float]:
        return 0.0 if len(self.names) == 1 else [0.0] * len(self.names)

    def identity(self) -> tuple[Any, ...]:
        return "numbers", len(self.names)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Names as people sort them: by their letters, and by the numbers in them."""
    parts = {name: re.split(r"([0-9]+)", name) for name in names}
    return tuple(sorted(names, key=lambda name: ([int(p) if p.isdecimal() else p for p in parts[name]], name)))


def shown(names: tuple[str, ...]) -> str:
    """Classes, for messages."""
    return f"{len(names)} classes ({', '.join(names[:8])}{' ...' if len(names) > 8 else ''})"
