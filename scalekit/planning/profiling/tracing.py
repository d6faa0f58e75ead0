"""One training step on fake tensors: what it allocates and frees, in order, and what each operation computes.

Fake tensors have shapes and types and no memory, so that a step of a model of any size runs on a laptop in seconds. A trace is
the list of what happened; strategies are laid over it afterwards (`memory`): they leave a block's own activations as they are.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from scalekit.errors import ScaleKitError
from scalekit.planning.profiling.operations import GROUPED, MORE_FLOPS, grouped_in_half, sort
from scalekit.utils.torch_internals import TorchDispatchMode, tree_iter

LIMIT_SECONDS = 60.0
"""The longest that a trace may take: a model whose layers loop over tokens in Python would never be done."""


class UntracedError(ScaleKitError):
    """A step that cannot be traced, or not in time."""


class Event(IntEnum):
    """What can happen at one moment of a trace; the subject is a storage, a parameter or a module."""

    ALLOCATE = 0
    FREE = 1
    GRADIENT = 2
    """A parameter's gradient is complete: autograd hands its storage over."""
    ENTER = 3
    """A module's forward begins (in the forward pass, or again where a block is computed again)."""
    LEAVE = 4
    ENTER_BACKWARD = 5
    """The gradient of a module's output is there."""
    LEAVE_BACKWARD = 6
    """The gradients of a module's inputs, or of its last parameter, are there."""
    BACKWARD = 7
    """The forward pass is over."""
    OPERATE = 8
    """An operation that reads or writes memory, as opposed to a view."""


@dataclass(frozen=True)
class Parameter:
    """A parameter as the step knows it.

    Attributes:
        name: the first of its names, where it is tied.
        shape: of the whole.
        element_bytes: of one element, as the model holds it.
        trained: whether it has a gradient.
    """

    name: str
    shape: tuple[int, ...]
    element_bytes: int
    trained: bool

    @property
    def elements(self) -> int:
        """Its size."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Trace:
    """One micro-batch's forward and backward pass.

    Attributes:
        kinds, subjects: the events in order, shape [events].
        storage_bytes: of each storage, shape [storages].
        handed: the storage that each parameter's GRADIENT event hands over, or -1; shape [parameters].
        flops, moved_bytes: of each operation, shape [operations].
        low_precision: whether an operation computes in less than float32, shape [operations].
        sorts: `Sort` of each operation, shape [operations]; empty where unknown.
        parameters: each once.
        modules: names of the modules that events speak of.
        owned: the parameters (indices) that a module owns itself, for each module.
        blocks: the modules (indices) that are repeated blocks.
        buffer_bytes: of all buffers.
    """

    kinds: NDArray[np.int8]
    subjects: NDArray[np.int32]
    storage_bytes: NDArray[np.float64]
    handed: NDArray[np.int32]
    flops: NDArray[np.float64]
    moved_bytes: NDArray[np.float64]
    low_precision: NDArray[np.bool_]
    parameters: list[Parameter]
    modules: list[str]
    owned: list[tuple[int, ...]]
    blocks: list[int]
    buffer_bytes: int
    sorts: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))


@dataclass
class _Log:
    """What is noted while a step runs."""

    kinds: list[int] = field(default_factory=list)
    subjects: list[int] = field(default_factory=list)
    storage_bytes: list[int] = field(default_factory=list)
    handed: dict[int, int] = field(default_factory=dict)
    flops: list[float] = field(default_factory=list)
    moved_bytes: list[float] = field(default_factory=list)
    low_precision: list[bool] = field(default_factory=list)
    sorts: list[int] = field(default_factory=list)

    def add(self, kind: Event, subject: int) -> None:
        self.kinds.append(kind)
        self.subjects.append(subject)


class _Recorder(TorchDispatchMode):
    """Notes every new storage, every freed one, and what each operation costs."""

    def __init__(self, log: _Log, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log, self._known = log, known
        self.index_of: dict[int, int] = {}
        self._alive: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = grouped_in_half(func, args, kwargs) if func in GROUPED else func(*args, **kwargs)
        inputs = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        made = False
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                made |= self.note(tensor)
        self._count(func, args, kwargs, out, inputs, made)
        return out

    def note(self, tensor: Tensor) -> bool:
        """Notes a tensor's storage where it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.index_of or key in self._known:
            return False
        log, index = self.log, len(self.log.storage_bytes)
        self.index_of[key] = index
        log.storage_bytes.append(storage.nbytes())
        log.add(Event.ALLOCATE, index)
        self._alive.append(weakref.ref(storage, lambda _: self._free(key)))
        return True

    def _free(self, key: int) -> None:
        self.log.add(Event.FREE, self.index_of.pop(key))

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], made: bool) -> None:
        packet = func._overloadpacket
        formula = flop_registry.get(packet) or MORE_FLOPS.get(packet)
        if not made and formula is None and not func._schema.is_mutable:
            return  # a view
        outputs = [t for t in tree_iter(out) if isinstance(t, Tensor)]
        self.log.add(Event.OPERATE, len(self.log.flops))
        self.log.flops.append(float(formula(*args, **kwargs, out_val=out)) if formula else 0.0)
        self.log.moved_bytes.append(float(sum(t.numel() * t.element_size() for t in (*inputs, *outputs))))
        self.log.low_precision.append(bool(inputs) and inputs[0].dtype in (torch.bfloat16, torch.float16))
        self.log.sorts.append(sort(packet.__name__, formula is not None))


