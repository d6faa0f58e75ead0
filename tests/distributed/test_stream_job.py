"""A job on a stream: the same numbers on any ranks, and from the middle of an epoch on."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.workers.stream_job import STEPS
from tests.support import language_model
from tests.support.processes import torchrun

SAME = ("step", "loss", "items", "samples", "grad_norm")
CASES = [("ddp", 2), ("fsdp2", 3)]
LONG = pytest.param("zero2", 2, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and texts in 4 files, which 3 ranks cannot share; one row is empty."""
    folder = tmp_path_factory.mktemp("stream")
    language_model.save_model(folder / "model")
    for shard in range(4):
        texts = ["abc def ghi"[: 3 + (5 * shard + 7 * i) % 9] for i in range(3 + 2 * shard)]
        rows = [{"text": text} for text in texts] + [{"text": ""}] * (shard == 2)
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def runs(files: Path) -> Callable[[str, int], dict[str, Any]]:
    """A strategy's jobs on so many ranks, run once."""

    @cache
    def found(strategy: str, ranks: int) -> dict[str, Any]:
        folder = files / f"{strategy}-{ranks}"
        torchrun("stream_job", strategy, files / "model", files / "*.jsonl", folder, nproc=ranks)
        skipped = [json.loads(line) for line in (folder / "plain" / "skipped_rows.jsonl").read_text().splitlines()]
        return json.loads((folder / "found.json").read_text()) | {"skipped": skipped}

    return found


def numbers(history: list[dict[str, Any]]) -> list[float]:
    return [record[name] for record in history for name in SAME]


@pytest.mark.parametrize(("strategy", "ranks"), [*CASES, LONG])
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_the_same_numbers_on_any_ranks(runs: Any, strategy: str, ranks: int, name: str) -> None:
    found, alone = runs(strategy, ranks)[name], runs("single", 1)[name]
    assert [record["step"] for record in found["whole"]] == list(range(1, STEPS + 1))
    assert numbers(found["whole"]) == pytest.approx(numbers(alone["whole"]), rel=1e-5)
    assert [e["loss"] for e in found["evaluations"]] == pytest.approx(
        [e["loss"] for e in alone["evaluations"]], rel=1e-5
    )


@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), *CASES, LONG])
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_from_a_checkpoint_on_come_the_rows_that_would_have_come(
    runs: Any, strategy: str, ranks: int, name: str
) -> None:
    found = runs(strategy, ranks)[name]
    assert numbers(found["rest"]) == pytest.approx(numbers(found["whole"][3:]), rel=1e-6)


def test_the_same_rows_are_skipped_and_listed(runs: Any) -> None:
    listed = [runs(strategy, ranks)["skipped"] for strategy, ranks in (("single", 1), *CASES)]
    assert listed == [[{"where": "row 7 of the stream's shard 2", "why": "'text' is empty"}]] * len(listed)
