"""What a module logs: reduced over the rows of all ranks, when all ranks are there.

`self.log` is never a collective by itself, since a rank without rows logs nothing, and what hooks log may depend on the rank.
Values are kept by each rank, with the rows that they come from. They are reduced where every rank comes by: when an optimizer
step is done, and when a pass over the rows is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from torch import Tensor

from scalekit.config.precision import type_name
from scalekit.objectives.lightning_step import Heard
from scalekit.strategies.base import BaseStrategy

_DESCRIBED = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
)
"""Of Lightning's description of a value what tells it from others, beside how it is reduced."""


@dataclass(frozen=True)
class _Known:
    """What ranks tell each other of a value that is logged: enough to have it without having logged it.

    Attributes:
        meta: Lightning's description of it.
        dtype: of the number that is logged, of 32 bits at least; None for a metric.
    """

    meta: _Metadata
    dtype: torch.dtype | None


@final
class _Logged(_ResultMetric):
    """Lightning's own, which adds up in float64: what is read is the same in any order, on any ranks, after a resume.

    Args:
        known: what it is of.
        device: the rank's.
    """

    def __init__(self, known: _Known, device: torch.device) -> None:
        super().__init__(known.meta, is_tensor=known.dtype is not None)
        self.dtype_logged = known.dtype
        if self.is_tensor:
            self._defaults["value"] = self.value = self.value.to(torch.float64)
        self.to(device)

    @property
    def known(self) -> _Known:
        """What other ranks are told of it."""
        return _Known(replace(self.meta, _sync=None), self.dtype_logged)


@final
class Results(_ResultCollection):
    """Lightning's collection of logged values, which are means over rows, sums, least or largest ones.

    Args:
        strategy: the trainer's strategy.
        training: whether it is of training, and not of an evaluation.
    """

    def __init__(self, strategy: BaseStrategy, training: bool) -> None:
        super().__init__(training)
        self._strategy = strategy
        self._step: dict[str, dict[int, _Share]] = {}  # by the key, and the micro-batch
        self._open: set[str] = set()  # keys that have been logged since the pass was closed
        self._restored: set[str] = set()  # hooks whose values are counted on from a checkpoint

    def log(self, fx: str, name: str, value: Any, *args: Any, **options: Any) -> None:
        """See Lightning's `LightningModule.log`; ``sync_dist`` makes no difference: what ranks have is always reduced."""
        if not self._strategy.stands_in:
            super().log(fx, name, value, *args, **{**options, "sync_dist": True, "sync_dist_fn": _as_it_is})
        elif self._strategy.overheard is not None and isinstance(value, Tensor) and value.numel() == 1:
            reduce_fx = options.get("reduce_fx", "mean")
            reduced_by = reduce_fx if isinstance(reduce_fx, str) else reduce_fx.__name__
            self._strategy.overheard[f"{fx}.{name}"] = Heard(float(value), reduced_by)

    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        """Counts a value, once for each row; of no row, as what a rank without any has of a mean, nothing."""
        metric = self._own(key, value)
        self._open.add(key)
        if metric.is_tensor and metric.meta.is_mean_reduction and not batch_size:
            metric.has_reset = False
            return
        if metric.is_tensor and key in self._strategy.logged_sums and self._strategy.rows.own:
            # Lightning weighs a batch's sum by the batch's rows: so is each part's, and they add up.
            value = value * (self._strategy.rows.of_batch / self._strategy.rows.own)
        super().update_metrics(key, value, batch_size)
        if self.training and metric.meta.on_step and metric.is_tensor:
            share = _Share.of(value.detach().to(torch.float64), batch_size, metric.meta)
            self._step.setdefault(key, {})[self._strategy.rows.index] = share

    def close_step(self) -> None:
        """Has values that are logged by the step be those of the whole global batch; every rank calls it after one."""
        logged, self._step = self._step, {}
        keys = self._agree(logged)
        mine = [_joined(list(logged.get(key, {}).values()), self[key]) for key in keys]
        for key, number in zip(keys, self._over_ranks(keys, mine), strict=True):
            self[key]._forward_cache = number
            self[key].has_reset = False

    def close_pass(self) -> None:
        """Reduces what was logged since it was called last; every rank calls it when all have run their rows."""
        logged = [key for key in sorted(self._open) if self[key].meta.on_epoch]
        self._open.clear()
        keys = self._agree(logged)
        numbers = [key for key in keys if self[key].is_tensor]
        mine = [_of_pass(self[key], key in logged) for key in numbers]
        for key, number in zip(numbers, self._over_ranks(numbers, mine), strict=True):
            self[key]._computed = number
        for key in keys:
            self[key].has_reset = False
            if not self[key].is_tensor:
                self[key].compute()  # by torchmetrics' own collectives

    def shares(self) -> list[dict[str, Any]]:
        """What has been counted in the pass under way, over all ranks, as numbers and texts; every rank calls it."""
        logged = [
            key for key, each in sorted(self.items()) if each.meta.on_epoch and each.is_tensor and not each.has_reset
        ]
        keys = [key for key in self._agree(logged) if self[key].is_tensor]
        mine = [_of_pass(self[key], key in logged) for key in keys]
        return [
            {
                **_described(self[key].meta),
                "key": key,
                "dtype": type_name(self[key].dtype_logged),
                "number": float(share.number),
                "weight": float(share.weight),
            }
            for key, share in zip(keys, self._shared(keys, mine), strict=True)
        ]

    def restore(self, shares: Iterable[Mapping[str, Any]]) -> None:
        """Counts on from what `shares` gave; one rank calls it."""
        for share in shares:
            reduce_fx = getattr(torch, share["reduce_fx"])
            meta = _Metadata(**{**{name: share[name] for name in _DESCRIBED}, "reduce_fx": reduce_fx})
            metric = self._place(_Known(meta, getattr(torch, share["dtype"])))
            metric.value = torch.tensor(share["number"], dtype=torch.float64, device=self._strategy.root_device)
            if meta.is_mean_reduction:
                metric.cumulated_batch_size = torch.tensor(int(share["weight"]), device=self._strategy.root_device)
            self[share["key"]] = metric
            self._open.add(share["key"])
            self._restored.add(meta.fx)

    def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:
        """Lightning's own; the first value that a hook logs after the job was resumed is not the first one of its epoch."""
        if fx is not None and fx in self._restored:
            self._restored.discard(fx)
            return
        super().reset(metrics, fx)

    def _extract_batch_size(self, value: _ResultMetric, batch_size: int | None, meta: _Metadata) -> int:
        """The rows that a value comes from: known, and not guessed from the shape of a batch."""
        if batch_size is not None or not self._strategy.rows.are_known:
            found: int = super()._extract_batch_size(value, batch_size, meta)
            return found
        if self.batch is not None:
            return self._strategy.rows.own
        rows = self._strategy.rows.of_pass
        return 1 if rows is None else rows

    # -- all ranks ---------------------------------------------------------------------------------------------------

    def _agree(self, logged: Iterable[str]) -> list[str]:
        """What any rank has logged, in one order on all of them; a rank that lacks a value is given a place for it."""
        keys = sorted(logged)
        if self._strategy.collectives.size == 1:
            return keys
        same, any_ = self._strategy.collectives.agree(zlib.crc32("\n".join(keys).encode()), bool(keys))
        if same or not any_:
            return keys
        parts = self._strategy.collectives.gather({key: self[key].known for key in keys})
        everything = {key: known for part in parts for key, known in part.items()}
        for key, known in everything.items():
            if key not in self:
                self[key] = self._place(known)
        return sorted(everything)

    def _own(self, key: str, value: Any) -> _Logged:
        """The place of a value; Lightning's own becomes ours when it is logged first."""
        metric = self[key]
        if isinstance(metric, _Logged):
            return metric
        dtype = torch.promote_types(value.dtype, torch.float32) if metric.is_tensor else None
        own = self[key] = _Logged(_Known(metric.meta, dtype), self._strategy.root_device)
        return own

    def _place(self, known: _Known) -> _Logged:
        known.meta.sync = _Sync(fn=_as_it_is, _should=True)
        metric = _Logged(known, self._strategy.root_device)
        if not metric.is_tensor:
            module: Any = self._strategy.lightning_module
            metric.value = module.get_submodule(known.meta.metric_attribute or "")
        return metric

    def _over_ranks(self, keys: list[str], mine: list[_Share]) -> list[Tensor]:
        """The value of each, over all ranks."""
        return [_value([share], self[key]) for key, share in zip(keys, self._shared(keys, mine), strict=True)]

    def _shared(self, keys: list[str], mine: list[_Share]) -> list[_Share]:
        """The share of each that all ranks have together."""
        if not keys or self._strategy.collectives.size == 1:
            return mine
        device = self._strategy.root_device
        everybody = self._strategy.collectives.gather_tensor(torch.stack([share.tensor(device) for share in mine]))
        return [_joined([_Share(*each) for each in everybody[:, i]], self[key]) for i, key in enumerate(keys)]


