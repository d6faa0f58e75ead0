"""The profile: what one training step of a model costs, found on fake tensors with no weights loaded and no GPU.

A step is traced at two micro-batch sizes. Between them every storage and every operation grows by a straight line, so two
traces give the step at any size; where the two traces differ in what they do, each size is traced by itself.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scalekit.config.names import Checkpointing
from scalekit.config.precision import Dtypes
from scalekit.errors import ConfigError, InputsError, ModelError, NoLossError
from scalekit.models.activation_checkpointing import can_recompute, recompute_blocks
from scalekit.models.initialization import build_module, repeated_blocks, replace_tensors
from scalekit.planning.profiling import cache, tracing
from scalekit.planning.profiling.autocast import OnGPU, autocast
from scalekit.planning.profiling.block_stacks import UnevenError, shorten
from scalekit.planning.profiling.interpolation import TRACED_SIZES, between, same_course
from scalekit.planning.profiling.layer_repetition import lengthen
from scalekit.planning.profiling.tracing import LIMIT_SECONDS, Event, Parameter, Trace, UntracedError
from scalekit.utils.torch_internals import tree_map_only

Step = Callable[[nn.Module, Any], Tensor]
"""Gives the loss of a model on one micro-batch."""

Example = Callable[[int], Any]
"""Makes a micro-batch of so many samples."""


@contextmanager
def _quietly() -> Iterator[None]:
    """What a model has to say while it is traced, it says again when it is trained."""
    transformers = logging.getLogger("transformers")
    level = transformers.level
    transformers.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.setLevel(level)


@dataclass(frozen=True)
class ProfiledModel:
    """What is profiled.

    Attributes:
        name: for messages.
        source: a module, whose weights are not touched, or a function that builds one.
        step: gives the loss.
        example: makes a micro-batch.
        tokens: a sample is this many of them; 1 where samples are no sequences.
        key: of the cache; None where the source cannot be known by a text.
        otherwise: what is profiled where this cannot be traced; None where there is nothing else.
    """

    name: str
    source: nn.Module | Callable[[], nn.Module]
    step: Step
    example: Example
    tokens: int = 1
    key: str | None = None
    otherwise: ProfiledModel | None = None


@dataclass
class Profile:
    """What one step of a model costs, in one precision.

    Attributes:
        subject: what was profiled.
        dtypes: of parameters and compute.
        parameters: each once.
        buffer_bytes: of all buffers.
        can_recompute: whether the model has repeated blocks.
        problem: why there are no traces, so that only states are known; None where there are.
        limit_seconds: the longest that a trace may take.
    """

    subject: ProfiledModel
    dtypes: Dtypes
    like_a_gpu: bool
    parameters: list[Parameter] = field(default_factory=list)
    buffer_bytes: int = 0
    can_recompute: bool = False
    problem: str | None = None
    limit_seconds: float = LIMIT_SECONDS
    _untraced: dict[str, str] = field(default_factory=dict)
    _is_line: dict[tuple[Checkpointing, torch.dtype, bool], bool] = field(default_factory=dict)
    _traces: dict[tuple[int, Checkpointing, torch.dtype, bool], Trace] = field(default_factory=dict)

    @property
    def trained_elements(self) -> int:
        """Elements of the parameters that have gradients."""
        return sum(p.elements for p in self.parameters if p.trained)

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(p.elements for p in self.parameters)

    @property
    def uses_all(self) -> bool:
        """Whether every trained parameter is known to have a gradient in each step."""
        trace = next(iter(self._traces.values()), None)
        if trace is None:
            return False
        met = {trace.parameters[place].name for place in trace.subjects[trace.kinds == Event.GRADIENT]}
        return all(parameter.name in met for parameter in self.parameters if parameter.trained)

    @property
    def traces_recomputed(self) -> bool:
        """Whether the model has repeated blocks, and its step with them recomputed has not failed to be traced."""
        return self.can_recompute and "full" not in self._untraced

    def at(
        self, micro_batch_size: float, recompute: Checkpointing, parameters: torch.dtype, keeps_casts: bool = False
    ) -> Trace:
        """The step of a micro-batch of this many samples.

        Args:
            micro_batch_size: samples; a part of one stands for a shorter one.
            recompute: what of blocks is computed again in the backward pass (activation checkpointing).
            parameters: their type as the forward pass meets them.
            keeps_casts: see `trace.autocast`; without recomputation the backward pass keeps them anyway.

        Raises:
            UntracedError: the step cannot be traced, with recomputation or without.
        """
        way = (
            recompute,
            parameters,
            keeps_casts and recompute != "none" and self.dtypes.compute != self.dtypes.parameters,
        )
        small, large = (self._traced(size, *way) for size in TRACED_SIZES)
        if way not in self._is_line:
            self._is_line[way] = same_course(small, large)
        return (
            between(small, large, micro_batch_size)
            if self._is_line[way]
            else self._traced(math.ceil(micro_batch_size), *way)
        )

    def _traced(self, size: int, recompute: Checkpointing, parameters: torch.dtype, keeps_casts: bool) -> Trace:
        key = size, recompute, parameters, keeps_casts
        if key not in self._traces:
            kept = self.subject.key and cache.path(self.subject.key, *key, self.dtypes, self.like_a_gpu)
            trace = (cache.read(kept) if kept else None) or self._fresh(*key)
            if kept and not kept.exists():
                cache.write(kept, trace)
            self._traces[key] = trace
        return self._traces[key]

    def _fresh(self, size: int, recompute: Checkpointing, parameters: torch.dtype, keeps_casts: bool) -> Trace:
        """A trace; one that fails fails alike in other types, and is not tried again."""
        if recompute in self._untraced:
            raise UntracedError(self._untraced[recompute])
        try:
            return self._short_or_whole(size, recompute, parameters, keeps_casts)
        except (ConfigError, InputsError, NoLossError):
            raise  # so would the first step
        except Exception as error:
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._untraced[recompute] = str(error) if isinstance(error, UntracedError) else text
            raise UntracedError(self._untraced[recompute]) from error

    def _short_or_whole(self, size: int, recompute: Checkpointing, parameters: torch.dtype, keeps_casts: bool) -> Trace:
        try:
            return self._run(size, recompute, parameters, keeps_casts, whole=False)
        except UnevenError:
            return self._run(size, recompute, parameters, keeps_casts, whole=True)

    @_quietly()
    def _run(
        self, size: int, recompute: Checkpointing, parameters: torch.dtype, keeps_casts: bool, whole: bool
    ) -> Trace:
        mode = FakeTensorMode()
        model = fake_model(self.subject.source, parameters, mode)
        stacks = [] if whole else shorten(model)
        with mode:
            blocks = repeated_blocks(model)
            if recompute != "none":
                recompute_blocks(model, recompute, OnGPU if self.like_a_gpu else nullcontext)
            batch = self.subject.example(size)
            trace = tracing.trace(model, lambda: self._loss(model, batch, keeps_casts), blocks, self.limit_seconds)
        for stack in stacks:
            trace = lengthen(trace, stack)
        return trace

    def _loss(self, model: nn.Module, batch: Any, keeps_casts: bool) -> Tensor:
        inputs = tree_map_only(Tensor, torch.clone, batch)
        if self.dtypes.compute == self.dtypes.parameters:
            with OnGPU() if self.like_a_gpu else nullcontext():
                return self.subject.step(model, _cast(inputs, self.dtypes.compute))
        with autocast(self.dtypes.compute, self.like_a_gpu, keeps_casts):
            return self.subject.step(model, inputs)


def profile(subject: ProfiledModel, dtypes: Dtypes, like_a_gpu: bool, limit_seconds: float = LIMIT_SECONDS) -> Profile:
    """Profiles a model; one that cannot be traced has its states alone, and says why.

    Raises:
        ModelError: the model cannot even be built on fake tensors, or does not take the batch.
        NoLossError: it returns no loss.
        ConfigError: a setting is none that the model can be trained with.
    """
    made = Profile(subject, dtypes, like_a_gpu, limit_seconds=limit_seconds)
    model = fake_model(subject.source, dtypes.parameters, FakeTensorMode())
    made.parameters = [
        Parameter(name, tuple(p.shape), p.element_size(), p.requires_grad) for name, p in model.named_parameters()
    ]
    made.can_recompute = can_recompute(model)
    made.buffer_bytes = sum(b.numel() * b.element_size() for b in model.buffers())
    try:
        made.at(TRACED_SIZES[0], recompute="none", parameters=dtypes.parameters)
    except UntracedError as error:
        is_late = isinstance(error.__cause__, UntracedError)
        if subject.otherwise is not None and not is_late:
            return profile(subject.otherwise, dtypes, like_a_gpu, limit_seconds)
        made.problem = str(error)
    return made


def fake_model(source: nn.Module | Callable[[], nn.Module], dtype: torch.dtype, mode: FakeTensorMode) -> nn.Module:
    """A model without memory: built on the meta device, or a copy of one that stands."""

    def fake(tensor: Tensor) -> Tensor:
        is_cast = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        return torch.empty(tensor.shape, dtype=dtype if is_cast else tensor.dtype)

    if isinstance(source, nn.Module):
        held: list[Any] = [*source.parameters(), *source.buffers()]
        with mode:
            memo = {
                id(t): nn.Parameter(_empty(t), t.requires_grad) if isinstance(t, nn.Parameter) else _empty(t)
                for t in held
            }
        try:
            model = copy.deepcopy(source, dict(memo))
        except Exception as error:
            raise ModelError(f"{type(source).__name__} cannot be copied to be profiled: {error}") from error
    else:
        model = build_module(source, here=False)
    with mode:
        replace_tensors(model, fake)
    return model.train()


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, batch)


def resize(batch: Any, samples: int) -> Example:
    """Makes micro-batches of any size that are otherwise like `batch`, whose tensors have `samples` rows."""

    def example(size: int) -> Any:
        def row(tensor: Tensor) -> Tensor:
            is_batched = tensor.ndim > 0 and tensor.shape[0] == samples
            return torch.empty((size, *tensor.shape[1:]) if is_batched else tensor.shape, dtype=tensor.dtype)

        return tree_map_only(Tensor, row, batch)

    return example
