"""DeepSpeed's accelerator of machines without one, for training: it needs no C++ compiler.

DeepSpeed's own compiles `deepspeed_shm_comm` for up to minutes as soon as there is a process group. It makes all-reduces of
inference faster (`inference_all_reduce`), which no training calls; where it is missing DeepSpeed takes gloo instead.
"""

from __future__ import annotations

from typing import Any, final

from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

_FOR_INFERENCE = "ShareMemCommBuilder"


@final
class Processors(CPU_Accelerator):  # type: ignore[misc]
    """DeepSpeed's own, without what only inference needs."""

    def create_op_builder(self, op_name: str) -> Any:
        return None if op_name == _FOR_INFERENCE else super().create_op_builder(op_name)


def use() -> None:
    """Has DeepSpeed take this one, where it would take its own."""
    if type(get_accelerator()) is CPU_Accelerator:
        set_accelerator(Processors())