@dataclass(frozen=True)
class _Share:
    """What one rank, or one micro-batch, has of a value.

    Attributes:
        number: of a mean, the sum over rows; else the value.
        weight: of a mean, its rows; else 1, or 0 where there is no value.
    """

    number: Tensor
    weight: Tensor | float

    @classmethod
    def of(cls, value: Tensor, rows: float, meta: _Metadata) -> _Share:
        """Of a value that comes from so many rows."""
        return cls(value * rows, rows) if meta.is_mean_reduction else cls(value, 1.0)

    def tensor(self, device: torch.device) -> Tensor:
        """Both numbers, shape [2], in float64."""
        return torch.stack(
            [torch.as_tensor(each, dtype=torch.float64, device=device) for each in (self.number, self.weight)]
        )


def _as_it_is(value: Tensor, *_: Any, **__: Any) -> Tensor:
    """What Lightning reduces a value by: it is reduced later. Lightning would warn of one that it is told not to reduce."""
    return value


def _described(meta: _Metadata) -> dict[str, Any]:
    return {name: getattr(meta, name) for name in _DESCRIBED} | {"reduce_fx": meta.reduce_fx.__name__}


def _of_pass(metric: _Logged, is_logged: bool) -> _Share:
    value = metric.value.detach()
    if metric.meta.is_mean_reduction:
        return _Share(value, metric.cumulated_batch_size.detach())
    return _Share(value, float(is_logged))


def _joined(shares: list[_Share], metric: _Logged) -> _Share:
    """Several as one."""
    if not shares:
        return _Share(torch.zeros((), dtype=torch.float64), 0.0)
    if metric.meta.is_mean_reduction:
        return _Share(
            sum((each.number for each in shares), torch.zeros_like(shares[0].number)),
            sum(each.weight for each in shares),
        )
    return _Share(_value(shares, metric).to(torch.float64), 1.0)


def _value(shares: list[_Share], metric: _Logged) -> Tensor:
    """The value over all shares, in the type of what is logged, but of 32 bits at least."""
    numbers = torch.stack([torch.as_tensor(each.number) for each in shares])
    weights = torch.stack([torch.as_tensor(each.weight, dtype=torch.float64, device=numbers.device) for each in shares])
    is_mean = metric.meta.is_mean_reduction
    found = numbers.sum() / weights.sum() if is_mean else metric.meta.reduce_fx(numbers[weights > 0])
    return found.to(metric.dtype_logged)
