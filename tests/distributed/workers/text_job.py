"""A text job as users run it, tracked in Weights & Biases: text_job.py STRATEGY MODEL FOLDER"""

import sys
from pathlib import Path

import scalekit
from tests.distributed.workers.parity import Capture
from tests.support.language_model import conversations

if __name__ == "__main__":
    strategy, model, folder = sys.argv[1:]
    scalekit.fit(
        model,
        conversations(30),
        validation=0.2,
        loss_on="completions",
        strategy=strategy,
        precision="32-true",
        global_batch_size=8,
        micro_batch_size=1,
        max_epochs=2,
        learning_rate=1e-2,
        evaluate_every=2,
        seed=4,
        logger="wandb",
        callbacks=[Capture(Path(folder))],
        output_dir=str(Path(folder) / "run"),
    )
