"""What type checkers see of the public functions. mypy, which `make lint` runs, refuses to ignore an error that is none."""

from typing import Any

import scalekit


def names_and_choices_are_known(model: Any, rows: Any) -> None:
    run = scalekit.fit(model, rows, "causal-lm", max_steps=3, precision="bf16-mixed", packing=True, keep_best="loss")
    print(run.folder.name, run.history[-1]["loss"])
    forecast = scalekit.plan(model, "8xH100-80GB", sequence_length=4096, global_batch_size=64)
    print(forecast.task.hardware.world_size)


def what_is_wrong_is_found(model: Any, rows: Any) -> None:
    scalekit.fit(model, rows, max_step=3)  # type: ignore[call-arg]
    scalekit.fit(model, rows, memory_check="prob")  # type: ignore[arg-type]
    scalekit.fit(model, rows, max_steps="many")  # type: ignore[arg-type]
    scalekit.fit(model, rows, "causal")  # type: ignore[arg-type]
    scalekit.plan(model, precision="bf16")  # type: ignore[arg-type]
    scalekit.plan(model, max_steps=3)  # type: ignore[call-arg]
