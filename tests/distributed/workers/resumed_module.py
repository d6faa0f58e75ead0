"""Ends jobs of LightningModules in an epoch and at its end, and resumes them: resumed_module.py FOLDER STRATEGY."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import load_file

import scalekit
from tests.contract.case import HELD_OUT, ROWS, Observer, loader
from tests.contract.cases import Finetuned, Plain, PlateauByEpoch, Thaws, TwoOptimizers
from tests.support.legs import EndedError, Ends

STEPS = (4, 6)
"""An epoch has 3."""


class PlateauOfTraining(Plain):
    """Looks at the mean of an epoch of which a part was run before."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss_epoch"}}


JOBS: dict[str, tuple[Callable[[], pl.LightningModule], Callable[[], list[pl.Callback]]]] = {
    "plateau": (PlateauByEpoch, list),
    "plateau of training": (PlateauOfTraining, list),
    "thaws": (Finetuned, lambda: [Thaws()]),
    "two optimizers": (TwoOptimizers, list),
}


def train(folder: Path, name: str, strategy: str, *others: pl.Callback) -> dict[str, Any]:
    module, callbacks = JOBS[name]
    run = scalekit.fit(
        module(),
        loader(ROWS, 1),
        validation=loader(HELD_OUT, 2),
        strategy=strategy,
        precision="32-true",
        num_workers=0,
        max_epochs=5,
        checkpoint_every=1,
        callbacks=[*callbacks(), seen := Observer(), *others],
        output_dir=str(folder),
    )
    if run.checkpoint is None:
        raise RuntimeError("no checkpoint")
    state = {
        name: t.flatten().tolist()
        for p in (run.checkpoint / "model").glob("*.safetensors")
        for name, t in load_file(p).items()
    }
    told = [[record[name] for name in ("step", "learning_rate", "loss")] for record in run.history]
    evaluations = [each["val_loss"] for each in run.evaluations]
    return {"weights": state, "steps": told, "evaluations": evaluations, "epochs": seen.epochs}


def run(folder: Path, strategy: str) -> dict[str, list[dict[str, Any]]]:
    """Of each job, what came of it as a whole, and what where it ended after each of the steps and was resumed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in JOBS:
        found[name] = [train(folder / f"{name}-whole", name, strategy)]
        for step in STEPS:
            with suppress(EndedError):
                train(folder / f"{name}-{step}", name, strategy, Ends(step))
            found[name].append(train(folder / f"{name}-{step}", name, strategy))
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    made = run(place, sys.argv[2])
    if os.environ["RANK"] == "0":
        (place / "found.json").write_text(json.dumps(made))
