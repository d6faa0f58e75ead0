"""PyTorch's FSDP2 (`fully_shard`): every rank keeps its part of parameters, gradients and optimizer state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property
from itertools import compress
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torchmetrics import Metric

from scalekit.config.strategy import StrategyConfig
from scalekit.distributed.world import World
from scalekit.errors import ConfigError
from scalekit.models.initialization import module_tensors, move_to_meta, repeated_blocks, tied_names
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.shards import RowShards, Shards
from scalekit.utils.torch_internals import tree_map_only


class _StepsThroughRoot(ModelParallelStrategy):
    """Runs steps through the LightningModule's `forward`, because it is the root of the sharded modules: the hooks that
    gather parameters hang there."""

    _redirect: Callable[..., Any]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.train_step_context():
            return self._redirect("training_step", *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self._redirect("validation_step", *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.test_step_context():
            return self._redirect("test_step", *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.predict_step_context():
            return self._redirect("predict_step", *args, **kwargs)


class FullyShardedStrategy(BaseStrategy, _StepsThroughRoot):
    """`fsdp2` and `hsdp`: shards the model's repeated blocks one by one, and what is left as a whole.

    Args:
        spec, precision, device, job: see `BaseStrategy`.
        world: the job's processes.
    """

    def __init__(self, spec: StrategyConfig, precision: str, device: str, world: World, job: JobContext) -> None:
        if precision == "16-mixed":
            raise ConfigError("the strategy 'fsdp2' does not scale losses, which '16-mixed' needs: use 'bf16-mixed'")
        super().__init__(spec, precision, device, job)
        self._group_size = spec.group_size(world.size, world.local_size)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self._world_size, 1
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Lightning's own asks the user to shard in `configure_model`; here the strategy does it, for any module."""
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self._module)
        if self.trained_by is None:
            self._shard(self._module)
        self.restore_weights()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _redirect(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Through the root of the sharded modules, whose hooks gather parameters."""
        return self._forward_redirection(self._module, self._module, name, *args, **kwargs)

    @cached_property
    def shards(self) -> Shards:
        """What this rank holds of each tensor."""
        return RowShards(self._rank, self._world_size, self._group_size)

    def _shard(self, module: nn.Module) -> None:
        scalars = [name for name, parameter in module.named_parameters() if not parameter.ndim]
        if scalars:
            raise ConfigError(
                f"the strategy 'fsdp2' does not shard parameters that are single numbers, such as {scalars[0]!r}: take zero2, "
                "zero3 or ddp, or give the parameter the shape [1]"
            )
        full = [tensor.data for tensor in _unique(module)]
        is_sent = self.broadcast([not tensor.is_meta for tensor in full])  # the rest is in a checkpoint
        ties = tied_names(module)
        move_to_meta(module)
        mesh = self._mesh()
        blocks = repeated_blocks(module)
        for block in blocks:
            block.register_forward_hook(_own_output)  # before FSDP2's own, and so called before it
        for part in (*blocks, module):
            fully_shard(part, mesh=mesh, mp_policy=self._policy())
        with _metrics_kept(module, self.root_device):
            module.to_empty(device=self.root_device)
        for owner, name, others in ties:
            for other, other_name in others:
                setattr(other, other_name, getattr(owner, name))
        for source, target in compress(zip(full, _unique(module), strict=True), is_sent):
            self._receive(target, source)

    def _mesh(self) -> DeviceMesh:
        """Of the job's ranks; where nodes have copies, its second dimension are the ranks of one."""
        if self._group_size == self._world_size:
            return self.device_mesh["data_parallel"]
        shape = self._world_size // self._group_size, self._group_size
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("copies", "shards"))

    def _policy(self) -> MixedPrecisionPolicy:
        """Gathers parameters in the type that computes, reduces gradients in the type promised. Autocast runs inside and
        keeps norms and losses in float32, as under every other strategy."""
        types = self.dtypes
        return MixedPrecisionPolicy(types.compute, types.reduction, cast_forward_inputs=False)

    @torch.no_grad()
    def _receive(self, target: Tensor, source: Tensor) -> None:
        """Takes this rank's part of a tensor that rank 0 has whole."""
        shape = target.shape
        whole = source.to(self.root_device) if self._rank == 0 else torch.empty(shape, dtype=source.dtype)
        whole = whole.to(self.root_device).contiguous()
        torch.distributed.broadcast(whole, src=0)
        if isinstance(target, DTensor):
            part = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
            target.to_local().copy_(part.to_local())
        else:
            target.copy_(whole)


@contextmanager
def _metrics_kept(module: nn.Module, device: torch.device) -> Generator[None, None, None]:
    """Leaves what metrics have counted, and begin from, as it was: all of their tensors are moved with the parameters."""
    metrics = [part for part in module.modules() if isinstance(part, Metric)]
    kept = [(copy.deepcopy(metric._defaults), copy.deepcopy(metric.metric_state)) for metric in metrics]
    yield
    for metric, (defaults, states) in zip(metrics, kept, strict=True):
        metric._defaults = defaults
        for name, state in states.items():
            setattr(metric, name, state)
        metric.to(device)


def _unique(module: nn.Module) -> list[Tensor]:
    """Every parameter and buffer once, in an order that sharding does not change."""
    return list({id(tensor): tensor for _, _, tensor in module_tensors(module)}.values())


def _own_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: copies the views that a block returns, as a linear layer does over a sequence.

    FSDP2 gathers a block for the backward pass when the gradient of its output comes. Of a view that is changed in place behind
    the block, autograd does not tell it: the weights would not be there, or others would.
    """
    return tree_map_only(Tensor, lambda each: each if each._base is None else each.clone(), output)
