"""What a language model's loss needs in parts of its logits against whole ones: memory and time of a step on a CPU.

Each way runs in a process of its own, in turns; a round gives one ratio of each, and their medians with the spread are printed.
Memory is what the process takes beyond what it took before its first step. Run it on an idle machine:
python tests/benchmarks/head_loss.py [--rounds 5] [--words 150000]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import transformers

from scalekit.objectives.model_loss import ModelLoss
from scalekit.utils.host_memory import kept_when_freed

STEPS = 4


def measured(how: str, words: int) -> dict[str, float]:
    """Seconds of a usual step, and bytes."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(5, words, (4, 512))
    objective = ModelLoss.of(model, in_parts=how == "parts")
    before, seconds = peak_bytes(), []
    with kept_when_freed():
        for _ in range(STEPS):
            start = time.perf_counter()
            objective.mean_loss(model, {"input_ids": ids, "labels": ids}).backward()
            model.zero_grad()
            seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak_bytes() - before}


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=150_000)
    parser.add_argument("--how", choices=("parts", "whole"))
    asked = parser.parse_args()
    if asked.how:
        print(json.dumps(measured(asked.how, asked.words)))
        return
    ratios: dict[str, list[float]] = {"seconds": [], "bytes": []}
    for _ in range(asked.rounds):
        command = [sys.executable, __file__, "--words", str(asked.words), "--how"]
        found = {how: json.loads(subprocess.check_output([*command, how])) for how in ("parts", "whole")}
        for name, each in ratios.items():
            each.append(found["parts"][name] / found["whole"][name])
    for name, each in ratios.items():
        print(f"{name}: {statistics.median(each):.2f} of whole logits ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    main()
