"""Importing is cheap, and the command line answers at once."""

import subprocess
import sys
import time
from pathlib import Path

HEAVY = ("torch", "deepspeed", "transformers", "wandb", "lightning", "datasets")


def seconds(command: list[str]) -> float:
    """The best of five: a bound on what the code costs, not on what else the machine does."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        best = min(best, time.perf_counter() - started)
    return best


def test_import_brings_nothing_heavy() -> None:
    code = f"import scalekit, sys; sys.exit(any(name in sys.modules for name in {HEAVY}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_import_takes_little() -> None:
    bare = seconds([sys.executable, "-c", "pass"])
    assert seconds([sys.executable, "-c", "import scalekit"]) - bare < 0.2


def test_help_answers_at_once() -> None:
    assert seconds([sys.executable, "-m", "scalekit", "--help"]) < 0.5


def test_public_names_exist() -> None:
    import scalekit

    for name in scalekit.__all__:
        assert getattr(scalekit, name) is not None
    assert callable(scalekit.fit)
    assert callable(scalekit.strategy)


ON_TENSORS = """
import sys, torch, scalekit
rows = torch.utils.data.TensorDataset(torch.ones(8, 1), torch.ones(8, 1))
scalekit.fit(torch.nn.Linear(1, 1), rows, loss=torch.nn.MSELoss(), global_batch_size=8, max_steps=1)
sys.exit(str([name for name in ("wandb", "deepspeed", "datasets", "peft") if name in sys.modules]))
"""


def test_a_job_on_tensors_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ON_TENSORS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]"
