"""Trains on a stream, and once more from a checkpoint in its middle: stream_job.py STRATEGY MODEL DATA FOLDER"""

import json
import sys
from pathlib import Path

import scalekit

STEPS = 7


def train(strategy: str, model: str, data: str, folder: Path) -> None:
    settings = {
        "validation": [{"text": "abc"}, {"text": "de"}, {"text": "fghi"}],
        "sequence_length": 24,
        "strategy": strategy,
        "precision": "32-true",
        "global_batch_size": 12,
        "micro_batch_size": 1,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "optimizer_options": {"eps": 1e-6},
        "shuffle_buffer_size": 5,
        "on_bad_row": "skip",
        "checkpoint_every": 3,
        "seed": 5,
    }
    found = {}
    for packing in (False, True):
        name = "packed" if packing else "plain"
        stream = {"path": data, "streaming": True}
        whole = scalekit.fit(model, stream, packing=packing, output_dir=str(folder / name), **settings)
        rest = scalekit.fit(
            model,
            stream,
            packing=packing,
            output_dir=str(folder / f"{name}-resumed"),
            resume=str(folder / name / "checkpoints" / "step-00000003"),
            **settings,
        )
        found[name] = {"whole": whole.history, "rest": rest.history, "evaluations": whole.evaluations}
    if whole.module.trainer.is_global_zero:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    strategy, model, data, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    train(strategy, model, data, Path(folder))
