"""Holds the plan against what others have published for named hardware: each row, its error, and what is left out.

Nothing is run: `published.yaml` has the rows, with their sources. The last column is what a rank needs here, where logits are
never whole. Ends with the medians, of odd and of even rows apart.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import transformers
import yaml

from scalekit.api import plan
from scalekit.hardware import Hardware
from scalekit.objectives import head_loss
from scalekit.planning.candidate import Candidate

GIB = 2**30
CALLED = {"none": "", "selective": " SAC", "full": " AC"}
TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())


def config(row: dict[str, Any]) -> Any:
    """The configuration of a row's model, as long as its rows."""
    known = TABLE["models"][row["model"]]
    if known["kind"] == "gpt2":  # MPT has learned positions and GELU, as GPT-2 has
        return transformers.GPT2Config(
            n_embd=known["hidden"],
            n_layer=known["layers"],
            n_head=known["heads"],
            vocab_size=known["vocabulary"],
            n_positions=row["sequence"],
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        )
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[known["kind"]]
    return kind(
        hidden_size=known["hidden"],
        num_hidden_layers=known["layers"],
        num_attention_heads=known["heads"],
        num_key_value_heads=known["kv_heads"],
        intermediate_size=known["inner"],
        vocab_size=known["vocabulary"],
        max_position_embeddings=row["sequence"],
        tie_word_embeddings=known.get("tied", False),
    )


@contextmanager
def logits(how: str, cache: Path) -> Iterator[None]:
    """Has plans reckon with whole logits, or with parts of them; what is kept of either is kept apart."""
    parts = 1 if how == "whole" else head_loss.MOST_PARTS
    with (
        mock.patch.object(head_loss, "MOST_PARTS", parts),
        mock.patch.dict(os.environ, {"SCALEKIT_CACHE": str(cache / how)}),
    ):
        yield


def planned(row: dict[str, Any], folder: Path) -> Candidate:
    """The plan's one candidate for a row."""
    made = config(row)
    head = "LMHeadModel" if isinstance(made, transformers.GPT2Config) else "ForCausalLM"
    made.architectures = [type(made).__name__.removesuffix("Config") + head]
    made.save_pretrained(folder)
    hardware = Hardware.parse(row["hardware"])
    forecast = plan(
        str(folder),
        hardware,
        strategy=row["strategy"],
        precision=row.get("precision", "bf16-mixed"),
        micro_batch_size=row["micro"],
        global_batch_size=row["micro"] * row["steps"] * hardware.world_size,
        sequence_length=row["sequence"],
        activation_checkpointing=row.get("checkpointing", "none"),
    )
    (candidate,) = forecast.candidates
    return candidate


def errors(row: dict[str, Any], found: Candidate) -> dict[str, float]:
    """By how much the plan is off, as a share of what was published."""
    memory = found.memory
    # What a plan counts for the allocator and the context is no tensor's.
    own = memory.peak_bytes if "reserved" in row else memory.peak_bytes - memory.items["allocator_and_context"]
    off = {}
    if "seconds" in row:
        off["seconds"] = found.time.seconds / row["seconds"] - 1
    published = row.get("reserved", row.get("allocated"))
    if published is not None:
        off["memory"] = own / GIB / published - 1
    return off


def gib_of(found: Candidate) -> float:
    """What tensors take at the peak of a step."""
    return (found.memory.peak_bytes - found.memory.items["allocator_and_context"]) / GIB


def summary(name: str, found: Iterable[float]) -> str:
    sizes = sorted(abs(each) for each in found)
    if not sizes:
        return f"{name}: none"
    return f"{name}: median {statistics.median(sizes):.1%}, worst {sizes[-1]:.1%}, of {len(sizes)}"


def main(folder: Path) -> None:
    off: list[tuple[int, dict[str, float]]] = []
    left: list[str] = []
    head = f"{'row':>3} {'model':14} {'hardware':15} {'strategy':14} {'batch':>9}"
    print(f"{head} {'step s':>14} {'GiB a rank':>14} {'in parts':>8}")
    for number, row in enumerate(TABLE["rows"], start=1):
        name = f"{number:3} {row['model']:14} {row['hardware']:15} {row['strategy']:14}"
        if "why_not" in row:
            left.append(f"{name} {row['why_not']}")
            continue
        place, theirs = folder / row["model"] / str(row["sequence"]), row.get("logits", "whole")
        with logits(theirs, folder / "cache"):
            found = planned(row, place)
        with logits("parts", folder / "cache"):
            here = gib_of(planned(row, place))
        error = errors(row, found)
        off.append((number, error))
        gib = gib_of(found)
        seconds = (
            f"{found.time.seconds:6.2f} {error['seconds']:+7.1%}"
            if "seconds" in error
            else f"{found.time.seconds:6.2f}"
        )
        memory = f"{gib:6.1f} {error['memory']:+7.1%}" if "memory" in error else f"{gib:6.1f}"
        batch = f"{row['micro']}x{row['steps']}{CALLED[row.get('checkpointing', 'none')]}"
        print(f"{name} {batch:>9} {seconds:14} {memory:14} {here:8.1f}", flush=True)
    for kind in ("seconds", "memory"):
        for which, turn in (("odd rows", 1), ("even rows", 0)):
            print(summary(f"{kind}, {which}", (each[kind] for n, each in off if n % 2 == turn and kind in each)))
    print("\nCannot be expressed:", *left, sep="\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(place))
