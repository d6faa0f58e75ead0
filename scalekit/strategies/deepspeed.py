"""DeepSpeed ZeRO: optimizer state, gradients and parameters sharded, and offloaded where the strategy says so.

Lightning's DeepSpeed strategy is for GPUs and lets DeepSpeed own the accumulation. Here it runs on CPUs too, and Lightning
owns the accumulation: DeepSpeed sees every micro-batch's backward pass and one step a global batch, so that nothing is
divided twice and no micro-batch is left over at the end of an epoch.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer

from scalekit.config.strategy import StrategyConfig
from scalekit.errors import ConfigError, DependencyError
from scalekit.models.initialization import (
    broadcast_tensors,
    is_placeholder,
    materialize,
    module_tensors,
    use_placeholders,
)
from scalekit.objectives.normalization import StepLoss
from scalekit.strategies import deepspeed_nvme
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.deepspeed_config import configuration
from scalekit.strategies.deepspeed_external import gathers_what_is_read
from scalekit.strategies.deepspeed_gradients import FirstGradients
from scalekit.strategies.deepspeed_shards import OptimizerZeroShards, ParameterZeroShards, ZeroShards, replay_powers
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.precision import Plugin
from scalekit.utils.log import environment, hear

_PARTITION_BYTES = 1 << 30
"""How much of a model is whole at once on every rank while ZeRO-3 shares it out."""


class DeepSpeedPlugin(Plugin, DeepSpeedPrecision):
    """Steps through DeepSpeed's engine, which clips by itself and then knows the gradient norm."""

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        result = DeepSpeedPrecision.optimizer_step(self, optimizer, model, closure, **kwargs)
        self.gradient_norm = model.trainer.model.get_global_grad_norm()
        return result

    is_manual = False  # whether a module clips by itself

    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: DeepSpeed clips inside its step, by the norm over all ranks.

        Raises:
            ConfigError: the module asks for it by itself, which would have no effect.
        """
        if self.is_manual:
            raise ConfigError(
                "self.clip_gradients has no effect under DeepSpeed, which clips inside its step, by the norm over all ranks: "
                "take that call out and give `gradient_clip`, or take ddp or fsdp2"
            )


class ZeroStrategy(BaseStrategy, DeepSpeedStrategy):
    """`zero1`, `zero2`, `zero3` and their offloading forms."""

    def __init__(self, spec: StrategyConfig, precision: str, device: str, job: JobContext) -> None:
        _import(device, spec)
        if precision == "16-mixed":
            raise ConfigError(
                "DeepSpeed clips losses' scale along with gradients in '16-mixed': use 'bf16-mixed' or 'ddp'"
            )
        deepspeed_nvme.check(spec, precision)
        super().__init__(spec, precision, device, job, config={}, logging_level=logging.INFO)
        hear("DeepSpeed")
        self.precision_plugin = DeepSpeedPlugin(precision)  # type: ignore[arg-type]
        self._device = device
        self._built_optimizers: Any = None
        self._gradients: FirstGradients | None = None  # of the first step alone

    # -- Lightning's hooks ------------------------------------------------------------------------------------------

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Nothing to block: ZeRO-1 sums over ranks in its step, ZeRO-2 and 3 keep only their part of each gradient."""
        yield

    def setup_environment(self) -> None:
        """Lightning's own, without its refusal of CPUs."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        import deepspeed

        DDPStrategy.setup_distributed(self)
        self._set_node_environment_variables()
        deepspeed.init_distributed(self._process_group_backend, verbose=False)

    def setup(self, trainer: Any) -> None:
        if self.trained_by is not None:
            self._take_over(trainer, self.trained_by)
            return
        self.precision_plugin.is_manual = self.is_manual  # type: ignore[attr-defined]
        self._init_config_if_needed()
        self.precision_plugin.convert_module(self._module)
        if self._stage == 3:
            use_placeholders(self._module)
            self._built_optimizers = self._init_optimizers()
            self._partition(self._module)
        materialize(self._module, self.root_device)
        if self._stage == 3:
            self._restore_parts()
        elif self._rank == 0:
            self.restore_weights()
        broadcast_tensors(self._module, self.root_device, buffers_only=True)
        kept = [(owner, name, tensor) for owner, name, tensor in module_tensors(self._module) if name in owner._buffers]
        super().setup(trainer)
        for owner, name, tensor in kept:
            owner._buffers[name] = tensor.to(
                self.root_device
            )  # DeepSpeed casts buffers; their precision is the model's

    def _take_over(self, trainer: Any, trained_by: BaseStrategy) -> None:
        """Runs the module by the engine of DeepSpeed's that has trained it, and knows where its parts are."""
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        self.model = trained_by.model
        self._module.to(self.root_device)  # what is whole on every rank was moved away when the job ended
        self.barrier()

    def _init_optimizers(self) -> Any:
        """ZeRO-3's own come earlier: a user's groups by shape mean something only while parameters have their shapes."""
        if self._built_optimizers is not None:
            return self._built_optimizers
        try:
            return super()._init_optimizers()
        except MisconfigurationException as error:
            if "single optimizer" not in str(error):
                raise
            raise ConfigError(
                f"{self._called}.configure_optimizers gives several optimizers or schedules, and DeepSpeed steps one of each: "
                "take ddp or fsdp2"
            ) from error

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        """Lightning's own, without the device index that a CPU has none of."""
        import deepspeed

        engine, zero_optimizer, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.root_device.index or 0),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, zero_optimizer

    def _redirect(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Within what DeepSpeed's engine sets for a step: a parameter that a module reads of another is gathered then, too."""
        if self._stage < 3:
            return super()._redirect(name, *args, **kwargs)
        with gathers_what_is_read(self._module):
            return super()._redirect(name, *args, **kwargs)

    def determine_ddp_device_ids(self) -> list[int] | None:
        return None if self._device == "cpu" else [self.root_device.index]

    @cached_property
    def shards(self) -> ZeroShards:
        """What this rank holds of each tensor."""
        kind = ParameterZeroShards if self._stage == 3 else OptimizerZeroShards
        return kind(self._rank, self._world_size, lambda: self.deepspeed_engine.optimizer)

    # -- configuration ----------------------------------------------------------------------------------------------

    @property
    def _stage(self) -> int:
        return self.spec.stage

    def _format_config(self) -> None:
        """Lightning asks for the configuration here."""
        ranks = self._world_size, self.num_processes
        self.config = configuration(self._module, self.spec, self.precision, self._device == "cuda", ranks)

    @property
    def _drive(self) -> Path:
        """This job's own folder on a drive: one at a time works in a run's folder."""
        return deepspeed_nvme.folder(self.spec, Path(self._module.trainer.default_root_dir))

    def teardown(self) -> None:
        super().teardown()
        if "nvme" in self.spec.offload.values():
            deepspeed_nvme.clear(self._drive, self._rank)

    # -- weights and optimizer state --------------------------------------------------------------------------------

    def _partition(self, module: nn.Module) -> None:
        """Shares parameters out, some at a time, so that no rank but the one that built them holds them all."""
        import deepspeed
        from deepspeed.utils import groups

        init: Any = None
        for parameters in _chunks(module, _PARTITION_BYTES):
            for parameter in parameters:
                if is_placeholder(parameter):
                    parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=self.root_device)
            # Later chunks share what the first one set up: hpZ's groups, which DeepSpeed makes once a process, and the
            # swapper of parameters on NVMe.
            init = deepspeed.zero.Init(
                module=nn.ParameterList(parameters),
                config_dict_or_path=self.config,
                zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
                param_swapper=init.param_swapper if init is not None else None,
            )

    def _restore_parts(self) -> None:
        """ZeRO-3's parts of the weights, before its masters are made of them; what was made of the old ones is made again."""
        self.restore_weights()
        for parameter in self._module.parameters():
            parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]

    # -- parameters without gradients -------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        self._gradients = FirstGradients(self._module.parameters())

    def _close_global_batch(self) -> StepLoss | None:
        loss = super()._close_global_batch()
        if self._gradients is not None:
            self._gradients.check(self.shards.decayed(), self._format.names(), self.collectives)
            self._gradients = None
        return loss

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            replay_powers(self.shards.inner_optimizer(optimizer))


def _import(device: str, spec: StrategyConfig) -> None:
    """Imports DeepSpeed, with what it is to know of the machine."""
    try:
        if device == "cuda":
            import deepspeed as deepspeed

            return
        with environment("DS_ACCELERATOR", "cpu"):  # it would warn of having found none
            import deepspeed as deepspeed

            from scalekit.strategies import deepspeed_cpu
        deepspeed_cpu.use()
    except ImportError as error:
        raise DependencyError("deepspeed", "deepspeed", f"the strategy {spec.name!r}") from error


def _chunks(module: nn.Module, limit_bytes: int) -> Iterable[list[nn.Parameter]]:
    """A module's parameters in runs of about `limit_bytes`."""
    chunk: list[nn.Parameter] = []
    size_bytes = 0
    for parameter in module.parameters():
        if chunk and size_bytes + parameter.nbytes > limit_bytes:
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(parameter)
        size_bytes += parameter.nbytes
    if chunk:
        yield chunk
