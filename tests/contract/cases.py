"""The cases of the contract with Lightning, by name."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.callbacks.finetuning import BaseFinetuning
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric

from tests.contract.case import HELD_OUT, ROWS, STRATEGIES, Case, loader


class Plain(pl.LightningModule):
    """Two layers by SGD with momentum, and its loss logged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.body(x)))
        return found

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Logs(Plain):
    """By every kind of reduction, from every kind of hook, whole numbers too."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        errors = (self(batch[0]) - batch[1]).abs()
        self.log("largest", errors.max(), on_step=False, on_epoch=True, reduce_fx="max")
        self.log("smallest", errors.min(), on_step=False, on_epoch=True, reduce_fx="min")
        self.log("seen", float(len(errors)), on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        self.log_dict({"both": errors.mean(), "other": 2 * errors.mean()}, on_step=True, on_epoch=True)
        return self.loss(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(batch[0]):
            self.log("after", batch[1].mean(), on_step=False, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.log("hits", (self(batch[0]) > batch[1]).float().mean(), batch_size=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        self.log("constant", 3.0, sync_dist=True)


class Metrics(Plain):
    """torchmetrics' metrics, logged as objects and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.train_error, self.val_error, self.by_hand = MeanAbsoluteError(), MeanAbsoluteError(), MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.train_error(self(batch[0]), batch[1])
        self.log("train_error", self.train_error, on_step=False, on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self(batch[0])
        self.val_error(outputs, batch[1])
        self.by_hand.update(outputs.mean(), weight=len(outputs))
        self.log("val_error", self.val_error)

    def on_validation_epoch_end(self) -> None:
        self.log("by_hand", self.by_hand.compute())
        self.by_hand.reset()


class Collects(Plain):
    """Keeps what it has seen in lists and counts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.rows = 0
        self.register_buffer("total", torch.zeros(()))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.trainer.sanity_checking:
            self.seen += self(batch[0]).flatten().tolist()
            self.rows += len(batch[0])

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking and self.seen:
            self.log("mean_of_list", sum(self.seen) / len(self.seen))
        self.seen.clear()


def everybody(value: float) -> float:
    """The sum over all ranks."""
    if not torch.distributed.is_initialized():
        return value
    found = torch.tensor(float(value))
    torch.distributed.all_reduce(found)
    return float(found)


class PlateauByEpoch(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class PlateauByStep(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0, threshold=0.1)
        block = {"scheduler": plateau, "monitor": "train_loss", "interval": "step", "frequency": 1}
        return {"optimizer": optimizer, "lr_scheduler": block}


class Frequency(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 2}}


class TrainersNumbers(Plain):
    """Reads the length of the job from its trainer."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        epochs, steps = self.trainer.max_epochs or 0, self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
        self.read = [epochs, int(steps)]
        return [optimizer], [schedule]


class TwoOptimizers(Plain):
    """Manual optimization, with an optimizer for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
        self.log("train_loss", self.loss(batch), on_epoch=True)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9) for part in (self.body, self.head)]


class ManualClips(TwoOptimizers):
    """Manual optimization with one optimizer, clipped by value."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class InPlace(Plain):
    """Layers over a sequence, whose outputs are views, and change in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(1, 6)
        shared = nn.LeakyReLU(inplace=True)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0), shared, nn.Linear(6, 6), shared)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.first(x.unsqueeze(-1))).mean(1))
        return found


class HasLoaders(Plain):
    """Makes its own loaders, of rows that it prepares."""

    def prepare_data(self) -> None:
        self.is_prepared = True

    def setup(self, stage: str) -> None:
        self.rows, self.held_out = loader(ROWS, 1), loader(HELD_OUT, 2)

    def train_dataloader(self) -> Any:
        return self.rows

    def val_dataloader(self) -> Any:
        return self.held_out


class Gan(pl.LightningModule):
    """A generator and a discriminator, as Lightning's own example has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        real, noise = batch[0], batch[1].expand(-1, 4)
        first, second = self.optimizers()
        score = nn.functional.binary_cross_entropy_with_logits
        self.toggle_optimizer(first)
        fooled = self.discriminator(self.generator(noise))
        loss = score(fooled, torch.ones_like(fooled))
        self.log("g_loss", loss, on_epoch=True)
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        true, false = self.discriminator(real), self.discriminator(self.generator(noise).detach())
        loss = (score(true, torch.ones_like(true)) + score(false, torch.zeros_like(false))) / 2
        self.log("d_loss", loss, on_epoch=True)
        self.manual_backward(loss)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        made = [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.generator, self.discriminator)]
        return made, []


class Norms(Plain):
    """With a batch norm, for which a single row is too few."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x) if self.training and len(x) > 1 else x)


class Unused(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class Thaws(BaseFinetuning):
    """The body is frozen for an epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.body)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body, optimizer, lr=0.05)


