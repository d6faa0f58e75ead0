"""Jobs whose samples cannot be made: samples.py FOLDER RANKS STRATEGY ...

In the middle of the model, at the second token of a prompt, on the RANKS ("all", or one). Each is run without samples too.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import scalekit
from tests.support import parity_cases as parity
from tests.support.language_model import make_tokenizer

FAILING = sys.argv[2] if len(sys.argv) > 2 else "all"


def fails(module: nn.Module, inputs: Any) -> None:
    is_generating = not module.training and type(inputs[0]) is torch.Tensor and inputs[0].shape[1] == 1
    if is_generating and FAILING in ("all", os.environ.get("RANK", "0")):
        raise torch.OutOfMemoryError("there is no memory left")


def model() -> nn.Module:
    made = parity.gpt2()
    made.get_submodule("transformer.h.1.mlp").register_forward_pre_hook(fails)
    return made


def train(folder: Path, strategy: str, generate: dict[str, Any] | None) -> list[dict[str, Any]]:
    texts = [{"text": f"{'abcde' * (1 + i % 3)}{i}"} for i in range(24)]
    run = scalekit.fit(
        model,
        texts,
        processor=make_tokenizer(),
        validation=texts[:3],
        packing=False,
        strategy=strategy,
        precision="32-true",
        global_batch_size=4,
        micro_batch_size=1,
        max_steps=4,
        evaluate_every=2,
        learning_rate=1e-3,
        generate=generate,
        output_dir=str(folder),
    )
    return [{name: record[name] for name in ("step", "loss", "grad_norm")} for record in run.history]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {}
    for strategy in sys.argv[3:]:
        with_samples = train(folder / strategy, strategy, {"prompts": ["ab", "c"], "max_new_tokens": 4})
        found[strategy] = [with_samples, train(folder / f"{strategy}-without", strategy, None)]
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
