"""Stacks of identical blocks, and a model with fewer of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from scalekit.errors import ScaleKitError
from scalekit.models.initialization import repeated_blocks

KEPT = 4


_WORTH_IT = 6


class UnevenError(ScaleKitError):
    """Blocks that look the same do not do the same."""


@dataclass(frozen=True)
class Stack:
    """Identical blocks, one after another.

    Attributes:
        path: the name of the list that holds them.
        left_out: how many are not traced.
    """

    path: str
    left_out: int


def shorten(model: nn.Module) -> list[Stack]:
    """Takes blocks out of a model, in place, where many identical ones follow each other."""
    outermost = {id(block) for block in repeated_blocks(model)}
    stacks = []
    for path, container in list(model.named_modules()):
        members = list(container.children())
        is_stack = isinstance(container, nn.ModuleList) and all(id(m) in outermost for m in members)
        if is_stack and len(members) >= _WORTH_IT and _identical(members):
            del container[KEPT:]
            stacks.append(Stack(path, len(members) - KEPT))
    return stacks


def _identical(members: Sequence[nn.Module]) -> bool:
    """Whether blocks have the same classes, parameters and settings, but for a number that counts them."""
    if len({_structure(m) for m in members}) > 1:
        return False
    columns = zip(*(list(_settings(m)) for m in members), strict=True)
    return all(_constant(column) or _counting(column) for column in columns)


def _structure(module: nn.Module) -> str:
    shapes = [(name, tuple(p.shape), p.requires_grad) for name, p in module.named_parameters()]
    classes = [(name, type(m).__qualname__, sorted(_plain(m))) for name, m in module.named_modules()]
    return f"{classes}{shapes}"


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: v for name, v in vars(module).items() if v is None or isinstance(v, (bool, int, float, str, tuple))}


def _settings(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        yield from (value for _, value in sorted(_plain(part).items()))


def _constant(column: Sequence[Any]) -> bool:
    return all(value == column[0] for value in column)


def _counting(column: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and value == column[0] + i for i, value in enumerate(column))
