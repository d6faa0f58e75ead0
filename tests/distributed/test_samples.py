"""Samples are a by-product: where they cannot be made the training continues, under shards too, and no rank waits."""

import json
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import WORKERS, run, torchrun

STRATEGIES = ("ddp", "zero3", "fsdp2")


def test_where_all_ranks_fail_the_training_goes_on(tmp_path: Path) -> None:
    said = torchrun("samples", tmp_path, "all", *STRATEGIES)
    for rank in range(2):
        for strategy, (found, expected) in json.loads((tmp_path / f"rank-{rank}.json").read_text()).items():
            assert found == expected, strategy
    warnings = [line for line in said.splitlines() if line.startswith("WARNING    generate")]
    assert len(warnings) == len(STRATEGIES), warnings  # by rank 0, and once a job
    assert all("failed: OutOfMemoryError: there is no memory left. The training continues" in each for each in warnings)


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("zero3", marks=pytest.mark.long)])
def test_where_one_rank_fails_alone_nobody_waits(strategy: str, tmp_path: Path) -> None:
    began = time.monotonic()
    said = run(
        [
            *(sys.executable, "-m", "scalekit", "launch", "--nproc=2", "--"),
            *(str(WORKERS / "samples.py"), str(tmp_path), "1", strategy),
        ],
        timeout_seconds=240,
        expect_failure=True,
    )
    assert "rank 1 failed alone while all ranks generated samples" in said
    assert time.monotonic() - began < 120
