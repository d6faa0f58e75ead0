"""Under one strategy: nothing dropped, the same run after a resume, folders that open, types as promised.

promises.py STRATEGY FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import nn
from torchmetrics.classification import MulticlassF1Score

import scalekit
from tests.distributed.workers import adapter
from tests.distributed.workers.oracle import train
from tests.distributed.workers.parity import OwnModule
from tests.support import parity_cases as parity
from tests.support.nodes import as_nodes

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
ROWS = 10 * WORLD_SIZE
"""Ten micro-batches of one row an epoch and rank."""


class OneWeightARow(nn.Module):
    """A row's loss is a weight of its own, so that every row leaves a mark of its own."""

    built_empty = False

    def __init__(self) -> None:
        super().__init__()
        OneWeightARow.built_empty = torch.empty(0).is_meta
        self.weights = nn.Parameter(torch.zeros(ROWS))
        self.offset = nn.Parameter(torch.zeros(1))  # a parameter smaller than the number of ranks

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return self.weights[row].mean() + 0 * self.offset.sum()


class Final(Callback):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps = trainer.global_step
        schedules = trainer.lr_scheduler_configs
        self.schedule_steps = schedules[0].scheduler.last_epoch


def saved_weights(run: scalekit.Run) -> dict[str, torch.Tensor]:
    """Of a plain module, as its last checkpoint has them."""
    return load_file(run.checkpoint / "model" / "model.safetensors")


def nothing_dropped(strategy: str, folder: Path) -> dict[str, Any]:
    final = Final()
    run = scalekit.fit(
        OneWeightARow,
        [{"row": i} for i in range(ROWS)],
        strategy=strategy,
        activation_checkpointing=False,
        precision="32-true",
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        lr_schedule="constant",
        gradient_clip=None,
        global_batch_size=4 * WORLD_SIZE,
        micro_batch_size=1,
        max_epochs=3,
        seed=parity.SEED,
        callbacks=[final],
        output_dir=str(folder / "dropped"),
    )
    weights = saved_weights(run)["weights"].tolist()
    samples = [h["samples"] for h in run.history]
    built_empty: list[Any] = [None] * WORLD_SIZE
    torch.distributed.all_gather_object(built_empty, OneWeightARow.built_empty)
    return {
        "built_empty": built_empty,
        "weights": weights,
        "steps": final.steps,
        "schedule": final.schedule_steps,
        "samples": samples,
    }


def resumed(strategy: str, folder: Path) -> None:
    """The oracle's job, as a whole; stopped in the middle of an epoch; and where one ends."""
    for name, ends in (("whole", (20,)), ("middle", (7, 13, 20)), ("end", (5, 15, 20))):
        for until in ends:
            train(folder / name, strategy, until)


class FrozenAndBuffered(nn.Module):
    """A frozen layer, and buffers of both kinds that start with a value of each rank's own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained, self.unit = nn.Linear(6, 16), nn.Linear(16, 2), nn.Linear(2, 1)
        self.frozen.requires_grad_(False)
        self.register_buffer("kept", torch.full((3,), float(RANK + 1)))
        self.register_buffer("hidden", torch.full((3,), float(RANK + 1)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(self.trained(self.frozen(x)) * self.kept[0] * self.hidden[0])


def frozen_and_buffers(strategy: str, folder: Path) -> dict[str, Any]:
    """A module that every rank has built already, each with buffers of its own: rank 0's count."""
    torch.manual_seed(RANK)
    model = FrozenAndBuffered()
    before = model.frozen.weight.tolist()
    run = scalekit.fit(
        model,
        [{"x": row["x"], "y": row["y"][:1]} for row in parity.number_rows()],
        loss=nn.MSELoss(),
        strategy=strategy,
        precision="32-true",
        global_batch_size=8,
        max_steps=2,
        output_dir=str(folder / "frozen"),
    )
    hidden: list[Any] = [None] * WORLD_SIZE
    torch.distributed.all_gather_object(hidden, (model.hidden.tolist(), model.kept.tolist()))
    after = {name: value.tolist() for name, value in saved_weights(run).items()}
    return {"before": before, "after": after, "buffers": hidden, "losses": [h["loss"] for h in run.history]}


