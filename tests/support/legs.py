"""What a test's job notes of itself, and how it ends early."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class EndedError(Exception):
    """Ends a job as a kill would, within a process that goes on."""


class Ends(Callback):
    """Ends the job after a step; what it was writing then is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.step:
            trainer.strategy.finish_saving()
            raise EndedError


class NotesRows(Callback):
    """Notes which rows each step used, a file a rank; see `used`."""

    def __init__(self, folder: Path) -> None:
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.path, self.rows = folder / f"rows-{self.rank}.jsonl", []
        folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        micro = trainer.strategy.rows.micro
        self.rows += micro.rows if micro.items else ()
        if micro.last:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": micro.step, "ranks": self.ranks, "rows": self.rows}) + "\n")
            self.rows = []


def used(folder: Path) -> dict[int, list[int]]:
    """The rows that each step used, over all ranks; a step that came again used the same.

    Raises:
        AssertionError: it used others.
    """
    parts: dict[tuple[int, int], dict[str, list[int]]] = {}
    for path in sorted(folder.glob("rows-*.jsonl")):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            mine = parts.setdefault((said["step"], said["ranks"]), {}).setdefault(path.stem, said["rows"])
            assert mine == said["rows"], f"step {said['step']} came again with other rows"
    found: dict[int, list[int]] = {}
    for (step, ranks), shares in parts.items():
        if len(shares) == ranks:  # else some were killed before they had done it
            rows = sorted(row for share in shares.values() for row in share)
            assert found.setdefault(step, rows) == rows, f"step {step} has other rows on other ranks"
    return found
