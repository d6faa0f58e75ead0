"""Data and models as people bring them: the loss is that of bare transformers, in any micro-batches, on any ranks."""

from pathlib import Path

import pytest

import scalekit
from scalekit.errors import ScaleKitError
from tests.corpus import labelled, texts, weights
from tests.corpus.case import Case
from tests.support import processes

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


@pytest.fixture(scope="module", params=[pytest.param("whole", marks=pytest.mark.long), "one by one"])
def on_two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | str]:
    """The loss of every case on two processes, or what was said."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, case in enumerate(CASES.values()):
        (folder / str(number)).mkdir()
        case.given(folder / str(number))
        case.data(folder / str(number))
    return processes.found("corpus", folder, "ddp", int(request.param != "whole"))


@pytest.mark.parametrize("name", USABLE)
def test_two_ranks_have_the_same_loss(name: str, on_two_ranks: dict[str, float | str]) -> None:
    assert on_two_ranks[name] == pytest.approx(CASES[name].expected(), rel=1e-5)
