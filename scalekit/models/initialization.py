"""Initial weights: rank 0 builds or loads them once, and every other rank receives what it owns.

So the weights of a job are those that one process would start with, bit for bit, whatever the strategy; and no more than
one process of the job ever holds a whole model that it does not need. Where a checkpoint fills the model, none does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from scalekit.errors import ModelError
from scalekit.utils.torch_internals import TorchDispatchMode


def build_module(builder: Callable[[], nn.Module], here: bool) -> nn.Module:
    """Runs a builder for real where `here`, otherwise on the meta device, where tensors have no memory.

    Raises:
        ModelError: the builder fails on the meta device.
    """
    if here:
        return builder()
    try:
        with torch.device("meta"):
            return builder()
    except Exception as error:
        raise ModelError(
            f"the model's builder fails on the meta device, where all ranks but one build it: {error!r}. "
            "Let it create tensors without reading their values, or pass the built module instead"
        ) from error


def build_to_fill(builder: Callable[[], nn.Module]) -> nn.Module | None:
    """Runs a builder for a model that a checkpoint fills: parameters are on the meta device, buffers are what they always are.

    So the model is never whole in one process, and nothing is initialised or read only to be overwritten.

    Returns:
        None where something could come out otherwise than from a usual build: where random numbers are drawn for something
        else than parameters (which draw none here, and shift what comes after them), where a parameter is kept elsewhere than
        in modules, and where its values are needed.
    """
    made: MutableMapping[nn.Parameter, nn.Parameter] = WeakIdKeyDictionary()
    token = _WITH_VALUES.set(False)
    handle = register_module_parameter_registration_hook(_on_meta(made))  # type: ignore[arg-type]
    try:
        with _Draws() as draws:  # type: ignore[no-untyped-call]
            module = builder()
    except Exception:
        return None  # built for real, it says what is wrong with it
    finally:
        handle.remove()
        _WITH_VALUES.reset(token)
    return None if draws.seen or made or _has_lost_values(module) else module


def _has_lost_values(module: nn.Module) -> bool:
    """Whether something else than a parameter has no memory: a buffer, or a tensor that a module keeps as it likes."""
    own = (value for each in module.modules() for value in (*each._buffers.values(), *vars(each).values()))
    return any(isinstance(value, Tensor) and value.is_meta for value in own)


def needs_values() -> bool:
    """Whether a model that is built now keeps the values that its parameters are given."""
    return _WITH_VALUES.get() and not torch.empty(0).is_meta


_WITH_VALUES = ContextVar("_WITH_VALUES", default=True)


def _on_meta(made: MutableMapping[nn.Parameter, nn.Parameter]) -> Callable[..., nn.Parameter | None]:
    """Takes the memory of a parameter away as a module gets it; one that several modules get stays one."""

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        if parameter not in made:
            made[parameter] = _like(parameter, torch.empty_like(parameter, device="meta"))
        return made[parameter]

    return hook


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices random numbers that are drawn for tensors with memory."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        self.seen = self.seen or (is_random and not getattr(result, "is_meta", False))
        return result


def module_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter and buffer with the module that owns it; a tied one as often as it is owned."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                yield owner, name, parameter
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None:
                yield owner, name, buffer


Place = tuple[nn.Module, str]


def tied_names(module: nn.Module) -> list[tuple[nn.Module, str, list[Place]]]:
    """The tensors that stand in several places: the first place of each, and its other places."""
    places: dict[int, list[Place]] = {}
    for owner, name, tensor in module_tensors(module):
        places.setdefault(id(tensor), []).append((owner, name))
    return [(*first, others) for first, *others in places.values() if others]


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces every parameter and buffer; tied ones stay tied.

    Args:
        make: gives the new data of one tensor; the same tensor where it may stay.
    """
    made: dict[int, Tensor] = {}
    for owner, name, old in module_tensors(module):
        if id(old) not in made:
            data = make(old)
            if data is not old and isinstance(old, nn.Parameter):
                data = _like(old, data)
            made[id(old)] = data
            made[id(data)] = data
        if name in owner._parameters:
            owner._parameters[name] = made[id(old)]  # type: ignore[assignment]
        else:
            owner._buffers[name] = made[id(old)]


def materialize(module: nn.Module, device: torch.device) -> None:
    """Gives memory on `device` to tensors that have none; the others keep theirs."""
    replace_tensors(module, lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


def use_placeholders(module: nn.Module) -> None:
    """Makes parameters without memory into real ones of the same shape, all of whose elements are one."""

    def make(tensor: Tensor) -> Tensor:
        is_empty = tensor.is_meta and isinstance(tensor, nn.Parameter)
        return torch.empty((), dtype=tensor.dtype).expand(tensor.shape) if is_empty else tensor

    replace_tensors(module, make)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether a tensor's elements are all one in memory."""
    return 0 in tensor.stride()


def move_to_meta(module: nn.Module) -> None:
    """Takes the memory of every tensor away."""
    replace_tensors(module, lambda t: t if t.is_meta else torch.empty_like(t, device="meta"))


def broadcast_tensors(module: nn.Module, device: torch.device, buffers_only: bool = False) -> None:
    """Sends rank 0's tensors to all ranks by way of `device`, one at a time; tied ones once."""
    sent: set[int] = set()
    for _, _, tensor in module_tensors(module):
        if id(tensor) in sent or (buffers_only and isinstance(tensor, nn.Parameter)):
            continue
        sent.add(id(tensor))
        send_tensor(tensor, device)


def send_tensor(tensor: Tensor, device: torch.device) -> None:
    """Sends rank 0's tensor to all ranks by way of `device`."""
    data = tensor.data.to(device).contiguous()
    torch.distributed.broadcast(data, src=0)
    if data.data_ptr() != tensor.data_ptr():
        tensor.data.copy_(data)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """A model's repeated blocks: members of a list or sequence, at least two of one class, with parameters."""
    repeated = _repeated(module) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
    return repeated or [found for child in module.children() for found in repeated_blocks(child)]


def _repeated(container: nn.Module) -> list[nn.Module]:
    members = [m for m in container.children() if next(m.parameters(), None) is not None]
    classes = [type(m) for m in members]
    return [m for m in members if classes.count(type(m)) > 1]


def _like(old: nn.Parameter, data: Tensor) -> nn.Parameter:
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    extra: dict[str, Any] = old.__dict__
    new.__dict__.update(extra)
    return new
