"""The half of a strategy that checkpoints are made of and filled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import Strategy as LightningStrategy
from torch import Tensor
from torch.optim import Optimizer

from scalekit.checkpoint import load, optimizer_state, state_json
from scalekit.checkpoint.adapter_base import check_base, fingerprints, together
from scalekit.checkpoint.format import AVERAGE
from scalekit.checkpoint.loop_state import resumed
from scalekit.checkpoint.model_state import ModelFormat
from scalekit.checkpoint.writer_process import WriteResult
from scalekit.data.loading.stream_states import merge
from scalekit.distributed.collectives import Collectives
from scalekit.distributed.shards import TensorShard, owned
from scalekit.errors import CheckpointError
from scalekit.strategies.averaged_weights import AveragedWeights
from scalekit.strategies.checkpoint_io import FolderCheckpointIO
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.shards import ReplicatedShards, Shards
from scalekit.strategies.whole_step import WholeStep
from scalekit.utils.log import log

_HYPERPARAMETERS = (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)


class CheckpointedStrategy(LightningStrategy):
    """A Lightning strategy whose checkpoints are folders, as `checkpoint.format` has them.

    What a rank holds of each tensor is all that the strategies differ in: see `Shards`.

    Args:
        job: that it runs.
        options: for the Lightning strategy.
    """

    def __init__(self, job: JobContext, **options: Any) -> None:
        super().__init__(**options)
        self.job = job
        self.initial_weights = job.checkpoint
        self.average: AveragedWeights | None = None
        self.step = job.step  # global batches that are done
        self._resumed_from = Path()
        self._trained_at_start: dict[str, bool] = {}
        self._base: dict[str, int] = {}  # fingerprints of the weights that an adapter is trained on

    def on_train_start(self) -> None:
        super().on_train_start()
        # What cannot be saved shows before the first step.
        self.weight_parts()
        if self._rank == 0:
            _ = self._config_files
        self._know_base()
        self._trained_at_start = self._trained_at_start or self._trains()
        if self.job.ema_decay is not None:
            self.average = AveragedWeights(self.job.ema_decay, self._format, self.shards)
            if self.initial_weights is not None:
                self.average.resume(self.weight_parts(), self.initial_weights)

    def _know_base(self) -> None:
        """Takes the fingerprint of the weights that an adapter is trained on.

        Raises:
            CheckpointError: on every rank: the job resumes from a checkpoint that was trained on others.
        """
        parts = [self.shards.part(name, tensor) for name, tensor in self._format.base().items()]
        if not parts:
            return
        mine = fingerprints(owned(parts, self._rank, self._world_size))
        self._base = together(self.collectives.gather(mine))
        if self.initial_weights is not None:
            check_base(self.initial_weights, self._base)

    # -- what a rank holds ------------------------------------------------------------------------------------------

    @cached_property
    def _format(self) -> ModelFormat:
        return ModelFormat(self._module)

    def weight_parts(self) -> dict[str, list[TensorShard]]:
        """This rank's parts of what a checkpoint's model holds, by the stem of their files' names."""
        found = self._format.tensors_by_file()
        return {stem: [self.shards.part(name, t) for name, t in tensors.items()] for stem, tensors in found.items()}

    @cached_property
    def shards(self) -> Shards:
        """What this rank holds of each tensor."""
        return ReplicatedShards(self._rank, self._world_size)

    # -- saving -----------------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: no rank gathers what `save_checkpoint` takes in parts."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: see `lightning_module_state_dict`."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Begins a checkpoint; every rank calls it. It is a folder, as `checkpoint.format` has it.

        Args:
            checkpoint: what Lightning has collected.
            filepath: where it shall stand.
            storage_options: see `FolderCheckpointIO`.

        Raises:
            CheckpointError: it could not be resumed, or not be written.
        """
        if not self.whole_step.may_be_saved(self._module.trainer.interrupted):
            return
        folder = Path(self.broadcast(str(filepath)))
        tensors, files = self._contents(checkpoint)
        contents = {"tensors": tensors, "files": self.whole_step.files or files}
        self.checkpoint_io.save_checkpoint(contents, folder, storage_options)
        # Whoever else saves, as Lightning's ModelCheckpoint, may delete an older one as soon as this returns.
        if not self.job.saves_in_background or storage_options is None:
            self.finish_saving()

    def dry_run_checkpoint(self) -> None:
        """Collects what a checkpoint would hold, so that what cannot be saved shows after the first step; every rank calls it.

        Raises:
            CheckpointError: on every rank: something cannot be saved.
        """
        checkpoint = self._module.trainer._checkpoint_connector.dump_checkpoint()
        self._contents(checkpoint)
        _, texts = state_json.as_text({name: checkpoint.get(name) for name in _HYPERPARAMETERS}, "")
        if texts and self._rank == 0:
            names = ", ".join(text.partition(".")[2] for text in texts)
            log("saved", f"hyper-parameters that no file holds stand in checkpoints by their text alone: {names}")

    def _contents(self, checkpoint: Mapping[str, Any]) -> tuple[dict[str, Sequence[TensorShard]], dict[str, bytes]]:
        """This rank's parts of all tensors, and the files beside them, of which rank 0's count."""
        parts: dict[str, Sequence[TensorShard]] = {**self.weight_parts()}
        if self.average is not None:
            parts |= self.average.parts(parts)
        settings = []
        for number, optimizer in enumerate(self.optimizers):
            shards = self.shards.of_optimizer(optimizer, self._format.names())
            inner = self.shards.inner_optimizer(optimizer)
            found, setting = optimizer_state.describe(inner, shards, self.shards.state_tensor)
            parts |= {optimizer_state.stem(number, key): each for key, each in found.items()}
            settings.append(setting)
        checkpoint = {name: value for name, value in checkpoint.items() if name != "state_dict"}
        texts = {name: state_json.as_text(checkpoint[name], name) for name in _HYPERPARAMETERS if name in checkpoint}
        checkpoint |= {name: kept for name, (kept, _) in texts.items()}
        checkpoint["optimizer_states"] = settings
        logged = self._module.trainer.callback_metrics
        changed = dict(self._trains().items() - self._trained_at_start.items())
        checkpoint["scalekit"] = {
            **self.job.saved,
            "step": self.step,
            "position": self.position,
            "logged": {name: float(value) for name, value in logged.items() if value.numel() == 1},
            "trained_since": changed,  # what callbacks have thawed or frozen
            "base": self._base,
            "by_text": [place for _, places in texts.values() for place in places],
            **self._stream_state(),
        }
        files = {**state_json.written(checkpoint, "state"), **(self._config_files if self._rank == 0 else {})}
        if self.average is not None:
            beside = [(name, content) for name, content in files.items() if name.startswith("model/")]
            files |= {f"{AVERAGE}/{name.removeprefix('model/')}": content for name, content in beside}
        return parts, files

    def remember(self) -> None:
        """Keeps what a checkpoint of now needs, which steps change; every rank calls it after a step, where it might save."""
        self.whole_step.remember(self._contents(self._module.trainer._checkpoint_connector.dump_checkpoint())[1])

    @cached_property
    def whole_step(self) -> WholeStep:
        """The last one, where ranks may leave the next in its middle."""
        return WholeStep(self._saved, lambda name, tensor: self.shards.part(name, tensor).data, self.collectives)

    def _saved(self) -> list[tuple[tuple[str, str], Tensor]]:
        """The model's tensors that checkpoints hold, with where."""
        found = self._format.tensors_by_file()
        return [((stem, name), tensor) for stem, family in found.items() for name, tensor in family.items()]

    def finish_saving(self) -> None:
        """Waits until the checkpoint that was begun stands; every rank calls it.

        Raises:
            CheckpointError: on every rank: it could not be written.
        """
        outcome: WriteResult | None = self.broadcast(self.checkpoint_io.last_outcome())
        if outcome is not None and outcome.done == "failed":
            raise CheckpointError(f"{outcome.folder} could not be saved: {outcome.why}")

    @cached_property
    def checkpoint_io(self) -> FolderCheckpointIO:  # type: ignore[override]
        """What writes this rank's parts, and reads what is beside them."""
        return FolderCheckpointIO(self._rank, self._world_size)

    def teardown(self) -> None:
        self.checkpoint_io.teardown()  # which not all of Lightning's strategies end
        super().teardown()

    @cached_property
    def _config_files(self) -> dict[str, bytes]:
        return self._format.config_files(getattr(self._module, "processor", None))

    @property
    def position(self) -> int:
        """Samples used so far; 0 where the data is not ScaleKit's."""
        return int(getattr(self._module.trainer.train_dataloader, "position", 0))

    def _stream_state(self) -> dict[str, Any]:
        """How far all ranks have read a stream; nothing where the data has places, of which the position is one."""
        loader: Any = self._module.trainer.train_dataloader
        return {"stream": merge(self.collectives.gather(loader.state()))} if hasattr(loader, "state") else {}

    # -- resuming ---------------------------------------------------------------------------------------------------

    def restore_weights(self) -> None:
        """Fills the model with the weights of the checkpoint that the job resumes from, where there is one."""
        if self.initial_weights is not None:
            load.fill(self.weight_parts(), self.initial_weights)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self._resumed_from = Path(checkpoint_path)
        found = {**self.checkpoint_io.load_checkpoint(self._resumed_from), "state_dict": {}}
        found["loops"]["fit_loop"] = resumed(
            self._module.trainer, found["loops"]["fit_loop"], self.job.micro_batches_done, self.step
        )
        logged = self._module.trainer._logger_connector._callback_metrics
        logged |= {name: torch.tensor(value) for name, value in found["scalekit"].get("logged", {}).items()}
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: a checkpoint's weights are this job's initial weights, which `setup` has placed.

        Raises:
            CheckpointError: nobody told `setup` of the checkpoint, as with a Trainer of the user's own.
        """
        if self.initial_weights is None:
            raise CheckpointError(
                "a Trainer of your own restores no ScaleKit checkpoint by `ckpt_path`: set the strategy's `initial_weights` to "
                "the checkpoint's folder as well, or resume with scalekit.fit(resume=...)"
            )

    def _trains(self) -> dict[str, bool]:
        """Whether each parameter is trained."""
        return {name: each.requires_grad for name, each in self._module.named_parameters()}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        self._trained_at_start = self._trains()
        parameters = dict(self._module.named_parameters())
        for name, is_trained in checkpoint["scalekit"].get("trained_since", {}).items():
            if name in parameters:
                parameters[name].requires_grad_(is_trained)
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        for number, (optimizer, saved) in enumerate(pairs):
            inner = self.shards.inner_optimizer(optimizer)
            shards = self.shards.of_optimizer(optimizer, self._format.names())
            optimizer_state.restore(inner, shards, number, saved, self._resumed_from, self.shards.opened)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Callbacks are restored before: some add parameters to optimizers. Nothing else is read by then."""
        return False

    # -- all ranks --------------------------------------------------------------------------------------------------

    @cached_property
    def collectives(self) -> Collectives:
        """What ranks send each other in a step."""
        return Collectives(self._rank, self._world_size, self.root_device)

    @property
    def _module(self) -> LightningModule:
        module = self.lightning_module
        if module is None:
            raise RuntimeError("the strategy is not connected to a LightningModule yet")
        return module

    @property
    def _rank(self) -> int:
        return int(getattr(self, "global_rank", 0))

    @property
    def _world_size(self) -> int:
        return int(getattr(self, "world_size", 1))