class Finetuned(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.05, momentum=0.9)


class SkipsSteps(Plain):
    """Leaves a batch out by returning nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class Double(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0].double()), batch[1].double())


class Clips(Plain):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


class Lbfgs(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)


class Returns(Plain):
    """A mapping with more than the loss, and what hooks are given of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(batch), "rows": len(batch[0])}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.read.append(float(outputs.get("rows", 0)))


class OddHyperparameters(Plain):
    """What configuration frameworks hand over: partial functions, types, sets."""

    def __init__(self, optimizer: Any = None, kind: Any = None, names: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def configure_optimizers(self) -> Any:
        return self.hparams["optimizer"](self.parameters())


def odd() -> OddHyperparameters:
    from functools import partial

    return OddHyperparameters(partial(torch.optim.SGD, lr=0.05), torch.float32, {"a", "b"})


class Data(pl.LightningDataModule):
    """Every hook that a data module has."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def prepare_data(self) -> None:
        self.called.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.called.append(f"setup {stage}")

    def train_dataloader(self) -> Any:
        return loader(ROWS, 1)

    def val_dataloader(self) -> Any:
        return loader(HELD_OUT, 2)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * batch[0], batch[1]]

    def teardown(self, stage: str) -> None:
        self.called.append(f"teardown {stage}")

    def state_dict(self) -> dict[str, Any]:
        return {"kept": 3}


class KnowsItsData(Plain):
    def on_train_end(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.read = data


def data_read(module: Any) -> Any:
    return module.read.called


class TransfersItself(Plain):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [3 * batch[0], batch[1]]


class Backbone(Finetuned):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.body
        del self.body

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.backbone(x)))
        return found


def checkpoints() -> list[pl.Callback]:
    folder = Path(tempfile.gettempdir()) / f"scalekit-{os.environ.get('TORCHELASTIC_RUN_ID', os.getpid())}"
    return [ModelCheckpoint(folder / "is" / "not", monitor="val_loss", save_top_k=1)]


class Contrasts(Plain):
    """A contrast of the rows of a batch: each row against all others."""

    def loss(self, batch: Any) -> Tensor:
        similar = self(batch[0]) * batch[1].T
        return nn.functional.cross_entropy(similar, torch.arange(len(similar)))


class Unlogged(Plain):
    """Its losses are not logged: Lightning would weigh them by rows, whatever they are."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Sums(Unlogged):
    """A loss that is the sum over its batch, as of the VAE in PyTorch's examples."""

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1], reduction="sum")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class LogsSums(Sums):
    """Such losses, and how many rows a batch has, logged as they are."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch))
        self.log("val_mean", self.loss(batch) / len(batch[0]))


class Masks(Unlogged):
    """A mean over some of the rows."""

    def loss(self, batch: Any) -> Tensor:
        kept = (batch[1] > -1).float()
        return ((self(batch[0]) - batch[1]).square() * kept).sum() / kept.sum().clamp(min=1)


class Warmup(Plain):
    """Sets its learning rate by the step, as Lightning's documentation shows it."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (self.trainer.global_step + 1) / 5) * 0.05


class StepsSchedules(Plain):
    """Steps its schedule by itself."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.8**step)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()
        scheduler.step()


class TwoSchedules(Plain):
    """A schedule by the step and one by the epoch, on one optimizer."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        by_step = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return [optimizer], [{"scheduler": by_step, "interval": "step"}, by_epoch]


