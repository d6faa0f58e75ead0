"""The names that settings choose from, each list defined once. Nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal, get_args

OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["constant", "linear", "cosine", "wsd"]
PrecisionName = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
LossOn = Literal["all", "completions"]
OnBadRow = Literal["error", "skip"]
MemoryCheck = Literal["error", "probe", "warn"]
Checkpointing = Literal["none", "selective", "full"]
TaskName = Literal[
    "causal-lm",
    "masked-lm",
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "image-classification",
    "audio-classification",
    "image-text-to-text",
]

CHECKPOINTINGS: tuple[Checkpointing, ...] = get_args(Checkpointing)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
ON_BAD_ROW: tuple[OnBadRow, ...] = get_args(OnBadRow)