class Normed(nn.Module):
    """A batch norm, a buffer that each forward pass in training changes, one that later ones do, and a rank's own cache."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.register_buffer("seen", torch.zeros(6))
        self.register_buffer("late", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.mul_(0.9).add_(x.mean(0))
            self.passes += 1
            if self.passes > 1:
                self.late.add_(x.mean())
            self.cache = torch.zeros(10 + RANK)
        return self.last(self.norm(self.first(x) + self.seen.sum()))


def changing_buffers(strategy: str, folder: Path) -> dict[str, Any]:
    """What ranks hold after training, and what the model that is saved makes of the validation set."""
    rows = parity.number_rows()
    model = Normed()
    run = scalekit.fit(
        model,
        rows[:16],
        validation=rows[16:],
        loss=nn.MSELoss(),
        strategy=strategy,
        precision="32-true",
        global_batch_size=8,
        micro_batch_size=4,
        max_steps=3,
        evaluate_every=2,
        learning_rate=0.1,
        output_dir=str(folder / "buffers"),
    )
    held: list[Any] = [None] * WORLD_SIZE
    own = {name: buffer.tolist() for name, buffer in model.named_buffers() if name != "cache"}
    torch.distributed.all_gather_object(held, own)
    if RANK:
        return {}
    saved = Normed().eval()
    saved.load_state_dict(saved_weights(run))
    x, y = (torch.tensor([row[column] for row in rows[16:]]) for column in ("x", "y"))
    return {
        "held": held,
        "evaluated": run.evaluations[-1]["loss"],
        "expected": nn.functional.mse_loss(saved(x), y).item(),
        "losses": [record["loss"] for record in run.history],
    }


def few_held_out(strategy: str, folder: Path) -> dict[str, Any]:
    """Less micro-batches of the validation set than ranks, with metrics that keep what they have seen."""
    rows = [{"x": row["x"], "y": i % 2} for i, row in enumerate(parity.number_rows())]
    metrics = {"area": {"class": "AUROC", "task": "multiclass", "num_classes": 2}, "f1": MulticlassF1Score(2)}
    found = []
    for given in (None, metrics):
        run = scalekit.fit(
            nn.Linear(6, 2),
            rows[3:],
            validation=rows[:3],
            loss=nn.CrossEntropyLoss(),
            strategy=strategy,
            precision="32-true",
            global_batch_size=8,
            micro_batch_size=4,
            max_steps=1,
            metrics=given,
            output_dir=str(folder / f"few-{given is None}"),
        )
        found.append(run.evaluations[-1])
    return {"usual": found[0], "given": found[1]}


def adapted(strategy: str, folder: Path) -> None:
    """An adapter, with layers trained beside it: without a stop, and stopped after step 2."""
    for name, ends in (("adapter", (4,)), ("adapter-resumed", (2, 4))):
        for until in ends:
            adapter.train(strategy, folder / name, until)


class ByHand(pl.LightningModule):
    """A LightningModule that steps its optimizer by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.layer = nn.Linear(6, 2)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.mse_loss(self.layer(batch["x"]), batch["y"]))
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Meetings(Callback):
    """What ranks tell each other in the third of four micro-batches; in earlier ones DeepSpeed looks how the model runs."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self._seen = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._seen.start()
        elif batch_idx == 2:
            self._seen.stop()
            self.found = sorted(each.key for each in self._seen.key_averages() if each.key.startswith("c10d::"))


def meetings(strategy: str, folder: Path) -> list[str]:
    seen = Meetings()
    scalekit.fit(
        nn.Linear(6, 2),
        parity.number_rows(),
        loss=nn.MSELoss(),
        strategy=strategy,
        precision="32-true",
        global_batch_size=4 * WORLD_SIZE,
        micro_batch_size=1,
        max_steps=1,
        callbacks=[seen],
        output_dir=str(folder / "meetings"),
    )
    return seen.found


def own_trainer(strategy: str) -> dict[str, Any]:
    """`scalekit.strategy` in a Lightning Trainer of the user's own."""
    trainer = pl.Trainer(
        strategy=scalekit.strategy(strategy, precision="32-true"),
        accelerator="cpu",
        devices=WORLD_SIZE,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = OwnModule()
    loader = torch.utils.data.DataLoader(parity.number_rows(), collate_fn=parity.collate, batch_size=5)
    trainer.fit(module, loader)
    return {"steps": trainer.global_step, "expected": -(-parity.ROWS // WORLD_SIZE // 5)}


def by_hand(strategy: str, folder: Path) -> dict[str, Any]:
    run = scalekit.fit(
        ByHand(),
        torch.utils.data.DataLoader(parity.number_rows(), collate_fn=parity.collate),
        strategy=strategy,
        precision="32-true",
        global_batch_size=4,
        max_steps=3,
        output_dir=str(folder / "by-hand"),
    )
    return {"steps": [h["step"] for h in run.history]}


class Types(Callback):
    """What the types really are, read off in the last step."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        linear = next(m for m in pl_module.modules() if isinstance(m, nn.Linear))
        linear.register_forward_hook(lambda _m, _i, output: setattr(self, "compute", output.dtype))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        engine = trainer.strategy
        inner = engine.shards.inner_optimizer(trainer.optimizers[0])
        moments = [v["exp_avg"].dtype for v in inner.state.values() if "exp_avg" in v]
        masters = [key.dtype for key in inner.state]
        zero = getattr(engine, "deepspeed_engine", None)
        is_zero = hasattr(zero, "communication_data_type")
        self.found = {
            "parameters": names(p.dtype for p in pl_module.parameters()),
            "master": names(masters),
            "compute": names([self.compute]),
            "reduction": names([zero.communication_data_type]) if is_zero else engine.precision_reduction,
            "optimizer_state": names(moments),
        }


def names(dtypes: Any) -> list[str]:
    return sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})


class Reduction(Callback):
    """The type of the gradients as they reach the optimizer, under engines of torch itself."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad.dtype for p in pl_module.parameters() if p.grad is not None]
        trainer.strategy.precision_reduction = names(grads)


def types(strategy: str, precision: str, folder: Path) -> dict[str, Any]:
    seen = Types()
    scalekit.fit(
        lambda: parity.llama(tied=True),
        torch.utils.data.DataLoader(parity.causal_rows(), collate_fn=parity.collate, shuffle=True),
        strategy=strategy,
        precision=precision,
        global_batch_size=8,
        micro_batch_size=4,
        max_steps=2,
        seed=parity.SEED,
        callbacks=[seen] if strategy.startswith("zero") else [Reduction(), seen],
        output_dir=str(folder / f"types-{precision}"),
    )
    plan = json.loads((folder / f"types-{precision}" / "plan.json").read_text())
    return {"found": seen.found, "promised": plan["dtypes"]}


if __name__ == "__main__":
    strategy, folder = sys.argv[1], Path(sys.argv[2])
    as_nodes(strategy)
    resumed(strategy, folder)
    adapted(strategy, folder)
    results = {
        "strategy": strategy,
        "dropped": nothing_dropped(strategy, folder),
        "frozen": frozen_and_buffers(strategy, folder),
        "few": few_held_out(strategy, folder),
        "changing": changing_buffers(strategy, folder),
        "meetings": meetings(strategy, folder),
        "own_trainer": own_trainer(strategy),
        "by_hand": by_hand(strategy, folder) if strategy == "ddp" else None,
        "types": {p: types(strategy, p, folder) for p in ("32-true", "bf16-mixed", "bf16-true")},
    }
    if RANK == 0:
        (folder / "results.json").write_text(json.dumps(results))
