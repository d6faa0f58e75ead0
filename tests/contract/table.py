"""The contract with Lightning as a page: `python -m tests.contract.table` writes it from the cases that the tests run."""

from __future__ import annotations

from pathlib import Path

from tests.contract.case import STRATEGIES, Case
from tests.contract.cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "lightning.md"

_HEAD = """# What of Lightning works, and under which strategy

Each row is a test (`tests/contract`). It trains a job by Lightning's own Trainer on one process, and by ScaleKit: `single` on
one process, the others on two, with a last batch that leaves one of them without rows.

- **equal**: weights, logged values, evaluations and learning rates are those of Lightning's Trainer, to 1e-5.
- **refused**: one error, before any training unless the module alone can tell. It names what to do instead.

There is no third kind. What `run.validate`, `run.test` and `run.predict` give is compared in the same way, and what a
`BasePredictionWriter` is told, by `tests/distributed/test_evaluated.py`, under zero3 too.

"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| {' | '.join(('asks for', *STRATEGIES))} |",
        f"|{'---|' * (1 + len(STRATEGIES))}",
        *(f"| {' | '.join((case.asks, *(_cell(case, each) for each in STRATEGIES)))} |" for case in CASES.values()),
    ]
    cells = [_cell(case, each) for case in CASES.values() for each in STRATEGIES]
    count = f"{len(cells)} cells: {cells.count('equal')} equal, {cells.count('refused')} refused.\n"
    return _HEAD + "\n".join(rows) + "\n\n" + count


def _cell(case: Case, strategy: str) -> str:
    return "refused" if strategy in case.refused else "equal"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