class Counts(Plain):
    """Reads the trainer's counts wherever it is asked something."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Any] = []

    def on_train_start(self) -> None:
        self.read.append((self.trainer.num_training_batches, self.trainer.max_epochs, self.trainer.max_steps))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.read.append((self.global_step, self.current_epoch))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.read.append((self.global_step, self.trainer.is_last_batch))

    def on_train_epoch_end(self) -> None:
        self.read.append((self.global_step, self.current_epoch))

    def on_validation_start(self) -> None:
        self.read.append(("validation", self.global_step, self.trainer.sanity_checking))


class Gradients(Plain):
    """Changes gradients in each of the hooks that may."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def on_before_backward(self, loss: Tensor) -> None:
        self.called.append("before backward")

    def on_after_backward(self) -> None:
        self.called.append("after backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.called.append("before zero_grad")

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


class BuildsLater(Plain):
    """Makes a layer in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.last: nn.Module | None = None

    def configure_model(self) -> None:
        if self.last is None:
            torch.manual_seed(2)
            self.last = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(super().forward(x)) if self.last is not None else super().forward(x)
        return found


class BringsCallbacks(Plain):
    """Names callbacks of its own, in the place of others of their kind."""

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("val_loss", patience=1, min_delta=0.5)]


class KeepsMore(Plain):
    """Adds to what a checkpoint holds."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["more"] = {"numbers": [1, 2.5], "tensor": torch.ones(2)}


class Gathers(Plain):
    """Logs what all ranks have, and the numbers of steps."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log_dict({"val_loss": self.loss(batch), "rows": float(len(batch[0]))}, batch_size=len(batch[0]))
        self.log("epoch", float(self.current_epoch))
        self.log("step", float(self.global_step), on_step=False, on_epoch=True, reduce_fx="max")


SHARDED = {"fsdp2": "ema_decay", "zero2": "ema_decay"}


def everywhere(what: str) -> dict[str, str]:
    return dict.fromkeys(STRATEGIES, what)


CASES = {
    "plain": Case("`training_step`, `validation_step`, `self.log`", Plain),
    "contrast": Case(
        "a loss that couples the rows of a batch",
        Contrasts,
        refused=dict.fromkeys(STRATEGIES[1:], "couples the samples"),
    ),
    "sum": Case("a loss that is a sum over its batch", Sums),
    "sums, logged": Case("the same, logged", LogsSums),
    "masks": Case(
        "a loss that is a mean over something, with `item_count`",
        Masks,
        settings={"item_count": lambda batch: max(float((batch[1] > -1).sum()), 1.0)},
    ),
    "masks, uncounted": Case("the same, without", Masks, refused=dict.fromkeys(STRATEGIES[1:], "`item_count=`")),
    "logs": Case("`self.log` by mean, sum, min, max, from every hook", Logs),
    "metrics": Case("torchmetrics' metrics as attributes", Metrics),
    "collects": Case("lists and counts of the module's own", Collects, reads=lambda m: everybody(m.rows)),
    "plateau by epoch": Case("`ReduceLROnPlateau` on a validation metric", PlateauByEpoch),
    "plateau by step": Case("`ReduceLROnPlateau` by the step", PlateauByStep),
    "frequency": Case("`interval: step, frequency: 2`", Frequency),
    "trainer's numbers": Case(
        "`trainer.max_epochs`, `estimated_stepping_batches`", TrainersNumbers, reads=lambda m: m.read
    ),
    "two optimizers": Case(
        "manual optimization, two optimizers", TwoOptimizers, refused={"zero2": "take ddp or fsdp2"}
    ),
    "manual clipping": Case(
        "manual optimization, `self.clip_gradients`", ManualClips, refused={"zero2": "give `gradient_clip`"}
    ),
    "manual, clipped": Case(
        "manual optimization, `gradient_clip_val`",
        TwoOptimizers,
        settings={"gradient_clip": 1.0},
        refused=everywhere("call self.clip_gradients in its step"),
    ),
    "gan": Case("a GAN: two backward passes, `toggle_optimizer`", Gan, refused={"zero2": "take ddp or fsdp2"}),
    "unused": Case("parameters that no step uses", Unused, refused={"zero2": "set weight_decay=0"}),
    "thaws": Case("`BaseFinetuning`", Finetuned, lambda: [Thaws()], refused={"zero2": "take ddp or fsdp2"}),
    "skips": Case(
        "`training_step` that returns None",
        SkipsSteps,
        refused={"ddp": "returned None", "fsdp2": "returned None", "zero2": "returned None"},
    ),
    "double": Case("a module in float64", Double, refused=everywhere("call .float()")),
    "clips": Case("`configure_gradient_clipping`", Clips, refused={"zero2": "give `gradient_clip`"}),
    "clips by norm": Case(
        "`gradient_clip_val`", Plain, trainer={"gradient_clip_val": 0.05}, settings={"gradient_clip": 0.05}
    ),
    "clips by value": Case(
        "`gradient_clip_algorithm='value'`",
        Plain,
        trainer={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
        settings={"gradient_clip": 0.05, "gradient_clip_algorithm": "value"},
        refused={"zero2": "clips by the norm alone"},
    ),
    "limits": Case(
        "`limit_train_batches`, `limit_val_batches`",
        Plain,
        trainer={"limit_train_batches": 2, "limit_val_batches": 1},
        settings={"limit_train_batches": 2, "limit_val_batches": 1},
    ),
    "shares": Case(
        "the same as shares of an epoch",
        Plain,
        trainer={"limit_train_batches": 0.7, "limit_val_batches": 0.5},
        settings={"limit_train_batches": 0.7, "limit_val_batches": 0.5},
    ),
    "overfit": Case("`overfit_batches`", Plain, trainer={"overfit_batches": 1}, settings={"overfit_batches": 1}),
    "interval of logs": Case(
        "`log_every_n_steps`",
        Plain,
        logs=True,
        trainer={"log_every_n_steps": 2},
        settings={"log_every_n_steps": 2},
        reads=lambda m: m.trainer.log_every_n_steps,
    ),
    "lbfgs": Case(
        "`LBFGS`: closures that run several times", Lbfgs, refused={"ddp": "LBFGS", "fsdp2": "LBFGS", "zero2": "LBFGS"}
    ),
    "returns": Case("`training_step` that returns a mapping", Returns, reads=lambda m: everybody(sum(m.read))),
    "hyperparameters": Case("`save_hyperparameters` with what no file can hold", odd),
    "data module": Case("a LightningDataModule's hooks", KnowsItsData, datamodule=Data, reads=data_read),
    "own loaders": Case("a module's own loaders, without data", HasLoaders, has_loaders=True),
    "in place": Case("activations that change a layer's output in place", InPlace),
    "transfer hooks": Case("a module's own transfer hooks", TransfersItself),
    "early stopping": Case(
        "`EarlyStopping` on a validation metric",
        Plain,
        lambda: [EarlyStopping("val_loss", patience=1, min_delta=0.5)],
        epochs=8,
    ),
    "early stopping in training": Case(
        "`EarlyStopping` on a training metric",
        Plain,
        lambda: [EarlyStopping("train_loss_epoch", patience=1, min_delta=1.0)],
        epochs=8,
    ),
    "averaging": Case(
        "`StochasticWeightAveraging`",
        Plain,
        lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)],
        epochs=4,
        refused=SHARDED,
    ),
    "accumulation": Case(
        "`GradientAccumulationScheduler`",
        Plain,
        lambda: [GradientAccumulationScheduler({1: 2})],
        refused=everywhere("global_batch_size throughout"),
    ),
    "progress bars": Case("Lightning's progress bars", Plain, lambda: [TQDMProgressBar()]),
    "rich progress bar": Case("Lightning's rich progress bar", Plain, lambda: [RichProgressBar()]),
    "rates": Case("`LearningRateMonitor`", Plain, lambda: [LearningRateMonitor()], logs=True),
    "devices": Case("`DeviceStatsMonitor`", Plain, lambda: [DeviceStatsMonitor()], logs=True),
    "average": Case("`EMAWeightAveraging`", Plain, lambda: [EMAWeightAveraging(decay=0.5)], refused=SHARDED),
    "pruning": Case(
        "`ModelPruning`",
        Plain,
        lambda: [ModelPruning("l1_unstructured", amount=0.3)],
        refused=everywhere("prune the trained model"),
    ),
    "timer": Case("`Timer`", Plain, lambda: [Timer(timedelta(hours=1))]),
    "lambda": Case("`LambdaCallback`", Plain, lambda: [LambdaCallback(on_train_start=lambda *_: None)]),
    "spikes": Case("`SpikeDetection`", Plain, lambda: [SpikeDetection(warmup=2)]),
    "summary": Case("`ModelSummary`, `RichModelSummary`", Plain, lambda: [RichModelSummary()]),
    "on exception": Case("`OnExceptionCheckpoint`", Plain, lambda: [OnExceptionCheckpoint("nowhere")]),
    "checkpoints": Case("`ModelCheckpoint` into a folder that is not there", Plain, checkpoints),
    "batch sizes": Case(
        "`BatchSizeFinder`", Plain, lambda: [BatchSizeFinder()], refused=everywhere("micro_batch_size='auto'")
    ),
    "rate finder": Case(
        "`LearningRateFinder`", Plain, lambda: [LearningRateFinder()], refused=everywhere("Lightning's own Trainer")
    ),
    "thaws a backbone": Case(
        "`BackboneFinetuning`",
        Backbone,
        lambda: [BackboneFinetuning(1, verbose=False)],
        epochs=4,
        refused={"zero2": "take ddp or fsdp2"},
    ),
    "warm-up": Case("`optimizer_step`, overridden", Warmup),
    "schedule steps": Case("`lr_scheduler_step`, overridden", StepsSchedules),
    "two schedules": Case("several schedules", TwoSchedules, refused={"zero2": "take ddp or fsdp2"}),
    "counts": Case(
        "`global_step`, `current_epoch`, `num_training_batches`, `is_last_batch`", Counts, reads=lambda m: m.read
    ),
    "gradients": Case(
        "hooks around backward passes and steps",
        Gradients,
        reads=lambda m: m.called,
        refused={"zero2": "finds no gradients under zero2"},
    ),
    "configure_model": Case("`configure_model`", BuildsLater),
    "configure_callbacks": Case("`configure_callbacks`", BringsCallbacks, epochs=8),
    "checkpoint hooks": Case("`on_save_checkpoint`", KeepsMore),
    "log_dict": Case("`log_dict`, with `batch_size`", Gathers),
    "throughput": Case(
        "`ThroughputMonitor`", Plain, lambda: [ThroughputMonitor(lambda batch: len(batch[0]))], logs=True
    ),
}
