"""Data and models as people bring them: the loss is that of bare transformers, in any micro-batches, on any ranks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import scalekit
from scalekit.errors import ScaleKitError
from tests.corpus import labelled, texts, weights
from tests.corpus.case import Case
from tests.support import processes
from tests.support.matrix import Part, parts

CASES = {**texts.CASES, **labelled.CASES, **weights.CASES}
USABLE = [name for name, case in CASES.items() if not case.refused]


def first_loss(case: Case, folder: Path, strategy: str, micro_batch_size: int) -> float:
    """Of the first step, which has all rows; a micro-batch of 0 is a rank's whole share."""
    run = scalekit.fit(
        case.given(folder),
        case.data(folder),
        strategy=strategy,
        precision="32-true",
        global_batch_size=case.rows,
        micro_batch_size=micro_batch_size or "auto",
        max_steps=1,
        num_workers=0,
        output_dir=str(folder / f"{strategy}-{micro_batch_size}"),
        **case.settings,
    )
    loss: float = run.history[0]["loss"]
    return loss


@pytest.mark.parametrize(
    ("name", "micro_batch_size"),
    [
        pytest.param(
            name, size, marks=pytest.mark.long if size else [], id=f"{name}-{'one by one' if size else 'whole'}"
        )
        for name in USABLE
        for size in (0, 1)
    ],
)
def test_the_loss_is_that_of_bare_transformers(name: str, micro_batch_size: int, tmp_path: Path) -> None:
    """One by one it is tried on two ranks below; alone, only by `make test-all`."""
    case = CASES[name]
    assert first_loss(case, tmp_path, "single", micro_batch_size) == pytest.approx(case.expected(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in USABLE])
def test_what_cannot_be_trained_is_refused(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(ScaleKitError, match=case.refused) as refusal:
        scalekit.fit(case.given(tmp_path), case.data(tmp_path), max_steps=1, **case.settings)
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Part], dict[str, float | str]]:
    """The loss of some cases on two processes, or what was said."""

    def run(part: Part) -> dict[str, float | str]:
        folder = tmp_path_factory.mktemp("corpus")
        for name in part.cells:
            place = folder / str(USABLE.index(name))
            place.mkdir()
            CASES[name].given(place)
            CASES[name].data(place)
        return processes.found("corpus", folder, "ddp", int(part.column != "whole"), *part.cells)

    return cache(run)


@pytest.mark.parametrize(("part", "name"), parts(USABLE, {"one by one": USABLE[::2], "whole": []}))
def test_two_ranks_have_the_same_loss(
    part: Part, name: str, on_two_ranks: Callable[[Part], dict[str, float | str]]
) -> None:
    assert on_two_ranks(part)[name] == pytest.approx(CASES[name].expected(), rel=1e-5)