class _Deadline(torch.overrides.TorchFunctionMode):
    """Ends what takes too long, where Python calls: an error from `__torch_dispatch__`, within torch, may end the process."""

    def __init__(self, limit_seconds: float) -> None:
        super().__init__()
        self._limit_seconds, self._start = limit_seconds, time.monotonic()

    def check(self) -> None:
        """Raises UntracedError where time is over."""
        if time.monotonic() - self._start > self._limit_seconds:
            raise UntracedError(f"a step on fake tensors takes more than {self._limit_seconds:g} s")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.check()
        return func(*args, **(kwargs or {}))


def trace(
    model: nn.Module, step: Callable[[], Tensor], blocks: list[nn.Module], limit_seconds: float = LIMIT_SECONDS
) -> Trace:
    """Runs `step` forward and backward and notes what happens; the caller has set the fake mode.

    Args:
        model: on fake tensors.
        step: gives the loss of one micro-batch.
        blocks: the model's repeated blocks.
        limit_seconds: the longest that it may take.

    Raises:
        UntracedError: it takes longer.
    """
    parameters = list(dict.fromkeys(model.parameters()))
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    index_of = {id(p): i for i, p in enumerate(parameters)}
    storages = {p.untyped_storage()._cdata for p in parameters}
    buffers = {b.untyped_storage()._cdata: b.untyped_storage().nbytes() for b in model.buffers()}
    owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False)) or m in blocks]
    if model not in owners:
        owners.insert(0, model)
    log = _Log()
    recorder, deadline = _Recorder(log, storages | set(buffers)), _Deadline(limit_seconds)
    with ExitStack() as stack:
        _watch_gradients(log, recorder, parameters, stack, deadline)
        _watch_modules(log, owners, stack)
        stack.enter_context(recorder)
        with deadline:
            loss = step()
        log.add(Event.BACKWARD, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
    return Trace(
        kinds=np.array(log.kinds, np.int8),
        subjects=_sorted_releases(log.kinds, log.subjects),
        storage_bytes=np.array(log.storage_bytes, np.float64),
        handed=np.array([log.handed.get(i, -1) for i in range(len(parameters))], np.int32),
        flops=np.array(log.flops),
        moved_bytes=np.array(log.moved_bytes),
        low_precision=np.array(log.low_precision, np.bool_),
        sorts=np.array(log.sorts, np.int8),
        parameters=[Parameter(names[id(p)], tuple(p.shape), p.element_size(), p.requires_grad) for p in parameters],
        modules=[name for m in owners for name, n in model.named_modules() if n is m],
        owned=[tuple(index_of[id(p)] for p in m.parameters(recurse=False)) for m in owners],
        blocks=[owners.index(b) for b in blocks],
        buffer_bytes=sum(buffers.values()),
    )


def _sorted_releases(kinds: list[int], subjects: list[int]) -> NDArray[np.int32]:
    """Storages freed one right after another, in order: autocast's cache frees its copies by their addresses."""
    ordered: list[int] = []
    for kind, run in groupby(zip(kinds, subjects, strict=True), key=lambda event: event[0]):
        same = [subject for _, subject in run]
        ordered += sorted(same) if kind == Event.FREE else same
    return np.array(ordered, np.int32)


def _watch_gradients(
    log: _Log, recorder: _Recorder, parameters: list[nn.Parameter], stack: ExitStack, deadline: _Deadline
) -> None:
    def hook(index: int) -> Callable[[Tensor], None]:
        def handed_over(parameter: Tensor) -> None:
            deadline.check()
            if parameter.grad is not None:
                log.handed[index] = recorder.index_of.get(parameter.grad.untyped_storage()._cdata, -1)
            log.add(Event.GRADIENT, index)

        return handed_over

    for index, parameter in enumerate(parameters):
        if parameter.requires_grad:
            handle = parameter.register_post_accumulate_grad_hook(hook(index))  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
            stack.callback(setattr, parameter, "grad", None)


def _watch_modules(log: _Log, owners: list[nn.Module], stack: ExitStack) -> None:
    for index, module in enumerate(owners):
        before, after = _module_hooks(log, index)
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after).remove)


def _module_hooks(log: _Log, index: int) -> tuple[Callable[..., None], Callable[..., None]]:
    def mark(kind: Event) -> Callable[[Tensor], None]:
        return lambda _: log.add(kind, index)

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        log.add(Event.ENTER, index)
        for tensor in _differentiable((args, kwargs)):
            if tensor.grad_fn is not None:
                tensor.register_hook(mark(Event.LEAVE_BACKWARD))  # type: ignore[no-untyped-call]

    def after(module: nn.Module, args: Any, output: Any) -> None:
        log.add(Event.LEAVE, index)
        for tensor in _differentiable(output):
            tensor.register_hook(mark(Event.ENTER_BACKWARD))  # type: ignore[no-untyped-call]

    return before, after


def _differentiable(tree: Any) -> Iterator[Tensor]:
    return (t for t in tree_iter(tree) if isinstance(t, Tensor) and t.requires_grad)
