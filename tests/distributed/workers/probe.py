"""A job that is tried out first, on ranks of which the last may not have the memory for it: one process of several."""

import importlib
import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

import scalekit
from scalekit.errors import DoesNotFitError

MEBIBYTE = 2**20


class Wide(nn.Module):
    """Needs `row_bytes` for each row of a micro-batch while it runs."""

    def __init__(self, row_bytes: int) -> None:
        super().__init__()
        self.weight = nn.Linear(8, 8)
        self.columns = row_bytes // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor and os.environ["RANK"] in os.environ.get("ASLEEP", ""):  # and not a fake one
            time.sleep(300)
        wide = self.weight(x)[:, :1] * torch.ones(1, self.columns)
        return wide.mean(1, keepdim=True)


def collator():
    """Torch's own; on the last rank one that cannot be given to another process, where the test wants that."""
    if os.environ.get("UNPICKLABLE") != os.environ["RANK"]:
        return default_collate
    unpicklable = (number for number in range(100))

    def collate(rows: list) -> list:
        next(unpicklable)
        return default_collate(rows)

    return collate


def outcome(check: str, micro_batch_size: int | str, folder: Path) -> dict:
    torch.manual_seed(0)
    rows = DataLoader([(torch.randn(8), torch.randn(1)) for _ in range(16)], collate_fn=collator())
    try:
        run = scalekit.fit(
            lambda: Wide(256 * MEBIBYTE),
            rows,
            loss=nn.MSELoss(),
            strategy="ddp",
            global_batch_size=8,
            micro_batch_size=micro_batch_size,
            max_steps=2,
            memory_check=check,
            output_dir=str(folder),
        )
    except DoesNotFitError as error:
        return {"error": str(error)}
    return {"plan": run.plan.as_dict(), "losses": [record["loss"] for record in run.history]}


def allocated_bytes() -> int:
    """By this process so far, as RLIMIT_DATA counts."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024


def main() -> None:
    folder, limit, size, *checks = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *sys.argv[4:]
    rank = int(os.environ["RANK"])
    if limit and rank == int(os.environ["WORLD_SIZE"]) - 1:
        importlib.import_module("scalekit.training.fit")  # what its processes take before they have done anything
        limit += allocated_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    found = [
        outcome(check, size if size == "auto" else int(size), folder / f"run-{number}")
        for number, check in enumerate(checks)
    ]
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
